"""HOT PATH. Owns `Unpacker`: records as the meter wants them, nearly all of them without decoding.

Nearly all were written by `ServedTemplate`, so all bytes but the call id and the numbers repeat: the unpacker knows
those again and reads only the rest. It takes a payload only if it is, byte for byte, what the template makes of its
values; everything else is decoded.
"""

import struct
from typing import Final

import msgspec

from billing.events import Served, decode
from billing.packed import (
    CACHE_MAX,
    HEAD,
    SMALL_MAX,
    U64,
    AnyRecord,
    Decoded,
    Facts,
    Frames,
    Packed,
    encode_value,
    pack_with,
)

#: Currency of three letters and a small protocol; others are decoded.
_TAIL_BYTES: Final = 5
#: t_ns, outcome and reason (a byte each), then five more: a marker and eight bytes each.
_NUMBERS_BYTES: Final = 56
_HEAD_BYTES: Final = len(HEAD) + 16
_FIXED_BYTES: Final = _HEAD_BYTES + _NUMBERS_BYTES + _TAIL_BYTES
#: A middle of any length goes between: only what differs from call to call is read.
_READ: Final = ">%dx16s%dxxQBBxQxQxQxQxQ%dx"


class _Form:
    """Payloads of one template: their length is known, `fits` says whether one is of them."""

    __slots__ = ("_middle", "_numbers_at", "_tail", "facts", "read")

    def __init__(self, facts: Facts, middle: bytes, tail: bytes) -> None:
        self.facts = facts
        self._middle = middle
        self._tail = tail
        self._numbers_at = _HEAD_BYTES + len(middle)
        #: payload → Fields
        self.read = struct.Struct(_READ % (len(HEAD), len(middle), len(tail))).unpack

    def fits(self, payload: bytes) -> bool:
        """Whether every byte is there that the template always writes. Written out: a loop costs thrice as much."""
        at = self._numbers_at
        return (
            payload.startswith(HEAD)
            and payload[at] == U64
            and payload[at + 11] == U64
            and payload[at + 20] == U64
            and payload[at + 29] == U64
            and payload[at + 38] == U64
            and payload[at + 47] == U64
            and payload[at + 9] | payload[at + 10] < SMALL_MAX
            and payload[_HEAD_BYTES:at] == self._middle
            and payload.endswith(self._tail)
        )


class Unpacker:
    """`decode_all` for the meter: like `billing.events.decode`, but calls come as Packed where that is the same."""

    __slots__ = ("_forms", "_known")

    def __init__(self) -> None:
        #: By middle and tail.
        self._known: dict[tuple[bytes, bytes], _Form] = {}
        #: By the payload's length: the one used last.
        self._forms: dict[int, _Form] = {}

    def decode_all(self, frames: Frames) -> Decoded:
        """What `decode` makes of each; written out for what is already known, because a call costs half as much so."""
        records: list[tuple[int, AnyRecord]] = []
        forms = self._forms
        try:
            for seq, payload in frames:
                form = forms.get(len(payload))
                if form is not None and form.fits(payload):
                    records.append((seq, Packed(payload, form.facts, form.read(payload))))
                else:
                    records.append((seq, self.decode(payload)))
        except msgspec.DecodeError as error:
            return records, str(error)
        return records, ""

    def decode(self, payload: bytes) -> AnyRecord:
        """The record in `payload`. Raises `msgspec.DecodeError` on anything else."""
        length = len(payload)
        if length <= _FIXED_BYTES:
            return decode(payload)
        middle, tail = payload[_HEAD_BYTES : length - _NUMBERS_BYTES - _TAIL_BYTES], payload[length - _TAIL_BYTES :]
        form = self._known.get((middle, tail))
        if form is None:
            return self._learn(payload, middle, tail)
        if not form.fits(payload):
            return decode(payload)
        if len(self._forms) >= CACHE_MAX:
            self._forms.clear()
        self._forms[length] = form
        return Packed(payload, form.facts, form.read(payload))

    def _learn(self, payload: bytes, middle: bytes, tail: bytes) -> AnyRecord:
        """Decode the first record of its kind; remember middle and tail only if the template makes these very bytes.

        With the tail where it was looked for, the numbers are the 56 bytes before it and the middle is all the other
        fields: so it is in every payload with the same middle, tail, markers and length.
        """
        record = decode(payload)
        if not isinstance(record, Served):
            return record
        packed = pack_with(Facts(record), record)
        if (
            packed is None
            or packed.payload != payload
            or tail != encode_value(record.currency) + encode_value(record.protocol)
        ):
            return record
        if len(self._known) >= CACHE_MAX:
            self._known.clear()
            self._forms.clear()
        self._known[middle, tail] = _Form(packed.facts, middle, tail)
        return packed
