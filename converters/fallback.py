"""Owns which verified variants go into a bundle beside the selected one: for hosts that the selected does not fit.

Each has to serve where none before it does; the last needs no more of a host than ONNX Runtime. Fastest first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

#: Precisions whose kernels give the same results on every instruction set, within the certificate's tolerance.
PORTABLE: Final = frozenset({"fp32", "fp16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a variant asks of a host: its library, and the instruction sets it was verified on (integers only)."""

    engine: str
    is_portable: bool

    def is_met_by(self, other: "Needs") -> bool:
        """Whether every host that `self` fits is one that `other` fits."""
        return other.engine == self.engine and (other.is_portable or not self.is_portable)


def needs(engine: str, precision: str) -> Needs:
    return Needs(engine=engine, is_portable=precision in PORTABLE)


def choose_fallbacks(
    selected: str, variants: Sequence[tuple[str, str, str]], costs: Mapping[str, float]
) -> tuple[str, ...]:
    """Keys of those to take along, of (key, engine, precision) and the cost of each by key."""
    own = {key: needs(engine, precision) for key, engine, precision in variants}
    if selected not in own:
        return ()
    taken = [selected]
    for key in sorted((key for key in own if key != selected), key=lambda key: (costs[key], key)):
        if any(_is_everywhere(own[one]) for one in taken):
            break
        if not any(own[key].is_met_by(own[one]) for one in taken):
            taken.append(key)
    return tuple(taken[1:])


def _is_everywhere(own: Needs) -> bool:
    """The engine always has ONNX Runtime."""
    return own == Needs(engine="onnxruntime", is_portable=True)
