"""Fuzz targets over what a call says: gRPC messages, OIP targets and JSON heads, keys, credentials, whole heads."""

import json
import zlib
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from gateway.auth import keys
from gateway.auth.credential import extract_credential
from gateway.call import Headers, RequestHead
from gateway.engine import heads as engine_heads
from gateway.errors import Refusal
from gateway.heads import facts_of
from gateway.wire import grpc, protobuf_peek
from gateway.wire.oip_peek import GrpcPeek, json_rows
from gateway.wire.oip_target import Route, parse_target
from gateway.wire.protobuf_peek import Peeked
from gateway.wire.status import Grpc
from tests.fuzz.feeding import joined, pieces, steps

_MESSAGE_BYTES_MAX = 1 << 12
_ENCODINGS = (b"identity", b"gzip", b"deflate", b"snappy")
_CREDENTIALS = {b"authorization", b"x-api-key", b"apikey", b"x-apig-appcode", b"cookie"}


#: Module-level memories of protobuf_peek: emptied, so that a finding shows again by itself.
_MEMORIES = [name for name, value in vars(protobuf_peek).items() if name[:2] != "__" and type(value) in (dict, list)]


def _forget() -> None:
    for memory in _MEMORIES:
        getattr(protobuf_peek, memory).clear()


def _messages(parts: list[bytes]) -> tuple[list[tuple[bool, bytes]], Grpc | None, bool]:
    reader = grpc.MessageReader(_MESSAGE_BYTES_MAX)
    found: list[tuple[bool, bytes]] = []
    try:
        for part in parts:
            found += reader.feed(part)
    except grpc.GrpcFault as fault:
        return found, fault.status, False
    return found, None, reader.is_between_messages


def grpc_messages(data: bytes) -> None:
    """A body is the same messages in any split, and framing them again gives the body."""
    if not data:
        return
    whole, fault, is_between = _messages([data[1:]])
    cut, cut_fault, cut_is_between = _messages(list(steps(data[1:], data[0])))
    assert (cut_fault, cut_is_between) == (fault, is_between)
    if fault is None:
        # A fault ends a call: messages before it may have been given or not.
        assert cut == whole
        again = b"".join(grpc.frame(message, is_compressed=flag) for flag, message in whole)
        assert data[1:].startswith(again)
        assert (again == data[1:]) == is_between


def _peeked(parts: list[bytes], encoding: bytes, *, is_stream: bool) -> GrpcPeek:
    peek = GrpcPeek(_MESSAGE_BYTES_MAX, encoding, is_stream=is_stream)
    for part in parts:
        peek.feed(part)
    peek.end()
    return peek


def _plain(flag: bool, message: bytes, encoding: bytes) -> bytes:
    return zlib.decompress(message, 31 if encoding == b"gzip" else 15) if flag else message


def grpc_peek(data: bytes) -> None:
    """What a peek authorises is what protobuf, and so the backend, will read, in any split and compression."""
    if not data:
        return
    _forget()
    encoding, is_stream = _ENCODINGS[data[0] & 3], bool(data[0] & 4)
    peek = _peeked([data[1:]], encoding, is_stream=is_stream)
    cut = _peeked(list(steps(data[1:], data[0])), encoding, is_stream=is_stream)
    assert cut.state is peek.state
    if peek.state is Peeked.FAULT:
        assert peek.fault
        return
    assert (cut.model, cut.version, cut.id, cut.rows) == (peek.model, peek.version, peek.id, peek.rows)
    for place, (flag, message) in enumerate(grpc.MessageReader(_MESSAGE_BYTES_MAX).feed(data[1:])):
        try:
            request = service_pb2.ModelInferRequest.FromString(_plain(flag, message, encoding))
        except DecodeError:
            continue  # the backend will refuse it
        assert peek.model == request.model_name.encode()
        assert peek.version == request.model_version.encode()
        if place == 0 and peek.rows >= 0:
            assert peek.rows == request.inputs[0].shape[0], "rows that a client could steer"


def _facts(peek: GrpcPeek) -> object:
    if peek.state is Peeked.FAULT:
        return Peeked.FAULT
    return peek.model, peek.version, peek.id, peek.rows


