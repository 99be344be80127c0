"""HOT PATH. Owns the arithmetic of a call's price: pure, integers only."""

from typing import Final

NS_PER_MS: Final = 1_000_000

#: Nanos per call, per row, per compute millisecond.
Terms = tuple[int, int, int]


def compute_ms(compute_ns: int) -> int:
    """Whole milliseconds of `compute_ns`, rounded half to even. The only rounding in rating."""
    ms = compute_ns // NS_PER_MS
    rest = compute_ns - ms * NS_PER_MS
    if 2 * rest > NS_PER_MS or (2 * rest == NS_PER_MS and ms & 1):
        return ms + 1
    return ms


def amount_of(terms: Terms, rows: int, compute_ns: int) -> int:
    """The list price in nanos of one OK call under `terms`."""
    per_call, per_row, per_ms = terms
    if per_ms:
        return per_call + per_row * rows + per_ms * compute_ms(compute_ns)
    return per_call + per_row * rows
