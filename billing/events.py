"""Owns the usage records: what a worker writes to its log and the meter reads, and their codec.

Records are msgpack arrays (msgspec, array_like) tagged by one letter, so fields are positional: only ever append a
field with a default, never reorder. `RECORD_VERSION` stands in every segment header; new code reads old segments.

The record's frame (length, CRC over epoch, sequence and payload, sequence) belongs to `billing.usagelog`; this module
is about meaning. Instants are UTC nanoseconds, money is integer nanos (1e-9 of the currency's major unit).
"""

from enum import IntEnum
from typing import Final

import msgspec

from billing.served_template import ServedTemplate

RECORD_VERSION: Final = 1


class Outcome(IntEnum):
    """How a served call ended. Only outcomes with a reply reach the log; refusals are never recorded (MONEY.md I6)."""

    OK = 0
    #: The backend answered with a non-2xx status: recorded at zero price so that counts reconcile.
    FAILED = 1


class Reason(IntEnum):
    """Why a call costs what it costs; printed in `tollway-charge` and kept in the ledger."""

    PRICED = 0
    FREE_PLAN = 1
    INTERNAL_PLAN = 2
    NOT_BILLABLE = 3
    #: Charged to the tenant's wallet, at list price.
    PREPAID = 4


class Served(msgspec.Struct, frozen=True, array_like=True, tag="S", kw_only=True):
    """A call that was executed, written before its reply is complete at the caller (MONEY.md R1).

    The unique key in the ledger is (tenant, call_id, kind="call", n=0). `call_id` is the 16 bytes of a UUIDv7 minted at
    admission. `charge_nanos` is the list price at `price_version`; the meter re-rates and quarantines a difference.
    """

    call_id: bytes
    tenant: str
    key_id: str
    plan: str
    model: str
    model_version: str
    price_version: int
    t_ns: int
    outcome: int
    reason: int
    rows: int
    compute_ns: int
    request_bytes: int
    reply_bytes: int
    charge_nanos: int
    currency: str
    #: 0 HTTP, 1 gRPC.
    protocol: int


class Sent(msgspec.Struct, frozen=True, array_like=True, tag="M", kw_only=True):
    """Terminal mark: every Served with first_seq <= seq <= last_seq was handed to the socket, but those with an Ended.

    One unsynced mark per group commit (MONEY.md R8).
    """

    first_seq: int
    last_seq: int


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="E", kw_only=True):
    """Terminal mark of one exception: why the caller of the Served record `served_seq` did not get the whole reply.

    Causes that are free of charge: `billing.intake.FREE_CAUSES`.
    """

    served_seq: int
    cause: str
    bytes_sent: int


class Closed(msgspec.Struct, frozen=True, array_like=True, tag="C", kw_only=True):
    """Last record of an epoch that ended in an orderly way: no ambiguity remains in it."""

    t_ns: int


class Progress(msgspec.Struct, frozen=True, array_like=True, tag="P", kw_only=True):
    """A call whose reply is a stream, so far: `served` is what its record would be if it ended here (MONEY.md R6).

    The first one, with no units and not billable, is durable before the first byte of the reply. Units in one have been
    handed to the socket before it was written. The last one counts if the epoch dies before the call's Served is sent.
    """

    served: Served


Record = Served | Sent | Ended | Closed | Progress

#: An array of two, "P", and what follows.
_PROGRESS: Final = b"\x92\xa1P"

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)

#: `encode(record) -> bytes`. Never raises for the types above.
encode = _encoder.encode


def progress_of(served: bytes) -> bytes:
    """The payload of a Progress from that of the Served in it."""
    return _PROGRESS + served


def decode(payload: bytes | memoryview) -> Record:
    """The record in `payload`. Raises `msgspec.DecodeError` (ValidationError included) on anything else."""
    try:
        return _decoder.decode(payload)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"a text is not UTF-8: {error.reason}") from None
    except RecursionError:
        raise msgspec.DecodeError("nested too deeply") from None


__all__ = [
    "RECORD_VERSION",
    "Closed",
    "Ended",
    "Outcome",
    "Reason",
    "Record",
    "Sent",
    "Served",
    "ServedTemplate",
    "decode",
    "encode",
]
