"""Owns PyTorch models: exported programs, TorchScript, and weights or nothing beside code that builds the module.

Exported by `torch.onnx` (dynamo), with every named axis variable; a program that fixes such an axis is refused with the
guard's own text. Older exports by tracing are used where dynamo has no way, and said so.
"""

import importlib.metadata
import io
import os
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from converters.errors import ConvertError, ToolFailed, UnsafeModel, VerificationFailed
from converters.importers.code import Code, examples, name_outputs
from converters.importers.exchange import Array, Feeds
from converters.importers.graphs import keep_outputs, name_axes
from converters.importers.pickles import PICKLE_BYTES_MAX, check_weights
from converters.importers.protocol import Asked, Export, Input, need_inputs
from converters.importers.steps import first_line

OPSET: Final = 18
#: Operators of TorchScript that read or write files.
_FILE_OPERATORS: Final = (b"from_file", b"torch.save", b"torch.load", b"aten::save", b"open(")
_CODE_BYTES_MAX: Final = 64 << 20
_GUARD: Final = ("Constraints violated", "specialized", "specialization", "not all values of")


def open_source(asked: Asked) -> "TorchSource":
    """Raises: UnsafeModel: a pickle of more than weights, or a script that touches files; UsageFault."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    if asked.format == "pt2":
        return _open_program(asked)
    if asked.format == "torchscript":
        _check_script(asked.source)
        module = torch.jit.load(str(asked.source), map_location="cpu")
        return TorchSource(module, need_inputs(asked), (), None, asked.format)
    code = Code(asked)
    weights = None if asked.format == "torch_code" else _read_weights(asked.source)
    return TorchSource(code.build(weights), code.inputs, code.outputs, code.example(), asked.format)


def _read_weights(path: Path) -> dict[str, Any]:
    import torch

    with path.open("rb") as file:
        head = file.read(2)
        if head in {b"PK", b"\x80\x02"}:
            check_weights(file, path.name)
    if head in {b"PK", b"\x80\x02"}:
        found = torch.load(str(path), map_location="cpu", weights_only=True)
        weights = found.get("state_dict", found) if isinstance(found, dict) else None
        if not isinstance(weights, dict):
            raise UnsafeModel("weights", f"{path.name} holds no dictionary of weights", next_step="save a state_dict")
        return weights
    from safetensors.torch import load_file

    loaded: dict[str, Any] = load_file(str(path))
    return loaded


def _check_script(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith((".py", ".code")):
                text = archive.read(entry) if entry.file_size <= _CODE_BYTES_MAX else b"from_file"
                found = next((word for word in _FILE_OPERATORS if word in text), None)
                if found is not None:
                    said = f"{entry.filename} uses {found.decode()}, which touches files"
                    raise UnsafeModel("torchscript_files", said, next_step="script the model without it")


def _open_program(asked: Asked) -> "TorchSource":
    import torch

    _check_program(asked.source)
    program = torch.export.load(str(asked.source))
    inputs = _program_inputs(program)
    return TorchSource(program.module(), inputs, (), None, asked.format, program=program)


def _check_program(path: Path) -> None:
    """The example inputs and constants of a program are pickles of tensors; objects of custom classes are not read."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            base = entry.filename.rsplit("/", 1)[-1]
            if base.startswith("custom_obj") or base.endswith(".pkl"):
                text = f"{entry.filename} is an object of a custom class"
                raise UnsafeModel("pickle", text, next_step="export the program without it")
            if base.endswith(".pt"):
                if entry.file_size > PICKLE_BYTES_MAX:
                    text = f"{entry.filename} has {entry.file_size} bytes"
                    raise UnsafeModel("pickle_size", text, next_step="export with smaller example inputs")
                check_weights(io.BytesIO(archive.read(entry)), entry.filename)


def _program_inputs(program: Any) -> tuple[Input, ...]:
    import torch

    names = {np.float32: "FP32", np.float64: "FP64", np.float16: "FP16", np.int64: "INT64", np.int32: "INT32",
             np.bool_: "BOOL", np.int8: "INT8", np.uint8: "UINT8"}  # fmt: skip
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    for name in program.graph_signature.user_inputs:
        value = nodes[name].meta["val"]
        kind = torch.empty(0, dtype=value.dtype).numpy().dtype.type
        shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
        found.append(Input(name=name, datatype=names[kind], shape=shape))
    firsts = {one.shape[0] if one.shape else 0 for one in found}
    first = firsts.pop() if len(firsts) == 1 else 0
    if not isinstance(first, str):
        return tuple(found)
    return tuple(replace(one, shape=tuple("batch" if size == first else size for size in one.shape)) for one in found)


