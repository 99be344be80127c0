"""gRPC framing, time-outs and status trailers; details are read back by protobuf itself."""

import base64
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from gateway.wire import grpc
from gateway.wire.grpc import GrpcFault, MessageReader
from gateway.wire.status import Grpc

FIELD = descriptor_pb2.FieldDescriptorProto


def google_rpc() -> tuple[Any, Any]:
    """(Status, RetryInfo) classes as google.rpc defines them; the package itself is not installed."""
    file = descriptor_pb2.FileDescriptorProto(name="test_rpc.proto", package="google.rpc", syntax="proto3")
    shapes: dict[str, list[tuple[str, int, Any, str]]] = {
        "Any": [("type_url", 1, FIELD.TYPE_STRING, ""), ("value", 2, FIELD.TYPE_BYTES, "")],
        "Duration": [("seconds", 1, FIELD.TYPE_INT64, ""), ("nanos", 2, FIELD.TYPE_INT32, "")],
        "RetryInfo": [("retry_delay", 1, FIELD.TYPE_MESSAGE, ".google.rpc.Duration")],
        "Status": [
            ("code", 1, FIELD.TYPE_INT32, ""),
            ("message", 2, FIELD.TYPE_STRING, ""),
            ("details", 3, FIELD.TYPE_MESSAGE, ".google.rpc.Any"),
        ],
    }
    for name, fields in shapes.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, type_name in fields:
            label = FIELD.LABEL_REPEATED if field_name == "details" else FIELD.LABEL_OPTIONAL
            message.field.add(name=field_name, number=number, type=kind, label=label, type_name=type_name or None)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[no-untyped-call,unused-ignore]
    make = message_factory.GetMessageClass
    return (
        make(pool.FindMessageTypeByName("google.rpc.Status")),
        make(pool.FindMessageTypeByName("google.rpc.RetryInfo")),
    )


MESSAGES = [b"one", b"", b"three" * 100]
BODY = b"".join(grpc.frame(message, is_compressed=index == 2) for index, message in enumerate(MESSAGES))
READ = [(False, b"one"), (False, b""), (True, b"three" * 100)]


def test_messages_are_cut_from_one_piece() -> None:
    reader = MessageReader(1000)
    assert reader.feed(memoryview(BODY)) == READ
    assert reader.is_between_messages


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6, 7, 100])
def test_messages_are_cut_from_any_pieces(step: int) -> None:
    reader = MessageReader(1000)
    found: list[tuple[bool, bytes]] = []
    for start in range(0, len(BODY), step):
        found += reader.feed(BODY[start : start + step])
    assert found == READ


@pytest.mark.parametrize("end", [1, 4, 5, 7, len(BODY) - 1])
def test_a_cut_message_is_known_at_the_end(end: int) -> None:
    reader = MessageReader(1000)
    reader.feed(BODY[:end])
    assert not reader.is_between_messages


def test_message_limit_is_exact() -> None:
    assert MessageReader(10).feed(grpc.frame(b"x" * 10)) == [(False, b"x" * 10)]
    with pytest.raises(GrpcFault) as caught:
        MessageReader(10).feed(grpc.prefix(11))
    assert caught.value.status == Grpc.RESOURCE_EXHAUSTED


def test_unknown_flags_are_a_fault() -> None:
    with pytest.raises(GrpcFault) as caught:
        MessageReader(10).feed(b"\x02\0\0\0\0")
    assert caught.value.status == Grpc.INTERNAL


@pytest.mark.parametrize(
    ("value", "expected_ns"),
    [
        (b"1H", 3_600_000_000_000),
        (b"2M", 120_000_000_000),
        (b"3S", 3_000_000_000),
        (b"4m", 4_000_000),
        (b"5u", 5_000),
        (b"6n", 6),
        (b"0S", 0),
        (b"00000001S", 1_000_000_000),
        (b"99999999n", 99_999_999),
        (b"99999999H", grpc.TIMEOUT_NS_MAX),
        (b"8761H", grpc.TIMEOUT_NS_MAX),
        (b"100000000n", None),
        (b"", None),
        (b"S", None),
        (b"5", None),
        (b"5s", None),
        (b"-5S", None),
        (b"5 S", None),
        (b"1.5S", None),
        ("٣S".encode(), None),
    ],
)
def test_timeouts_are_read_in_all_units(value: bytes, expected_ns: int | None) -> None:
    assert grpc.try_timeout_ns(value) == expected_ns


@pytest.mark.parametrize(
    ("remaining_ns", "expected"),
    [
        (-5, b"1n"),
        (0, b"1n"),
        (99_999, b"99999n"),
        (100_000, b"100u"),
        (99_999_999, b"99999u"),
        (100_000_000, b"100m"),
        (4_999_800_000, b"4999m"),
        (100_000_000_000, b"100S"),
        (99_999_999_999_999, b"99999S"),
        (100_000_000_000_000, b"27H"),
        (10**24, b"99999999H"),
    ],
)
def test_timeouts_are_written_short_and_never_longer_than_what_is_left(remaining_ns: int, expected: bytes) -> None:
    assert grpc.format_timeout(remaining_ns) == expected
    read_ns = grpc.try_timeout_ns(expected)
    assert read_ns is not None
    assert read_ns <= max(remaining_ns, 1)


@pytest.mark.parametrize(
    ("message", "encoded"),
    [("plain text", b"plain text"), ("50%", b"50%25"), ("naïve\n", b"na%C3%AFve%0A"), ("", b""), ("\x7f", b"%7F")],
)
def test_messages_are_percent_encoded(message: str, encoded: bytes) -> None:
    assert grpc.encode_message(message) == encoded
    assert grpc.decode_message(encoded) == message


def test_malformed_messages_are_kept() -> None:
    assert grpc.decode_message(b"100%zz\xff") == "100%zz\ufffd"


def test_status_trailers() -> None:
    assert grpc.status_trailers(Grpc.OK) == [(b"grpc-status", b"0")]
    assert grpc.status_trailers(Grpc.NOT_FOUND, "no ä", [(b"x", b"y")]) == [
        (b"grpc-status", b"5"),
        (b"grpc-message", b"no %C3%A4"),
        (b"x", b"y"),
    ]


@pytest.mark.parametrize(
    ("wait_ms", "retry_after", "delay"),
    [(0, b"0", (0, 0)), (1, b"1", (0, 1_000_000)), (2000, b"2", (2, 0)), (86_399_999, b"86400", (86_399, 999_000_000))],
)
def test_a_wait_is_told_in_seconds_and_as_retry_info(wait_ms: int, retry_after: bytes, delay: tuple[int, int]) -> None:
    trailers = dict(grpc.status_trailers(Grpc.RESOURCE_EXHAUSTED, "too many", retry_after_ms=wait_ms))
    assert trailers[b"retry-after"] == retry_after
    raw = trailers[b"grpc-status-details-bin"]
    assert b"=" not in raw
    status_class, retry_class = google_rpc()
    status = status_class.FromString(base64.b64decode(raw + b"=" * (-len(raw) % 4)))
    assert (status.code, status.message) == (8, "too many")
    assert status.details[0].type_url == "type.googleapis.com/google.rpc.RetryInfo"
    retry_delay = retry_class.FromString(status.details[0].value).retry_delay
    assert (retry_delay.seconds, retry_delay.nanos) == delay
