"""HOT PATH. Owns what a request head says by its bytes alone: route, credential, what to forward.

Facts are memoised on the shared `RequestHead`. They hold nothing that depends on keys, plans or time: the credential is
kept as text and judged anew for every call.
"""

import re
from typing import Final

from billing.money import MoneyError, parse_nanos
from gateway.auth.credential import extract_credential
from gateway.call import Headers, RequestHead
from gateway.errors import Code, Refusal
from gateway.wire.cloud_types import find_header_size
from gateway.wire.grpc import try_timeout_ns
from gateway.wire.http1 import encode_fields
from gateway.wire.oip_target import METHODS, Verb, parse_target

#: What a call is about, as far as its head tells; ordered. Plain ints: reading an enum member takes 0.1 µs in
#: CPython 3.11, and a call reads a dozen.
LIVE: Final = 0
READY: Final = 1
#: grpc.health.v1, Check and Watch: no key.
HEALTH: Final = 2
WATCH: Final = 3
#: gRPC server reflection.
REFLECTION: Final = 4
#: `/me`: control answers, to whoever has a key.
SELF_SERVICE: Final = 5
SERVER_READ: Final = 6
#: Changes a backend: scope `operate`, and every model allowed. Its model, if any, need not be served yet.
ADMIN: Final = 7
MODEL_READ: Final = 8
INFER: Final = 9

_SERVICE: Final = b"/inference.GRPCInferenceService/"
MODEL_READY_RPC: Final = _SERVICE + b"ModelReady"
STREAM_INFER_RPC: Final = _SERVICE + b"ModelStreamInfer"
_RPCS: Final = {
    _SERVICE + b"ServerLive": LIVE,
    _SERVICE + b"ServerReady": READY,
    b"/grpc.health.v1.Health/Check": HEALTH,
    b"/grpc.health.v1.Health/Watch": WATCH,
    b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": REFLECTION,
    b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": REFLECTION,
    _SERVICE + b"ServerMetadata": SERVER_READ,
    _SERVICE + b"RepositoryIndex": SERVER_READ,
    _SERVICE + b"RepositoryModelLoad": ADMIN,
    _SERVICE + b"RepositoryModelUnload": ADMIN,
    _SERVICE + b"TraceSetting": ADMIN,
    _SERVICE + b"LogSettings": ADMIN,
    MODEL_READY_RPC: MODEL_READ,
    _SERVICE + b"ModelMetadata": MODEL_READ,
    _SERVICE + b"ModelConfig": MODEL_READ,
    _SERVICE + b"ModelStatistics": MODEL_READ,
    _SERVICE + b"ModelInfer": INFER,
    STREAM_INFER_RPC: INFER,
}
#: What is served of REST; the other verbs are known and answered 501.
_VERBS: Final = {
    Verb.SERVER_LIVE: LIVE,
    Verb.SERVER_READY: READY,
    Verb.SERVER_METADATA: SERVER_READ,
    Verb.REPOSITORY_INDEX: SERVER_READ,
    Verb.ALL_STATS: SERVER_READ,
    Verb.REPOSITORY_LOAD: ADMIN,
    Verb.REPOSITORY_UNLOAD: ADMIN,
    Verb.SERVER_TRACE: ADMIN,
    Verb.MODEL_TRACE: ADMIN,
    Verb.SERVER_LOGGING: ADMIN,
    Verb.MODEL_METADATA: MODEL_READ,
    Verb.MODEL_READY: MODEL_READ,
    Verb.MODEL_CONFIG: MODEL_READ,
    Verb.MODEL_STATS: MODEL_READ,
    Verb.MODEL_INFER: INFER,
    Verb.MODEL_GENERATE: INFER,
    Verb.MODEL_GENERATE_STREAM: INFER,
    Verb.SELF_SERVICE: SELF_SERVICE,
}
_LISTING_RPCS: Final = frozenset({_SERVICE + b"RepositoryIndex", _SERVICE + b"ModelStatistics"})
_SHARED_MEMORY: Final = "shared memory regions are not served: callers are other hosts; send tensors as binary data"
_LISTING_VERBS: Final = frozenset({Verb.REPOSITORY_INDEX, Verb.ALL_STATS})
_CREDENTIAL_NAMES: Final = frozenset({b"authorization", b"x-api-key", b"apikey", b"x-apig-appcode"})
#: Never forwarded as they came: rewritten, answered by us, or ours alone.
_OWN_NAMES: Final = frozenset(
    {
        b"host",
        b"content-length",
        b"x-request-id",
        b"triton-request-id",
        b"traceparent",
        b"grpc-timeout",
        b"x-request-timeout-ms",
        b"idempotency-key",
        b"cookie",
    }
)
_TRACEPARENT: Final = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}\Z")
_ENCODINGS: Final = frozenset({b"identity", b"gzip", b"deflate"})
_TIMEOUT_MS_DIGITS_MAX: Final = 9


