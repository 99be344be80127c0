"""Owns which verified variant is published, and why each of the others is not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from converters.measure import Speed

#: The plain source in ONNX Runtime, measured beside the variants.
PLAIN: Final = "plain"
#: A variant of less precision has to be at least so much faster than its engine's fp32.
GAIN_MIN: Final = 1.05
#: What is published may take at most so much of the plain source's time, unless the rounds say that this is noise.
PLAIN_SHARE_MAX: Final = 1.02
#: A variant of less precision has to win so many of the rounds: noise of the machine gives it half of them.
ROUNDS_WON_MIN: Final = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    key: str
    engine: str
    precision: str
    speeds: Sequence[Speed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`selected` None: all were refused. `refused`: key → reason. `speedup` of the selected over the plain source."""

    selected: str | None
    refused: Mapping[str, str]
    speedup: float


def select(candidates: Sequence[Candidate], plain: Sequence[Speed], optimize: str) -> Choice:
    """By the least time of the smallest batch, or by the most rows per second at any batch."""
    refused: dict[str, str] = {}
    plain_cost = cost(plain, optimize)
    costs = {one.key: cost(one.speeds, optimize) for one in candidates}
    bases = {one.engine: one.speeds for one in candidates if one.precision == "fp32"}
    full = {one.engine: costs[one.key] for one in candidates if one.precision == "fp32"}
    for one in candidates:
        base = full.get(one.engine, plain_cost)
        share = _share_won(one.speeds, bases.get(one.engine, plain), optimize)
        if one.precision != "fp32" and share < ROUNDS_WON_MIN:
            refused[one.key] = f"not surely faster: in {share:.0%} of the rounds, {ROUNDS_WON_MIN:.0%} are asked"
        elif one.precision != "fp32" and costs[one.key] * GAIN_MIN > base:
            ratio = base / costs[one.key]
            refused[one.key] = f"not faster: {ratio:.2f}x of fp32, at least {GAIN_MIN:.2f}x is asked of less precision"
        elif costs[one.key] > plain_cost * PLAIN_SHARE_MAX and _is_surely_slower(one.speeds, plain, optimize):
            share = costs[one.key] / plain_cost
            refused[one.key] = (
                f"slower than the plain source: {share:.2f} of its time, at most {PLAIN_SHARE_MAX} is allowed"
            )
    left = [one for one in candidates if one.key not in refused]
    if not left:
        return Choice(selected=None, refused=refused, speedup=0.0)
    best = min(left, key=lambda one: costs[one.key])
    return Choice(selected=best.key, refused=refused, speedup=plain_cost / costs[best.key])


def cost(speeds: Sequence[Speed], optimize: str) -> float:
    """Nanoseconds to compare by; less is better."""
    if optimize == "throughput":
        return 1e9 / _deciding(speeds, optimize).rows_per_s
    return float(_deciding(speeds, optimize).median_ns)


def _deciding(speeds: Sequence[Speed], optimize: str) -> Speed:
    """The batch size that is compared: the smallest, or the engine's own best. Others say nothing of the choice."""
    return max(speeds, key=lambda speed: speed.rows_per_s) if optimize == "throughput" else speeds[0]


def is_worth_it(speeds: Sequence[Speed], plain: Sequence[Speed], optimize: str) -> bool:
    """Faster than the plain source by more than is lost in noise: else the source itself is the better one to serve."""
    return (
        cost(speeds, optimize) * PLAIN_SHARE_MAX <= cost(plain, optimize)
        and _share_won(speeds, plain, optimize) >= ROUNDS_WON_MIN
    )


def _is_surely_slower(speeds: Sequence[Speed], base: Sequence[Speed], optimize: str) -> bool:
    """It loses the rounds too. Without rounds the medians decide."""
    has_rounds = bool(_deciding(speeds, optimize).means_ns)
    return not has_rounds or _share_won(speeds, base, optimize) <= 1 - ROUNDS_WON_MIN


def _share_won(speeds: Sequence[Speed], base: Sequence[Speed], optimize: str) -> float:
    """Share of the rounds in which the former was faster by row, at what is compared; 1 where rounds were not kept."""
    one, two = _deciding(speeds, optimize), _deciding(base, optimize)
    pairs = [
        (own / max(one.rows, 1), other / max(two.rows, 1))
        for own, other in zip(one.means_ns, two.means_ns, strict=True)
    ]
    return sum(own < other for own, other in pairs) / len(pairs) if pairs else 1.0


def best_batch(speeds: Sequence[Speed]) -> int:
    """The batch size of most rows per second."""
    return max(speeds, key=lambda speed: speed.rows_per_s).rows
