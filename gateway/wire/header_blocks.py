"""HOT PATH. Owns header blocks (HPACK, RFC 7541): decoding with memory, encoding without state.

We announce a table size of 0. Once the peer obeys (its first block after the acknowledgement begins with the table
size update 0x20), a block means the same whenever it comes: `HeaderMemo` then maps the exact bytes of blocks, and of
single fields, to what they say, for all connections of a process. Until then the `hpack` package keeps the full state.
"""

import re
from collections.abc import Callable, Iterable
from typing import Final

import hpack

from gateway.wire.header_memo import HeaderBlock, HeaderMemo
from gateway.wire.hpack_static import STATIC_NAME_INDEX, STATIC_PAIR_INDEX, STATIC_TABLE, STATIC_TABLE_LENGTH
from gateway.wire.http2_fields import REGULAR, Field, ReplyHead, field, reply_head
from gateway.wire.http2_frames import H2Code, Http2Error, Http2Limits
from gateway.wire.huffman import decode_huffman, decode_name

_SIZE_UPDATE_ZERO: Final = 0x20
_INTEGER_BYTES_MAX: Final = 5
_ENTRY_OVERHEAD_BYTES: Final = 32


_STATIC_FIELDS: Final[tuple[Field, ...]] = (field(b"", b""), *(field(*pair) for pair in STATIC_TABLE))


_FIRST_FIELD: Final = _STATIC_FIELDS[2]


def _corrupt(message: str) -> Http2Error:
    return Http2Error(H2Code.COMPRESSION_ERROR, message)


