"""Bombs and absurd tensors to the engine behind the gateway: refused by name; no process dies, nothing is billed."""

import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from tests.e2e.raw import Connection, post
from tests.e2e.rpc import INFER, call, infer_request
from tests.e2e.siege import MIB, memory_bytes, unharmed
from tests.e2e.stage import BODY_BYTES_MAX, Stage

PATH = "/v2/models/mlp/infer"
X: dict[str, Any] = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}
HUGE = 2**62


def body(**changes: Any) -> bytes:
    return json.dumps({"inputs": [{**X, **changes}]}).encode()


#: JSON bodies that are 400, whatever they are about.
ABSURD = {
    "deep data": b'{"inputs":[{"name":"x","shape":[1,64],"datatype":"FP32","data":' + b"[" * 200_000,
    "deep and closed": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 100_000,
    "a number of a million digits": b'{"inputs":[{"name":"x","shape":[1,64],"datatype":"FP32","data":[' + b"9" * 10**6,
    "an exponent beyond any": body(data=[0.5]).replace(b"[0.5]", b"[1e999999999]"),
    "a size beyond any": body(shape=[HUGE, HUGE]),
    "sizes whose product wraps to 64": body(shape=[2**33, 2**33 + 1]),
    "a size of many digits": body(shape=[1]).replace(b"[1]", b"[" + b"9" * 5000 + b"]"),
    "negative size": body(shape=[-1, -64]),
    "ten thousand axes": body(shape=[1] * 10_000),
    "sizes that are no integers": body(shape=[1.5, 64]),
    "a size that is null": body(shape=[None, 64]),
    "NaN": body(data=[0.5]).replace(b"[0.5]", b"[NaN]"),
    "not UTF-8": b'{"inputs":[{"name":"\xff\xfe"}]}',
    "half a surrogate": b'{"inputs":[{"name":"\\ud800"}]}',
    "five hundred inputs": json.dumps({"inputs": [X] * 500}).encode(),
    "five thousand outputs": json.dumps({"inputs": [X], "outputs": [{"name": "y"}] * 5_000}).encode(),
    "classification beyond any": json.dumps(
        {"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": HUGE}}]}
    ).encode(),
    "negative classification": json.dumps(
        {"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": -1}}]}
    ).encode(),
}
#: (what JSON says of the binary part, the binary part) of a body with `Inference-Header-Content-Length`.
BLOBS: dict[str, tuple[Any, bytes]] = {
    "a size beyond the body": (10**9, b"\0" * 256),
    "a size beyond any": (2**63, b"\0" * 256),
    "a negative size": (-256, b"\0" * 256),
    "a size that is text": ("256", b"\0" * 256),
    "too short for the shape": (255, b"\0" * 255),
    "left over": (256, b"\0" * 257),
    "nothing": (256, b""),
}


@pytest.fixture(scope="module", autouse=True)
def nothing_broke(fort: Stage) -> Iterator[None]:
    """Over this whole file; the engine may keep what its allocator keeps."""
    engine = fort.tollway.pid_of("engine")
    before_bytes = memory_bytes(engine)
    with unharmed(fort):
        yield
    assert memory_bytes(engine) <= before_bytes + 256 * MIB


def ask(fort: Stage, data: bytes, *lines: str) -> Any:
    """(status, code) of a call of mlp with these bytes."""
    with Connection(fort.tollway.ports["http_port"]) as connection:
        connection.send(post(PATH, fort.key, data, *lines))
        reply = connection.read()
        assert isinstance(reply.json()["error"], str)
        assert len(reply.body) < 2000, "an error does not repeat what was sent"
        return reply.status, reply.code


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_json(fort: Stage, name: str) -> None:
    status, code = ask(fort, ABSURD[name])
    assert status == 400
    assert code in ("bad_request", "invalid_tensor")


