"""Owns small changes of an exported ONNX graph: the names of its outputs, and which of them are kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from converters.errors import ToolFailed


def keep_outputs(model: Any, names: Mapping[str, str]) -> None:
    """Of the outputs keep those in `names`, in that order, under their new names; nodes only others need are left.

    Raises:
        ToolFailed: an output is not there.
    """
    own = {value.name: value for value in model.graph.output}
    missing = [name for name in names if name not in own]
    if missing:
        text = f"the exporter gave the outputs {sorted(own)}, not {missing[0]!r}"
        raise ToolFailed("export", text, next_step="report the model")
    kept = []
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)} | set(own)
    taken |= {value.name for value in (*model.graph.input, *model.graph.initializer)}
    for old, new in names.items():
        value = onnx.ValueInfoProto()
        value.CopyFrom(own[old])
        value.name = new
        kept.append(value)
        if old == new:
            continue
        if new in taken:
            _rename(model, new, _free(f"{new}_inner", taken))
        _rename(model, old, new)
    del model.graph.output[:]
    model.graph.output.extend(kept)


def rename_inputs(model: Any, names: Mapping[str, str]) -> None:
    """Inputs by their present names → new ones; others of the graph that are called so make way."""
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    taken |= {value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    for value in model.graph.input:
        new = names.get(value.name, value.name)
        if new == value.name:
            continue
        if new in taken:
            _rename(model, new, _free(f"{new}_inner", taken))
        _rename(model, value.name, new)
        taken.add(new)
        value.name = new


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _rename(model: Any, old: str, new: str) -> None:
    """A tensor of the main graph, wherever it is named; subgraphs see the outer names too."""
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        for node in graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append(attribute.g)
                pending.extend(attribute.graphs)
        for value in (*graph.value_info, *graph.initializer):
            if value.name == old:
                value.name = new


def name_axes(model: Any, shapes: Mapping[str, Sequence[int | str]]) -> None:
    """Give the variable axes of the inputs their names, wherever the graph names them; fixed ones stay as they are."""
    names: dict[str, str] = {}
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            if isinstance(size, str) and not dim.HasField("dim_value"):
                if dim.dim_param:
                    names.setdefault(dim.dim_param, size)
                dim.dim_param = size
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
