"""How a reply is shown to people and programs."""

import math

import pytest

from gateway.commands.oip_client import Output, Scalar
from gateway.commands.reply_text import (
    duration,
    facts_as_lines,
    headers_as_json,
    outputs_as_json,
    outputs_as_lines,
    parse_items,
)


def output(name: str, datatype: str, shape: tuple[int, ...], *values: Scalar) -> Output:
    return Output(name=name, datatype=datatype, shape=shape, values=values)


TEXT = output("TEXT", "BYTES", (2,), b"first line", b"second")
SCORE = output("SCORE", "FP32", (2,), 0.9989, 0.5)
BOX = output("BOX", "FP32", (2, 4, 2), *[0.0] * 16)


def test_rows_are_shown_with_their_scores_before_them() -> None:
    assert list(outputs_as_lines([TEXT, BOX, SCORE])) == [
        "0.999  first line",
        "0.500  second",
        "BOX  FP32[2, 4, 2]",
    ]


def test_nothing_found_is_said() -> None:
    lines = list(outputs_as_lines([output("TEXT", "BYTES", (0,)), output("SCORE", "FP32", (0,))]))
    assert lines == ["no rows in SCORE, TEXT"]


def test_numbers_alone_are_shown_where_they_are_few() -> None:
    assert list(outputs_as_lines([output("y", "INT32", (1, 3), 1, 2, 3)])) == ["y  INT32[1, 3]: 1 2 3"]
    assert list(outputs_as_lines([output("y", "FP32", (1, 13), *[0.0] * 13)])) == ["y  FP32[1, 13]"]


def test_a_table_of_numbers_is_shown_row_by_row() -> None:
    table = output("SEGMENT", "FP32", (2, 2), 0.8, 1.65, 4.6, 5.31)
    assert list(outputs_as_lines([table])) == ["SEGMENT  FP32[2, 2]", "  0.800  1.650", "  4.600  5.310"]
    assert list(outputs_as_lines([output("y", "FP32", (51, 1), *[0.0] * 51)])) == ["y  FP32[51, 1]"]
    assert list(outputs_as_lines([output("y", "FP32", (0, 4))])) == ["y  FP32[0, 4]"]


def test_text_cannot_steer_the_terminal() -> None:
    (line,) = outputs_as_lines([output("t", "BYTES", (1,), b"\x1b[2J\nred\x07 \xff")])
    assert line == "\\x1b[2J\\x0ared\\x07 \\xff"


def test_long_text_is_cut() -> None:
    (line,) = outputs_as_lines([output("t", "BYTES", (1,), b"x" * 1000)])
    assert line == "x" * 400 + "…"


def test_json_has_no_bytes_and_no_numbers_that_json_lacks() -> None:
    found = outputs_as_json([output("t", "BYTES", (1,), b"a\xff"), output("y", "FP32", (2,), math.nan, 1.0)])
    assert [item["data"] for item in found] == [["a\\xff"], ["nan", 1.0]]


HEADERS = {
    "tollway-call-id": "01a2-x",
    "tollway-charge": "0.0025 USD; reason=priced; price=3",
    "ratelimit": '"burst";r=9;t=1, "day";r=999;t=58424',
    "server-timing": "gateway;dur=0.621, backend;dur=1215.104",
}


def test_headers_are_read() -> None:
    assert headers_as_json(HEADERS) == {
        "call_id": "01a2-x",
        "charge": "0.0025 USD; reason=priced; price=3",
        "limits": {"burst": {"r": 9, "t": 1}, "day": {"r": 999, "t": 58424}},
        "timings_ms": {"gateway": 0.621, "backend": 1215.104},
    }


def test_headers_are_told_to_people() -> None:
    assert list(facts_as_lines(headers_as_json(HEADERS))) == [
        "charge   0.0025 USD; reason=priced; price=3",
        "left     burst 9 · day 999 (resets in 16 h 13 min)",
        "time     gateway 0.621 ms · backend 1215 ms",
        "call     01a2-x",
    ]


def test_what_the_headers_do_not_say_is_not_told() -> None:
    assert list(facts_as_lines(headers_as_json({}))) == []


def test_timings_without_a_duration_are_passed_over() -> None:
    facts = headers_as_json({"server-timing": "cache;desc=hit, backend;dur=2"})
    assert facts["timings_ms"] == {"backend": 2}


@pytest.mark.parametrize(
    "text", ["", " , ,", ";;;", '"day"', '"day";r', '"day";r=x', '"day";qu="content-bytes"', "²;t=²"]
)
def test_unusual_fields_do_no_harm(text: str) -> None:
    assert all(not item for item in parse_items(text).values())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (90, "1 min 30 s"), (3600, "1 h"), (90_061, "1 d 1 h")]
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text
