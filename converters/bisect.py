"""Owns finding the first node whose result is wrong, and a repro of that node alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper

from converters.budgets import BUDGETS, compare, perturb, perturb_weights
from converters.engines import Array, Feeds, open_onnx
from converters.errors import ToolFailed

NODES_MAX: Final = 5_000
REPRO_BYTES_MAX: Final = 64 << 20
_SCRIPT: Final = '''"""Runs one node of a converted model on the inputs it had, beside what the source gives there."""
import numpy as np, onnxruntime as ort
session = ort.InferenceSession("repro.onnx", providers=["CPUExecutionProvider"])
with np.load("inputs.npz") as file: feeds = dict(file)
with np.load("expected.npz") as file: expected = dict(file)
for output, found in zip(session.get_outputs(), session.run(None, feeds)):
    error = np.abs(found.astype("f8") - expected[output.name].astype("f8"))
    print(output.name, "greatest error", error.max() if error.size else 0)
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class BadNode:
    """`repro`: folder with the node alone; None if its inputs could not be had."""

    tensor: str
    node: str
    op: str
    reason: str
    repro: Path | None


def find_bad_node(source: Any, variant: Any, feeds: Feeds, precision: str, repro: Path) -> BadNode | None:
    """Compare all tensors that both graphs have, in the variant's order; None if all agree or nothing can be compared.

    `source` and `variant` are ONNX graphs; both run without optimisation, so that every tensor is there.
    """
    if len(source.graph.node) > NODES_MAX or len(variant.graph.node) > NODES_MAX:
        return None
    pairs = _pair_tensors(source, variant)
    budget = BUDGETS[precision]
    try:
        reference = open_onnx(_exposed(source, list(pairs.values())), is_optimised=False)
        wanted = reference.run(feeds)
        moved = wanted
        if budget.rounding:
            other = _exposed(perturb_weights(source, budget.rounding, 0), list(pairs.values()))
            moved = open_onnx(other, is_optimised=False).run(perturb(feeds, budget.rounding, 0))
        found = open_onnx(_exposed(variant, _inner_names(variant)), is_optimised=False).run(feeds)
    except ToolFailed:
        return None  # Not every graph can show its inner tensors; the verdict stands without a place.
    for node in variant.graph.node:
        for name in node.output:
            own = pairs.get(name, "")
            if own not in wanted or name not in found:
                continue
            real = found[name].astype(wanted[own].dtype) if wanted[own].dtype.kind == "f" else found[name]
            difference = compare(wanted[own], moved[own], real, budget, 1.0)
            if difference.share > 1:
                reason = difference.reason or f"error {difference.max_abs:.3g}, {difference.share:.3g} times the budget"
                expected = {one: wanted[pairs[one]] for one in node.output if pairs.get(one, "") in wanted}
                folder = _write_repro(variant, node, {**feeds, **found}, expected, repro)
                return BadNode(tensor=name, node=node.name or name, op=node.op_type, reason=reason, repro=folder)
    return None


def _pair_tensors(source: Any, variant: Any) -> dict[str, str]:
    """Tensor of the variant → tensor of the source: of the same name, or of the same place at a node of the same name.

    The latter because a converter that keeps the outputs' types gives a node's result another name.
    """
    made = {name for node in source.graph.node for name in node.output if name}
    nodes = {node.name: node for node in source.graph.node if node.name}
    pairs = {}
    for node in variant.graph.node:
        twin = nodes.get(node.name)
        places = twin.output if twin is not None and twin.op_type == node.op_type else ()
        for place, name in enumerate(node.output):
            if name in made:
                pairs[name] = name
            elif place < len(places) and name:
                pairs[name] = places[place]
    return pairs


def _inner_names(model: Any) -> list[str]:
    return [name for node in model.graph.node for name in node.output if name]


def _exposed(model: Any, names: list[str]) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    shown = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in shown)
    return bytes(copy.SerializeToString())


def _write_repro(model: Any, node: Any, tensors: Feeds, wanted: Feeds, folder: Path) -> Path | None:
    """The node with its weights as a model, its inputs as they were, and what the source gives for its outputs."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    inputs = [name for name in dict.fromkeys(node.input) if name and name not in weights]
    if any(name not in tensors for name in inputs) or any(name not in tensors for name in node.output if name):
        return None
    kept = [weights[name] for name in dict.fromkeys(node.input) if name in weights]
    size = sum(tensors[name].nbytes for name in inputs) + sum(weight.ByteSize() for weight in kept)
    if size > REPRO_BYTES_MAX:
        return None
    graph = helper.make_graph(
        [node],
        "repro",
        [_value(name, tensors[name]) for name in inputs],
        [_value(name, tensors[name]) for name in node.output if name],
        kept,
    )
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(alone, str(folder / "repro.onnx"))
    np.savez(folder / "inputs.npz", **{name: tensors[name] for name in inputs})  # type: ignore[arg-type]
    np.savez(folder / "expected.npz", **wanted)  # type: ignore[arg-type]
    (folder / "repro.py").write_text(_SCRIPT)
    return folder


def _value(name: str, array: Array) -> Any:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape))
