"""The report for people: each variant's time, size and error side by side; no name is taken for markup."""

import re
from typing import Any
from xml.etree import ElementTree

from converters.report_html import render_report
from converters.report_plot import comparison_plot


def variant(precision: str, status: str = "accepted", *, ms: float | None = 2.0, rms: float | None = 1e-4) -> Any:
    speeds = [] if ms is None else [{"rows": 1, "median_ns": ms * 1e6, "rows_per_s": 500.0}]
    figures = {"cases": 3, "max_abs": 1e-3, "rms_rel": rms, "cosine": 1.0, "budget_used": 0.5}
    return {
        "engine": "onnxruntime", "precision": precision, "status": status, "reason": "", "method": "m",
        "size_bytes": 2_000_000, "speeds": speeds, "per_output": {"y": figures}, "task": None,
    }  # fmt: skip


PLAIN = [{"rows": 1, "median_ns": 4e6, "rows_per_s": 250.0}]


def bars(page: str) -> list[tuple[float, str]]:
    """(width, colour) of each bar, row by row."""
    svg = page[page.index("<svg") :]
    found = re.findall(r'<rect x=\d+ y=\d+ width=([\d.]+) height=20 fill="(#\w+)"/>', svg)
    return [(float(width), colour) for width, colour in found]


def test_bars_are_to_scale_and_the_error_by_its_logarithm() -> None:
    chosen = variant("int8", "selected", ms=1.0, rms=1e-2)
    found = bars(comparison_plot([variant("fp32", rms=1e-8), chosen], PLAIN, 4_000_000))
    times, sizes, errors = found[0::3], found[1::3], found[2::3]
    assert [round(width / times[0][0], 2) for width, _ in times] == [1, 0.5, 0.25]
    assert [round(width / sizes[0][0], 2) for width, _ in sizes] == [1, 0.5, 0.5]
    assert [round(width / times[0][0], 2) for width, _ in errors] == [0, 0, 0.75]
    assert len({colour for _, colour in times}) == 3


def test_what_never_ran_or_is_not_finite_says_so() -> None:
    wrong = variant("fp16", "refused", ms=None, rms=None)
    unknown = {**variant("int8", "refused", ms=None), "per_output": {}}
    page = comparison_plot([wrong, unknown], [], None)
    assert page.count("not measured") == 2
    assert "not finite" in page
    assert "not compared" in page
    assert comparison_plot([{**wrong, "size_bytes": 0}], PLAIN, 1) == ""


def test_the_page_tells_the_task_and_escapes_names() -> None:
    task = {
        "metric": "top1", "output": "y", "rows": 300, "source": 0.9, "variant": 0.893, "loss": 0.007,
        "loss_bound_95": 0.012, "loss_max": 0.02,
    }  # fmt: skip
    report = {
        "name": "<b>m", "variants": [{**variant("fp32", "selected"), "task": task}], "plain": PLAIN, "speedup": 2.0,
        "selected": "onnxruntime-fp32", "published": {"version": 1, "is_new": True}, "source": {"bytes": 10},
    }  # fmt: skip
    page = render_report(report)
    assert "top1 on 300 rows: 89.30%, source 90.00%; at most 1.20% lost, by 95 %; 2.00% allowed" in page
    assert "<b>m" not in page
    assert "&lt;b&gt;m" in page
    early = {**report, "source": {}, "plain": []}
    assert ">plain source<" in page
    assert ">plain source<" not in render_report(early)


def test_the_drawing_is_well_formed() -> None:
    svg = comparison_plot([variant("fp32")], PLAIN, None).split("</h3>")[1]
    quoted = re.sub(r"=([\w.-]+)(?=[\s>/])", r'="\1"', svg)
    assert ElementTree.fromstring(quoted).tag == "svg"
