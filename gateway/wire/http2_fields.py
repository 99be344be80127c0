"""HOT PATH. Owns what header fields mean in HTTP/2 (RFC 9113 §8): heads of requests and replies, trailers, faults.

A field is classified once (and then remembered with its bytes), so that a head whose fields are all known costs one
pass over small integers.
"""

import re
from typing import Final

from gateway.call import Headers, RequestHead
from gateway.errors import Code
from gateway.wire.field_list import FieldList

#: ((name, value), kind)
Field = tuple[tuple[bytes, bytes], int]

REGULAR, DROPPED, SPECIAL, PSEUDO, BROKEN = range(5)

_is_name = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_is_bad_value = re.compile(rb"[\0\r\n]|^[ \t]|[ \t]\Z").search
_is_method = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}").fullmatch
_is_scheme = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]{0,31}").fullmatch
_is_target = re.compile(rb"/[!\"$-~]*").fullmatch
_is_authority = re.compile(rb"[!$-?A-~]*").fullmatch
_is_length = re.compile(rb"[0-9]{1,18}").fullmatch
_is_status = re.compile(rb"[1-9][0-9][0-9]").fullmatch

_PSEUDO_NAMES: Final = frozenset({b":method", b":scheme", b":authority", b":path", b":status"})
#: Connection-specific fields make a message malformed (RFC 9113 §8.2.2).
_FORBIDDEN_NAMES: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
#: Meant for this hop only; they never cross the seam.
_HOP_NAMES: Final = frozenset({b"http2-settings", b"proxy-authenticate", b"proxy-authorization", b"trailer"})
_SPECIAL_NAMES: Final = frozenset({b"te", b"host", b"content-length", b"content-type", b"cookie", b"expect"})


class HeadFault:
    """Why a head is not served. `code` None: malformed, a stream error; otherwise an answer by the status table."""

    __slots__ = ("code", "is_grpc", "message")

    def __init__(self, message: str, code: Code | None = None, *, is_grpc: bool = False) -> None:
        self.message = message
        self.code = code
        self.is_grpc = is_grpc


class ReplyHead:
    """A reply's status and headers, without pseudo-header fields. Shared: read-only. `content_length` -1: unknown.

    `units`: what ended the block of our own engine, cut from `headers`, so that these are shared by all its replies.
    """

    __slots__ = ("content_length", "headers", "status", "units")

    def __init__(self, status: int, headers: Headers, content_length: int, units: Headers | None = None) -> None:
        self.units: Headers = [] if units is None else units
        self.status = status
        self.headers = headers
        self.content_length = content_length


class _MalformedError(Exception):
    """Internal to this module: becomes a HeadFault."""


def field(name: bytes, value: bytes) -> Field:
    """The field with its kind."""
    pair = (name, value)
    if name in _PSEUDO_NAMES:
        return pair, PSEUDO
    if not _is_name(name) or _is_bad_value(value) or name in _FORBIDDEN_NAMES:
        return pair, BROKEN
    if name in _SPECIAL_NAMES:
        return pair, SPECIAL
    return pair, DROPPED if name in _HOP_NAMES else REGULAR


def request_head(fields: list[Field]) -> RequestHead | HeadFault:
    """The request that `fields` describe, or why they do not (RFC 9113 §8.3.1)."""
    pseudo: dict[bytes, bytes] = {}
    special: dict[bytes, bytes] = {}
    headers: Headers = []
    try:
        for pair, kind in fields:
            if kind == REGULAR:
                headers.append(pair)
            elif kind == PSEUDO:
                _add_pseudo(pseudo, pair, is_late=bool(headers or special))
            elif kind == SPECIAL:
                _add_special(special, headers, pair)
            elif kind == DROPPED:
                special[pair[0]] = pair[1]
            else:
                raise _MalformedError(f"malformed or forbidden header field {pair[0][:64]!r}")
        return _request(pseudo, special, headers)
    except _MalformedError as error:
        return HeadFault(str(error))


def _add_pseudo(pseudo: dict[bytes, bytes], pair: tuple[bytes, bytes], *, is_late: bool) -> None:
    name, value = pair
    if is_late:
        raise _MalformedError("pseudo-header field after a regular one")
    if name in pseudo:
        raise _MalformedError(f"repeated pseudo-header field {name!r}")
    pseudo[name] = value


