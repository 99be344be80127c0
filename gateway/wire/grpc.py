"""HOT PATH. Owns gRPC over HTTP/2 without I/O: message framing, time-outs, status trailers (grpc PROTOCOL-HTTP2.md)."""

import base64
from typing import Final
from urllib.parse import unquote_to_bytes

from gateway.call import Data, Headers
from gateway.wire.status import Grpc

PREFIX_BYTES: Final = 5
CONTENT_TYPE: Final = (b"content-type", b"application/grpc")
#: The longest time-out we tell apart from none: a year.
TIMEOUT_NS_MAX: Final = 365 * 24 * 3600 * 1_000_000_000
_TIMEOUT_DIGITS_MAX: Final = 8
_UNIT_NS: Final = {
    0x48: 3600 * 1_000_000_000,  # H
    0x4D: 60 * 1_000_000_000,  # M
    0x53: 1_000_000_000,  # S
    0x6D: 1_000_000,  # m
    0x75: 1_000,  # u
    0x6E: 1,  # n
}
_FORMATS: Final = (
    (100_000, 1, b"%dn"),
    (100_000_000, 1_000, b"%du"),
    (100_000_000_000, 1_000_000, b"%dm"),
    (100_000_000_000_000, 1_000_000_000, b"%dS"),
)
_RETRY_INFO_URL: Final = b"type.googleapis.com/google.rpc.RetryInfo"


class GrpcFault(Exception):
    """A message stream that cannot be read on; the call ends with this status."""

    def __init__(self, status: Grpc, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def prefix(size_bytes: int, *, is_compressed: bool = False) -> bytes:
    """The five bytes before a message."""
    return (b"\x01" if is_compressed else b"\x00") + size_bytes.to_bytes(4, "big")


def frame(message: Data, *, is_compressed: bool = False) -> bytes:
    """A message with its prefix."""
    return b"".join((prefix(len(message), is_compressed=is_compressed), message))


class MessageReader:
    """Cuts a body into messages. A message in one piece costs one copy; bytes are never rescanned."""

    __slots__ = ("_head", "_is_compressed", "_left", "_message_bytes_max", "_parts")

    def __init__(self, message_bytes_max: int) -> None:
        self._message_bytes_max = message_bytes_max
        self._head = b""
        self._left = -1
        self._is_compressed = False
        self._parts: list[bytes] = []

    @property
    def is_between_messages(self) -> bool:
        """Whether the body may end here."""
        return self._left < 0 and not self._head

    def feed(self, data: Data) -> list[tuple[bool, bytes]]:
        """The messages that `data` completes, each with its compressed flag. Raises GrpcFault."""
        messages: list[tuple[bool, bytes]] = []
        position = 0
        size = len(data)
        while position < size or self._left == 0:
            if self._left < 0:
                position = self._read_head(data, position)
                continue
            end = min(size, position + self._left)
            self._left -= end - position
            part = bytes(data[position:end])
            position = end
            if self._left:
                self._parts.append(part)
                break
            if self._parts:
                self._parts.append(part)
                part = b"".join(self._parts)
                self._parts = []
            self._left = -1
            messages.append((self._is_compressed, part))
        return messages

    def _read_head(self, data: Data, position: int) -> int:
        """Collect a prefix; returns the position after what was taken."""
        end = position + PREFIX_BYTES - len(self._head)
        head = self._head + bytes(data[position:end])
        if len(head) < PREFIX_BYTES:
            self._head = head
            return len(data)
        self._head = b""
        self._is_compressed = read_flag(head[0])
        length = int.from_bytes(head[1:], "big")
        if length > self._message_bytes_max:
            raise GrpcFault(Grpc.RESOURCE_EXHAUSTED, f"message larger than {self._message_bytes_max} bytes")
        self._left = length
        return end


def read_flag(flag: int) -> bool:
    """The compressed flag. Raises GrpcFault on any other value."""
    if flag > 1:
        raise GrpcFault(Grpc.INTERNAL, "malformed message prefix")
    return flag == 1


def try_timeout_ns(value: bytes) -> int | None:
    """`grpc-timeout` in nanoseconds, at most TIMEOUT_NS_MAX; None if malformed (one to eight digits and a unit)."""
    digits = value[:-1]
    if not digits or len(digits) > _TIMEOUT_DIGITS_MAX or not digits.isdigit():
        return None
    unit_ns = _UNIT_NS.get(value[-1])
    return None if unit_ns is None else min(int(digits) * unit_ns, TIMEOUT_NS_MAX)


def format_timeout(remaining_ns: int) -> bytes:
    """`grpc-timeout` for what is left, rounded down to at most five digits, never below 1 ns.

    Few digits on purpose: fewer distinct header blocks, which receivers that remember them decode for nothing.
    """
    remaining_ns = max(remaining_ns, 1)
    for below_ns, unit_ns, pattern in _FORMATS:
        if remaining_ns < below_ns:
            return pattern % (remaining_ns // unit_ns)
    return b"%dH" % min(remaining_ns // _UNIT_NS[0x48], 99_999_999)


def encode_message(message: str) -> bytes:
    """`grpc-message`: percent-encoded UTF-8; printable ASCII but `%` stands for itself."""
    raw = message.encode("utf-8", "replace")
    if raw.isascii() and message.isprintable() and b"%" not in raw:
        return raw
    return b"".join([b"%c" % byte if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in raw])


def decode_message(value: bytes) -> str:
    """The text of `grpc-message`; a malformed one is kept as it is (the specification asks for that)."""
    return unquote_to_bytes(value).decode("utf-8", "replace")


def encode_binary(value: bytes) -> bytes:
    """The value of a `-bin` header: base64 without padding."""
    return base64.b64encode(value).rstrip(b"=")


def status_trailers(
    status: Grpc, message: str = "", extra: Headers | None = None, *, retry_after_ms: int | None = None
) -> Headers:
    """Trailers that end a call. With a wait: `retry-after` in whole seconds and google.rpc.RetryInfo.

    Given to `Exchange.reply` with an empty body they make a trailers-only reply.
    """
    trailers: Headers = [(b"grpc-status", b"%d" % status)]
    if message:
        trailers.append((b"grpc-message", encode_message(message)))
    if retry_after_ms is not None:
        trailers.append((b"retry-after", b"%d" % -(-retry_after_ms // 1000)))
        trailers.append((b"grpc-status-details-bin", encode_binary(_status_details(status, message, retry_after_ms))))
    if extra:
        trailers += extra
    return trailers


def _status_details(status: Grpc, message: str, retry_after_ms: int) -> bytes:
    """google.rpc.Status with one google.rpc.RetryInfo, by hand: five fields are not worth a generated module."""
    seconds, rest_ms = divmod(retry_after_ms, 1000)
    delay = b""
    if seconds:
        delay += b"\x08" + varint(seconds)
    if rest_ms:
        delay += b"\x10" + varint(rest_ms * 1_000_000)
    retry_info = b"\x0a" + varint(len(delay)) + delay
    detail = _length_delimited(1, _RETRY_INFO_URL) + _length_delimited(2, retry_info)
    return (
        b"\x08"
        + varint(status)
        + _length_delimited(2, message.encode("utf-8", "replace"))
        + _length_delimited(3, detail)
    )


def _length_delimited(number: int, value: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """A protobuf varint."""
    out = bytearray()
    while value >= 0x80:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
