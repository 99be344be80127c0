"""HOT PATH. Owns the framing of HTTP/1.1 bodies, sans-IO: by length, chunked (RFC 9112 §7.1), or until close."""

import re
from typing import Final, Protocol

from gateway.errors import Code
from gateway.wire.http1 import Http1Error

_CHUNK_LINE_BYTES_MAX: Final = 256
_CHUNK_DIGITS_MAX: Final = 15
_TRAILER_BYTES_MAX: Final = 8 * 1024
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
#: Extensions and trailers are dropped, but what other parsers refuse is refused here too.
_is_extension = re.compile(
    rb"(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb'|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e])*"))?)+'
).fullmatch
_is_trailer = re.compile(rb"(" + _TOKEN + rb"):[\t\x20-\x7e\x80-\xff]*").fullmatch
#: Fields that would frame the message must not come after it (RFC 9110 §6.5.1).
_NO_TRAILERS: Final = frozenset({b"content-length", b"transfer-encoding", b"host", b"trailer"})

_DONE, _LENGTH, _UNTIL_CLOSE, _SIZE, _DATA, _DATA_END, _TRAILERS = range(7)


class BodySink(Protocol):
    """Who takes body bytes."""

    def on_body_data(self, data: bytes) -> None: ...


class BodyReader:
    """Reads one body after another. `feed` hands data to the sink and returns how far it came.

    Bytes after the body's end are left to the caller. Raises Http1Error on malformed chunking.
    """

    __slots__ = ("_line", "_remaining", "_state", "_trailer_bytes")

    def __init__(self) -> None:
        self._state = _DONE
        self._remaining = 0
        self._line = b""
        self._trailer_bytes = 0

    @property
    def is_done(self) -> bool:
        return self._state == _DONE

    def begin_length(self, length: int) -> None:
        self._remaining = length
        self._state = _LENGTH if length else _DONE

    def begin_chunked(self) -> None:
        self._state = _SIZE
        self._line = b""
        self._trailer_bytes = 0

    def begin_until_close(self) -> None:
        self._state = _UNTIL_CLOSE

    def remaining_bytes(self) -> int:
        """Bytes still to come; -1 when unknown."""
        if self._state == _DONE:
            return 0
        return self._remaining if self._state == _LENGTH else -1

    def advance(self, count: int) -> None:
        """`count` bytes of a body of known length came by another way; not more than `remaining_bytes()`."""
        self._remaining -= count
        if not self._remaining:
            self._state = _DONE

    def end_of_stream(self) -> bool:
        """The peer closed. True if that completes the body."""
        if self._state == _UNTIL_CLOSE:
            self._state = _DONE
        return self._state == _DONE

    def feed(self, data: bytes, position: int, sink: BodySink) -> int:
        """Consume `data[position:]` as far as this body goes; returns the new position."""
        if self._state == _LENGTH:
            return self._feed_length(data, position, sink)
        if self._state == _UNTIL_CLOSE:
            if position < len(data):
                sink.on_body_data(data[position:] if position else data)
            return len(data)
        while self._state != _DONE and position < len(data):
            position = self._feed_chunked(data, position, sink)
        return position

    def _feed_length(self, data: bytes, position: int, sink: BodySink) -> int:
        available = len(data) - position
        if available <= 0:
            return position
        if available <= self._remaining:
            self._remaining -= available
            if not self._remaining:
                self._state = _DONE
            sink.on_body_data(data[position:] if position else data)
            return len(data)
        end = position + self._remaining
        self._remaining = 0
        self._state = _DONE
        sink.on_body_data(data[position:end])
        return end

    def _feed_chunked(self, data: bytes, position: int, sink: BodySink) -> int:
        if self._state == _DATA:
            end = min(len(data), position + self._remaining)
            self._remaining -= end - position
            if not self._remaining:
                self._state = _DATA_END
            sink.on_body_data(data[position:end])
            return end
        return self._feed_line(data, position)

    def _feed_line(self, data: bytes, position: int) -> int:
        """Collect one CRLF-terminated line over any number of feeds, then act on it."""
        end = data.find(b"\n", position)
        stop = len(data) if end < 0 else end + 1
        limit = _TRAILER_BYTES_MAX if self._state == _TRAILERS else _CHUNK_LINE_BYTES_MAX
        self._line += data[position:stop]
        if len(self._line) > limit:
            raise Http1Error(Code.BAD_REQUEST, f"chunk line longer than {limit} bytes")
        if end < 0:
            return stop
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise Http1Error(Code.BAD_REQUEST, "malformed chunked body: bare CR or LF")
        self._on_line(line[:-2])
        return stop

    def _on_line(self, line: bytes) -> None:
        if self._state == _DATA_END:
            if line:
                raise Http1Error(Code.BAD_REQUEST, "malformed chunked body: chunk longer than its size")
            self._state = _SIZE
        elif self._state == _TRAILERS:
            self._trailer_bytes += len(line) + 2
            if self._trailer_bytes > _TRAILER_BYTES_MAX:
                raise Http1Error(Code.BAD_REQUEST, f"trailers longer than {_TRAILER_BYTES_MAX} bytes")
            if not line:
                self._state = _DONE
            else:
                _check_trailer(line)
        else:
            self._on_size(line)

    def _on_size(self, line: bytes) -> None:
        digits, mark, rest = line.partition(b";")
        if mark and not _is_extension(mark + rest):
            raise Http1Error(Code.BAD_REQUEST, "malformed chunk extension")
        if not digits or len(digits) > _CHUNK_DIGITS_MAX or not _HEX.issuperset(digits):
            raise Http1Error(Code.BAD_REQUEST, "malformed chunk size")
        self._remaining = int(digits, 16)
        self._state = _DATA if self._remaining else _TRAILERS


def _check_trailer(line: bytes) -> None:
    field = _is_trailer(line)
    if field is None or field[1].lower() in _NO_TRAILERS:
        raise Http1Error(Code.BAD_REQUEST, "malformed or forbidden trailer field")