def peek_memory(data: bytes) -> None:
    """What earlier messages left in memory never changes what a later one says, wherever it is cut."""
    _forget()
    for message in pieces(data)[:12]:
        body = grpc.frame(message)
        # Byte by byte nothing is remembered.
        expected = _facts(_peeked([body[at : at + 1] for at in range(len(body))], b"identity", is_stream=False))
        places = {5 + length for length in protobuf_peek._lengths} | set(range(6, len(body), 1 + len(body) // 24))
        for at in sorted(places):
            assert _facts(_peeked([body[:at], body[at:]], b"identity", is_stream=False)) == expected
        assert _facts(_peeked([body], b"identity", is_stream=False)) == expected
        known = protobuf_peek.recall_whole(body, 5)
        if known is not None:
            assert isinstance(expected, tuple)
            assert known == (expected[0].decode(), expected[1].decode(), expected[3])


def oip_target(data: bytes) -> None:
    """A target is a route whose names are safe in a path, or a refusal."""
    route = parse_target(data)
    if isinstance(route, Refusal):
        assert route.message
        return
    for name in (route.model, route.version):
        assert "/" not in name
        assert "\\" not in name
        assert name not in (".", "..")
        assert name.isprintable() or not name.isascii()
    assert route.version == "" or route.version.isdigit()


class _Twice(Exception):
    """A member is there twice: parsers may differ, so the oracle is none."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Twice
    return found


def json_heads(data: bytes) -> None:
    """Rows that are counted are those that another JSON parser finds."""
    rows = json_rows(data)
    if rows < 0:
        return
    try:
        request = json.loads(data.decode(), object_pairs_hook=_unique)
    except _Twice:
        return
    except UnicodeDecodeError:
        return  # in a member that is not looked at; the backend will refuse it
    assert request["inputs"][0]["shape"][0] == rows


def key_text(data: bytes) -> None:
    """Nothing but the exact form is a key."""
    parsed = keys.parse(data)
    if parsed is not None:
        body = keys.PREFIX + parsed.kid + b"_" + parsed.secret
        assert data == body + b"_" + keys.check_of(body)
        assert not (parsed.kid + parsed.secret).strip(keys.ALPHABET)


def _headers(parts: list[bytes]) -> Headers:
    """`name:value` parts as the wire would give them."""
    found = []
    for part in parts:
        name, _, value = part.partition(b":")
        found.append((name.lower(), value))
    return found


def credential(data: bytes) -> None:
    """One text or none; two different ones are always refused."""
    headers = _headers(pieces(data))
    texts = set()
    for name, value in headers:
        if name in (b"x-api-key", b"apikey", b"x-apig-appcode"):
            texts.add(value.strip())
        elif name == b"authorization" and value.lower().startswith(b"bearer "):
            texts.add(value[7:].strip())
    found = extract_credential(headers)
    if len(texts) > 1:
        assert isinstance(found, Refusal)
    else:
        assert found == (texts.pop() if texts else None)


def call_head(data: bytes) -> None:
    """Gateway and engine read any head without an exception, and no credential is ever forwarded."""
    method, target, *rest = (*pieces(data), b"", b"")[: max(2, len(pieces(data)))]
    for is_grpc in (False, True):
        head = RequestHead(method, target, _headers(rest), is_grpc=is_grpc)
        facts = facts_of(head)
        names = {name for name, _ in facts.forward}
        assert not names & _CREDENTIALS
        assert not [name for name in names if name.startswith((b"tollway-", b"x-tollway-"))]
        assert facts.timeout_ns >= 0
        if facts.refusal is None and not is_grpc:
            assert isinstance(parse_target(target), Route)
        engine = engine_heads.facts_of(RequestHead(method, target, _headers(rest), is_grpc=is_grpc))
        assert engine.remaining_ns >= 0
        assert engine.coding in ("", "gzip", "deflate")


def infer_request(model: str = "mlp", version: str = "2") -> bytes:
    """A ModelInferRequest of one input of 4 rows."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id="7")
    tensor = request.inputs.add(name="x", datatype="FP32")
    tensor.shape.extend([4, 2])
    request.parameters["timeout"].int64_param = 5
    request.outputs.add(name="y")
    request.raw_input_contents.append(b"\0" * 32)
    raw: bytes = request.SerializeToString()
    return raw


_INFER = grpc.frame(infer_request())
GRPC_SEEDS = [b"\x07" + _INFER + grpc.frame(b"") + _INFER, b"\0" + grpc.frame(b"abc", is_compressed=True)]
PEEK_SEEDS = [
    b"\0" + _INFER,
    b"\4" + _INFER + _INFER,
    b"\2" + grpc.frame(zlib.compress(infer_request()), is_compressed=True),
    b"\0" + grpc.frame(service_pb2.ModelReadyRequest(name="m", version="1").SerializeToString()),
]
MEMORY_SEEDS = [
    joined([infer_request("m"), infer_request("m", "1234567"), infer_request("m"), infer_request("n", "")]),
    joined([infer_request("free"), infer_request("free", "2" * 11), infer_request("free")[:9] + infer_request("x")]),
]
TARGET_SEEDS = [
    b"/v2/models/a%20b/versions/3/infer?x=1",
    b"/v2/repository/r/models/m/load",
    b"/v2/health/ready",
    b"/v2/systemsharedmemory/region/r/register",
    b"/v2/models/m/trace/setting",
]
JSON_SEEDS = [
    b'{"inputs":[{"name":"x","shape":[3,2],"datatype":"FP32","data":[1,2,3,4,5,6]}],"id":"1"}',
    b'{"parameters":{"a":1},"inputs":[{"shape":[0]},{"shape":[2]}]}',
    b'{"inputs":[{"shape":[1]}],"deep":' + b"[" * 1500,
]
KEY = keys.mint(lambda count: bytes(range(count))).text.encode()
KEY_SEEDS = [KEY, KEY[:-1], b"tw_live_"]
CREDENTIAL_SEEDS = [
    joined([b"Authorization:Bearer " + KEY, b"x-api-key:" + KEY, b"accept:*/*"]),
    joined([b"apikey: a", b"x-apig-appcode:b"]),
    joined([b"authorization:Basic abc"]),
]
HEAD_SEEDS = [
    joined(
        [
            b"POST",
            b"/v2/models/m/infer",
            b"authorization:Bearer k",
            b"content-encoding:gzip",
            b"accept-encoding:gzip;q=0.5",
        ]
    ),
    joined([b"POST", b"/inference.GRPCInferenceService/ModelInfer", b"grpc-timeout:10m", b"grpc-encoding:deflate"]),
    joined(
        [
            b"GET",
            b"/v2",
            b"traceparent:00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01",
            b"x-request-timeout-ms:5",
            b"cookie:c",
        ]
    ),
    joined(
        [
            b"POST",
            b"/v2/models/m/infer",
            b"idempotency-key:a",
            b"inference-header-content-length:9",
            b"tollway-deadline-ns:1",
        ]
    ),
]
