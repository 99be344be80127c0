"""HOT PATH. Owns counting what a streamed reply holds, from its bytes, in any cut; no tensor is decoded.

gRPC: messages of ModelStreamInfer. SSE: events. `count`: complete responses with outputs; `errors`: those that say a
fault; `finals`: those that end a request (gRPC only); `is_within`: units have come since the last end.
"""

from typing import Final

from gateway.call import Data
from gateway.wire.grpc import PREFIX_BYTES

#: Field 1 of ModelStreamInferResponse, error_message; and 2, infer_response.
_RESPONSE: Final = 0x12
#: `triton_final_response: true` as protobuf writes it.
_FINAL: Final = b"triton_final_response\x12\x02\x08\x01"
#: Of a message, enough for its names and parameters, which come before its tensors.
_MESSAGE_BYTES_KEPT: Final = 4096
#: Of an event, what is kept while its end has not come.
_EVENT_BYTES_KEPT: Final = 64
_EVENT_ERROR: Final = b'data: {"error"'


class MessageUnits:
    """Counts gRPC messages."""

    __slots__ = ("_is_plain", "_kept", "_left", "_prefix", "_size", "count", "errors", "finals", "is_within")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.finals = 0
        self.is_within = False
        self._prefix = b""
        #: Of the message under way: bytes that have not come, -1 between messages; and how it begins.
        self._left = -1
        self._size = 0
        self._is_plain = True
        self._kept = b""

    def feed(self, data: Data) -> None:
        """The next bytes."""
        position, size = 0, len(data)
        while position < size:
            if self._left < 0:
                take = min(PREFIX_BYTES - len(self._prefix), size - position)
                self._prefix += bytes(data[position : position + take])
                position += take
                if len(self._prefix) < PREFIX_BYTES:
                    return
                self._left = self._size = int.from_bytes(self._prefix[1:], "big")
                self._is_plain = not self._prefix[0]
                self._prefix = self._kept = b""
            else:
                take = min(self._left, size - position)
                room = _MESSAGE_BYTES_KEPT - len(self._kept)
                if room > 0:
                    self._kept += bytes(data[position : position + min(take, room)])
                position += take
                self._left -= take
            if not self._left:
                self._left = -1
                self._take(self._kept)

    def _take(self, message: bytes) -> None:
        if not self._is_plain:
            # Compressed, against what was agreed: what it holds is not known, but it is never free.
            self.count += 1
            self.is_within = True
            return
        if message[:1] == b"\x0a":
            self.errors += 1
        elif has_outputs(message, self._size):
            self.count += 1
            self.is_within = True
        if _FINAL in message:
            self.finals += 1
            self.is_within = False


def has_outputs(message: bytes, size_bytes: int) -> bool:
    """Whether the infer_response of a message has outputs (fields 5, 6): an empty end has none.

    `message` may be only the beginning of `size_bytes`. Where it ends before its outputs could be found it has some:
    what stands before them (the id) is the caller's, who must not make a response free by its length.
    """
    try:
        if message[0] != _RESPONSE:
            return False
        size, position = _varint(message, 1)
        end = position + size
        while position < end:
            tag = message[position]
            if tag in (0x2A, 0x32):
                return True
            if tag & 7 != 2:
                return False
            length, position = _varint(message, position + 1)
            position += length
    except IndexError:
        return size_bytes > len(message)
    return False


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


class EventUnits:
    """Counts server-sent events."""

    __slots__ = ("_held", "_is_cut", "count", "errors", "finals", "is_within")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        #: One request, whose end is that of the reply.
        self.finals = 0
        self.is_within = False
        self._held = b""
        self._is_cut = False

    def feed(self, data: Data) -> None:
        """The next bytes."""
        parts = (self._held + bytes(data)).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in parts[:-1]:
            if event.startswith(_EVENT_ERROR):
                self.errors += 1
            elif event and (self._is_cut or not _is_comment(event)):
                self.count += 1
                self.is_within = True
            self._is_cut = False
        rest = parts[-1]
        if len(rest) > 2 * _EVENT_BYTES_KEPT:
            # How it begins tells what it is, and its last bytes may be half of what ends it.
            rest = rest[:_EVENT_BYTES_KEPT] + b" " + rest[-2:]
            self._is_cut = True
        self._held = rest


def _is_comment(event: bytes) -> bool:
    """Whether all its lines are comments, which keep a connection open and say nothing."""
    return all(line[:1] == b":" for line in event.split(b"\n") if line)
