"""HOT PATH. Owns `ServedTemplate`: how a worker writes its Served records, most of whose bytes repeat."""

import struct
from typing import Final

import msgspec

_U64: Final = 0xCF
#: t_ns, outcome and reason (small: one byte each is their msgpack form), rows, compute, request, reply, charge.
_NUMBERS: Final = struct.Struct(">BQBBBQBQBQBQBQ")


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
        pack = msgspec.msgpack.encode
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
