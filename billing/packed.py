"""HOT PATH. Owns `Packed`: a Served record as the bytes its writer made, its facts shared, its numbers at hand.

Decoding a record into a Served costs more than all that the meter does with most of them. Nearly all were written by
`ServedTemplate`, so all bytes but the call id and the numbers repeat: `Unpacker` knows those again and slices the rest.
It takes a payload only if it is, byte for byte, what the template makes of its values; everything else is decoded.
"""

import itertools
import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec

from billing.events import Record, Served, ServedTemplate, decode

#: Kinds of records (Facts) and payload lengths known at a time; fuller caches are emptied and filled again.
CACHE_MAX: Final = 50_000

#: head, call_id, middle, then marker and number in turns: t_ns, (outcome, reason), rows, compute_ns, request_bytes,
#: reply_bytes, charge_nanos; tail. What a `Packed.fields` holds, in this order.
Fields = tuple[bytes, bytes, bytes, int, int, int, int, int, int, int, int, int, int, int, int, int, int, bytes]

_HEAD: Final = b"\xdc\x00\x12\xa1S\xc4\x10"
#: Currency of three letters and a small protocol; others are decoded.
_TAIL_BYTES: Final = 5
_NUMBERS: Final = "BQBBBQBQBQBQBQ"
_FIXED_BYTES: Final = len(_HEAD) + 16 + struct.calcsize(">" + _NUMBERS) + _TAIL_BYTES
_U64: Final = 0xCF
#: Outcome and reason are one byte each only below this.
_SMALL_MAX: Final = 0x80

#: Outcome and reason, seven bits each, fit between two numbers of Facts.
FACTS_STEP: Final = _SMALL_MAX**2
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
        return self.fields[1]

    @property
    def tenant(self) -> str:
        return self.facts.tenant

    @property
    def t_ns(self) -> int:
        return self.fields[4]

    @property
    def outcome(self) -> int:
        return self.fields[5]

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


class Unpacker:
    """`decode_all` for the meter: like `billing.events.decode`, but calls come as Packed where that is the same."""

    __slots__ = ("_facts", "_layouts")

    def __init__(self) -> None:
        self._facts: dict[tuple[bytes, bytes], Facts] = {}
        self._layouts: dict[int, Callable[[bytes], Any]] = {}

    def decode_all(self, frames: Frames) -> Decoded:
        """What `decode` makes of each; written out for what is already known, because a call costs half as much so."""
        records: list[tuple[int, AnyRecord]] = []
        add, find_layout, find_facts = records.append, self._layouts.get, self._facts.get
        try:
            for seq, payload in frames:
                layout = find_layout(len(payload))
                if layout is not None:
                    fields: Fields = layout(payload)
                    head, _, middle, a, _, outcome, reason, b, _, c, _, d, _, e, _, f, _, tail = fields
                    if head == _HEAD and a == b == c == d == e == f == _U64 and outcome | reason < _SMALL_MAX:
                        facts = find_facts((middle, tail))
                        if facts is not None:
                            add((seq, Packed(payload, facts, fields)))
                            continue
                add((seq, self.decode(payload)))
        except msgspec.DecodeError as error:
            return records, str(error)
        return records, ""

    def decode(self, payload: bytes) -> AnyRecord:
        """The record in `payload`. Raises `msgspec.DecodeError` on anything else."""
        layout = self._layouts.get(len(payload)) or self._layout(len(payload))
        if layout is None:
            return decode(payload)
        fields: Fields = layout(payload)
        head, _, middle, a, _, outcome, reason, b, _, c, _, d, _, e, _, f, _, tail = fields
        if head != _HEAD or not (a == b == c == d == e == f == _U64) or outcome | reason >= _SMALL_MAX:
            return decode(payload)
        facts = self._facts.get((middle, tail))
        if facts is None:
            return self._learn(payload, fields)
        return Packed(payload, facts, fields)

    def _layout(self, length: int) -> Callable[[bytes], Any] | None:
        """How payloads of `length` fall apart; None when they are too short to be calls."""
        if length <= _FIXED_BYTES:
            return None
        if len(self._layouts) >= CACHE_MAX:
            self._layouts.clear()
        text = f">{len(_HEAD)}s16s{length - _FIXED_BYTES}s{_NUMBERS}{_TAIL_BYTES}s"
        layout = self._layouts[length] = struct.Struct(text).unpack
        return layout

    def _learn(self, payload: bytes, fields: Fields) -> AnyRecord:
        """Decode the first record of its kind; remember middle and tail only if the template makes these very bytes.

        With the tail where it was looked for, the numbers are the 56 bytes before it and the middle is all the other
        fields: so it is in every payload with the same middle, tail, markers and length.
        """
        record = decode(payload)
        if not isinstance(record, Served):
            return record
        packed = _pack(Facts(record), record)
        tail = encode_value(record.currency) + encode_value(record.protocol)
        if packed is None or packed.payload != payload or fields[17] != tail:
            return record
        if len(self._facts) >= CACHE_MAX:
            self._facts.clear()
        self._facts[fields[2], fields[17]] = packed.facts
        return packed


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
        packed = _pack(facts, served)
        if packed is None:
            raise ValueError("no usage record: a number is negative or too big, or the call id has not 16 bytes")
        return packed


def _pack(facts: Facts, s: Served) -> Packed | None:
    numbers = s.t_ns, s.outcome, s.reason, s.rows, s.compute_ns, s.request_bytes, s.reply_bytes, s.charge_nanos
    if not 0 <= s.outcome | s.reason < _SMALL_MAX:
        return None
    try:
        payload = facts.template.encode(s.call_id, *numbers)
    except (struct.error, ValueError):
        return None
    t_ns, outcome, reason, rows, compute_ns, request_bytes, reply_bytes, charge_nanos = numbers
    u = _U64
    fields: Fields = (
        _HEAD, s.call_id, b"", u, t_ns, outcome, reason, u, rows, u, compute_ns, u, request_bytes, u, reply_bytes,
        u, charge_nanos, b"",
    )  # fmt: skip
    return Packed(payload, facts, fields)


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
