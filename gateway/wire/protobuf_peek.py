"""HOT PATH. Owns reading the first facts of an OIP request message from its protobuf bytes, incrementally.

ModelInferRequest: model_name 1, model_version 2, id 3, inputs 5 (InferInputTensor: shape 3). ModelReadyRequest,
ModelMetadataRequest and ModelConfigRequest: name 1, version 2. Nothing else is looked into; tensors are skipped.

What is authorised must be what runs: the model is decided at the first field beyond 2 (or the message's end), and any
field 1 or 2 after that, or a repeated one, is a fault, though protobuf itself would let the last one win.
"""

from contextlib import suppress
from enum import IntEnum
from typing import Final

from gateway.call import Data

_NAME_BYTES_MAX: Final = 1024
#: How much of the first input is looked at for its shape.
_SHAPE_BYTES_MAX: Final = 4096
_MODEL, _VERSION, _ID, _INPUTS = 1, 2, 3, 5
_SHAPE: Final = 3
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_INT64_SIGN: Final = 1 << 63
_ROWS_MAX: Final = 2**31 - 1


class Peeked(IntEnum):
    """How far a peek has come."""

    #: The model is not known yet.
    PENDING = 0
    #: The model (and id and rows, if they came) is known.
    READY = 1
    #: `fault` says what is wrong; nothing read is to be trusted.
    FAULT = 2


_RAW_CONTENTS_TAG: Final = 0x3A
_HEAD_BYTES_MAX: Final = 1024
_HEADS_MAX: Final = 512
_LENGTHS_MAX: Final = 4

#: What a whole message says: (model, version, rows).
Known = tuple[str, str, int]
#: What the bytes before a message's first raw tensor say: (model, version, id, rows). Clients repeat them call by call.
_heads: dict[bytes, tuple[bytes, bytes, bytes, int]] = {}
#: The same for `recall_whole`, of heads whose names are UTF-8.
_known: dict[bytes, Known] = {}
#: And of those up to the first byte of the one raw tensor that ends the message, with the message's length.
_exact: dict[bytes, tuple[int, Known]] = {}
_exact_lengths: list[int] = []
#: Lengths of heads met last, newest first: where to look for one.
_lengths: list[int] = []


class _Short(Exception):
    """More bytes are needed."""


def _varint(data: Data, position: int, size: int) -> tuple[int, int]:
    """(value, next position). Raises _Short; ValueError on more than ten bytes."""
    value = shift = 0
    while position < size:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError
    raise _Short


class MessagePeek:
    """Reads one message. `rows` is the first dimension of the first input's shape, -1 while unknown or absent."""

    __slots__ = (
        "_can_learn",
        "_has_inputs",
        "_held",
        "_is_begun",
        "_skip",
        "fault",
        "id",
        "model",
        "rows",
        "state",
        "version",
    )

    def __init__(self) -> None:
        self.state = Peeked.PENDING
        self.fault = ""
        self.model: bytes | None = None
        self.version: bytes | None = None
        self.id = b""
        self.rows = -1
        #: This is the message's first part, so that positions in it are positions in the message.
        self._can_learn = False
        self._is_begun = False
        self._has_inputs = False
        self._held = b""
        self._skip = 0

    def feed(self, data: Data) -> Peeked:
        """Take the next bytes of the message."""
        self._can_learn = False
        if self._skip:
            step = min(self._skip, len(data))
            self._skip -= step
            if step == len(data):
                return self.state
            data = data[step:]
        if self._held:
            data = self._held + bytes(data)
            self._held = b""
        position = 0
        size = len(data)
        if not self._is_begun:
            self._is_begun = True
            position = self._recall(data)
        try:
            while position < size and self.state is not Peeked.FAULT:
                position = self._field(data, position, size)
        except _Short:
            self._held = bytes(data[position:])
        except ValueError:
            self._fail("malformed protobuf message")
        if position > size:
            self._skip = position - size
        return self.state

    def _recall(self, data: Data) -> int:
        """Take over what is known of a head that begins `data`; returns the position after it, 0 if there is none."""
        for length in _lengths:
            known = _heads.get(bytes(data[:length]))
            # A part shorter than `length` may be a shorter head: what follows would be skipped unread.
            if known is not None and len(data) >= length:
                self.model, self.version, self.id, self.rows = known
                self.state = Peeked.READY
                self._has_inputs = True
                return length
        self._can_learn = True
        return 0

    def _learn(self, head: bytes) -> None:
        """Remember what the message said before its first raw tensor."""
        self._can_learn = False
        if self.state is not Peeked.READY or not self._has_inputs or self.model is None or self.version is None:
            return
        if len(_heads) >= _HEADS_MAX:
            _heads.clear()
            _known.clear()
        _heads[head] = (self.model, self.version, self.id, self.rows)
        with suppress(UnicodeDecodeError):
            _known[head] = (self.model.decode(), self.version.decode(), self.rows)
        if len(head) not in _lengths:
            _lengths.insert(0, len(head))
            del _lengths[_LENGTHS_MAX:]

    def end(self) -> Peeked:
        """The message is complete."""
        if self._skip or self._held:
            self._fail("truncated protobuf message")
        elif self.state is Peeked.PENDING:
            self._decide()
        return self.state

    def _fail(self, why: str) -> None:
        self.state = Peeked.FAULT
        self.fault = why

    def _decide(self) -> None:
        self.state = Peeked.READY
        if self.model is None:
            self.model = b""
        if self.version is None:
            self.version = b""

    def _field(self, data: Data, position: int, size: int) -> int:
        """One top-level field from `position`; returns where the next begins, maybe beyond `size`."""
        tag = data[position]
        start = position + 1
        if tag == _RAW_CONTENTS_TAG and self._can_learn and position <= _HEAD_BYTES_MAX:
            self._learn(bytes(data[:position]))
        if tag >= 0x80:
            tag, start = _varint(data, position, size)
        number = tag >> 3
        wire_type = tag & 7
        if number > _VERSION and self.state is Peeked.PENDING:
            self._decide()
        if wire_type == _LENGTH:
            length = data[start] if start < size else 0x80
            if length >= 0x80:
                length, start = _varint(data, start, size)
            else:
                start += 1
            if number <= _ID:
                return self._text(data, number, start, start + length, size)
            if number == _INPUTS and not self._has_inputs:
                self._first_input(data, start, start + length, size)
            return start + length
        if number in (0, _MODEL, _VERSION):
            raise ValueError
        if wire_type == _VARINT:
            return _varint(data, start, size)[1]
        if wire_type == _FIXED64:
            return start + 8
        if wire_type == _FIXED32:
            return start + 4
        raise ValueError

    def _text(self, data: Data, number: int, start: int, end: int, size: int) -> int:
        if number == 0:
            raise ValueError
        if number == _ID:
            # Not decisive: a long one is skipped, of repeated ones the last wins as in protobuf.
            if end - start <= _NAME_BYTES_MAX:
                if end > size:
                    raise _Short
                self.id = bytes(data[start:end])
            return end
        if self.state is not Peeked.PENDING:
            self._fail("model_name or model_version after other fields")
            return end
        if end - start > _NAME_BYTES_MAX:
            self._fail("model_name or model_version too long")
            return end
        if end > size:
            raise _Short
        value = bytes(data[start:end])
        if number == _MODEL:
            if self.model is not None:
                self._fail("repeated model_name")
            self.model = value
        else:
            if self.version is not None:
                self._fail("repeated model_version")
            self.version = value
        return end

    def _first_input(self, data: Data, start: int, end: int, size: int) -> None:
        """Look for the shape in what is here of the first input; raises _Short while more could tell."""
        try:
            self.rows = _first_dimension(data, start, end, min(end, size))
        except _Short:
            if end > size and size - start < _SHAPE_BYTES_MAX:
                raise
            if end <= size:
                raise ValueError from None
        self._has_inputs = True


