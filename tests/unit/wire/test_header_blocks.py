"""HPACK: memoised stateless decoding equals the reference, state is kept while needed, encoding is stateless."""

import hpack
import pytest

from gateway.call import Headers
from gateway.wire.header_blocks import BlockDecoder, BlockEncoder, encode_integer
from gateway.wire.header_memo import HeaderMemo
from gateway.wire.hpack_static import STATIC_TABLE
from gateway.wire.http2_frames import H2Code, Http2Error, Http2Limits

HEADERS: Headers = [
    (b":method", b"POST"),
    (b":path", b"/x"),
    (b"content-type", b"application/grpc"),
    (b"grpc-timeout", b"4999m"),
    (b"x-long", b"v" * 300),
    (b"authorization", b"Bearer secret"),
]


def decoder(memo: HeaderMemo | None = None, *, is_stateless: bool = True, **limits: int) -> BlockDecoder:
    made = BlockDecoder(Http2Limits(**limits), memo or HeaderMemo())
    if is_stateless:
        made.on_acknowledged()
        made.decode(b"\x20")
        assert made.is_stateless
    return made


def pairs(decoder: BlockDecoder, raw: bytes) -> Headers:
    return [pair for pair, _ in decoder.decode(raw).fields]


def stateless_encoder() -> hpack.Encoder:
    """The reference encoder as a peer uses it after our SETTINGS: with a table of size 0."""
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    encoder.encode([])
    return encoder


@pytest.mark.parametrize("is_huffman", [True, False])
def test_stateless_blocks_decode_as_the_reference_does(is_huffman: bool) -> None:
    raw = stateless_encoder().encode(HEADERS, huffman=is_huffman)
    assert pairs(decoder(), raw) == HEADERS


@pytest.mark.parametrize("is_stateless", [True, False])
def test_list_size_is_by_the_rfc(is_stateless: bool) -> None:
    raw = stateless_encoder().encode(HEADERS)
    expected = sum(len(name) + len(value) + 32 for name, value in HEADERS)
    assert decoder(is_stateless=is_stateless).decode(raw).list_bytes == expected


def test_equal_blocks_are_one_object_across_connections() -> None:
    memo = HeaderMemo()
    raw = stateless_encoder().encode(HEADERS)
    assert decoder(memo).decode(raw) is decoder(memo).decode(bytes(bytearray(raw)))


def test_equal_fields_of_different_blocks_are_one_object() -> None:
    memo = HeaderMemo()
    made = decoder(memo)
    encoder = stateless_encoder()
    first = made.decode(encoder.encode([(b"same", b"value"), (b"x", b"1")]))
    second = made.decode(encoder.encode([(b"same", b"value"), (b"x", b"2")]))
    assert first.fields[0] is second.fields[0]
    assert second.fields[1][0] == (b"x", b"2")


def test_memo_forgets_by_generation_and_keeps_what_is_used() -> None:
    memo = HeaderMemo(blocks_max=4, fields_max=4)
    made = decoder(memo)
    encoder = BlockEncoder()
    used = encoder.encode([(b"used", b"often")])
    kept = made.decode(used)
    for index in range(50):
        made.decode(encoder.encode([(b"unique", b"%d" % index)]))
        assert made.decode(used) is kept
        assert len(memo.blocks) <= 4
        assert len(memo.fields) <= 4
    unused = made.decode(encoder.encode([(b"unused", b"")]))
    for index in range(50):
        made.decode(encoder.encode([(b"unique", b"%d" % index)]))
    assert made.decode(encoder.encode([(b"unused", b"")])) is not unused


def test_a_field_is_found_in_the_old_generation() -> None:
    memo = HeaderMemo(blocks_max=1, fields_max=2)
    made = decoder(memo)
    encoder = BlockEncoder()
    first = made.decode(encoder.encode([(b"a", b"1"), (b"b", b"1")])).fields[0]
    made.decode(encoder.encode([(b"c", b"1")]))
    assert made.decode(encoder.encode([(b"a", b"1"), (b"d", b"1")])).fields[0] is first


def test_large_blocks_and_fields_are_not_remembered() -> None:
    memo = HeaderMemo()
    made = decoder(memo)
    before = len(memo.blocks)
    made.decode(BlockEncoder().encode([(b"a", b"v" * 3000)]))
    assert len(memo.blocks) == before
    assert not memo.fields


def test_state_is_kept_until_the_acknowledged_update() -> None:
    encoder = hpack.Encoder()
    made = decoder(is_stateless=False)
    assert pairs(made, encoder.encode(HEADERS)) == HEADERS
    assert pairs(made, encoder.encode(HEADERS)) == HEADERS
    made.on_acknowledged()
    encoder.header_table_size = 0
    assert pairs(made, encoder.encode(HEADERS)) == HEADERS
    assert made.is_stateless
    assert pairs(made, encoder.encode(HEADERS)) == HEADERS


def test_a_used_table_must_be_reduced_after_the_acknowledgement() -> None:
    encoder = hpack.Encoder()
    made = decoder(is_stateless=False)
    made.decode(encoder.encode(HEADERS))
    made.on_acknowledged()
    with pytest.raises(Http2Error) as caught:
        made.decode(encoder.encode(HEADERS))
    assert caught.value.code == H2Code.COMPRESSION_ERROR


def test_an_unused_table_need_not_be_reduced() -> None:
    made = decoder(is_stateless=False)
    encoder = BlockEncoder()
    made.decode(encoder.encode(HEADERS))
    made.on_acknowledged()
    assert pairs(made, encoder.encode(HEADERS)) == HEADERS
    assert made.is_stateless
    assert pairs(made, b"\x20" + encoder.encode(HEADERS)) == HEADERS


