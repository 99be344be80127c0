"""HOT PATH. Owns the rate rule: GCRA, a token bucket written as one instant. Pure integers, exact, no clock.

A call "conforms" when fewer than `burst` calls' worth of time is owed. `tat` (theoretical arrival time) is the instant
at which nothing is owed any more; each call moves it on by the emission interval I = window / calls. So that I need not
be a whole number of nanoseconds, all instants are kept multiplied by `calls`: in that unit I is exactly `window_ns`.

Bound (A), for any closed interval of length L: calls taken <= burst + floor(L / I). For if n calls are taken from
instant a to instant b, then before the last one tat >= a + (n-1) I, and it conformed: tat <= b + (burst-1) I.

Leases. An owner may take n calls now and let a worker spend them until a ttl has passed. Calls *spent* in [s, s+W] were
*taken* in [s-ttl, s+W], so with a bucket of burst' = burst - ceil(ttl / I) bound (A) gives
    spent <= burst' + floor((W + ttl) / I) <= burst' + floor(W / I) + ceil(ttl / I) = burst + floor(W / I):
never over for any window, for any number of workers. The price is that a leased plan's burst is short by ceil(ttl / I).
Restart. `tat` never exceeds now + burst' * I. A bucket that starts EMPTY has exactly that `tat`, hence owes at least as
much as the lost one did, and both bounds hold across the restart, leases of the lost owner included.
"""

from typing import Final, NamedTuple

from gateway.snapshot import Plan

NS_PER_S: Final = 1_000_000_000
#: Below this sustained rate one owner decides about every call (MONEY.md "Quotas").
LEASE_RATE_MIN: Final = 50
#: A lease lives a quarter of the burst's time, within these bounds; too short a life is not worth leasing.
LEASE_TTL_NS_MIN: Final = 10_000_000
LEASE_TTL_NS_MAX: Final = 250_000_000
_BURST_SHARE: Final = 4


class LeaseTerms(NamedTuple):
    """How a plan's rate is decided: `burst` is what the bucket holds; `ttl_ns` 0 means by the owner, call by call."""

    burst: int
    ttl_ns: int


def lease_terms(plan: Plan) -> LeaseTerms:
    """The reduced burst and the life of leased calls for a plan with a rate (see the proof above)."""
    assert plan.rate_calls is not None
    window_ns = plan.rate_window_s * NS_PER_S
    ttl_ns = min(plan.burst * window_ns // plan.rate_calls // _BURST_SHARE, LEASE_TTL_NS_MAX)
    if plan.rate_calls < LEASE_RATE_MIN * plan.rate_window_s or ttl_ns < LEASE_TTL_NS_MIN:
        return LeaseTerms(plan.burst, 0)
    return LeaseTerms(plan.burst - -(-ttl_ns * plan.rate_calls // window_ns), ttl_ns)


class Gcra:
    """One bucket. Instants are monotonic nanoseconds and must not go backwards."""

    __slots__ = ("_calls", "_depth", "_tat", "_window_ns", "burst")

    def __init__(self, calls: int, window_ns: int, burst: int, now_ns: int, *, is_full: bool) -> None:
        assert calls > 0
        assert window_ns > 0
        assert burst > 0
        self.burst = burst
        self._calls = calls
        self._window_ns = window_ns
        #: What may be owed at most, in scaled time.
        self._depth = burst * window_ns
        self._tat = now_ns * calls + (0 if is_full else self._depth)

    def available(self, now_ns: int) -> int:
        """How many calls would conform at once at `now_ns`."""
        owed = self._tat - now_ns * self._calls
        return self.burst if owed <= 0 else (self._depth - owed) // self._window_ns

    def take(self, now_ns: int, count: int) -> None:
        """Take `count` calls, at most `available(now_ns)`."""
        now = now_ns * self._calls
        self._tat = max(self._tat, now) + count * self._window_ns
        assert self._tat <= now + self._depth

    def wait_ns(self, now_ns: int) -> int:
        """Time until one call conforms; 0 when one does now."""
        short = self._tat + self._window_ns - self._depth - now_ns * self._calls
        return max(0, -(-short // self._calls))

    def used(self, now_ns: int) -> int:
        """Calls that are owed, a begun one counted whole."""
        return max(0, -(-(self._tat - now_ns * self._calls) // self._window_ns))

    def with_terms(self, calls: int, window_ns: int, burst: int, now_ns: int) -> "Gcra":
        """A bucket of another plan in which as many calls are owed (at most its whole burst)."""
        changed = Gcra(calls, window_ns, burst, now_ns, is_full=True)
        changed.take(now_ns, min(burst, self.used(now_ns)))
        return changed