def recall_whole(data: bytes, start: int) -> Known | None:
    """What the message from `start` to the end of `data` says, if it is a known head and raw tensors, nothing else.

    None says nothing about the message: a `MessagePeek` has to read it.
    """
    for length in _exact_lengths:
        exact = _exact.get(data[start : start + length])
        if exact is not None and exact[0] == len(data) - start:
            return exact[1]
    for length in _lengths:
        position = start + length
        known = _known.get(data[start:position])
        if known is not None:
            first = _first_raw_byte(data, position, len(data))
            if first > 0:
                _learn_exact(data[start:first], len(data) - start, known)
            return known if first >= 0 else None
    return None


def _learn_exact(head: bytes, size: int, known: Known) -> None:
    if len(_exact) >= _HEADS_MAX:
        _exact.clear()
    _exact[head] = (size, known)
    if len(head) not in _exact_lengths:
        _exact_lengths.insert(0, len(head))
        del _exact_lengths[_LENGTHS_MAX:]


def _first_raw_byte(data: bytes, position: int, size: int) -> int:
    """-1 unless `data` from `position` on is complete raw tensors; where the content of the only one begins, else 0."""
    first = -1
    try:
        while position < size:
            if data[position] != _RAW_CONTENTS_TAG:
                return -1
            length = data[position + 1]
            position += 2
            if length >= 0x80:
                high = data[position]
                if high < 0x80:
                    length += (high << 7) - 0x80
                    position += 1
                else:
                    length, position = _varint(data, position - 1, size)
            first = position if first < 0 else 0
            position += length
    except (IndexError, _Short, ValueError):
        return -1
    return max(first, 0) if position == size else -1


def _first_dimension(data: Data, position: int, end: int, available: int) -> int:
    """The first dimension of an InferInputTensor's shape; -1 when it has none or a negative one. Raises _Short."""
    while position < end:
        tag, start = _varint(data, position, available)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _LENGTH:
            length, start = _varint(data, start, available)
            position = start + length
            if position > end:
                raise ValueError
            if number == _SHAPE and length:
                return _rows(_varint(data, start, min(available, position))[0])
        elif wire_type == _VARINT:
            value, position = _varint(data, start, available)
            if number == _SHAPE:
                return _rows(value)
        elif wire_type == _FIXED64:
            position = start + 8
        elif wire_type == _FIXED32:
            position = start + 4
        else:
            raise ValueError
        if position > available:
            raise _Short
    return -1


def _rows(dimension: int) -> int:
    return dimension if dimension <= _ROWS_MAX else -1