class HeadFacts:
    """Facts of one head. `refusal` is set when the head alone decides the answer."""

    __slots__ = (
        "credential",
        "forward",
        "forward_block",
        "forward_lines",
        "grpc_encoding",
        "idempotency_key",
        "is_encoded",
        "is_listing",
        "is_stream",
        "json_length",
        "kind",
        "max_cost_nanos",
        "model",
        "refusal",
        "request_id",
        "timeout_ns",
        "trace_flags",
        "trace_id",
        "version",
    )

    def __init__(self) -> None:
        self.kind: int = LIVE
        self.model = ""
        self.version = ""
        self.credential: bytes | None = None
        self.refusal: Refusal | None = None
        self.forward: Headers = []
        self.forward_lines = b""
        #: `forward` as an HTTP/2 header block; set by who first needs it.
        self.forward_block: bytes | None = None
        self.request_id: bytes | None = None
        self.idempotency_key: bytes | None = None
        self.trace_id: bytes | None = None
        self.trace_flags = b"00"
        self.timeout_ns = 0
        self.grpc_encoding = b"identity"
        self.is_encoded = False
        #: Asks about every model at once, where it names none.
        self.is_listing = False
        #: The reply may be a stream, metered as it goes.
        self.is_stream = False
        #: The most that the caller will pay for this call (`tollway-max-cost`); -1: no such word.
        self.max_cost_nanos = -1
        #: `Inference-Header-Content-Length` as it came.
        self.json_length: bytes | None = None


def facts_of(head: RequestHead) -> HeadFacts:
    """Read a head once. Never raises: what is wrong becomes `refusal`."""
    facts = HeadFacts()
    facts.refusal = _read_route(head, facts)
    credential = extract_credential(head.headers)
    if isinstance(credential, Refusal):
        facts.refusal = facts.refusal or credential
    else:
        facts.credential = credential
    for name, value in head.headers:
        refusal = _read_field(head, facts, name, value)
        facts.refusal = facts.refusal or refusal
    if facts.kind == INFER and not head.is_grpc:
        facts.refusal = facts.refusal or _read_media_type(head, facts)
    if facts.kind == SELF_SERVICE and facts.credential is not None:
        # No backend is told a key; control is: it looks at the key again, and at what it may do.
        facts.forward.append((b"authorization", b"Bearer " + facts.credential))
    facts.forward_lines = encode_fields(facts.forward)
    return facts


def _read_route(head: RequestHead, facts: HeadFacts) -> Refusal | None:
    if head.is_grpc:
        kind = _RPCS.get(head.target)
        if kind is None:
            method = head.target.decode("latin-1")
            if b"SharedMemory" in head.target:
                return Refusal(code=Code.NOT_IMPLEMENTED, message=_SHARED_MEMORY)
            return Refusal(code=Code.NOT_IMPLEMENTED, message=f"method {method} is not served")
        facts.kind = kind
        facts.is_listing = head.target in _LISTING_RPCS
        facts.is_stream = head.target == STREAM_INFER_RPC
        if head.method != b"POST":
            return Refusal(code=Code.METHOD_NOT_ALLOWED, message="gRPC calls are POST")
        return None
    route = parse_target(head.target)
    if isinstance(route, Refusal):
        return route
    kind = _VERBS.get(route.verb)
    if kind is None:
        message = _SHARED_MEMORY if route.verb is Verb.SHARED_MEMORY else f"{route.verb.value} is not served yet"
        return Refusal(code=Code.NOT_IMPLEMENTED, message=message)
    facts.kind, facts.model, facts.version = kind, route.model, route.version
    facts.is_listing = route.verb in _LISTING_VERBS
    facts.is_stream = route.verb is Verb.MODEL_GENERATE_STREAM
    methods = METHODS[route.verb]
    if head.method not in methods:
        allow = b", ".join(methods)
        return Refusal(
            code=Code.METHOD_NOT_ALLOWED,
            message=f"Method Not Allowed: use {allow.decode()}",
            headers=((b"allow", allow),),
        )
    return None


