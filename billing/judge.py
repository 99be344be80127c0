"""Owns the verdict on a record before it may be posted: is it well formed, and is its charge what its price book says.

Pure. Rating it again with the pinned price version makes a wrong charge a quarantined record instead of a wrong bill
(MONEY.md R4), and is what `reconcile` repeats over the whole ledger (I16).
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from billing.amounts import Terms, amount_of
from billing.events import Outcome, Reason, Served
from billing.packed import (
    CACHE_MAX,
    CHARGE_NANOS,
    COMPUTE_NS,
    OUTCOME,
    REASON,
    REPLY_BYTES,
    REQUEST_BYTES,
    ROWS,
    T_NS,
    Call,
    Facts,
    Packed,
    served_of,
)
from billing.rating import CHARGE_NANOS_MAX, PRICING_BY_REASON, Rater

UNKNOWN_PRICE_VERSION: Final = "price_version_unknown"
MALFORMED: Final = "malformed"
CHARGE_MISMATCH: Final = "charge_mismatch"

CALL_ID_BYTES: Final = 16
NAME_CHARS_MAX: Final = 256
#: Rows, bytes and compute nanoseconds of one call; sums of a batch of them stay far inside 64 bits.
UNITS_MAX: Final = 2**48
#: The year 2200; also keeps instants inside 63 bits.
T_NS_MAX: Final = 7_258_118_400 * 1_000_000_000

_PRICING: Final = {int(reason): pricing for reason, pricing in PRICING_BY_REASON.items()}
_FAILED: Final = int(Outcome.FAILED)
_NOT_BILLABLE: Final = int(Reason.NOT_BILLABLE)
_REASON_MAX: Final = max(map(int, Reason))
_PREPAID: Final = int(Reason.PREPAID)

#: (outcome, reason) of calls that cost nothing.
_FREE: Final = frozenset({(_FAILED, _NOT_BILLABLE), (0, int(Reason.FREE_PLAN)), (0, int(Reason.INTERNAL_PLAN))})


class Verdict(NamedTuple):
    """Why a record must not be posted: the reason's stable name and the field that shows it."""

    reason: str
    field: str


def find_fault(call: Call, raters: Mapping[int, Rater]) -> Verdict | None:
    """None when `call` may be posted. `raters` are the known price books by version.

    Precedence: malformed, unknown price version, charge mismatch; within one, the order of the checks below.
    """
    served = served_of(call)
    if not _is_well_formed(served):
        return Verdict(MALFORMED, _malformed_field(served))
    rater = raters.get(served.price_version)
    if rater is None:
        return Verdict(UNKNOWN_PRICE_VERSION, "price_version")
    pricing = _PRICING.get(served.reason, "priced")
    amount, reason = rater.charge(served.model, pricing, served.outcome, served.rows, served.compute_ns)
    if amount != served.charge_nanos:
        return Verdict(CHARGE_MISMATCH, "charge_nanos")
    if reason != served.reason:
        return Verdict(CHARGE_MISMATCH, "reason")
    if rater.currency != served.currency:
        return Verdict(CHARGE_MISMATCH, "currency")
    return None


class QuickJudge:
    """`find_fault` at a fifth of its cost for packed calls: what is true of all calls of the same Facts is kept.

    Every call's numbers are still looked at and every charge is worked out again.

    `raters` may gain versions but never change one (a price version is immutable once known).
    """

    __slots__ = ("_careful", "_raters", "_terms")

    def __init__(self, raters: Mapping[int, Rater], careful: Callable[[Call], Verdict | None]) -> None:
        """`careful` gives the verdict on what is not plainly right."""
        self._raters = raters
        self._careful = careful
        #: Only Facts that are well formed, of a known price version and in its currency.
        self._terms: dict[Facts, Terms] = {}

    def judge(self, call: Call) -> Verdict | None:
        """None when `call` may be posted."""
        if type(call) is not Packed:
            return self._careful(call)
        terms = self._terms.get(call.facts) or self._learn(call)
        if terms is None:
            return self._careful(call)
        fields = call.fields
        rows: int = fields[ROWS]
        compute_ns: int = fields[COMPUTE_NS]
        sizes: int = fields[REQUEST_BYTES] | fields[REPLY_BYTES]
        charge_nanos: int = fields[CHARGE_NANOS]
        # A template's numbers are never negative; of numbers below a power of two the union is below it as well.
        if rows | compute_ns | sizes >= UNITS_MAX or fields[T_NS] >= T_NS_MAX or charge_nanos > CHARGE_NANOS_MAX:
            return self._careful(call)
        outcome: int = fields[OUTCOME]
        reason: int = fields[REASON]
        if outcome or (reason and reason != _PREPAID):
            is_right = charge_nanos == 0 and (outcome, reason) in _FREE
        else:
            is_right = charge_nanos == amount_of(terms, rows, compute_ns)
        return None if is_right else self._careful(call)

    def _learn(self, call: Packed) -> Terms | None:
        facts = call.facts
        rater = self._raters.get(facts.price_version)
        if rater is None or rater.currency != facts.currency or not _is_well_formed(call.served()):
            return None
        if len(self._terms) >= CACHE_MAX:
            self._terms.clear()
        terms = self._terms[facts] = rater.terms_of(facts.model)
        return terms


def _is_well_formed(s: Served) -> bool:
    """Every field in its range. One expression, because it runs per call."""
    return (
        len(s.call_id) == CALL_ID_BYTES
        and 0 < len(s.tenant) <= NAME_CHARS_MAX
        and 0 < len(s.model) <= NAME_CHARS_MAX
        and 0 <= s.charge_nanos <= CHARGE_NANOS_MAX
        and 0 <= s.t_ns < T_NS_MAX
        and 0 <= s.rows < UNITS_MAX
        and 0 <= s.compute_ns < UNITS_MAX
        and 0 <= s.request_bytes < UNITS_MAX
        and 0 <= s.reply_bytes < UNITS_MAX
        and 0 <= s.outcome <= _FAILED
        and 0 <= s.reason <= _REASON_MAX
        and (s.reason == _NOT_BILLABLE) == (s.outcome == _FAILED)
        and len(s.key_id) <= NAME_CHARS_MAX
        and len(s.plan) <= NAME_CHARS_MAX
        and len(s.model_version) <= NAME_CHARS_MAX
        and len(s.currency) <= NAME_CHARS_MAX
        and 0 <= s.protocol < 256
        and 0 <= s.price_version < 2**31
    )


def _malformed_field(s: Served) -> str:
    """Which field made `_is_well_formed` say no: the first in its order."""
    if len(s.call_id) != CALL_ID_BYTES:
        return "call_id"
    for field in ("tenant", "model"):
        if not 0 < len(getattr(s, field)) <= NAME_CHARS_MAX:
            return field
    for field, limit in _LIMITS.items():
        if not 0 <= getattr(s, field) < limit:
            return field
    if (s.reason == _NOT_BILLABLE) != (s.outcome == _FAILED):
        return "reason"
    for field in ("key_id", "plan", "model_version", "currency"):
        if len(getattr(s, field)) > NAME_CHARS_MAX:
            return field
    return "protocol" if not 0 <= s.protocol < 256 else "price_version"


_LIMITS: Final = {
    "charge_nanos": CHARGE_NANOS_MAX + 1,
    "t_ns": T_NS_MAX,
    "rows": UNITS_MAX,
    "compute_ns": UNITS_MAX,
    "request_bytes": UNITS_MAX,
    "reply_bytes": UNITS_MAX,
    "outcome": _FAILED + 1,
    "reason": _REASON_MAX + 1,
}
