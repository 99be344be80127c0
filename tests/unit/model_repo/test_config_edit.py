"""Rewriting one block of a configuration as text."""

import pytest

from model_repo.config import parse_config
from model_repo.config_edit import with_batching
from model_repo.errors import ConfigError

HEAD = """# What the model is for: dynamic_batching { no }
name: "m"
platform: "onnxruntime_onnx"
max_batch_size: 16
"""
TENSORS = """input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]  # one row
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "dynamic_batching {" } ]
"""


def batching(text: str) -> tuple[tuple[int, ...], int] | None:
    found = parse_config(text, name="m").batching
    return None if found is None else (found.preferred_rows, found.delay_ns_max)


@pytest.mark.parametrize(
    "block",
    [
        "",
        "dynamic_batching { }\n",
        "dynamic_batching {\n  preferred_batch_size: [ 2, 4 ]  # } as it was\n  max_queue_delay_microseconds: 7\n}\n",
        "dynamic_batching: < preferred_batch_size: 2 >\n",
    ],
)
@pytest.mark.parametrize(("rows", "delay_us"), [(8, 0), (8, 250), (1, 0)])
def test_size_and_delay_are_set_and_all_else_stays(block: str, rows: int, delay_us: int) -> None:
    changed = with_batching(HEAD + block + TENSORS, rows, delay_us)
    assert batching(changed) == ((rows,), delay_us * 1000)
    assert HEAD in changed
    assert TENSORS.rstrip("\n") in changed
    assert with_batching(changed, rows, delay_us) == changed


def test_no_batching_removes_a_block_that_says_nothing_else() -> None:
    text = HEAD + "dynamic_batching { preferred_batch_size: 4 max_queue_delay_microseconds: 9 }\n" + TENSORS
    changed = with_batching(text, 0, 0)
    assert changed == HEAD + TENSORS
    assert with_batching(changed, 0, 0) == changed


@pytest.mark.parametrize("rows", [0, 4])
def test_queue_policies_survive(rows: int) -> None:
    policy = "default_queue_policy { max_queue_size: 5 }"
    changed = with_batching(HEAD + f"dynamic_batching {{ {policy} }}\n" + TENSORS, rows, 0)
    assert parse_config(changed, name="m").queue.requests_max == 5
    assert batching(changed) == ((rows or 1,), 0)


def test_a_text_without_a_last_line_end_is_continued_on_a_new_line() -> None:
    changed = with_batching((HEAD + TENSORS).rstrip("\n") + "# end", 4, 0)
    assert batching(changed) == ((4,), 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense {", "not a model configuration"),
        (HEAD + "dynamic_batching {}\ndynamic_batching {}\n" + TENSORS, "should not have multiple"),
    ],
)
def test_what_cannot_be_rewritten_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        with_batching(text, 4, 0)
