"""Owns the check of an ONNX model before any runtime sees it: sizes, nesting, operators, and where its weights lie.

Works on the message alone; external data is located and never read here.
"""

import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError

from converters.errors import UnsafeModel
from converters.sniff import sniff

NODES_MAX: Final = 100_000
TENSORS_MAX: Final = 100_000
TENSOR_BYTES_MAX: Final = 8 << 30
EXTERNAL_BYTES_MAX: Final = 64 << 30
GRAPH_DEPTH_MAX: Final = 16
TENSOR_RANK_MAX: Final = 16
OPSET_MIN: Final = 7
_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_EXPORT: Final = "export the model again with a current exporter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a source is. `external`: names of its weight files, relative to its folder, sorted."""

    model: Any
    opset: int
    ir_version: int
    producer: str
    nodes: int
    external: tuple[str, ...]


def probe_onnx(path: Path) -> Probe:
    """Read the graph of `path` without its external data, and refuse what is not safe to hand to a runtime.

    Raises:
        UnsafeModel: the rule says what; UsageFault: there is no file.
    """
    sniff(path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise UnsafeModel(
            "malformed", f"{path.name} is no ONNX model, or nested too deeply", next_step=_EXPORT
        ) from error
    if not model.graph.node:
        raise UnsafeModel("no_graph", f"{path.name} holds no graph with nodes", next_step=_EXPORT)
    opset = _check_opsets(model)
    nodes = _check_nodes(model)
    external = _check_tensors(model, path.parent)
    return Probe(
        model=model,
        opset=opset,
        ir_version=model.ir_version,
        producer=f"{model.producer_name} {model.producer_version}".strip()[:100],
        nodes=nodes,
        external=external,
    )


def _check_opsets(model: Any) -> int:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    for domain in opsets.keys() - _DOMAINS - {function.domain for function in model.functions}:
        used = any(node.domain == domain for node in model.graph.node)
        if used:
            text = f"operators of domain '{domain[:60]}' need code of their own, which is not loaded"
            raise UnsafeModel("custom_domain", text, next_step="export without custom operators")
    version = opsets.get("", opsets.get("ai.onnx", 0))
    newest = onnx.defs.onnx_opset_version()
    if not OPSET_MIN <= version <= newest:
        text = f"operator set {version} is outside {OPSET_MIN}..{newest}"
        raise UnsafeModel("opset", text, next_step="export again with an operator set within that range")
    return int(version)


def _check_nodes(model: Any) -> int:
    count = 0
    pending = [(model.graph.node, 0), *((function.node, 0) for function in model.functions)]
    while pending:
        nodes, depth = pending.pop()
        if depth > GRAPH_DEPTH_MAX:
            raise UnsafeModel("nesting", f"graphs nested deeper than {GRAPH_DEPTH_MAX}", next_step=_EXPORT)
        count += len(nodes)
        if count > NODES_MAX:
            raise UnsafeModel("nodes", f"more than {NODES_MAX} nodes", next_step="split the model")
        for node in nodes:
            pending += [(graph.node, depth + 1) for graph in _subgraphs(node)]
    return count


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def walk_tensors(model: Any) -> Iterator[Any]:
    """Every TensorProto of a model: initialisers and attributes, of subgraphs and functions too."""
    pending: list[Any] = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while pending or nodes:
        if pending:
            graph = pending.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        while nodes:
            node = nodes.pop()
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
            pending += _subgraphs(node)


def _check_tensors(model: Any, folder: Path) -> tuple[str, ...]:
    external: set[str] = set()
    for count, tensor in enumerate(walk_tensors(model)):
        if count >= TENSORS_MAX:
            raise UnsafeModel("tensors", f"more than {TENSORS_MAX} tensors", next_step="split the model")
        _check_size(tensor)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            external.add(_check_external(tensor, folder))
    total = sum((folder / name).stat().st_size for name in external)
    if total > EXTERNAL_BYTES_MAX:
        raise UnsafeModel(
            "too_large", f"external data of {total} bytes, more than {EXTERNAL_BYTES_MAX}", next_step=_EXPORT
        )
    return tuple(sorted(external))


def _check_size(tensor: Any) -> None:
    name = tensor.name[:60]
    if len(tensor.dims) > TENSOR_RANK_MAX or any(size < 0 for size in tensor.dims):
        raise UnsafeModel("tensor_shape", f"tensor '{name}' has an impossible shape", next_step=_EXPORT)
    elements = math.prod(tensor.dims)
    if elements * 8 > TENSOR_BYTES_MAX:
        raise UnsafeModel("tensor_size", f"tensor '{name}' claims {elements} elements", next_step=_EXPORT)
    is_inline = tensor.data_location != onnx.TensorProto.EXTERNAL
    if is_inline and elements and tensor.data_type != onnx.TensorProto.STRING:
        fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
        if not tensor.raw_data and not any(len(getattr(tensor, field)) for field in fields):
            raise UnsafeModel(
                "tensor_data", f"tensor '{name}' claims {elements} elements and has none", next_step=_EXPORT
            )


def _check_external(tensor: Any, folder: Path) -> str:
    """The file that a tensor's bytes lie in: beside the model, itself no link, and large enough."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    where = f"external data of '{tensor.name[:60]}'"
    next_step = "put the weight files into the model's own folder"
    parts = location.split("/")
    if not location or location.startswith("/") or "\\" in location or "\0" in location or {"", ".", ".."} & set(parts):
        raise UnsafeModel("external_path", f"{where}: '{location[:80]}' leads out of the folder", next_step=next_step)
    current = folder
    for part in parts:
        current = current / part
        if current.is_symlink():
            raise UnsafeModel("external_link", f"{where}: '{location[:80]}' is or crosses a link", next_step=next_step)
    try:
        status = current.stat()
    except OSError as error:
        raise UnsafeModel(
            "external_missing", f"{where}: '{location[:80]}' is not there", next_step=next_step
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeModel("external_link", f"{where}: '{location[:80]}' is no regular file", next_step=next_step)
    if status.st_nlink != 1:
        raise UnsafeModel(
            "external_link", f"{where}: '{location[:80]}' has a second hard link", next_step="copy the file"
        )
    _check_range(entries, status, where)
    return str(location)


def _check_range(entries: dict[str, str], status: os.stat_result, where: str) -> None:
    offset, length = entries.get("offset", "0"), entries.get("length", "0")
    is_number = all(text.isascii() and text.isdigit() and len(text) <= 18 for text in (offset, length))
    if not is_number or int(offset) + int(length) > status.st_size:
        raise UnsafeModel("external_range", f"{where}: reaches beyond the end of its file", next_step=_EXPORT)