@pytest.mark.parametrize("name", BLOBS)
def test_blobs_that_lie(fort: Stage, name: str) -> None:
    size, blob = BLOBS[name]
    head = {key: value for key, value in X.items() if key != "data"} | {"parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [head]}).encode()
    status, code = ask(fort, text + blob, f"inference-header-content-length: {len(text)}")
    assert status == 400
    assert code in ("bad_request", "invalid_tensor", "bad_header_length")


@pytest.mark.parametrize("value", ["-1", "1e3", "0x10", "", " ", "99999999999999999999", "3, 3", "+3"])
def test_header_lengths_that_lie(fort: Stage, value: str) -> None:
    assert ask(fort, body(), f"inference-header-content-length: {value}") == (400, "bad_header_length")


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_an_inflating_bomb(fort: Stage, pack: Any) -> None:
    """300 MB of blanks in 300 KB: cut where the engine's body limit is."""
    coding = "gzip" if pack is gzip.compress else "deflate"
    status, code = ask(fort, pack(b" " * 300 * MIB), f"content-encoding: {coding}")
    assert (status, code) == (413, "body_too_large")


def test_bombs_within_bombs_and_cut_streams(fort: Stage) -> None:
    inner = gzip.compress(gzip.compress(b" " * 64 * MIB))
    for data in (
        inner,
        gzip.compress(body())[:-8],
        gzip.compress(body())[:20],
        b"\x1f\x8b" + b"\0" * 50,
    ):
        assert ask(fort, data, "content-encoding: gzip")[0] == 400


def grpc_call(fort: Stage, message: bytes, *, compression: Any = None) -> tuple[grpc.StatusCode, str]:
    with grpc.insecure_channel(fort.tollway.grpc_address) as channel:
        done = channel.unary_unary(INFER).future(
            message, metadata=[("authorization", f"Bearer {fort.key}")], timeout=60, compression=compression
        )
        done.exception()
        return done.code(), done.details() or ""


def test_a_grpc_bomb(fort: Stage) -> None:
    """The gateway inflates to see the model's name: it stops at the limit of a message."""
    request = service_pb2.ModelInferRequest(model_name="mlp")
    request.raw_input_contents.append(b"\0" * 100 * MIB)
    code, _ = grpc_call(fort, request.SerializeToString(), compression=grpc.Compression.Gzip)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_large_grpc_message(fort: Stage) -> None:
    code, text = grpc_call(fort, infer_request(BODY_BYTES_MAX // 256 + 1))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(BODY_BYTES_MAX) in text


def protobufs() -> dict[str, bytes]:
    def request(**inputs: Any) -> Any:
        message = service_pb2.ModelInferRequest(model_name="mlp")
        message.inputs.add(**{"name": "x", "datatype": "FP32", "shape": [1, 64], **inputs})
        return message

    both, twice = request(), request()
    both.raw_input_contents.append(b"\0" * 256)
    both.inputs[0].contents.fp32_contents.extend([0.0] * 64)
    twice.raw_input_contents.extend([b"\0" * 256] * 2)
    short = request()
    short.raw_input_contents.append(b"\0" * 255)
    huge = request(shape=[HUGE, HUGE])
    huge.raw_input_contents.append(b"\0" * 256)
    negative = request(shape=[-1, -64])
    negative.raw_input_contents.append(b"\0" * 256)
    lie = service_pb2.ModelInferRequest(model_name="mlp")
    lie.inputs.add(name="x", datatype="BYTES", shape=[1, 64])
    lie.raw_input_contents.append(struct.pack("<I", 2**32 - 1) * 64)
    good: bytes = infer_request(1)
    return {
        "raw and contents": both.SerializeToString(),
        "more raw than inputs": twice.SerializeToString(),
        "short raw": short.SerializeToString(),
        "huge shape": huge.SerializeToString(),
        "negative shape": negative.SerializeToString(),
        "no data at all": request().SerializeToString(),
        "BYTES that lie": lie.SerializeToString(),
        "cut": good[:-40],
        "groups without end": b"\x0a\x03mlp" + b"\x5b" * 100_000,
        "a length beyond the message": b"\x0a\x03mlp\x2a\xff\xff\xff\xff\x07",
        "a varint without end": b"\x0a\x03mlp\x20" + b"\xff" * 30,
        "name after forwarding": good + b"\x0a\x04echo",
        "name is not UTF-8": b"\x0a\x03\xff\xfe\xfd",
    }


PROTOBUFS = protobufs()


@pytest.mark.parametrize("name", PROTOBUFS)
def test_malformed_messages(fort: Stage, name: str) -> None:
    code, text = grpc_call(fort, PROTOBUFS[name])
    assert code is grpc.StatusCode.INVALID_ARGUMENT, text
    assert len(text) < 1000


@pytest.mark.parametrize("names", ["x" * 5000, "../../etc/passwd", "mlp\x00", "mlp\n", "%2e%2e"])
def test_names_that_want_out(fort: Stage, names: str) -> None:
    answer = call(fort.tollway.grpc_address, infer_request(1, names), ("authorization", f"Bearer {fort.key}"))
    assert answer.code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