def _read_media_type(head: RequestHead, facts: HeadFacts) -> Refusal | None:
    """A cloud's media type that says where the JSON ends: backends are told by the header that all of them know."""
    for name, value in head.headers:
        size = find_header_size(value) if name == b"content-type" else None
        if size is None:
            continue
        if facts.json_length is None:
            facts.json_length = size
            facts.forward.append((b"inference-header-content-length", size))
        elif facts.json_length != size:
            message = "Inference-Header-Content-Length and the Content-Type's json-header-size differ"
            return Refusal(code=Code.BAD_HEADER_LENGTH, message=message)
    return None


def _read_encoding(head: RequestHead, facts: HeadFacts, name: bytes, value: bytes) -> Refusal | None:
    """Note how the body is encoded; refuse what no backend of ours could read."""
    if name == b"inference-header-content-length":
        facts.json_length = value
    elif name == b"content-encoding" and not head.is_grpc:
        facts.is_encoded = value.strip().lower() != b"identity"
        if value.strip().lower() not in _ENCODINGS:
            message = "Content-Encoding is not supported: use gzip, deflate or none"
            return Refusal(code=Code.UNSUPPORTED_ENCODING, message=message)
    elif name == b"grpc-encoding" and head.is_grpc:
        facts.grpc_encoding = value
        if value not in _ENCODINGS:
            return Refusal(code=Code.UNSUPPORTED_ENCODING, message="grpc-encoding: use gzip, deflate or identity")
    return None


def _read_field(head: RequestHead, facts: HeadFacts, name: bytes, value: bytes) -> Refusal | None:
    """Note one header field and whether it is forwarded."""
    if name not in _OWN_NAMES and name not in _CREDENTIAL_NAMES and not name.startswith((b"tollway-", b"x-tollway-")):
        facts.forward.append((name, value))
        return _read_encoding(head, facts, name, value)
    if name in (b"x-request-id", b"triton-request-id"):
        if _REQUEST_ID.match(value):
            facts.request_id = facts.request_id or value
    elif name == b"traceparent":
        match = _TRACEPARENT.match(value)
        # A malformed traceparent starts a new trace; it never refuses a call (W3C Trace Context §3.2.2).
        if match is not None and match[1] != b"0" * 32 and match[2] != b"0" * 16:
            facts.trace_id, facts.trace_flags = match[1], match[3]
    elif name == b"idempotency-key" and facts.kind is INFER:
        if facts.idempotency_key not in (None, value):
            return Refusal(code=Code.BAD_REQUEST, message="there are two different Idempotency-Keys: send one")
        facts.idempotency_key = value
    elif name == b"tollway-max-cost":
        return _read_max_cost(facts, value)
    elif name == b"grpc-timeout" and head.is_grpc:
        timeout_ns = try_timeout_ns(value)
        if timeout_ns is None:
            return Refusal(code=Code.BAD_REQUEST, message="malformed grpc-timeout")
        facts.timeout_ns = max(timeout_ns, 1)
    elif name == b"x-request-timeout-ms":
        if not value.isdigit() or len(value) > _TIMEOUT_MS_DIGITS_MAX or int(value) == 0:
            return Refusal(code=Code.BAD_REQUEST, message="x-request-timeout-ms must be whole milliseconds above 0")
        facts.timeout_ns = int(value) * 1_000_000
    return None


def _read_max_cost(facts: HeadFacts, value: bytes) -> Refusal | None:
    """Decimal text of the price book's major unit; the least counts where there are several."""
    try:
        nanos: int = parse_nanos(value.decode("ascii"))
    except (MoneyError, UnicodeDecodeError):
        nanos = -1
    if nanos < 0:
        message = "tollway-max-cost must be an amount such as 0.05, with at most nine decimal places"
        return Refusal(code=Code.BAD_REQUEST, message=message)
    if facts.max_cost_nanos < 0 or nanos < facts.max_cost_nanos:
        facts.max_cost_nanos = nanos
    return None
