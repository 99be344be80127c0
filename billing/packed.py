"""Owns `Packed`: a Served record as the bytes its writer made, its facts shared, its numbers at hand.

Decoding a record into a Served costs more than all that the meter does with most of them: see `billing.unpacker`.
"""

import itertools
import struct
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec

from billing.events import Record, Served, ServedTemplate, decode

#: Kinds of records (Facts) and payload lengths known at a time; fuller caches are emptied and filled again.
CACHE_MAX: Final = 50_000

#: What differs from call to call, in the payload's order: bytes, then eight ints. Typed loosely because compiled code
#: would take a tuple of known types apart and put it together again at each touch.
Fields = tuple[Any, ...]

CALL_ID: Final = 0
T_NS: Final = 1
OUTCOME: Final = 2
REASON: Final = 3
ROWS: Final = 4
COMPUTE_NS: Final = 5
REQUEST_BYTES: Final = 6
REPLY_BYTES: Final = 7
CHARGE_NANOS: Final = 8

#: How every record of a template begins: an array of 18, "S", the head of a call id.
HEAD: Final = b"\xdc\x00\x12\xa1S\xc4\x10"
#: msgpack's marker of an integer of 64 bits.
U64: Final = 0xCF
#: Outcome and reason are one byte each only below this.
SMALL_MAX: Final = 0x80

#: Outcome and reason, seven bits each, fit between two numbers of Facts.
FACTS_STEP: Final = SMALL_MAX**2
_numbers = itertools.count(0, FACTS_STEP)


#: `encode_value(value) -> bytes`: msgpack.
encode_value = msgspec.msgpack.encode


class Facts:
    """What records of one template have in common. Compared by identity; `number` is unique in this process."""

    __slots__ = (
        "currency",
        "key_id",
        "model",
        "model_version",
        "number",
        "plan",
        "price_version",
        "protocol",
        "template",
        "tenant",
    )

    def __init__(self, served: Served) -> None:
        self.number = next(_numbers)
        self.tenant = served.tenant
        self.key_id = served.key_id
        self.plan = served.plan
        self.model = served.model
        self.model_version = served.model_version
        self.price_version = served.price_version
        self.currency = served.currency
        self.protocol = served.protocol
        self.template = ServedTemplate(**{name: getattr(served, name) for name in _FACT_NAMES})


class Packed(msgspec.Struct, gc=False):
    """One Served record: the bytes its template makes of it, and its values. Treat as frozen (frozen costs 0.1 µs)."""

    payload: bytes
    facts: Facts
    fields: Fields

    @property
    def call_id(self) -> bytes:
        return cast(bytes, self.fields[CALL_ID])

    @property
    def tenant(self) -> str:
        return self.facts.tenant

    @property
    def t_ns(self) -> int:
        return cast(int, self.fields[T_NS])

    @property
    def outcome(self) -> int:
        return cast(int, self.fields[OUTCOME])

    def served(self) -> Served:
        """The record itself."""
        record = decode(self.payload)
        assert isinstance(record, Served)
        return record


Call = Served | Packed
#: What a reader with an Unpacker delivers.
AnyRecord = Record | Packed
#: (seq, payload) of consecutive frames.
Frames = list[tuple[int, bytes]]
#: The records up to the first frame that holds none, and what is wrong with that one ("": nothing).
Decoded = tuple[list[tuple[int, AnyRecord]], str]
DecodeAll = Callable[[Frames], Decoded]


def served_of(call: Call) -> Served:
    """The record of `call`, whichever form it has."""
    return call if isinstance(call, Served) else call.served()


def decode_all(frames: Frames) -> Decoded:
    """The records of `frames` as `billing.events.decode` makes them."""
    records: list[tuple[int, AnyRecord]] = []
    try:
        for seq, payload in frames:
            records.append((seq, decode(payload)))
    except msgspec.DecodeError as error:
        return records, str(error)
    return records, ""


class Packer:
    """The way back: Packed from any Served whose numbers are in range."""

    __slots__ = ("_facts",)

    def __init__(self) -> None:
        self._facts: dict[tuple[object, ...], Facts] = {}

    def pack(self, served: Served) -> Packed:
        """Raises ValueError for a record that no template can write: a negative number, a call id of other length."""
        key = tuple([getattr(served, name) for name in _FACT_NAMES])
        facts = self._facts.get(key)
        if facts is None:
            if len(self._facts) >= CACHE_MAX:
                self._facts.clear()
            facts = self._facts[key] = Facts(served)
        packed = pack_with(facts, served)
        if packed is None:
            raise ValueError("no usage record: a number is negative or too big, or the call id has not 16 bytes")
        return packed


def pack_with(facts: Facts, s: Served) -> Packed | None:
    """`s`, whose facts are `facts`, packed; None when no template can write it."""
    numbers = s.t_ns, s.outcome, s.reason, s.rows, s.compute_ns, s.request_bytes, s.reply_bytes, s.charge_nanos
    if not 0 <= s.outcome | s.reason < SMALL_MAX:
        return None
    try:
        payload = facts.template.encode(s.call_id, *numbers)
    except (struct.error, ValueError):
        return None
    return Packed(payload, facts, (s.call_id, *numbers))


_FACT_NAMES: Final = (
    "tenant",
    "key_id",
    "plan",
    "model",
    "model_version",
    "price_version",
    "currency",
    "protocol",
)
