"""Framing of HTTP/1.1 bodies."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.http1 import Http1Error
from gateway.wire.http1_body import BodyReader


class Sink:
    def __init__(self) -> None:
        self.data = b""

    def on_body_data(self, data: bytes) -> None:
        self.data += data


def feed_all(reader: BodyReader, data: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    """(body, rest) after feeding `data` cut at `cuts`."""
    sink = Sink()
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    for start, end in pairwise(edges):
        piece = data[start:end]
        position = reader.feed(piece, 0, sink)
        if reader.is_done:
            return sink.data, piece[position:] + data[end:]
    return sink.data, b""


def chunked(*chunks: bytes, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    out = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    return out + b"0\r\n" + trailers + b"\r\n"


@given(st.binary(max_size=200), st.binary(max_size=20), st.lists(st.integers(0, 300), max_size=6))
def test_length_body_ends_exactly_where_it_should(body: bytes, rest: bytes, cuts: list[int]) -> None:
    reader = BodyReader()
    reader.begin_length(len(body))
    if body:
        assert feed_all(reader, body + rest, cuts) == (body, rest)
    else:
        assert reader.is_done


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.sampled_from([b"", b";a=b", b";x", b';a="q \\"\xff";b']),
    st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC: d\r\n"]),
    st.binary(max_size=10),
    st.lists(st.integers(0, 400), max_size=8),
)
def test_chunked_body_over_any_cuts(
    chunks: list[bytes], extension: bytes, trailers: bytes, rest: bytes, cuts: list[int]
) -> None:
    reader = BodyReader()
    reader.begin_chunked()
    data = chunked(*chunks, extension=extension, trailers=trailers)
    assert feed_all(reader, data + rest, cuts) == (b"".join(chunks), rest)


@pytest.mark.parametrize(
    "data",
    [
        b"x\r\n",
        b"\r\n",
        b"-1\r\n",
        b"1 \r\na",
        b"0x1\r\na\r\n",
        b"1\na\n",
        b"1\r\nab\r\n",
        b"1\r\na\n",
        b"1\r\r\na",
        b"f" * 16 + b"\r\n",
        b"1;" + b"x" * 300 + b"\r\n",
        b"0\r\n" + b"A: b\r\n" * 2000,
        b"0\r\nA: b\n",
        b"1;\x01\r\na\r\n",
        b"1;a b\r\na\r\n",
        b"1 ;a\r\na\r\n",
        b"1;\r\na\r\n",
        b'1;a="b\r\na\r\n',
        b"0\r\nno colon\r\n",
        b"0\r\n folded: a\r\n",
        b"0\r\nA: \x00\r\n",
        b"0\r\n: a\r\n",
        b"0\r\nContent-Length: 3\r\n",
        b"0\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_malformed_chunking_is_refused(data: bytes) -> None:
    reader = BodyReader()
    reader.begin_chunked()
    with pytest.raises(Http1Error):
        feed_all(reader, data, [])


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_any_bytes_end_in_a_verdict_not_a_crash(data: bytes, cuts: list[int]) -> None:
    reader = BodyReader()
    reader.begin_chunked()
    try:
        body, _ = feed_all(reader, data, cuts)
    except Http1Error:
        return
    assert len(body) <= len(data)


def test_until_close_ends_with_the_stream() -> None:
    reader, sink = BodyReader(), Sink()
    reader.begin_until_close()
    reader.feed(b"abc", 1, sink)
    assert not reader.is_done
    assert reader.end_of_stream()
    assert sink.data == b"bc"


def test_end_of_stream_inside_a_length_body_is_not_its_end() -> None:
    reader = BodyReader()
    reader.begin_length(5)
    reader.feed(b"abc", 0, Sink())
    assert reader.remaining_bytes() == 2
    assert not reader.end_of_stream()
