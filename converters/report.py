"""Owns report.json as far as it says what was converted, on what evidence, and what came of each variant."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from converters.host import host_facts, tool_versions
from converters.normalise import opset_of

if TYPE_CHECKING:
    from converters.build import Outcome, Source


def describe(source: "Source", outcomes: "Sequence[Outcome]") -> dict[str, Any]:
    signature = source.signature
    return {
        "schema": 1,
        "source": {
            "format": "onnx",
            "sha256": source.sha256,
            "bytes": source.whole.ByteSize(),
            "opset": source.probe.opset,
            "ir_version": source.probe.ir_version,
            "producer": source.probe.producer,
            "nodes": source.probe.nodes,
            **source.facts,
        },
        "normal": {"opset": opset_of(source.normal), "nodes": len(source.normal.graph.node)},
        "interface": {
            "batch": signature.batch_axis,
            "inputs": [[one.name, one.datatype, list(one.shape)] for one in signature.inputs],
            "outputs": [[one.name, one.datatype, list(one.shape)] for one in signature.outputs],
        },
        "evidence": _evidence(source),
        "shapes_refused_by_source": list(source.answers.refused),
        "host": host_facts(),
        "tools": tool_versions(),
        "variants": [one.to_json() for one in outcomes],
        "selected": None,
    }


def _evidence(source: "Source") -> dict[str, Any]:
    data = source.data
    if data is None:
        return {"kind": "generated", "cases": len(source.answers.known)}
    return {
        "kind": "samples",
        "cases": len(source.answers.known),
        "sha256": data.sha256,
        "rows_calibration": data.rows_calibration,
        "rows_judged": data.rows_judged,
        "duplicates_dropped": data.duplicates,
    }