def _add_special(special: dict[bytes, bytes], headers: Headers, pair: tuple[bytes, bytes]) -> None:
    """Keep a field that means something to the connection; all but te, host and expect also cross the seam."""
    name, value = pair
    if name == b"cookie":
        # Crumbs are joined before they leave HTTP/2 (RFC 9113 §8.2.3).
        for index, (known, crumbs) in enumerate(headers):
            if known == b"cookie":
                headers[index] = (name, crumbs + b"; " + value)
                return
    elif name in special:
        raise _MalformedError(f"repeated header field {name!r}")
    special[name] = value
    if name == b"te":
        if value.lower() != b"trailers":
            raise _MalformedError("te other than 'trailers'")
    elif name == b"content-length":
        if not _is_length(value):
            raise _MalformedError("malformed content-length")
        headers.append(pair)
    elif name not in (b"host", b"expect"):
        headers.append(pair)


def _request(pseudo: dict[bytes, bytes], special: dict[bytes, bytes], headers: Headers) -> RequestHead | HeadFault:
    method = pseudo.get(b":method", b"")
    is_grpc = is_grpc_type(special.get(b"content-type", b""))
    if b":status" in pseudo or not _is_method(method):
        raise _MalformedError("missing or malformed :method")
    if method == b"CONNECT":
        return HeadFault("method is not supported", Code.METHOD_NOT_ALLOWED)
    path = pseudo.get(b":path", b"")
    if not _is_scheme(pseudo.get(b":scheme", b"")):
        raise _MalformedError("missing or malformed :scheme")
    if not _is_target(path) and not (path == b"*" and method == b"OPTIONS"):
        raise _MalformedError("missing or malformed :path")
    authority = pseudo.get(b":authority")
    host = special.get(b"host")
    if authority is None:
        authority = host or b""
    elif host is not None and host != authority:
        raise _MalformedError("host differs from :authority")
    if not _is_authority(authority):
        raise _MalformedError("malformed :authority")
    expect = special.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        return HeadFault("only 'Expect: 100-continue' is supported", Code.BAD_REQUEST, is_grpc=is_grpc)
    return RequestHead(
        method,
        path,
        headers,
        authority,
        int(special.get(b"content-length", b"-1")),
        is_grpc=is_grpc,
        expects_continue=expect is not None,
    )


def is_grpc_type(content_type: bytes) -> bool:
    """Whether a content type is gRPC's: `application/grpc`, alone or with `+proto` or parameters; not gRPC-Web's."""
    return content_type.startswith(b"application/grpc") and content_type[16:17] in (b"", b"+", b";")


def is_grpc_block(fields: list[Field]) -> bool:
    """Whether a block that is not read further asks for a gRPC answer."""
    return any(pair[0] == b"content-type" and is_grpc_type(pair[1]) for pair, _ in fields)


def reply_head(fields: list[Field]) -> ReplyHead | HeadFault:
    """The reply that `fields` describe, or why they do not (RFC 9113 §8.3.2)."""
    status = 0
    length = -1
    headers = FieldList([])
    for pair, kind in fields:
        if kind == PSEUDO:
            if pair[0] != b":status" or status or not _is_status(pair[1]):
                return HeadFault("malformed pseudo-header fields in a reply")
            status = int(pair[1])
        elif not status:
            return HeadFault("reply whose first field is not :status")
        elif kind == REGULAR:
            headers.append(pair)
        elif kind == SPECIAL:
            headers.append(pair)
            if pair[0] == b"content-length":
                if length >= 0 or not _is_length(pair[1]):
                    return HeadFault("malformed content-length in a reply")
                length = int(pair[1])
        elif kind == BROKEN:
            return HeadFault(f"malformed or forbidden header field {pair[0][:64]!r} in a reply")
    if not status:
        return HeadFault("reply without :status")
    return ReplyHead(status, headers, length)


def trailer_fields(fields: list[Field]) -> Headers | HeadFault:
    """Trailers: no pseudo-header fields (RFC 9113 §8.1)."""
    trailers = FieldList([])
    for pair, kind in fields:
        if kind >= PSEUDO:
            return HeadFault(f"malformed or forbidden trailer field {pair[0][:64]!r}")
        if kind != DROPPED:
            trailers.append(pair)
    return trailers
