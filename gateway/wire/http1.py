"""HOT PATH. Owns HTTP/1.1 messages, sans-IO: heads in and out, strictly by RFC 9112, and their framing.

Heads are parsed by httptools (llhttp, strict) and then held to what llhttp leaves open; an equal head is not parsed
twice (`RequestHeads` memoises by the exact bytes). Bodies are framed here. Anything that two implementations could
read in two ways (Content-Length with Transfer-Encoding, repeated lengths, obs-fold, bare LF) is refused, since a proxy
that forwards it would smuggle requests.
"""

import re
from collections.abc import Iterable
from typing import Final

import httptools

from gateway.call import Headers, RequestHead
from gateway.errors import Code
from gateway.wire.field_list import FieldList

HEAD_END: Final = b"\r\n\r\n"
METHODS: Final = frozenset({b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"})
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"expect",
    }
)
_LENGTH_DIGITS_MAX: Final = 18
_MEMO_HEAD_BYTES_MAX: Final = 2048


class Http1Error(Exception):
    """A message that cannot be trusted; the connection closes after the answer (RFC 9112 §2.2, §6.3)."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class H1Head:
    """A request head and its framing. Shared between equal heads: read-only."""

    __slots__ = ("head", "is_chunked", "is_keepalive")

    def __init__(self, head: RequestHead, *, is_chunked: bool, is_keepalive: bool) -> None:
        self.head = head
        self.is_chunked = is_chunked
        self.is_keepalive = is_keepalive


class _Collector:
    """httptools callbacks: keeps what llhttp saw of one head."""

    __slots__ = ("headers", "is_complete", "status", "target")

    def __init__(self) -> None:
        self.target = b""
        self.status = 0
        self.headers: Headers = []
        self.is_complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp keeps white space behind a value; it is no part of it (RFC 9112 §5.1).
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.is_complete = True


class RequestHeads:
    """Parses request heads; remembers up to `memo_max` of them and forgets all when full.

    `ignored`: lower-case names of fields that the application never reads and that differ from call to call. They are
    left out of the head, so that heads which differ in nothing else are parsed once.
    """

    __slots__ = ("_headers_max", "_ignored", "_mark", "_memo_max", "_plain", "memo")

    def __init__(self, headers_max: int, memo_max: int = 512, ignored: tuple[bytes, ...] = ()) -> None:
        self._headers_max = headers_max
        self._ignored = _whole_lines(ignored) if ignored else None
        # As our own gateway writes them: lower-case names, one behind another.
        self._mark = b"\r\n%b: " % ignored[0] if ignored else b""
        self._plain = _plain_lines(ignored)
        #: Heads by their exact bytes; connections look here first.
        self.memo: dict[bytes, H1Head] = {}
        self._memo_max = memo_max

    def find(self, raw: bytes) -> H1Head | None:
        """The head in `raw` if an equal one has been parsed; None may also say that this is not easily told."""
        if self._ignored is None:
            return self.memo.get(raw)
        begin = raw.find(self._mark)
        lines = self._plain.match(raw, begin) if begin >= 0 else None
        return self.memo.get(raw if lines is None else raw[:begin] + raw[lines.end() :])

    def parse(self, raw: bytes) -> H1Head:
        """The head in `raw`, which ends with its empty line. Raises Http1Error."""
        if self._ignored is not None:
            raw = self._ignored.sub(b"", raw)
        found = self.memo.get(raw)
        if found is not None:
            return found
        parsed = parse_request_head(raw, self._headers_max)
        if len(raw) <= _MEMO_HEAD_BYTES_MAX:
            if len(self.memo) >= self._memo_max:
                self.memo.clear()
            self.memo[raw] = parsed
        return parsed


def _whole_lines(names: tuple[bytes, ...]) -> "re.Pattern[bytes]":
    """Lines of these fields with a plain value. Any other value stays, and is judged with the rest of the head."""
    return re.compile(rb"\r\n(?:%b):[ \t]*[\x21-\x7e]*(?=\r\n)" % b"|".join(map(re.escape, names)), re.IGNORECASE)


def _plain_lines(names: tuple[bytes, ...]) -> "re.Pattern[bytes]":
    """One or more of these lines in a row, in the plainest form: a fifth of the time of `_whole_lines`."""
    return re.compile(rb"(?:\r\n(?:%b): [\x21-\x7e]*)+(?=\r\n)" % b"|".join(map(re.escape, names)))


def parse_request_head(raw: bytes, headers_max: int) -> H1Head:
    """One strict request head. Raises Http1Error with the reason."""
    _check_bytes(raw)
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # an Upgrade we do not follow: the request stands as it is (RFC 9110 §7.8)
    except httptools.HttpParserError as error:
        raise Http1Error(Code.BAD_REQUEST, f"malformed HTTP request: {error}") from None
    if not collector.is_complete:
        raise Http1Error(Code.BAD_REQUEST, "malformed HTTP request: incomplete head")
    method = parser.get_method()
    if method not in METHODS:
        raise Http1Error(Code.METHOD_NOT_ALLOWED, "method is not supported")
    version = parser.get_http_version()
    if version not in ("1.1", "1.0"):
        raise Http1Error(Code.BAD_REQUEST, f"HTTP version {version} is not supported")
    if len(collector.headers) > headers_max:
        raise Http1Error(Code.HEADERS_TOO_LARGE, f"more than {headers_max} header fields")
    target, authority = _split_target(collector.target, method)
    return _build_head(method, target, authority, collector.headers, is_http11=version == "1.1")


def _check_bytes(raw: bytes) -> None:
    """Refuse what llhttp may let pass: bare LF, bare CR, NUL, obs-fold."""
    if raw.count(b"\n") != raw.count(b"\r\n") or raw.count(b"\r") != raw.count(b"\r\n"):
        raise Http1Error(Code.BAD_REQUEST, "malformed HTTP request: bare CR or LF in the head")
    if b"\r\n " in raw or b"\r\n\t" in raw:
        raise Http1Error(Code.BAD_REQUEST, "malformed HTTP request: folded header line (obs-fold)")
    if b"\0" in raw:
        raise Http1Error(Code.BAD_REQUEST, "malformed HTTP request: NUL in the head")


def _split_target(target: bytes, method: bytes) -> tuple[bytes, bytes | None]:
    """(origin-form target, authority of an absolute-form target or None). Raises Http1Error."""
    if target.startswith(b"/"):
        authority = None
    elif target[:7].lower() == b"http://" or target[:8].lower() == b"https://":
        rest = target.split(b"://", 1)[1]
        authority, slash, path = rest.partition(b"/")
        target = slash + path if slash else b"/"
        if not authority or b"?" in authority or b"@" in authority:
            raise Http1Error(Code.BAD_REQUEST, "malformed request target")
    elif target == b"*" and method == b"OPTIONS":
        authority = None
    else:
        raise Http1Error(Code.BAD_REQUEST, "malformed request target: it must begin with '/'")
    if b"#" in target or not all(0x21 <= byte <= 0x7E for byte in target):
        raise Http1Error(Code.BAD_REQUEST, "malformed request target: percent-encode other than visible ASCII")
    return target, authority


def _build_head(method: bytes, target: bytes, authority: bytes | None, raw: Headers, *, is_http11: bool) -> H1Head:
    """Framing decisions of RFC 9112 §6 and §9.3 over parsed fields."""
    lengths: list[bytes] = []
    encodings: list[bytes] = []
    hosts: list[bytes] = []
    connection: set[bytes] = set()
    expects: list[bytes] = []
    for name, value in raw:
        if name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            encodings.append(value.lower())
        elif name == b"host":
            hosts.append(value)
        elif name == b"connection":
            connection.update(token.strip().lower() for token in value.split(b","))
        elif name == b"expect":
            expects.append(value.lower())
    if len(hosts) > 1 or (is_http11 and not hosts):
        raise Http1Error(Code.BAD_REQUEST, "exactly one Host header is required")
    length, is_chunked = _request_framing(lengths, encodings, is_http11=is_http11)
    if expects and expects != [b"100-continue"]:
        raise Http1Error(Code.BAD_REQUEST, "only 'Expect: 100-continue' is supported")
    is_keepalive = b"close" not in connection and (is_http11 or b"keep-alive" in connection)
    dropped = _HOP_BY_HOP | connection
    head = RequestHead(
        method,
        target,
        [(name, value) for name, value in raw if name not in dropped and name != b"host"],
        authority if authority is not None else (hosts[0] if hosts else b""),
        length,
        expects_continue=bool(expects) and is_http11,
    )
    return H1Head(head, is_chunked=is_chunked, is_keepalive=is_keepalive)


def _request_framing(lengths: list[bytes], encodings: list[bytes], *, is_http11: bool) -> tuple[int, bool]:
    """(content length or -1, is chunked). No length and no encoding is length 0 (RFC 9112 §6.3 rule 7)."""
    if encodings:
        if lengths:
            raise Http1Error(Code.BAD_REQUEST, "both Content-Length and Transfer-Encoding")
        if not is_http11:
            raise Http1Error(Code.BAD_REQUEST, "Transfer-Encoding in an HTTP/1.0 request")
        if encodings != [b"chunked"]:
            raise Http1Error(Code.NOT_IMPLEMENTED, "only 'Transfer-Encoding: chunked' is supported")
        return -1, True
    if not lengths:
        return 0, False
    if len(lengths) > 1:
        raise Http1Error(Code.BAD_REQUEST, "more than one Content-Length")
    return _length(lengths[0]), False


def _length(text: bytes) -> int:
    if not text.isdigit() or len(text) > _LENGTH_DIGITS_MAX:
        raise Http1Error(Code.BAD_REQUEST, "malformed Content-Length")
    return int(text)


class ResponseHead:
    """An upstream response head. `length`: body bytes, -1 until close, -2 chunked."""

    __slots__ = ("headers", "is_close_said", "is_keepalive", "length", "status")

    UNTIL_CLOSE: Final = -1
    CHUNKED: Final = -2

    def __init__(self, status: int, headers: Headers, length: int, *, is_keepalive: bool) -> None:
        self.status = status
        #: A `FieldList`, shared where one is given.
        self.headers: Headers = headers if type(headers) is FieldList else FieldList(headers)
        self.length = length
        self.is_keepalive = is_keepalive
        #: The connection ends with this reply by its own words, not for want of a length.
        self.is_close_said = False


_UNIT_NAMES: Final = frozenset({b"tollway-rows", b"tollway-compute-ns", b"tollway-queue-ns"})
_UNITS_START: Final = b"\r\ntollway-"
NO_UNITS: Final[Headers] = []


class ResponseHeads:
    """Parses response heads; remembers up to `memo_max` of them and forgets all when full.

    The embedded engine ends its heads with fields that differ from call to call (`tollway-*` and `content-length`): the
    part before them is remembered, the tail is read by hand, strictly. Any other head is remembered whole.
    """

    __slots__ = ("_memo", "_memo_max", "last", "last_raw")

    def __init__(self, memo_max: int = 512) -> None:
        self._memo: dict[bytes, ResponseHead] = {}
        self._memo_max = memo_max
        #: The head without units that answered a POST last, and its bytes: the next is often equal.
        self.last: ResponseHead | None = None
        self.last_raw = b""

    def parse(self, raw: bytes, method: bytes) -> tuple[ResponseHead, Headers]:
        """(head without `tollway-*` fields, those fields). Raises Http1Error."""
        cut = raw.find(_UNITS_START)
        if cut < 0:
            head = self._remembered(raw, method)
            if method == b"POST" and len(raw) <= _MEMO_HEAD_BYTES_MAX:
                self.last, self.last_raw = head, raw
            return head, NO_UNITS
        tail = _parse_tail(raw[cut + 2 : -4])
        if tail is None:
            head = parse_response_head(raw, method)
            units = [pair for pair in head.headers if pair[0].startswith(b"tollway-")]
            head.headers = FieldList([pair for pair in head.headers if not pair[0].startswith(b"tollway-")])
            return head, units
        length, units = tail
        head = self._remembered(raw[:cut] + HEAD_END, method)
        if length is None:
            return head, units
        if head.length != ResponseHead.UNTIL_CLOSE:
            raise Http1Error(Code.BACKEND_PROTOCOL, "two framings in a response")
        whole = ResponseHead(head.status, head.headers, length, is_keepalive=not head.is_close_said)
        whole.is_close_said = head.is_close_said
        return whole, units

    def _remembered(self, raw: bytes, method: bytes) -> ResponseHead:
        if method != b"POST":
            return parse_response_head(raw, method)
        found = self._memo.get(raw)
        if found is None:
            found = parse_response_head(raw, method)
            if len(raw) <= _MEMO_HEAD_BYTES_MAX:
                if len(self._memo) >= self._memo_max:
                    self._memo.clear()
                self._memo[raw] = found
        return found


def _parse_tail(tail: bytes) -> tuple[int | None, Headers] | None:
    """(content length if there, units) of lines that are nothing but ours; None: let the full parser judge."""
    length: int | None = None
    units: Headers = []
    for line in tail.split(b"\r\n"):
        name, _, value = line.partition(b": ")
        if not value.isdigit() or len(value) > _LENGTH_DIGITS_MAX:
            return None
        if name in _UNIT_NAMES:
            units.append((name, value))
        elif name == b"content-length" and length is None:
            length = int(value)
        else:
            return None
    return length, units


def parse_response_head(raw: bytes, method: bytes) -> ResponseHead:
    """One response head, which ends with its empty line; `method` is the request's. Raises Http1Error."""
    collector = _Collector()
    parser = httptools.HttpResponseParser(collector)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        raise Http1Error(Code.BACKEND_PROTOCOL, "backend switched protocols") from None
    except httptools.HttpParserError as error:
        raise Http1Error(Code.BACKEND_PROTOCOL, f"malformed response: {error}") from None
    if not collector.is_complete:
        raise Http1Error(Code.BACKEND_PROTOCOL, "malformed response: incomplete head")
    status = parser.get_status_code()
    is_http11 = parser.get_http_version() == "1.1"
    length: int | None = None
    is_chunked = False
    is_close = not is_http11
    kept: Headers = []
    for pair in collector.headers:
        name, value = pair
        if name == b"content-length":
            if length is not None:
                raise Http1Error(Code.BACKEND_PROTOCOL, "more than one Content-Length in a response")
            if not value.isdigit() or len(value) > _LENGTH_DIGITS_MAX:
                raise Http1Error(Code.BACKEND_PROTOCOL, "malformed Content-Length in a response")
            length = int(value)
            kept.append(pair)
        elif name == b"transfer-encoding":
            is_chunked = value.lower() == b"chunked"
            if not is_chunked:
                raise Http1Error(Code.BACKEND_PROTOCOL, "unknown Transfer-Encoding in a response")
        elif name == b"connection":
            is_close = b"close" in value.lower() or (is_close and b"keep-alive" not in value.lower())
        elif name not in _HOP_BY_HOP:
            kept.append(pair)
    if is_chunked and length is not None:
        raise Http1Error(Code.BACKEND_PROTOCOL, "both Content-Length and Transfer-Encoding in a response")
    is_close_said = is_close
    if method == b"HEAD" or status < 200 or status in (204, 304):
        framing = 0
    elif is_chunked:
        framing = ResponseHead.CHUNKED
    elif length is not None:
        framing = length
    else:
        framing, is_close = ResponseHead.UNTIL_CLOSE, True
    head = ResponseHead(status, kept, framing, is_keepalive=not is_close)
    head.is_close_said = is_close_said
    return head


_REASONS: Final = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    402: b"Payment Required",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    411: b"Length Required",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}
_status_lines: dict[int, bytes] = {}


def status_line(status: int) -> bytes:
    """`HTTP/1.1 <status> <reason>` with its line end; memoised (at most 900 values exist)."""
    line = _status_lines.get(status)
    if line is None:
        line = _status_lines[status] = b"HTTP/1.1 %d %s\r\n" % (status, _REASONS.get(status, b"Status"))
    return line


def encode_fields(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Header lines, each with its line end, without the final empty line."""
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])
