"""Owns what workers and the owner process say to each other about wallets: messages, in the frames of quotas.

Amounts are nanos and count from the start of the worker's usage log (billing/ledger/leases.py says what they mean).
A worker has at most one unanswered `Order` per wallet.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.quota.protocol import FRAME_BYTES_MAX, ProtocolError

FUNDS_VERSION: Final = 1


class Begin(msgspec.Struct, frozen=True, array_like=True, tag="B"):
    """First from a worker: the usage log whose calls will spend."""

    version: int
    instance: str
    epoch: int


class Order(msgspec.Struct, frozen=True, array_like=True, tag="O"):
    """Raise the ceiling by what is needed and spared, or, as a return, lower it to `committed`."""

    tenant: str
    currency: str
    seq: int
    committed: int
    least: int
    need: int
    spare: int
    is_return: bool


class Leased(msgspec.Struct, frozen=True, array_like=True, tag="l"):
    """Answer to the open order. `is_short`: the wallet has too little; `is_unavailable`: it could not be asked."""

    tenant: str
    currency: str
    ceiling: int
    is_short: bool
    is_unavailable: bool


class Recall(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """Another worker needs it: return what no call of yours has reserved."""

    tenant: str
    currency: str


FromWorker = Begin | Order
FromOwner = Leased | Recall

_encoder: Final = msgspec.msgpack.Encoder()
_from_worker: Final = msgspec.msgpack.Decoder(list[FromWorker])
_from_owner: Final = msgspec.msgpack.Decoder(list[FromOwner])
#: A frame of so many messages is far below its limit.
MESSAGES_PER_FRAME: Final = 5_000


def encode_frames(messages: Sequence[FromWorker] | Sequence[FromOwner]) -> bytes:
    """One frame, or as many as it takes."""
    frames = []
    for at in range(0, len(messages), MESSAGES_PER_FRAME):
        payload = _encoder.encode(messages[at : at + MESSAGES_PER_FRAME])
        assert len(payload) <= FRAME_BYTES_MAX
        frames.append(len(payload).to_bytes(4, "little") + payload)
    return b"".join(frames)


def decode_from_worker(payload: bytes) -> list[FromWorker]:
    """Raises ProtocolError."""
    try:
        return _from_worker.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("a worker's frame cannot be read") from error


def decode_from_owner(payload: bytes) -> list[FromOwner]:
    """Raises ProtocolError."""
    try:
        return _from_owner.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("an owner's frame cannot be read") from error
