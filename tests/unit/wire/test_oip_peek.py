"""Peeking OIP requests: any split, any order, compression, and every attempt to run what was not authorised."""

import gzip
import json
import zlib
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from gateway.errors import Code
from gateway.wire import grpc, protobuf_peek
from gateway.wire.oip_peek import GrpcPeek, json_rows
from gateway.wire.protobuf_peek import MessagePeek, Peeked


def infer(**changes: Any) -> bytes:
    """A ModelInferRequest as the stock client writes it."""
    request = service_pb2.ModelInferRequest(
        model_name=changes.get("model", "mlp"),
        model_version=changes.get("version", "2"),
        id=changes.get("id", "call-1"),
    )
    request.parameters["priority"].int64_param = 3
    for shape in changes.get("shapes", [[32, 64]]):
        tensor = request.inputs.add(name="INPUT", datatype="FP32")
        tensor.shape.extend(shape)
    request.outputs.add(name="OUTPUT")
    request.raw_input_contents.append(b"\x0a" * changes.get("raw_bytes", 1000))
    raw: bytes = request.SerializeToString()
    return raw


def text(number: int, value: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + grpc.varint(len(value)) + value


def peek(body: bytes, step: int | None = None, **options: Any) -> GrpcPeek:
    made = GrpcPeek(options.pop("message_bytes_max", 1 << 20), **options)
    for start in range(0, len(body), step or len(body) or 1):
        made.feed(body[start : start + step] if step else body)
    made.end()
    return made


@pytest.mark.parametrize("step", [None, 1, 2, 3, 7, 64])
def test_the_facts_of_a_request_in_any_split(step: int | None) -> None:
    made = peek(grpc.frame(infer()), step)
    assert made.state is Peeked.READY
    assert not made.violates
    assert (made.model, made.version, made.id, made.rows) == (b"mlp", b"2", b"call-1", 32)


def test_the_model_is_known_long_before_the_tensors() -> None:
    made = GrpcPeek(1 << 30)
    body = grpc.frame(infer(raw_bytes=100_000))
    assert made.feed(memoryview(body)[:12]) is Peeked.PENDING
    assert made.feed(memoryview(body)[12:80]) is Peeked.READY
    assert made.rows == 32
    assert made.feed(body[80:]) is Peeked.READY


@pytest.mark.parametrize("version", ["", "2"])
def test_small_requests_name_a_model_too(version: str) -> None:
    raw = service_pb2.ModelReadyRequest(name="mlp", version=version).SerializeToString()
    made = peek(grpc.frame(raw))
    assert (made.state, made.model, made.version, made.rows) == (Peeked.READY, b"mlp", version.encode(), -1)


def test_an_empty_message_names_no_model() -> None:
    made = peek(grpc.frame(b""))
    assert (made.state, made.model) == (Peeked.READY, b"")


SHAPES: dict[str, tuple[bytes, int]] = {
    "packed": (b"\x1a\x02\x05\x07", 5),
    "not packed": (b"\x18\x05\x18\x07", 5),
    "large": (b"\x1a\x05\x80\x80\x80\x80\x01", 2**28),
    "negative": (b"\x1a\x0a" + b"\xff" * 9 + b"\x01", -1),
    "scalar": (b"\x1a\x00", -1),
    "none": (b"\x12\x04FP32", -1),
    "after a fixed64 and a fixed32 field": (b"\x59" + b"x" * 8 + b"\x5d" + b"x" * 4 + b"\x18\x05", 5),
    "after a varint field": (b"\x58\x80\x01\x18\x05", 5),
    "empty first, then more": (b"\x1a\x00\x18\x05", 5),
}


@pytest.mark.parametrize("step", [None, 1, 5])
@pytest.mark.parametrize("name", SHAPES)
def test_rows_come_from_the_first_inputs_shape(name: str, step: int | None) -> None:
    tensor, rows = SHAPES[name]
    raw = text(1, b"m") + text(5, text(1, b"IN") + tensor) + text(5, b"\x18\x63") + text(7, b"r" * 300)
    made = peek(grpc.frame(raw), step)
    assert made.state is Peeked.READY
    assert made.rows == rows


def test_a_shape_hidden_behind_much_data_is_not_looked_for() -> None:
    raw = text(1, b"m") + text(5, text(5, b"x" * 10_000) + b"\x18\x05")
    assert peek(grpc.frame(raw), 1000).rows == -1
    assert peek(grpc.frame(raw)).rows == 5


VIOLATIONS: dict[str, bytes] = {
    "model after inputs": text(1, b"a") + text(5, b"\x18\x01") + text(1, b"b"),
    "version after inputs": text(1, b"a") + text(5, b"\x18\x01") + text(2, b"9"),
    "model after id": text(1, b"a") + text(3, b"id") + text(1, b"b"),
    "model only after id": text(3, b"id") + text(1, b"b"),
    "repeated model": text(1, b"a") + text(1, b"b"),
    "repeated version": text(1, b"a") + text(2, b"1") + text(2, b"2"),
    "model at the very end": infer() + text(1, b"other"),
    "model with a padded tag": text(1, b"a") + text(3, b"") + b"\x8a\x80\x00\x01b",
    "model as a varint": b"\x08\x01",
    "group": text(1, b"a") + b"\x1b\x1c",
    "field 0": b"\x02\x00",
    "field 0 as varint": b"\x00\x00",
    "endless varint": text(1, b"a") + b"\x20" + b"\xff" * 11,
    "truncated model": b"\x0a\x05ab",
    "truncated varint": text(1, b"a") + b"\x20\xff",
    "truncated tensor": text(1, b"a") + b"\x3a\x7f" + b"x" * 10,
    "long model": text(1, b"a" * 1025),
    "malformed input": text(1, b"a") + text(5, b"\x1b"),
    "cut tag in input": text(1, b"a") + text(5, b"\x1a") + text(7, b""),
    "cut fixed field in input": text(1, b"a") + text(5, b"\x59xx") + text(7, b""),
    "cut string in input": text(1, b"a") + text(5, b"\x0a\x05x") + text(7, b""),
    "cut input": text(1, b"a") + text(5, b"\x1a\x05\x01") + text(7, b""),
}


@pytest.mark.parametrize("step", [None, 1, 3])
@pytest.mark.parametrize("name", VIOLATIONS)
def test_what_was_authorised_must_be_what_runs(name: str, step: int | None) -> None:
    made = peek(grpc.frame(VIOLATIONS[name]), step)
    assert made.violates
    assert made.code == Code.BAD_REQUEST
    assert made.fault
    assert made.feed(grpc.frame(infer())) is Peeked.FAULT


def test_other_fields_may_come_in_any_order_and_wire_type() -> None:
    raw = (
        text(1, b"m")
        + b"\x59"
        + b"x" * 8
        + b"\x5d"
        + b"x" * 4
        + b"\x58\x80\x01"
        + text(7, b"raw")
        + text(3, b"i" * 2000)
    )
    made = peek(grpc.frame(raw), 1)
    assert (made.state, made.model, made.id) == (Peeked.READY, b"m", b"")


def test_the_longest_name_is_taken() -> None:
    assert peek(grpc.frame(text(1, b"a" * 1024))).model == b"a" * 1024


@pytest.mark.parametrize("step", [None, 1, 10])
@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_compressed_messages_are_inflated(encoding: bytes, compress: Any, step: int | None) -> None:
    body = grpc.frame(compress(infer(raw_bytes=200_000)), is_compressed=True)
    made = peek(body, step, encoding=encoding)
    assert (made.state, made.model, made.rows) == (Peeked.READY, b"mlp", 32)


def test_uncompressed_messages_may_come_with_an_encoding() -> None:
    assert peek(grpc.frame(infer()), encoding=b"gzip").model == b"mlp"


def test_a_late_model_in_a_compressed_message_is_found() -> None:
    body = grpc.frame(gzip.compress(VIOLATIONS["model at the very end"]), is_compressed=True)
    assert peek(body, encoding=b"gzip").violates


@pytest.mark.parametrize(
    ("body", "encoding", "code"),
    [
        (grpc.frame(b"x", is_compressed=True), b"identity", Code.UNSUPPORTED_ENCODING),
        (grpc.frame(b"", is_compressed=True), b"identity", Code.UNSUPPORTED_ENCODING),
        (grpc.frame(b"x", is_compressed=True), b"zstd", Code.UNSUPPORTED_ENCODING),
        (grpc.frame(b"not gzip", is_compressed=True), b"gzip", Code.BAD_REQUEST),
        (grpc.frame(gzip.compress(infer())[:-9], is_compressed=True), b"gzip", Code.BAD_REQUEST),
        (grpc.frame(gzip.compress(infer()) + b"x", is_compressed=True), b"gzip", Code.BAD_REQUEST),
        (grpc.frame(b"", is_compressed=True), b"gzip", Code.BAD_REQUEST),
        (
            grpc.frame(gzip.compress(text(1, b"m") + text(7, b"\0" * (1 << 20))), is_compressed=True),
            b"gzip",
            Code.BODY_TOO_LARGE,
        ),
        (grpc.prefix((1 << 20) + 1), b"identity", Code.BODY_TOO_LARGE),
        (b"\x02\0\0\0\0", b"identity", Code.BAD_REQUEST),
        (grpc.frame(infer()) * 2, b"identity", Code.BAD_REQUEST),
        (grpc.frame(infer())[:-1], b"identity", Code.BAD_REQUEST),
        (grpc.frame(infer()) + b"\0\0", b"identity", Code.BAD_REQUEST),
        (b"\0\0", b"identity", Code.BAD_REQUEST),
        (b"", b"identity", Code.BAD_REQUEST),
    ],
)
def test_bodies_that_are_no_single_message(body: bytes, encoding: bytes, code: Code) -> None:
    made = peek(body, encoding=encoding)
    assert made.violates
    assert made.code == code


def test_inflation_is_capped_at_the_message_limit_exactly() -> None:
    raw = text(1, b"m") + text(7, b"\0" * (100_000 - 3 - 4))
    assert len(raw) == 100_000
    body = grpc.frame(gzip.compress(raw), is_compressed=True)
    assert not peek(body, encoding=b"gzip", message_bytes_max=100_000).violates
    assert peek(body, encoding=b"gzip", message_bytes_max=99_999).code == Code.BODY_TOO_LARGE


def test_every_message_of_a_stream_must_name_the_same_model() -> None:
    same = grpc.frame(infer()) + grpc.frame(infer(shapes=[[5]]))
    for step in (None, 1, 7):
        assert peek(same, step, is_stream=True).messages == 2
        assert not peek(same, step, is_stream=True).violates
        assert peek(same, step, is_stream=True).rows == 32
        for other in (infer(model="other"), infer(version="9"), text(3, b"x")):
            assert peek(same + grpc.frame(other), step, is_stream=True).violates


def test_a_second_message_is_refused_before_its_tensors() -> None:
    made = GrpcPeek(1 << 20, is_stream=True)
    made.feed(grpc.frame(infer()))
    assert made.feed(grpc.frame(infer(model="other"))[:40]) is Peeked.FAULT


def test_a_message_peek_alone_knows_truncation() -> None:
    made = MessagePeek()
    made.feed(text(1, b"m")[:2])
    assert made.end() is Peeked.FAULT


def test_a_zero_length_tensor_at_the_end_of_a_part() -> None:
    made = MessagePeek()
    assert made.feed(text(1, b"m") + b"\x3a") is Peeked.READY
    assert made.feed(b"\x00") is Peeked.READY
    assert made.end() is Peeked.READY


def request_json(**changes: Any) -> bytes:
    document: dict[str, Any] = {
        "id": "1",
        "inputs": [{"name": "IN", "shape": [8, 3], "datatype": "FP32", "data": [0.5] * 24}],
        "outputs": [{"name": "OUT"}],
    }
    document.update(changes)
    return json.dumps(document).encode()


def test_rows_of_a_json_request() -> None:
    assert json_rows(memoryview(request_json())) == 8
    assert json_rows(request_json(inputs=[{"shape": [0]}])) == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        request_json(inputs=[]),
        request_json(inputs=[{"name": "x"}]),
        request_json(inputs=[{"shape": []}]),
        request_json(inputs=[{"shape": [-1]}]),
        request_json(inputs=[{"shape": ["8"]}]),
        request_json(inputs=[{"shape": [2**31]}]),
        request_json(parameters={"inputs": [{"shape": [1]}]}),
        request_json(parameters={"shape": 1}),
        request_json(id='a"b'),
        b'{"inputs":[{"shape":[1]}],"inputs":[{"shape":[900]}]}',
        b'{"inputs":[{"shape":[1],"shape":[900]}]}',
        b'{"inputs":[{"shape":[1]}],"\\u0069nputs":[{"shape":[900]}]}',
        request_json() + b"x",
    ],
)
def test_rows_that_parsers_could_read_differently_are_not_guessed(raw: bytes) -> None:
    assert json_rows(raw) == -1


