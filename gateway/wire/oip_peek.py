"""HOT PATH. Owns peeking into gRPC bodies and JSON heads of the Open Inference Protocol: model, version, id, rows.

`GrpcPeek` follows the raw body of a call (prefixes, compression, any split) and holds every message to the model that
was decided first. `json_rows` reads the first input's shape from a JSON request. No tensor is decoded.
"""

import zlib
from typing import Final

import msgspec

from gateway.call import Data
from gateway.errors import Code
from gateway.wire.grpc import PREFIX_BYTES
from gateway.wire.protobuf_peek import MessagePeek, Peeked

_WINDOW_BITS: Final = {b"gzip": 31, b"deflate": 15}
_INFLATE_STEP_BYTES: Final = 64 * 1024


class GrpcPeek:
    """Peeks the request body of one call. `feed` every body part before it is forwarded; `end` at its end.

    `encoding` is the call's `grpc-encoding`. A unary call has one message; in a stream every message must name the
    same model and version. `code` and `fault` say why `feed` returned FAULT: reset upstream and end the call with it.
    """

    __slots__ = (
        "_encoding",
        "_head",
        "_inflate",
        "_inflated_bytes",
        "_is_stream",
        "_left",
        "_message",
        "_message_bytes_max",
        "code",
        "fault",
        "first",
        "messages",
        "state",
    )

    def __init__(self, message_bytes_max: int, encoding: bytes = b"identity", *, is_stream: bool = False) -> None:
        self._message_bytes_max = message_bytes_max
        self._encoding = encoding
        self._is_stream = is_stream
        self._head = b""
        self._left = -1
        self._inflate: zlib._Decompress | None = None
        self._inflated_bytes = 0
        #: The first message, which decides; later ones are compared with it.
        self.first = self._message = MessagePeek()
        self.messages = 0
        self.state = Peeked.PENDING
        self.code = Code.BAD_REQUEST
        self.fault = ""

    @property
    def violates(self) -> bool:
        return self.state is Peeked.FAULT

    @property
    def model(self) -> bytes:
        return self.first.model or b""

    @property
    def version(self) -> bytes:
        return self.first.version or b""

    @property
    def id(self) -> bytes:
        return self.first.id

    @property
    def rows(self) -> int:
        return self.first.rows

    def feed(self, data: Data) -> Peeked:
        """Take the next part of the body; PENDING until the model is known, FAULT for good once something is wrong."""
        position = 0
        size = len(data)
        if (
            not self.messages
            and size > PREFIX_BYTES
            and not data[0]
            and not self._head
            and self.state is not Peeked.FAULT
        ):
            length = int.from_bytes(data[1:PREFIX_BYTES], "big")
            if length == size - PREFIX_BYTES <= self._message_bytes_max:
                return self._read_whole(data[PREFIX_BYTES:])
        while position < size and self.state is not Peeked.FAULT:
            if self._left < 0:
                position = self._read_head(data, position)
                if self._left != 0 or self.violates:
                    continue
            end = min(size, position + self._left)
            self._left -= end - position
            self._read(data[position:end])
            position = end
            if not self._left and not self.violates:
                self._end_message()
        return self.state

    def _read_whole(self, data: Data) -> Peeked:
        """The usual case: the one message, uncompressed, in one part."""
        self.messages = 1
        message = self.first
        message.feed(data)
        state = self.state = message.end()
        if state is Peeked.FAULT:
            self._fail(Code.BAD_REQUEST, message.fault)
        return state

    def end(self) -> Peeked:
        """The body is complete."""
        if self.state is not Peeked.FAULT and (self._left > 0 or self._head):
            self._fail(Code.BAD_REQUEST, "truncated gRPC message")
        elif self.state is Peeked.PENDING:
            self._fail(Code.BAD_REQUEST, "no request message")
        return self.state

    def _fail(self, code: Code, why: str) -> None:
        self.state = Peeked.FAULT
        self.code = code
        self.fault = why

    def _read_head(self, data: Data, position: int) -> int:
        end = position + PREFIX_BYTES - len(self._head)
        head = self._head + bytes(data[position:end])
        if len(head) < PREFIX_BYTES:
            self._head = head
            return len(data)
        self._head = b""
        length = int.from_bytes(head[1:], "big")
        if self.messages and not self._is_stream:
            self._fail(Code.BAD_REQUEST, "more than one message in a unary call")
        elif head[0] > 1:
            self._fail(Code.BAD_REQUEST, "malformed message prefix")
        elif length > self._message_bytes_max:
            self._fail(Code.BODY_TOO_LARGE, f"message larger than {self._message_bytes_max} bytes")
        else:
            self._begin_message(length, is_compressed=head[0] == 1)
        return end

    def _begin_message(self, length: int, *, is_compressed: bool) -> None:
        self._left = length
        if self.messages:
            self._message = MessagePeek()
        self.messages += 1
        self._inflate = None
        if not is_compressed:
            return
        bits = _WINDOW_BITS.get(self._encoding)
        if bits is None:
            self._fail(Code.UNSUPPORTED_ENCODING, "compressed message without a supported grpc-encoding")
            return
        self._inflate = zlib.decompressobj(bits)
        self._inflated_bytes = 0

    def _read(self, part: Data) -> None:
        if self._inflate is None:
            self._follow(self._message.feed(part))
            return
        try:
            self._read_compressed(self._inflate, part)
        except zlib.error:
            self._fail(Code.BAD_REQUEST, "malformed compressed message")

    def _read_compressed(self, inflate: "zlib._Decompress", part: Data) -> None:
        """Inflate in bounded steps, so that a bomb costs no memory and ends at the message limit."""
        while part and self.state is not Peeked.FAULT:
            plain = inflate.decompress(part, _INFLATE_STEP_BYTES)
            self._inflated_bytes += len(plain)
            if self._inflated_bytes > self._message_bytes_max:
                self._fail(Code.BODY_TOO_LARGE, f"message inflates to more than {self._message_bytes_max} bytes")
                return
            if inflate.unused_data:
                self._fail(Code.BAD_REQUEST, "bytes after a compressed message")
                return
            self._follow(self._message.feed(plain))
            part = inflate.unconsumed_tail

    def _end_message(self) -> None:
        self._left = -1
        # The checksum is read only after all output is out, so an end before `eof` is a cut.
        if self._inflate is not None and not self._inflate.eof:
            self._fail(Code.BAD_REQUEST, "truncated compressed message")
        else:
            self._follow(self._message.end())
            self._compare()

    def _follow(self, state: Peeked) -> None:
        if state is Peeked.FAULT:
            self._fail(Code.BAD_REQUEST, self._message.fault)
        elif self._message is self.first:
            self.state = state
        elif state is Peeked.READY:
            self._compare()

    def _compare(self) -> None:
        message, first = self._message, self.first
        if message is not first and (message.model != first.model or message.version != first.version):
            self._fail(Code.BAD_REQUEST, "a message of the stream names another model")


class _Input(msgspec.Struct):
    shape: list[int]


class _Head(msgspec.Struct):
    inputs: list[_Input]


_decode_head = msgspec.json.Decoder(_Head).decode


def json_rows(head: Data) -> int:
    """The first dimension of the first input's shape in a JSON request or JSON head; -1 when it cannot be told.

    Data is skipped, not built. Where parsers could disagree (repeated members, escapes that might hide one) the
    answer is -1: the caller then counts rows another way, never by a guess that a client could steer.
    """
    raw = bytes(head)
    try:
        inputs = _decode_head(raw).inputs
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # msgspec recurses even through members that it skips.
        return -1
    if not inputs or not inputs[0].shape or b"\\" in raw:
        return -1
    if raw.count(b'"inputs"') != 1 or raw.count(b'"shape"') != len(inputs):
        return -1
    rows = inputs[0].shape[0]
    return rows if 0 <= rows <= 2**31 - 1 else -1