class TorchSource:
    def __init__(
        self,
        module: Any,
        inputs: tuple[Input, ...],
        outputs: tuple[str, ...],
        example: Mapping[str, Array] | None,
        kind: str,
        *,
        program: Any = None,
    ) -> None:
        self._module = module if program is not None else module.eval()
        self._inputs = inputs
        self._names = outputs
        self._example = dict(example) if example is not None else examples(inputs)
        self._kind = kind
        self._program = program

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript")}

    def answer(self, feeds: Feeds) -> dict[str, Array]:
        import torch

        tensors = [torch.from_numpy(np.array(feeds[one.name])) for one in self._inputs]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = self._module(*tensors)
        return {name: value.detach().numpy() for name, value in name_outputs(outputs, self._names).items()}

    def export(self, path: Path) -> Export:
        names = tuple(self.answer(self._example))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method, notes = self._write(path)
        model = onnx.load(str(path))
        keep_outputs(model, dict(zip((one.name for one in model.graph.output), names, strict=True)))
        self._name_inputs(model)
        name_axes(model, {one.name: one.shape for one in self._inputs})
        onnx.save_model(model, str(path), save_as_external_data=model.ByteSize() > 1 << 30, location="weights.bin")
        (path.parent / f"{path.name}.data").unlink(missing_ok=True)
        return Export(method=method, notes=notes)

    def _name_inputs(self, model: Any) -> None:
        own = [value.name for value in model.graph.input]
        wanted = [one.name for one in self._inputs]
        if own != wanted:
            text = f"the exported graph has the inputs {own}, the module {wanted}"
            raise ToolFailed("export", text, next_step="let the module use all of its inputs")

    def _write(self, path: Path) -> tuple[str, tuple[str, ...]]:
        import torch

        if self._program is not None:
            torch.onnx.export(self._program, f=str(path), dynamo=True, external_data=False, opset_version=OPSET)
            return "torch.onnx of the exported program", self._fixed_note()
        if self._kind == "torchscript":
            self._trace(path)
            return "torch.onnx of the script", ()
        try:
            self._by_dynamo(path)
        except ConvertError:
            raise
        except Exception as error:  # noqa: BLE001 - a framework raises anything
            # The exporter raises classes of many modules; tracing is the other way that it offers.
            reason = first_line(error)
            self._trace(path)
            return "torch.onnx by tracing", (f"torch.export failed: {reason}",)
        return "torch.onnx by torch.export", ()

    def _fixed_note(self) -> tuple[str, ...]:
        fixed = [one.name for one in self._inputs if one.shape and isinstance(one.shape[0], int)]
        return (f"the program itself fixes the first axis of {', '.join(fixed)}",) if fixed else ()

    def _arguments(self) -> tuple[Any, ...]:
        import torch

        return tuple(torch.from_numpy(np.array(self._example[one.name])) for one in self._inputs)

    def _by_dynamo(self, path: Path) -> None:
        import torch

        dims: dict[str, Any] = {}
        shapes = tuple(
            {
                axis: dims.setdefault(size, torch.export.Dim(size))
                for axis, size in enumerate(one.shape)
                if isinstance(size, str)
            }
            for one in self._inputs
        )
        try:
            program = torch.export.export(self._module, self._arguments(), dynamic_shapes=shapes)
        except Exception as error:
            text = str(error)
            if any(word in text for word in _GUARD):
                raise VerificationFailed(
                    "frozen_axis",
                    f"the module fixes an axis that is named variable: {_guard_line(text)}",
                    next_step="name that axis as a number in --input, or change the line that fixes it",
                ) from error
            raise
        names = [one.name for one in self._inputs]
        torch.onnx.export(
            program, f=str(path), dynamo=True, external_data=False, opset_version=OPSET, input_names=names
        )

    def _trace(self, path: Path) -> None:
        import torch

        axes = {
            one.name: {axis: size for axis, size in enumerate(one.shape) if isinstance(size, str)}
            for one in self._inputs
        }
        torch.onnx.export(
            self._module,
            self._arguments(),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[one.name for one in self._inputs],
            dynamic_axes={name: one for name, one in axes.items() if one},
        )


def _guard_line(text: str) -> str:
    lines = [line.strip(" -") for line in text.splitlines() if line.strip()]
    said = [line for line in lines if "specializ" in line or "==" in line or "not all values" in line]
    return (said or lines)[0][:300]
