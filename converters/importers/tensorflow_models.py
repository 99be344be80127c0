"""Owns TensorFlow's forms: SavedModel folders, TFLite files and Keras 3 archives; exported by tf2onnx or Keras itself.

SavedModels and Keras models name their inputs; the outputs of TFLite and Keras are `output`, or `output_0` and so on.
"""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from converters.errors import UnsafeModel, UsageFault
from converters.importers.code import name_outputs
from converters.importers.exchange import Array, Feeds
from converters.importers.graphs import keep_outputs, name_axes, rename_inputs
from converters.importers.protocol import Asked, Export
from converters.importers.steps import first_line

OPSET: Final = 18
#: Operators that touch files or run Python.
_REFUSED: Final = frozenset(
    {
        "ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc", "LoadLibrary",
        "SaveDataset", "SaveDatasetV2", "LoadDataset", "TextLineDataset", "TFRecordDataset", "FixedLengthRecordDataset",
        "Save", "SaveSlices", "DebugIdentity", "DebugIdentityV2", "PrintV2",
    }
)  # fmt: skip
_GRAPH_BYTES_MAX: Final = 2 << 30


def open_source(asked: Asked) -> "SavedSource | LiteSource | KerasSource":
    """Raises: UnsafeModel: operators that touch files or run code; UsageFault."""
    if asked.format == "savedmodel":
        return _open_saved(asked.source)
    if asked.format == "tflite":
        return LiteSource(asked.source)
    return _open_keras(asked.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """An input: `shape` with None for variable axes."""

    name: str
    dtype: Any
    shape: tuple[int | None, ...]

    @property
    def axes(self) -> tuple[int | str, ...]:
        names = ["batch", *(f"{self.name}_{place}" for place in range(1, len(self.shape)))]
        return tuple(names[place] if size is None else size for place, size in enumerate(self.shape))


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("tensorflow-cpu", "keras", "tf2onnx", "onnx")}