def _read_integer(raw: bytes, position: int, prefix: int) -> tuple[int, int]:
    """(value, next position) of an integer whose prefix was all ones (RFC 7541 §5.1)."""
    value = prefix
    shift = 0
    while True:
        byte = raw[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift >= 7 * _INTEGER_BYTES_MAX:
            raise _corrupt("overlong integer in a header block")


def _read_string(raw: bytes, position: int, decode: Callable[[bytes], bytes]) -> tuple[bytes, int]:
    """(text, next position) of a string literal (RFC 7541 §5.2). The caller has checked its bounds."""
    first = raw[position]
    length = first & 0x7F
    position += 1
    if length == 0x7F:
        length, position = _read_integer(raw, position, 0x7F)
    end = position + length
    text = raw[position:end]
    return (decode(text) if first & 0x80 else text), end


def _skip_string(raw: bytes, position: int) -> int:
    length = raw[position] & 0x7F
    position += 1
    if length == 0x7F:
        length, position = _read_integer(raw, position, 0x7F)
    return position + length


def _decode_literal(raw: bytes) -> Field:
    """One literal field, complete in `raw`; with a table of size 0 all three kinds of literal mean the same."""
    mask = 0x3F if raw[0] >= 0x40 else 0x0F
    index = raw[0] & mask
    position = 1
    if index == mask:
        index, position = _read_integer(raw, 1, mask)
    try:
        if index:
            name = STATIC_TABLE[index - 1][0]
        else:
            name, position = _read_string(raw, position, decode_name)
        return field(name, _read_string(raw, position, decode_huffman)[0])
    except hpack.HPACKError as error:
        raise _corrupt("malformed Huffman code in a header block") from error


def _offsets(raw: bytes) -> list[int]:
    """Where each field of a well-formed stateless block begins, and the end; size updates belong to what follows."""
    offsets = [0]
    position = 0
    while position < len(raw):
        first = raw[position]
        position += 1
        if first < 0x80:
            if first & 0xE0 == _SIZE_UPDATE_ZERO:
                continue
            mask = 0x3F if first >= 0x40 else 0x0F
            index = first & mask
            if index == 0:
                position = _skip_string(raw, position)
            elif index == mask:
                _, position = _read_integer(raw, position, mask)
            position = _skip_string(raw, position)
        offsets.append(position)
    return offsets


#: How a reply of our own engine ends (its encoder writes literals without indexing).
_units: Final = re.compile(
    rb"\x00\x0ctollway-rows([\x01-\x14])([0-9]+)"
    rb"\x00\x12tollway-compute-ns([\x01-\x14])([0-9]+)"
    rb"\x00\x10tollway-queue-ns([\x01-\x14])([0-9]+)\Z"
).search
#: What they count towards the header list but for their values.
_UNITS_LIST_BYTES: Final = 3 * _ENTRY_OVERHEAD_BYTES + len(b"tollway-rowstollway-compute-nstollway-queue-ns")


def _with_units(known: HeaderBlock, units: re.Match[bytes]) -> HeaderBlock | None:
    """The block of `known` and the units behind it; None if the whole has to be judged."""
    rows_bytes, rows, compute_bytes, compute_ns, queue_bytes, queue_ns = units.groups()
    if len(rows) != rows_bytes[0] or len(compute_ns) != compute_bytes[0] or len(queue_ns) != queue_bytes[0]:
        return None
    if known.head is None:
        known.head = reply_head(known.fields)
    head = known.head
    if type(head) is not ReplyHead or head.units:
        return None
    pairs = [(b"tollway-rows", rows), (b"tollway-compute-ns", compute_ns), (b"tollway-queue-ns", queue_ns)]
    block = HeaderBlock(
        [*known.fields, (pairs[0], REGULAR), (pairs[1], REGULAR), (pairs[2], REGULAR)],
        known.list_bytes + _UNITS_LIST_BYTES + len(rows) + len(compute_ns) + len(queue_ns),
    )
    block.head = ReplyHead(head.status, head.headers, head.content_length, pairs)
    return block


class BlockDecoder:
    """Decodes the blocks of one connection, in order. `memo` may be shared by all connections with equal limits."""

    __slots__ = (
        "_block_hard_bytes_max",
        "_fields_hard_max",
        "_headers_max",
        "_is_acknowledged",
        "_list_bytes_max",
        "_memo",
        "_stateful",
        "is_stateless",
    )

    def __init__(self, limits: Http2Limits, memo: HeaderMemo) -> None:
        # Between one and two times the announced limit a request is answered 431; beyond, the connection ends.
        self._block_hard_bytes_max = 2 * limits.header_list_bytes_max
        self._fields_hard_max = 2 * limits.headers_max
        self._list_bytes_max = limits.header_list_bytes_max
        self._headers_max = limits.headers_max
        self._memo = memo
        self._stateful: hpack.Decoder | None = None
        self._is_acknowledged = False
        self.is_stateless = False

    def on_acknowledged(self) -> None:
        """The peer acknowledged our table size of 0."""
        self._is_acknowledged = True

    def known(self, raw: bytes) -> HeaderBlock | None:
        """What `decode` would say, if that is remembered and reading the block changes nothing; else None."""
        return self._memo.blocks.get(raw) if self.is_stateless else None

    def decode_reply(self, raw: bytes) -> HeaderBlock:
        """`decode` for who mostly reads replies of our own engine: they differ in the units that end them."""
        if self.is_stateless and raw not in self._memo.blocks:
            units = _units(raw)
            if units is not None:
                try:
                    # A part that is no whole number of fields is truncated, and so an error.
                    known = self.decode(raw[: units.start()])
                except Http2Error:
                    return self.decode(raw)
                return _with_units(known, units) or self.decode(raw)
        return self.decode(raw)

    def decode(self, raw: bytes) -> HeaderBlock:
        """The fields of a complete block. Raises Http2Error; the connection cannot go on then."""
        if not self.is_stateless:
            return self._decode_stateful(raw)
        memo = self._memo
        found = memo.blocks.get(raw)
        if found is None:
            found = memo.old_blocks.get(raw) or self._vary(raw) or self._split_and_learn(raw)
            memo.keep_block(raw, found)
        return found

    def _vary(self, raw: bytes) -> HeaderBlock | None:
        """Decode `raw` as a known block but for some ordinary fields in its middle, or None."""
        memo = self._memo
        template = memo.find_template(raw)
        if template is None:
            return None
        middle = raw[len(template.prefix) : len(raw) - len(template.suffix)]
        known = memo.fields.get(middle)
        if known is not None:
            return template.derive([known], self._list_bytes_max, self._headers_max)
        fields = [_FIRST_FIELD]  # a size update is allowed before the first field only, and this is not the first
        try:
            self._split_into(fields, middle)
        except (IndexError, Http2Error):
            return None  # the whole is judged, not the part
        del fields[0]
        return template.derive(fields, self._list_bytes_max, self._headers_max)

    def _split_and_learn(self, raw: bytes) -> HeaderBlock:
        block = self._split(raw)
        self._memo.learn(raw, block, _offsets)
        return block

    def _decode_stateful(self, raw: bytes) -> HeaderBlock:
        if self._is_acknowledged:
            if raw[:1] and raw[0] & 0xE0 == _SIZE_UPDATE_ZERO:
                if raw[0] != _SIZE_UPDATE_ZERO:
                    raise _corrupt("table size update beyond the acknowledged maximum")
                self.is_stateless = True
                self._stateful = None
                return self.decode(raw)
            if self._stateful is not None and self._stateful.header_table.dynamic_entries:
                # RFC 9113 §4.3.1: the table in use had to be reduced at the start of this block.
                raise _corrupt("no table size update after the acknowledged reduction")
            # An encoder that never filled its table may leave the update out (the bench's backend and our own do). From
            # here on there is nothing to refer to, so its blocks are as stateless as after an update.
            self.is_stateless = True
            self._stateful = None
            return self.decode(raw)
        if self._stateful is None:
            self._stateful = hpack.Decoder(self._block_hard_bytes_max)
        try:
            pairs = self._stateful.decode(raw, raw=True)
        except hpack.OversizedHeaderListError as error:
            raise Http2Error(H2Code.ENHANCE_YOUR_CALM, "header list too large") from error
        except (hpack.HPACKError, IndexError) as error:
            raise _corrupt("malformed header block") from error
        self._check_count(len(pairs))
        fields = [field(pair[0], pair[1]) for pair in pairs]
        return HeaderBlock(fields, sum(len(n) + len(v) + _ENTRY_OVERHEAD_BYTES for (n, v), _ in fields))

    def _check_count(self, count: int) -> None:
        if count > self._fields_hard_max:
            raise Http2Error(H2Code.ENHANCE_YOUR_CALM, "too many header fields")

    def _split(self, raw: bytes) -> HeaderBlock:
        """Decode a stateless block field by field, each remembered."""
        fields: list[Field] = []
        try:
            self._split_into(fields, raw)
        except IndexError:
            raise _corrupt("truncated header block") from None
        self._check_count(len(fields))
        list_bytes = _ENTRY_OVERHEAD_BYTES * len(fields)
        for (name, value), _ in fields:
            list_bytes += len(name) + len(value)
        if list_bytes > self._block_hard_bytes_max:
            raise Http2Error(H2Code.ENHANCE_YOUR_CALM, "header list too large")
        return HeaderBlock(fields, list_bytes)

    def _split_into(self, fields: list[Field], raw: bytes) -> None:
        size = len(raw)
        memo = self._memo
        position = 0
        while position < size:
            first = raw[position]
            if first >= 0x80:
                if not 0x80 < first <= 0x80 + STATIC_TABLE_LENGTH:
                    raise _corrupt("index beyond the static table")
                fields.append(_STATIC_FIELDS[first & 0x7F])
                position += 1
                continue
            start = position
            position += 1
            if first < 0x40 and first & 0x20:
                if first != _SIZE_UPDATE_ZERO or fields:
                    raise _corrupt("misplaced or too large table size update")
                continue
            mask = 0x3F if first >= 0x40 else 0x0F
            index = first & mask
            if index == 0:
                position = _skip_string(raw, position)
            elif index == mask:
                index, position = _read_integer(raw, position, mask)
            if index > STATIC_TABLE_LENGTH:
                raise _corrupt("index beyond the static table")
            # `_skip_string`, inlined for values shorter than 127 bytes.
            length = raw[position] & 0x7F
            position = position + 1 + length if length != 0x7F else _skip_string(raw, position)
            if position > size:
                raise _corrupt("truncated header block")
            part = raw[start:position]
            found = memo.fields.get(part)
            if found is None:
                found = memo.find_field(part)
                if found is None:
                    found = _decode_literal(part)
                    memo.keep_field(part, found)
            fields.append(found)


def encode_integer(value: int, prefix_bits: int, first_byte: int) -> bytes:
    """An integer with `prefix_bits` low bits of its first byte (RFC 7541 §5.1)."""
    mask = (1 << prefix_bits) - 1
    if value < mask:
        return bytes((first_byte | value,))
    out = bytearray((first_byte | mask,))
    value -= mask
    while value >= 0x80:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _encode_string(text: bytes) -> bytes:
    return encode_integer(len(text), 7, 0) + text


#: Never indexed anywhere on the way (RFC 7541 §7.1.3).
_SENSITIVE_NAMES: Final = frozenset({b"authorization", b"cookie", b"set-cookie", b"x-api-key"})
_LENGTHS: Final = tuple(bytes((length,)) for length in range(0x7F))
_NAMES_MAX: Final = 1024
_BLOCKS_MAX: Final = 512


class BlockEncoder:
    """Encodes blocks that any decoder understands whatever its state: literals without indexing, static indices.

    One per process or pool; remembers names, and whole blocks that are given as tuples (constants).
    """

    __slots__ = ("_blocks", "_names", "_statuses")

    def __init__(self) -> None:
        self._names: dict[bytes, bytes] = {}
        self._blocks: dict[tuple[tuple[bytes, bytes], ...], bytes] = {}
        self._statuses: dict[int, bytes] = {}

    def encode(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The block of `headers`, whose names are lower-case. Allocates once for a list, never for a known tuple."""
        if type(headers) is tuple:
            block = self._blocks.get(headers)
            if block is None:
                block = b"".join([self.encode_field(name, value) for name, value in headers])
                if len(self._blocks) >= _BLOCKS_MAX:
                    self._blocks.clear()
                self._blocks[headers] = block
            return block
        names = self._names
        parts: list[bytes] = []
        for name, value in headers:
            parts.append(names.get(name) or self._name(name))
            parts.append(_LENGTHS[len(value)] if len(value) < 0x7F else encode_integer(len(value), 7, 0))
            parts.append(value)
        return b"".join(parts)

    def status(self, status: int) -> bytes:
        """The `:status` field; at most 900 values exist."""
        field_bytes = self._statuses.get(status)
        if field_bytes is None:
            field_bytes = self._statuses[status] = self.encode_field(b":status", b"%d" % status)
        return field_bytes

    def encode_field(self, name: bytes, value: bytes) -> bytes:
        """One field; as an index where the static table has the pair."""
        index = STATIC_PAIR_INDEX.get((name, value))
        if index is not None:
            return encode_integer(index, 7, 0x80)
        return (self._names.get(name) or self._name(name)) + _encode_string(value)

    def _name(self, name: bytes) -> bytes:
        first_byte = 0x10 if name in _SENSITIVE_NAMES else 0x00
        index = STATIC_NAME_INDEX.get(name)
        encoded = encode_integer(index, 4, first_byte) if index else bytes((first_byte,)) + _encode_string(name)
        if len(self._names) >= _NAMES_MAX:
            self._names.clear()
        self._names[name] = encoded
        return encoded
