"""Owns completing the configuration of an ONNX model from its file, where config.pbtxt is absent or names no tensors.

As Triton does: a variable first size of every tensor is the batch axis, of at most `AUTO_BATCH_ROWS_MAX` rows, and
then the model is batched; every other variable size is -1.
"""

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from gateway.engine.runtimes.checks import FileTensor
from gateway.engine.runtimes.onnx import read_tensors
from model_repo.config import PLATFORMS
from model_repo.errors import RepositoryError
from model_repo.repository import ModelFolder, find_member, read_config

#: Triton's default (`--backend-config=default-max-batch-size`).
AUTO_BATCH_ROWS_MAX: Final = 4
_ONNX_FILE: Final = "model.onnx"


def complete_file_config(text: str, folder: ModelFolder) -> str:
    """`text` or the folder's config.pbtxt, with what is missing taken from the newest version's model file. Blocks.

    Raises:
        RepositoryError: there is no configuration, and no ONNX file that could tell it, or the file cannot be read.
    """
    has_file = find_member(folder, "config.pbtxt") is not None
    if not text and has_file:
        text = read_config(folder)
    message = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, message)
    except (text_format.ParseError, ValueError):
        return text  # Told where it is read for good.
    platform = PLATFORMS.get(message.platform or message.backend or "onnxruntime")
    path = None
    if platform == "onnxruntime" and folder.versions and not (message.input and message.output):
        path = find_member(folder, str(max(folder.versions)), message.default_model_filename or _ONNX_FILE)
    if path is None:
        return text or read_config(folder)
    inputs, outputs = read_tensors(path)
    _complete(message, inputs, outputs)
    return str(text_format.MessageToString(message))


def _complete(message: Any, inputs: Sequence[FileTensor], outputs: Sequence[FileTensor]) -> None:
    if not (message.platform or message.backend):
        message.platform = "onnxruntime_onnx"
    is_bare = not (message.input or message.output)
    has_batch_axis = all(tensor.shape and tensor.shape[0] is None for tensor in (*inputs, *outputs))
    if is_bare and not message.max_batch_size and has_batch_axis:
        message.max_batch_size = AUTO_BATCH_ROWS_MAX
        if message.WhichOneof("scheduling_choice") is None:
            message.dynamic_batching.SetInParent()
    if message.max_batch_size and not has_batch_axis:
        raise RepositoryError(f"max_batch_size: {message.max_batch_size}, but the model's file has no batch axis")
    for field, tensors in ((message.input, inputs), (message.output, outputs)):
        if not field:
            for tensor in tensors:
                _add(field, tensor, first=1 if message.max_batch_size else 0)


def _add(field: Any, tensor: FileTensor, *, first: int) -> None:
    name = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    types = model_config_pb2.DataType.DESCRIPTOR.values_by_name
    if f"TYPE_{name}" not in types:
        raise RepositoryError(f"tensor '{tensor.name}': {tensor.datatype} cannot be served")
    dims = [-1 if size is None else size for size in tensor.shape[first:]]
    spec = field.add(name=tensor.name, data_type=types[f"TYPE_{name}"].number, dims=dims or [1])
    if not dims:
        # A scalar: callers see one element.
        spec.reshape.SetInParent()