@pytest.mark.parametrize("name", ["model at the very end", "model after inputs"])
def test_a_remembered_head_excuses_nothing_that_follows(name: str) -> None:
    for _ in range(2):
        assert peek(grpc.frame(infer())).rows == 32
        late = infer() + text(1, b"other") if name == "model at the very end" else infer() + text(2, b"9")
        assert peek(grpc.frame(late)).violates
        assert peek(grpc.frame(infer()[:-1])).violates


def test_remembered_heads_say_what_a_full_reading_says() -> None:
    for index in range(40):
        raw = infer(model=f"m{index % 3}", id="i" * (index % 7), shapes=[[index % 5, 2]], raw_bytes=10 + index)
        whole, split = peek(grpc.frame(raw)), peek(grpc.frame(raw), 3)
        assert (whole.model, whole.version, whole.id, whole.rows) == (split.model, split.version, split.id, split.rows)
        assert whole.rows == index % 5


def test_a_head_without_inputs_is_not_remembered() -> None:
    raw = text(1, b"no-inputs") + text(7, b"x")
    assert peek(grpc.frame(raw)).rows == -1
    assert not any(b"no-inputs" in head for head in protobuf_peek._heads)


def test_what_is_remembered_is_bounded() -> None:
    for index in range(1500):
        peek(grpc.frame(infer(id="i" * (index % 30), model=f"model-{index}")))
    assert len(protobuf_peek._heads) <= 512
    assert len(protobuf_peek._lengths) <= 4
    before = len(protobuf_peek._heads)
    peek(grpc.frame(infer(shapes=[[1, 2]] * 200)))
    assert len(protobuf_peek._heads) == before


