"""Owns the config.pbtxt of a converted model: derived from what was verified and measured, never typed by hand."""

from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from converters.errors import UsageFault
from converters.job import LABELS
from converters.signature import Signature, Tensor
from model_repo.config import parse_config

_BACKENDS: Final = {name: name for name in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")}


def make_config(
    name: str,
    engine: str,
    signature: Signature,
    *,
    rows_max: int,
    rows_best: int,
    labelled: str = "",
    count: int = 0,
) -> str:
    """The text, already checked as the engine will check it. `rows_max` 0: no batch.

    `labelled`: the output whose last axis has the `count` names of `LABELS`; empty: none.

    Raises:
        UsageFault: that axis has another size.
        model_repo.errors.ConfigError: an interface that the engine does not serve.
    """
    message = model_config_pb2.ModelConfig(name=name, backend=_BACKENDS[engine], max_batch_size=rows_max)
    for tensor in signature.inputs:
        _fill(message.input.add(), tensor, rows_max)
    for tensor in signature.outputs:
        _fill(message.output.add(), tensor, rows_max)
        if tensor.name == labelled:
            _name_classes(message.output[-1], tensor, count)
    message.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    if rows_max > 1:
        message.dynamic_batching.preferred_batch_size.append(rows_best)
    _add_warmup(message, signature, rows_max)
    text = str(text_format.MessageToString(message))
    parse_config(text, name=name)
    return text


def class_output(signature: Signature, asked: str) -> str:
    """The output that class names go with: the one asked for, or the first with scores of one axis a row.

    Raises:
        UsageFault: there is none.
    """
    axes = 2 if signature.batch_axis else 1
    for tensor in signature.outputs:
        if tensor.name == asked or (not asked and len(tensor.shape) == axes and tensor.datatype.startswith("FP")):
            return tensor.name
    raise UsageFault("class_names", "no output has scores of classes", next_step="name it with --label-output")


def _name_classes(field: Any, tensor: Tensor, count: int) -> None:
    size = tensor.shape[-1] if tensor.shape else 1
    if isinstance(size, int) and size != count:
        text = f"{count} class names for the {size} scores of '{tensor.name}'"
        raise UsageFault("class_names", text, next_step="give one name a line, in the order of the scores")
    field.label_filename = LABELS


def _dims(tensor: Tensor, rows_max: int) -> list[int]:
    shape = tensor.shape[1:] if rows_max else tensor.shape
    return [size if isinstance(size, int) else -1 for size in shape]


def _fill(field: Any, tensor: Tensor, rows_max: int) -> None:
    field.name = tensor.name
    field.data_type = model_config_pb2.DataType.Value(f"TYPE_{tensor.datatype}")
    dims = _dims(tensor, rows_max)
    if dims:
        field.dims.extend(dims)
    else:
        # A configuration cannot name a tensor without axes: one element, reshaped.
        field.dims.append(1)
        field.reshape.SetInParent()


def _add_warmup(message: Any, signature: Signature, rows_max: int) -> None:
    """Zeros of one row, where all sizes are fixed."""
    dims = {tensor.name: (tensor, _dims(tensor, rows_max)) for tensor in signature.inputs}
    if any(-1 in sizes for _, sizes in dims.values()):
        return
    sample = message.model_warmup.add(name="zeros", batch_size=1 if rows_max else 0)
    for name, (tensor, sizes) in dims.items():
        entry = sample.inputs[name]
        entry.data_type = model_config_pb2.DataType.Value(f"TYPE_{tensor.datatype}")
        entry.dims.extend(sizes or [1])
        entry.zero_data = True
