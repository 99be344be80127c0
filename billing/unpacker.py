"""HOT PATH. Owns `Unpacker`: records as the meter wants them, nearly all of them without decoding.

Nearly all were written by `ServedTemplate`, so all bytes but the call id and the numbers repeat: the unpacker knows
those again and slices the rest. It takes a payload only if it is, byte for byte, what the template makes of its values;
everything else is decoded.
"""

import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec

from billing.events import Served, decode
from billing.packed import (
    CACHE_MAX,
    HEAD,
    MIDDLE,
    OUTCOME,
    REASON,
    SMALL_MAX,
    TAIL,
    U64,
    AnyRecord,
    Decoded,
    Facts,
    Fields,
    Frames,
    Packed,
    encode_value,
    pack_with,
)

#: Currency of three letters and a small protocol; others are decoded.
_TAIL_BYTES: Final = 5
_NUMBERS: Final = "BQBBBQBQBQBQBQ"
_FIXED_BYTES: Final = len(HEAD) + 16 + struct.calcsize(">" + _NUMBERS) + _TAIL_BYTES


class Unpacker:
    """`decode_all` for the meter: like `billing.events.decode`, but calls come as Packed where that is the same."""

    __slots__ = ("_facts", "_layouts")

    def __init__(self) -> None:
        self._facts: dict[tuple[bytes, bytes], Facts] = {}
        self._layouts: dict[int, Callable[[bytes], Any]] = {}

    def decode_all(self, frames: Frames) -> Decoded:
        """What `decode` makes of each; written out for what is already known, because a call costs half as much so."""
        records: list[tuple[int, AnyRecord]] = []
        layouts, known = self._layouts, self._facts
        try:
            for seq, payload in frames:
                layout = layouts.get(len(payload))
                if layout is not None:
                    fields: Fields = layout(payload)
                    if _is_templated(fields):
                        facts = known.get((fields[MIDDLE], fields[TAIL]))
                        if facts is not None:
                            records.append((seq, Packed(payload, facts, fields)))
                            continue
                records.append((seq, self.decode(payload)))
        except msgspec.DecodeError as error:
            return records, str(error)
        return records, ""

    def decode(self, payload: bytes) -> AnyRecord:
        """The record in `payload`. Raises `msgspec.DecodeError` on anything else."""
        layout = self._layouts.get(len(payload)) or self._layout(len(payload))
        if layout is None:
            return decode(payload)
        fields: Fields = layout(payload)
        if not _is_templated(fields):
            return decode(payload)
        facts = self._facts.get((fields[MIDDLE], fields[TAIL]))
        if facts is None:
            return self._learn(payload, fields)
        return Packed(payload, facts, fields)

    def _layout(self, length: int) -> Callable[[bytes], Any] | None:
        """How payloads of `length` fall apart; None when they are too short to be calls."""
        if length <= _FIXED_BYTES:
            return None
        if len(self._layouts) >= CACHE_MAX:
            self._layouts.clear()
        text = f">{len(HEAD)}s16s{length - _FIXED_BYTES}s{_NUMBERS}{_TAIL_BYTES}s"
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
        packed = pack_with(Facts(record), record)
        tail = encode_value(record.currency) + encode_value(record.protocol)
        if packed is None or packed.payload != payload or fields[TAIL] != tail:
            return record
        if len(self._facts) >= CACHE_MAX:
            self._facts.clear()
        self._facts[fields[MIDDLE], fields[TAIL]] = packed.facts
        return packed


def _is_templated(fields: Fields) -> bool:
    """Whether every byte that is the same in all templates' records is there, in front of and between the numbers."""
    outcome: int = fields[OUTCOME]
    reason: int = fields[REASON]
    return (
        fields[3] == U64
        and fields[7] == U64
        and fields[9] == U64
        and fields[11] == U64
        and fields[13] == U64
        and fields[15] == U64
        and outcome | reason < SMALL_MAX
        and bool(fields[0] == HEAD)
    )
