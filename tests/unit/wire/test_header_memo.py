"""Blocks that are known but for a part: decoded as a whole reading would, or not at all."""

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Headers, RequestHead
from gateway.wire import huffman
from gateway.wire.header_blocks import BlockDecoder
from gateway.wire.header_memo import HeaderMemo, Template
from gateway.wire.http2_fields import request_head
from gateway.wire.http2_frames import Http2Error, Http2Limits
from gateway.wire.huffman import decode_huffman, decode_name

from .h2_tools import REQUEST, block

TYPE = (b"content-type", b"application/grpc")
AGENT = (b"user-agent", b"client/1")


class Reading:
    """A stateless decoder that makes request heads as a connection does."""

    def __init__(self, **limits: int) -> None:
        self.memo = HeaderMemo()
        self.decoder = BlockDecoder(Http2Limits(**limits), self.memo)
        self.decoder.on_acknowledged()
        self.decoder.decode(b"\x20")

    def head(self, raw: bytes) -> RequestHead:
        decoded = self.decoder.decode(raw)
        if decoded.head is None:
            decoded.head = request_head(decoded.fields)
        assert isinstance(decoded.head, RequestHead)
        return decoded.head

    @property
    def template(self) -> Template | None:
        return self.memo._templates[0] if self.memo._templates else None


def varied(value: bytes, *more: tuple[bytes, bytes], length: bytes = b"7") -> Headers:
    return [*REQUEST, TYPE, (b"grpc-timeout", value), *more, AGENT, (b"content-length", length)]


def learned(**limits: int) -> Reading:
    reading = Reading(**limits)
    reading.head(block(varied(b"1S")))
    reading.head(block(varied(b"2S")))
    assert reading.template is not None
    return reading


def test_two_blocks_that_differ_in_one_field_make_a_template() -> None:
    template = learned().template
    assert template is not None
    assert block([(b"grpc-timeout", b"2S")]) not in template.prefix + template.suffix
    assert block(varied(b"2S")) == template.prefix + block([(b"grpc-timeout", b"2S")]) + template.suffix


@pytest.mark.parametrize("is_huffman", [True, False])
def test_a_derived_head_equals_a_full_reading(is_huffman: bool) -> None:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    encoder.encode([])
    reading = Reading()
    for index in range(50):
        headers = varied(b"%dm" % (index * 977), (b"traceparent", b"00-%032x-01" % (index * 12345)))
        raw = encoder.encode(headers, huffman=is_huffman)
        found = reading.head(raw)
        expected = Reading().head(raw)
        for name in ("method", "target", "headers", "authority", "content_length", "is_grpc", "expects_continue"):
            assert getattr(found, name) == getattr(expected, name)
        assert reading.decoder.decode(raw).fields == Reading().decoder.decode(raw).fields
        assert reading.decoder.decode(raw).list_bytes == Reading().decoder.decode(raw).list_bytes
    assert len(reading.memo._templates) == 1


def test_a_derived_head_has_its_own_memo() -> None:
    reading = learned()
    reading.head(block(varied(b"1S"))).memo = "first"
    assert reading.head(block(varied(b"3S"))).memo is None
    assert reading.head(block(varied(b"3S"))) is reading.head(block(varied(b"3S")))


def test_a_known_field_in_the_middle_is_not_decoded_again() -> None:
    reading = learned()
    other = [*varied(b"9S"), (b"x-other", b"y")]
    known = reading.decoder.decode(block(other)).fields[5]
    assert reading.decoder.decode(block(varied(b"9S"))).fields[5] is known


def test_more_or_fewer_fields_may_stand_in_the_middle() -> None:
    reading = learned()
    for more in ([], [(b"a", b"1")], [(b"a", b"1"), (b"b", b"2")]):
        assert reading.head(block(varied(b"5S", *more))).headers == [
            TYPE,
            (b"grpc-timeout", b"5S"),
            *more,
            AGENT,
            (b"content-length", b"7"),
        ]
    without = [pair for pair in varied(b"") if pair[0] != b"grpc-timeout"]
    assert reading.head(block(without)).headers == [TYPE, AGENT, (b"content-length", b"7")]


