"""Owns the usage records: what a worker writes to its log and the meter reads, and their codec.

Records are msgpack arrays (msgspec, array_like) tagged by one letter, so fields are positional: only ever append a
field with a default, never reorder. `RECORD_VERSION` stands in every segment header; new code reads old segments.

The record's frame (length, CRC over epoch, sequence and payload, sequence) belongs to `billing.usagelog`; this module
is about meaning. Instants are UTC nanoseconds, money is integer nanos (1e-9 of the currency's major unit).
"""

import struct
from enum import IntEnum
from typing import Final

import msgspec

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


Record = Served | Sent | Ended | Closed

_U64: Final = 0xCF
#: t_ns, outcome and reason (small: one byte each is their msgpack form), rows, compute, request, reply, charge.
_NUMBERS: Final = struct.Struct(">BQBBBQBQBQBQBQ")

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)

#: `encode(record) -> bytes`. Never raises for the types above.
encode = _encoder.encode


class ServedTemplate:
    """Encodes Served records that differ only in what differs from call to call; `decode` reads them like any other.

    Made once per (tenant, key, plan, model, version, price version, currency, protocol) and kept by the writer, since
    building and encoding the Struct costs 3 µs a call, filling a template 1. Integers take msgpack's widest form.
    """

    __slots__ = ("_head", "_middle", "_tail")

    def __init__(
        self,
        *,
        tenant: str,
        key_id: str,
        plan: str,
        model: str,
        model_version: str,
        price_version: int,
        currency: str,
        protocol: int,
    ) -> None:
        pack = _encoder.encode
        middle = (tenant, key_id, plan, model, model_version, price_version)
        # array of 18, "S", then the bin8 head of the call id.
        self._head = b"\xdc\x00\x12" + pack("S") + b"\xc4\x10"
        self._middle = b"".join(map(pack, middle))
        self._tail = pack(currency) + pack(protocol)

    def encode(  # noqa: PLR0917 - by position: keywords cost as much as the rest of it
        self,
        call_id: bytes,
        t_ns: int,
        outcome: int,
        reason: int,
        rows: int,
        compute_ns: int,
        request_bytes: int,
        reply_bytes: int,
        charge_nanos: int,
    ) -> bytes:
        """The payload of one record. All numbers are >= 0; `call_id` is 16 bytes. Raises struct.error otherwise."""
        if len(call_id) != 16:
            raise ValueError("a call id has 16 bytes")
        numbers = _NUMBERS.pack(
            _U64, t_ns, outcome, reason, _U64, rows, _U64, compute_ns, _U64, request_bytes, _U64, reply_bytes, _U64,
            charge_nanos,
        )  # fmt: skip
        return b"%b%b%b%b%b" % (self._head, call_id, self._middle, numbers, self._tail)


def decode(payload: bytes | memoryview) -> Record:
    """The record in `payload`. Raises `msgspec.DecodeError` (ValidationError included) on anything else."""
    try:
        return _decoder.decode(payload)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"a text is not UTF-8: {error.reason}") from None
    except RecursionError:
        raise msgspec.DecodeError("nested too deeply") from None
