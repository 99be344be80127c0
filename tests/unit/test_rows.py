"""Rows counted by us: of untrusted backends, for models priced by the row."""

import pytest

from gateway.errors import Code, Refusal
from gateway.rows import JSON_BYTES_MAX, RowPeek, row_peek_of

JSON = b'{"inputs":[{"name":"x","shape":[7,2],"datatype":"FP32","data":[]}]}'


def opened(length: bytes | None) -> RowPeek:
    peek = row_peek_of(length, is_encoded=False)
    assert isinstance(peek, RowPeek)
    return peek


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_json_body_is_counted_at_its_end(step: int) -> None:
    peek = opened(None)
    for start in range(0, len(JSON), step):
        assert peek.feed(memoryview(JSON)[start : start + step]) is False
    assert peek.finish() is True
    assert peek.rows == 7


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_binary_body_is_counted_as_soon_as_its_head_is_in(step: int) -> None:
    peek = opened(b"%d" % len(JSON))
    body = JSON + b"\xff" * 100
    verdicts = []
    for start in range(0, len(body), step):
        verdicts.append(peek.feed(body[start : start + step]))
        if verdicts[-1]:
            break
    assert verdicts[-1] is True
    assert not any(verdicts[:-1])
    assert peek.rows == 7


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"{", JSON.replace(b"7", b"0"), JSON.replace(b"7", b"-1"), JSON[:-1]]
)
def test_rows_that_cannot_be_told_refuse_the_call(body: bytes) -> None:
    peek = opened(None)
    assert peek.feed(body) is False
    refusal = peek.finish()
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.INVALID_TENSOR


def test_a_body_that_ends_inside_its_head_is_refused() -> None:
    peek = opened(b"%d" % (len(JSON) + 1))
    assert peek.feed(JSON) is False
    refusal = peek.finish()
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.BAD_HEADER_LENGTH


def test_a_head_that_lies_about_its_length_is_refused() -> None:
    assert isinstance(opened(b"%d" % (len(JSON) - 1)).feed(JSON), Refusal)


@pytest.mark.parametrize(
    "length", [b"", b"0", b"-1", b"+5", b"5 ", b"1e3", b"x", b"%d" % (JSON_BYTES_MAX + 1), b"9" * 30, b"000000005"]
)
def test_a_malformed_head_length_is_named(length: bytes) -> None:
    refusal = row_peek_of(length, is_encoded=False)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.BAD_HEADER_LENGTH


def test_the_longest_head_is_accepted() -> None:
    opened(b"%d" % JSON_BYTES_MAX)


def test_a_compressed_body_cannot_be_counted() -> None:
    refusal = row_peek_of(None, is_encoded=True)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.UNSUPPORTED_ENCODING


def test_what_is_held_is_bounded_at_its_limit() -> None:
    peek = opened(None)
    assert peek.feed(b" " * JSON_BYTES_MAX) is False
    refusal = peek.feed(b" ")
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.BODY_TOO_LARGE