def test_later_parts_teach_nothing() -> None:
    protobuf_peek._heads.clear()
    protobuf_peek._lengths.clear()
    raw = infer(model="split")
    at = raw.index(text(7, b"\x0a" * 1000))
    made = MessagePeek()
    made.feed(raw[:at])
    made.feed(raw[at:])
    made.feed(b"")
    assert made.end() is Peeked.READY
    assert protobuf_peek._heads == {}
    assert peek(grpc.frame(infer(model="other"))).model == b"other"
    assert set(protobuf_peek._heads) == {infer(model="other")[:at]}


def test_a_fault_is_for_good_also_when_a_whole_message_follows() -> None:
    """Found by fuzzing: the shortcut for a message in one part forgot that an earlier prefix had been refused."""
    made = GrpcPeek(1 << 12)
    assert made.feed(grpc.prefix(1 << 20)) is Peeked.FAULT
    assert made.feed(grpc.frame(infer(raw_bytes=10))) is Peeked.FAULT
    assert made.end() is Peeked.FAULT
    assert made.code is Code.BODY_TOO_LARGE


def test_a_part_that_ends_with_a_remembered_head_hides_nothing_that_follows() -> None:
    """Found by fuzzing: the step over the head had the length of another one, and what it stepped over ran unseen."""
    protobuf_peek._heads.clear()
    protobuf_peek._lengths.clear()
    raw, longer = infer(model="free", id="1"), infer(model="free", id="1" * 12)
    for known in (raw, longer):
        assert peek(grpc.frame(known)).model == b"free"
    at = raw.index(text(7, b"\x0a" * 1000))
    override = text(1, b"expensive")
    assert len(longer) - len(raw) == len(override), "the field fits exactly into what would be skipped"
    body = grpc.frame(raw[:at] + override + raw[at:])
    made = GrpcPeek(1 << 20)
    made.feed(body[: 5 + at])
    made.feed(body[5 + at :])
    assert made.end() is Peeked.FAULT
    assert peek(body).violates
    assert peek(body, 1).violates
