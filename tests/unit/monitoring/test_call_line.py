"""The call log's line: JSON, names and numbers only, the same as a plain formatting of its fields."""

import json
import random

import pytest

from gateway.monitoring.call_line import FIELDS, CallLines, caller_fields, json_safe


def test_a_line_is_json_with_names_and_numbers_only() -> None:
    chance = random.Random(5)
    lines = CallLines()
    for _ in range(300):
        numbers = [chance.randrange(10 ** chance.randrange(1, 15)) for _ in range(7)]
        t_ns = 1_790_000_000_000_000_000 + chance.randrange(10**12)
        rows, charge, duration, backend, record, asked, answered = numbers
        caller = caller_fields("t", "k", "http", "m")
        line = lines.line(
            t_ns, b"id", caller, b"ok", 200, rows, charge, duration, backend, record, asked, answered, b"a" * 32
        )
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        read = json.loads(line)
        assert tuple(read) == FIELDS
        assert read == {
            "event": "call",
            "t_ns": t_ns,
            "call_id": "id",
            "tenant": "t",
            "key_id": "k",
            "protocol": "http",
            "model": "m",
            "code": "ok",
            "status": 200,
            "rows": rows,
            "charge_nanos": charge,
            "duration_us": duration // 1000,
            "backend_us": backend // 1000,
            "record_us": record // 1000,
            "request_bytes": asked,
            "reply_bytes": answered,
            "trace_id": "a" * 32,
        }


@pytest.mark.parametrize("model", ["plain", 'a"b', "back\\slash", "naïve", "new\nline", "\x00", "模型"])
def test_any_model_name_leaves_a_line_json(model: str) -> None:
    json.loads(b'"%b"' % json_safe(model))
    json.loads(b"{%b}" % caller_fields("t", "k", "grpc", model))
