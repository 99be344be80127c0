"""Decoders of bytes that another process wrote: whatever they hold, the caller meets the one error that it handles.

msgspec fails in three ways (DecodeError, UnicodeDecodeError, RecursionError); the border translates all of them.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from billing import events
from billing.meter_client import MeterError, decode_body
from gateway.control.backends import parse_backends
from gateway.errors import SettingsError
from gateway.quota import protocol
from gateway.routing.health import parse_index
from gateway.snapshot import SNAPSHOT_FILE, read_snapshot
from gateway.wire.oip_peek import json_rows

DEEP = b"\x91" * 5000
MSGPACK = [
    b"",
    b"\xc1",
    b"\xa1\xff",
    b"\x91\xa1\xff",
    DEEP,
    b"\x91\x94\xa1H" + DEEP,
    b"\x81\xa1\xff\x01",
    b"\x81\xa1a" + DEEP,
]
JSON = [b"", b"{", b'[{"name":"\xff"}]', b'[{"x":' + b"[" * 5000, b"[" * 5000, b"nul", b'[{"name":"\\ud800"}]']


@pytest.mark.parametrize(
    ("decode", "error"),
    [
        (events.decode, msgspec.DecodeError),
        (decode_body, MeterError),
        (protocol.decode_from_worker, protocol.ProtocolError),
        (protocol.decode_from_owner, protocol.ProtocolError),
    ],
)
@pytest.mark.parametrize("raw", MSGPACK)
def test_msgpack_that_is_none_is_the_declared_error(
    decode: Callable[[bytes], object], error: type[Exception], raw: bytes
) -> None:
    with pytest.raises(error):
        decode(raw)


@pytest.mark.parametrize("raw", MSGPACK)
def test_a_damaged_snapshot_is_a_decode_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / SNAPSHOT_FILE).write_bytes(raw)
    with pytest.raises(msgspec.DecodeError):
        read_snapshot(tmp_path)


@pytest.mark.parametrize("raw", JSON)
def test_a_backends_index_that_is_none_is_a_decode_error(raw: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        parse_index(raw)


@pytest.mark.parametrize("raw", JSON)
def test_backends_that_are_none_are_a_settings_error(raw: bytes) -> None:
    with pytest.raises(SettingsError):
        parse_backends(raw.decode("latin-1"))


@pytest.mark.parametrize("raw", [*JSON, b'{"inputs":[{"shape":[1]}],"x":' + b"[" * 5000 + b"]" * 5000 + b"}"])
def test_rows_of_a_body_that_cannot_be_read_are_unknown(raw: bytes) -> None:
    assert json_rows(raw) == -1