def test_update_beyond_the_acknowledged_size_is_refused() -> None:
    made = decoder(is_stateless=False)
    made.on_acknowledged()
    with pytest.raises(Http2Error) as caught:
        made.decode(b"\x3f\xe1\x1f")
    assert caught.value.code == H2Code.COMPRESSION_ERROR


def test_an_empty_block_is_an_empty_list() -> None:
    assert pairs(decoder(), b"") == []
    made = decoder(is_stateless=False)
    assert pairs(made, b"") == []
    made.on_acknowledged()
    assert pairs(made, b"") == []


@pytest.mark.parametrize("literal", [b"\x00", b"\x10", b"\x40"])
def test_all_literals_mean_the_same_without_a_table(literal: bytes) -> None:
    assert pairs(decoder(), literal + b"\x01a\x01b") == [(b"a", b"b")]


def test_long_indices_and_strings_use_continued_integers() -> None:
    # Index 61 with a 4 bit prefix is 15 + 46; with a 6 bit one it fits.
    assert pairs(decoder(), b"\x0f\x2e\x01v") == [(b"www-authenticate", b"v")]
    assert pairs(decoder(), b"\x7d\x01v") == [(b"www-authenticate", b"v")]
    name = b"n" * 200
    raw = b"\x00" + encode_integer(200, 7, 0) + name + encode_integer(127, 7, 0) + b"v" * 127
    assert pairs(decoder(), raw) == [(name, b"v" * 127)]


@pytest.mark.parametrize("is_stateless", [True, False])
@pytest.mark.parametrize(
    "raw",
    [
        b"\x80",  # index 0
        b"\xbe",  # index 62: no table
        b"\xff\x00",  # index 127
        b"\x7e\x01v",  # name index 62, incremental
        b"\x0f\x2f\x01v",  # name index 62, not indexed
        b"\x7f\x00\x01v",  # name index 63
        b"\x00\x05ab",  # truncated name
        b"\x00\x01a\x05b",  # truncated value
        b"\x00\x01a",  # no value
        b"\x00",  # no name
        b"\x00\x01a\x7f",  # truncated length
        b"\x00\x7f\xff\xff\xff\xff\xff\x7f",  # endless length
        b"\x0f\xff\xff\xff\xff\xff\xff\x01v",  # endless index
        b"\x82\x20",  # update after a field
        b"\x00\x01a\x81\x00",  # Huffman code without valid padding
    ],
)
def test_corrupt_blocks_are_compression_errors(raw: bytes, is_stateless: bool) -> None:
    made = decoder(is_stateless=is_stateless)
    with pytest.raises(Http2Error) as caught:
        made.decode(raw)
    assert caught.value.code == H2Code.COMPRESSION_ERROR


def test_a_stateless_block_may_repeat_the_update_to_0_but_no_other() -> None:
    assert pairs(decoder(), b"\x20\x20\x82") == [(b":method", b"GET")]
    with pytest.raises(Http2Error):
        decoder().decode(b"\x21\x82")


@pytest.mark.parametrize("is_stateless", [True, False])
def test_bombs_end_at_twice_the_limit(is_stateless: bool) -> None:
    entry = 32 + len(b":method") + len(b"GET")
    made = decoder(is_stateless=is_stateless, header_list_bytes_max=entry * 5)
    assert len(made.decode(b"\x82" * 10).fields) == 10
    with pytest.raises(Http2Error) as caught:
        made.decode(b"\x82" * 11)
    assert caught.value.code == H2Code.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("is_stateless", [True, False])
def test_field_count_ends_at_twice_the_limit(is_stateless: bool) -> None:
    made = decoder(is_stateless=is_stateless, headers_max=5)
    assert len(made.decode(b"\x82" * 10).fields) == 10
    with pytest.raises(Http2Error) as caught:
        made.decode(b"\x82" * 11)
    assert caught.value.code == H2Code.ENHANCE_YOUR_CALM


def test_encoded_blocks_decode_in_the_reference_and_leave_its_table_empty() -> None:
    reference = hpack.Decoder()
    encoder = BlockEncoder()
    for headers in (HEADERS, tuple(HEADERS), tuple(HEADERS)):
        raw = encoder.encode(headers)
        assert [(name, value) for name, value in reference.decode(raw, raw=True)] == HEADERS
    assert not reference.header_table.dynamic_entries


def test_every_static_pair_is_one_index() -> None:
    encoder = BlockEncoder()
    for index, (name, value) in enumerate(STATIC_TABLE, 1):
        raw = encoder.encode_field(name, value)
        assert pairs(decoder(), raw) == [(name, value)]
        if value:
            assert raw == bytes((0x80 | index,))


def test_credentials_are_never_indexed_on_the_way() -> None:
    raw = BlockEncoder().encode([(b"authorization", b"x"), (b"x-api-key", b"y")])
    assert raw[0] & 0xF0 == 0x10
    assert isinstance(next(iter(hpack.Decoder().decode(raw, raw=True))), hpack.NeverIndexedHeaderTuple)


def test_status_fields_are_remembered() -> None:
    encoder = BlockEncoder()
    assert encoder.status(200) == b"\x88"
    assert pairs(decoder(), encoder.status(429)) == [(b":status", b"429")]
    assert encoder.status(429) is encoder.status(429)


def test_the_encoder_memory_is_bounded() -> None:
    encoder = BlockEncoder()
    for index in range(3000):
        encoder.encode(((b"n%d" % index, b"v"),))
    assert len(encoder._names) <= 1024
    assert len(encoder._blocks) <= 512


@pytest.mark.parametrize(("value", "expected"), [(10, b"\x0a"), (31, b"\x1f\x00"), (1337, b"\x1f\x9a\x0a")])
def test_integers_of_the_rfc(value: int, expected: bytes) -> None:
    assert encode_integer(value, 5, 0) == expected