def _check_operators(folder: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / "saved_model.pb"
    if path.stat().st_size > _GRAPH_BYTES_MAX:
        raise UnsafeModel("too_large", f"saved_model.pb of {path.stat().st_size} bytes", next_step="split the model")
    message = saved_model_pb2.SavedModel()
    message.ParseFromString(path.read_bytes())
    for graph in message.meta_graphs:
        inner = (node for function in graph.graph_def.library.function for node in function.node_def)
        for node in (*graph.graph_def.node, *inner):
            if node.op in _REFUSED:
                text = f"the operator {node.op} ('{node.name[:60]}') touches files or runs code"
                raise UnsafeModel("operator", text, next_step="export the model without it")


def _open_saved(folder: Path) -> "SavedSource":
    import tensorflow as tf

    _check_operators(folder)
    loaded = tf.saved_model.load(str(folder))
    function = loaded.signatures.get("serving_default")
    if function is None:
        text = f"it has the signatures {sorted(loaded.signatures)[:5]}, none called serving_default"
        raise UsageFault("signature", text, next_step="save it with a default signature")
    specs = []
    for name, spec in function.structured_input_signature[1].items():
        if spec.shape.rank is None:
            raise UsageFault("rank", f"input '{name}' is of unknown rank", next_step="save it with a shape")
        specs.append(Spec(name=name, dtype=spec.dtype, shape=tuple(spec.shape)))
    return SavedSource(loaded, function, specs)


class SavedSource:
    def __init__(self, loaded: Any, function: Any, specs: Sequence[Spec]) -> None:
        #: Keeps the variables alive.
        self._loaded = loaded
        self._function = function
        self._specs = specs

    def versions(self) -> dict[str, str]:
        return _versions()

    def answer(self, feeds: Feeds) -> dict[str, Array]:
        import tensorflow as tf

        found = self._function(**{one.name: tf.constant(feeds[one.name]) for one in self._specs})
        return {name: value.numpy() for name, value in found.items()}

    def export(self, path: Path) -> Export:
        import tensorflow as tf
        import tf2onnx

        specs = [tf.TensorSpec(one.shape, one.dtype, name=one.name) for one in self._specs]

        def call(*values: Any) -> Any:
            return self._function(**{one.name: value for one, value in zip(self._specs, values, strict=True)})

        function = tf.function(call, input_signature=specs)
        model, _ = tf2onnx.convert.from_function(function, input_signature=specs, opset=OPSET)
        _finish(
            model, self._specs, {one.name: one.name for one in self._specs}, sorted(self._function.structured_outputs)
        )
        onnx.save_model(model, str(path))
        return Export(method="tf2onnx of the default signature")


def _finish(model: Any, specs: Sequence[Spec], inputs: Mapping[str, str], outputs: Sequence[str]) -> None:
    """Names of inputs, outputs and axes, as `answer` gives them."""
    rename_inputs(model, inputs)
    own = [value.name for value in model.graph.output]
    chosen = {name: name for name in outputs} if set(outputs) == set(own) else dict(zip(own, outputs, strict=True))
    keep_outputs(model, chosen)
    name_axes(model, {one.name: one.axes for one in specs})


class LiteSource:
    def __init__(self, path: Path) -> None:
        import tensorflow as tf

        self._path = path
        self._interpreter = tf.lite.Interpreter(model_path=str(path))
        details = self._interpreter.get_input_details()
        self._inputs = {
            one["name"]: re.sub(r"\W", "_", re.sub(r"^serving_default_|:\d+$", "", one["name"])) for one in details
        }
        self._outputs = [one["name"] for one in self._interpreter.get_output_details()]
        self._specs = [
            Spec(
                name=self._inputs[one["name"]],
                dtype=one["dtype"],
                shape=tuple(None if size < 0 else int(size) for size in one["shape_signature"]),
            )
            for one in details
        ]

    def versions(self) -> dict[str, str]:
        return _versions()

    def answer(self, feeds: Feeds) -> dict[str, Array]:
        interpreter = self._interpreter
        details = interpreter.get_input_details()
        for one in details:
            interpreter.resize_tensor_input(one["index"], feeds[self._inputs[one["name"]]].shape, strict=True)
        interpreter.allocate_tensors()
        for one in details:
            interpreter.set_tensor(one["index"], np.ascontiguousarray(feeds[self._inputs[one["name"]]]))
        interpreter.invoke()
        values = [interpreter.get_tensor(one["index"]) for one in interpreter.get_output_details()]
        return {name: np.array(value) for name, value in name_outputs(values, self._names()).items()}

    def _names(self) -> tuple[str, ...]:
        count = len(self._outputs)
        if count == 1:
            return ("output",)
        # Names that a person gave are plain words; a converter's have marks in them.
        own = tuple(str(name) for name in self._outputs)
        is_plain = len(set(own)) == count and all(re.fullmatch(r"[A-Za-z_]\w{0,99}", name) for name in own)
        return own if is_plain else tuple(f"output_{place}" for place in range(count))

    def export(self, path: Path) -> Export:
        import tf2onnx

        model, _ = tf2onnx.convert.from_tflite(str(self._path), opset=OPSET)
        rename_inputs(model, self._inputs)
        keep_outputs(model, dict(zip(self._outputs, self._names(), strict=True)))
        name_axes(model, {one.name: one.axes for one in self._specs})
        onnx.save_model(model, str(path))
        return Export(method="tf2onnx of the TFLite graph")


def _open_keras(path: Path) -> "KerasSource":
    import keras

    try:
        model = keras.models.load_model(str(path), safe_mode=True, compile=False)
    except (TypeError, ValueError) as error:
        text = f"Keras does not load it in safe mode: {first_line(error)}"
        raise UnsafeModel("keras_load", text, next_step="build the model of Keras's own layers") from error
    return KerasSource(model)


class KerasSource:
    def __init__(self, model: Any) -> None:
        self._model = model
        self._specs = [
            Spec(name=re.sub(r"\W", "_", one.name), dtype=one.dtype, shape=tuple(one.shape)) for one in model.inputs
        ]

    def versions(self) -> dict[str, str]:
        return _versions()

    def answer(self, feeds: Feeds) -> dict[str, Array]:
        values = [feeds[one.name] for one in self._specs]
        found = self._model(values[0] if len(values) == 1 else values, training=False)
        return {name: np.asarray(value) for name, value in name_outputs(found, ()).items()}

    def export(self, path: Path) -> Export:
        import keras

        specs = [keras.InputSpec(shape=one.shape, dtype=one.dtype, name=one.name) for one in self._specs]
        signature = specs if len(specs) == 1 else [specs]
        self._model.export(str(path), format="onnx", verbose=False, input_signature=signature, opset_version=OPSET)
        model = onnx.load(str(path))
        example = {
            one.name: np.zeros([2 if size is None else size for size in one.shape], one.dtype) for one in self._specs
        }
        inputs = dict(zip((one.name for one in model.graph.input), (one.name for one in self._specs), strict=True))
        _finish(model, self._specs, inputs, list(self.answer(example)))
        onnx.save_model(model, str(path))
        return Export(method="Keras's own export")
