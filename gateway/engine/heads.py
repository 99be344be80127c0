"""HOT PATH. Owns what a request's head says, worked out once per distinct head and kept in `RequestHead.memo`."""

from typing import Final

from gateway.call import Headers, RequestHead
from gateway.errors import Code, TollwayError
from gateway.wire.cloud_types import find_header_size
from gateway.wire.grpc import try_timeout_ns
from gateway.wire.oip_target import METHODS, Route, Verb, parse_target

_CODINGS: Final = ("gzip", "deflate")
_INFER_LENGTH: Final = b"inference-header-content-length"
_PLAN_DIGITS_MAX: Final = 4
_DEADLINE_NS_MAX: Final = 365 * 24 * 3600 * 1_000_000_000


class HeadFacts:
    """Of an HTTP request: `route` or `fault`. Of a gRPC request: `method`, its path.

    `header_bytes` -1: no binary extension. `coding` of the body, `accepts` for the reply: "" for identity.
    `remaining_ns` until the caller's deadline, 0: none. `extra` headers go with a refusal.
    `tenant`: whose call it is, as the gateway says; it drops what callers send by that name. `weight` and
    `priority_best` are of the tenant's plan: see `Work`.
    """

    __slots__ = (
        "accepts",
        "coding",
        "extra",
        "fault",
        "header_bytes",
        "media_type",
        "method",
        "priority_best",
        "remaining_ns",
        "route",
        "tenant",
        "weight",
    )

    def __init__(self) -> None:
        self.route = Route(Verb.SERVER_LIVE)
        self.method = b""
        self.fault: TollwayError | None = None
        self.extra: Headers = []
        self.header_bytes = -1
        self.coding = ""
        self.accepts = ""
        self.remaining_ns = 0
        self.tenant = b""
        self.weight = 1
        self.priority_best = 0
        #: A cloud's own of a binary request; its reply has the same.
        self.media_type = b""


def facts_of(head: RequestHead) -> HeadFacts:
    """From the memo, or worked out now."""
    facts = head.memo
    if facts is None:
        facts = head.memo = _grpc_facts(head) if head.is_grpc else _http_facts(head)
    assert isinstance(facts, HeadFacts)
    return facts


def _grpc_facts(head: RequestHead) -> HeadFacts:
    facts = HeadFacts()
    facts.method = head.target
    for name, value in head.headers:
        if name == b"grpc-timeout":
            remaining_ns = try_timeout_ns(value)
            if remaining_ns is None:
                facts.fault = TollwayError(Code.BAD_REQUEST, "malformed grpc-timeout")
                return facts
            _bound(facts, remaining_ns)
        elif name == b"grpc-encoding":
            _read_coding(facts, value, b"grpc-accept-encoding")
        elif name == b"tollway-deadline-ns":
            _read_deadline(facts, value)
        elif name == b"tollway-tenant":
            _read_tenant(facts, value)
    return facts


def _http_facts(head: RequestHead) -> HeadFacts:
    facts = HeadFacts()
    route = parse_target(head.target)
    if not isinstance(route, Route):
        facts.fault = TollwayError(route.code, route.message)
        return facts
    facts.route = route
    methods = METHODS[route.verb]
    if head.method not in methods and not (head.method == b"HEAD" and b"GET" in methods):
        facts.fault = TollwayError(Code.METHOD_NOT_ALLOWED, "Method Not Allowed")
        facts.extra = [(b"allow", b", ".join(methods))]
        return facts
    media_size = b""
    for name, value in head.headers:
        if name == _INFER_LENGTH:
            _read_header_bytes(facts, value)
        elif name == b"content-encoding":
            _read_coding(facts, value, b"accept-encoding")
        elif name == b"content-type":
            size = find_header_size(value)
            if size is not None:
                facts.media_type = value
                media_size = size
        elif name == b"accept-encoding":
            facts.accepts = accepted_coding(value)
        elif name == b"tollway-deadline-ns":
            _read_deadline(facts, value)
        elif name == b"tollway-tenant":
            _read_tenant(facts, value)
    if facts.media_type and facts.fault is None:
        known, facts.header_bytes = facts.header_bytes, -1
        _read_header_bytes(facts, media_size)
        if known >= 0 and known != facts.header_bytes and facts.fault is None:
            message = "inference-header-content-length and the content-type's json-header-size differ"
            facts.fault = TollwayError(Code.BAD_HEADER_LENGTH, message)
    return facts


def _read_header_bytes(facts: HeadFacts, value: bytes) -> None:
    if facts.header_bytes >= 0 or not value.isdigit() or len(value) > 12:
        facts.fault = TollwayError(
            Code.BAD_HEADER_LENGTH, "inference-header-content-length must be one whole number of bytes"
        )
    else:
        facts.header_bytes = int(value)


def _read_coding(facts: HeadFacts, value: bytes, accept: bytes) -> None:
    coding = value.strip().lower().decode("latin-1")
    if coding in ("", "identity"):
        return
    if coding in _CODINGS and not facts.coding:
        facts.coding = coding
        return
    facts.fault = TollwayError(
        Code.UNSUPPORTED_ENCODING, f"content encoding '{coding[:40]}' is not served; gzip and deflate are"
    )
    facts.extra = [(accept, b"gzip, deflate")]


def _read_deadline(facts: HeadFacts, value: bytes) -> None:
    if value.isdigit() and len(value) <= 20:
        _bound(facts, min(max(int(value), 1), _DEADLINE_NS_MAX))
    else:
        facts.fault = TollwayError(Code.BAD_REQUEST, "malformed tollway-deadline-ns")


def _read_tenant(facts: HeadFacts, value: bytes) -> None:
    """`NAME`, or `NAME;weight=W;priority=P` where the plan says more than the defaults."""
    words = value.split(b";")
    facts.tenant = words[0]
    for word in words[1:]:
        name, _, number = word.partition(b"=")
        if name not in (b"weight", b"priority") or not number.isdigit() or len(number) > _PLAN_DIGITS_MAX:
            facts.fault = TollwayError(Code.BAD_REQUEST, "malformed tollway-tenant")
        elif name == b"weight":
            facts.weight = max(int(number), 1)
        else:
            facts.priority_best = int(number)


def _bound(facts: HeadFacts, remaining_ns: int) -> None:
    remaining_ns = max(remaining_ns, 1)
    facts.remaining_ns = min(facts.remaining_ns or remaining_ns, remaining_ns)


def accepted_coding(value: bytes) -> str:
    """The coding to answer with by `accept-encoding` (RFC 9110 §12.5.3): the best of gzip and deflate, "" for none."""
    best = ("", 0.0)
    for part in value.decode("latin-1").lower().split(","):
        coding, _, parameters = part.partition(";")
        coding = coding.strip()
        weight = _weight(parameters)
        if coding in _CODINGS and weight > best[1]:
            best = (coding, weight)
    return best[0]


def _weight(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