def test_special_and_broken_fields_in_the_middle_are_read_in_full() -> None:
    reading = learned()
    for pair in [(b"te", b"trailers"), (b"expect", b"100-continue")]:
        full = Reading().head(block(varied(b"1S", pair)))
        found = reading.head(block(varied(b"1S", pair)))
        assert (found.headers, found.expects_continue) == (full.headers, full.expects_continue)
    for pair in [(b":path", b"/other"), (b"content-length", b"8"), (b"Upper", b"x"), (b"connection", b"x")]:
        decoded = reading.decoder.decode(block(varied(b"1S", pair)))
        assert decoded.head is None
        assert not isinstance(request_head(decoded.fields), RequestHead)


@pytest.mark.parametrize("middle", [b"\x20", b"\x00\x01a", b"\x00\x01a\x05b", b"\xbe", b"\x00"])
def test_corrupt_middles_are_refused(middle: bytes) -> None:
    template = learned().template
    assert template is not None
    reading = learned()
    with pytest.raises(Http2Error):
        reading.decoder.decode(template.prefix + middle + b"\xff\xff\xff\xff\xff\xff\xff" + template.suffix)
    with pytest.raises(Http2Error):
        Reading().decoder.decode(template.prefix + middle + b"\xff\xff\xff\xff\xff\xff\xff" + template.suffix)


def test_a_size_update_in_the_middle_is_refused() -> None:
    reading = learned()
    template = reading.template
    assert template is not None
    with pytest.raises(Http2Error):
        reading.decoder.decode(template.prefix + b"\x20" + template.suffix)


def test_limits_hold_for_derived_blocks_too() -> None:
    reading = learned(header_list_bytes_max=1000, headers_max=10)
    long = reading.decoder.decode(block(varied(b"1S", (b"x", b"v" * 900))))
    many = reading.decoder.decode(block(varied(b"1S", *[(b"x", b"%d" % index) for index in range(5)])))
    assert long.head is None
    assert long.list_bytes > 1000
    assert many.head is None
    assert len(many.fields) == 13


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (varied(b"1S"), varied(b"1S", length=b"8")),  # the field that differs is special
        (varied(b"1S"), [(b":method", b"GET"), *varied(b"1S")[1:]]),  # nothing before it
        (varied(b"1S"), [*varied(b"1S"), (b"x", b"added")]),  # nothing varies in the first
        ([*REQUEST, (b"cookie", b"a"), (b"x", b"1"), (b"cookie", b"b")], [*REQUEST, (b"x", b"2")]),
        ([*REQUEST, (b"Bad", b"x")], [*REQUEST, (b"Bad", b"y")]),
    ],
)
def test_other_differences_make_no_template(first: Headers, second: Headers) -> None:
    reading = Reading()
    for headers in (first, second):
        decoded = reading.decoder.decode(block(headers))
        decoded.head = request_head(decoded.fields)
    assert reading.template is None


def test_templates_are_few() -> None:
    reading = Reading()
    for index in range(50):
        for value in (b"1", b"2"):
            reading.head(block([*REQUEST, (b"x-%d" % index, b"k"), (b"v", value), (b"z-%d" % index, b"k")]))
    assert len(reading.memo._templates) <= 8


@given(st.binary(max_size=100))
def test_huffman_codes_decode_as_the_reference_does(text: bytes) -> None:
    code = hpack.Encoder().huffman_coder.encode(text)
    assert decode_huffman(code) == text
    assert decode_name(code) == text


@given(st.binary(max_size=40))
def test_random_huffman_codes_are_judged_as_the_reference_does(raw: bytes) -> None:
    try:
        expected = hpack.huffman_table.decode_huffman(raw)
    except hpack.HPACKDecodingError:
        with pytest.raises(hpack.HPACKDecodingError):
            decode_huffman(raw)
    else:
        assert decode_huffman(raw) == expected


def test_huffman_memories_are_bounded() -> None:
    coder = hpack.Encoder().huffman_coder
    for index in range(3000):
        huffman.decode_name(coder.encode(b"name-%d" % index))
    assert len(huffman._names) <= 1024
    assert len(huffman._steps) <= 8192
