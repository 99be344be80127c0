"""The bucket against a reference in exact fractions, and against the bound it is there to keep."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from gateway.quota.gcra import Gcra, lease_terms
from gateway.snapshot import Plan

S = 1_000_000_000
rates = st.tuples(st.integers(1, 2_000_000), st.integers(1, 100), st.integers(1, 50))
#: (time that passes, calls that want to be taken): bursts, dribbles and pauses.
arrivals = st.lists(
    st.tuples(st.one_of(st.just(0), st.integers(0, 10_000), st.integers(0, 20 * S)), st.integers(0, 60))
)


def is_within_bound(instants: list[int], calls: int, window_ns: int, burst: int) -> bool:
    """Whether every closed interval between two of `instants` (sorted) holds at most burst + floor(length / I)."""
    return all(
        (last - first + 1 - burst) * window_ns <= (instants[last] - instants[first]) * calls
        for first in range(len(instants))
        for last in range(first, len(instants))
    )


@given(rates, arrivals, st.booleans())
def test_the_bucket_is_exactly_the_leaky_meter_of_the_definition(
    rate: tuple[int, int, int], steps: list[tuple[int, int]], is_full: bool
) -> None:
    calls, window_s, burst = rate
    interval = Fraction(window_s * S, calls)
    gcra = Gcra(calls, window_s * S, burst, 0, is_full=is_full)
    owed = Fraction(0) if is_full else burst * interval
    now = 0
    for gap_ns, wanted in steps:
        now += gap_ns
        owed = max(Fraction(0), owed - gap_ns)
        room = (burst * interval - owed) // interval
        assert gcra.available(now) == room
        assert gcra.wait_ns(now) == max(0, -((burst * interval - owed - interval) // 1))
        taken = min(wanted, room)
        gcra.take(now, taken)
        owed += taken * interval
        assert gcra.used(now) == -(-owed // interval)


@given(rates, arrivals)
def test_no_window_holds_more_than_the_bound(rate: tuple[int, int, int], steps: list[tuple[int, int]]) -> None:
    calls, window_s, burst = rate
    gcra = Gcra(calls, window_s * S, burst, 0, is_full=True)
    now = 0
    taken: list[int] = []
    for gap_ns, wanted in steps[:25]:
        now += gap_ns
        count = min(wanted, gcra.available(now), 12)
        gcra.take(now, count)
        taken += [now] * count
    assert is_within_bound(taken, calls, window_s * S, burst)


@given(
    st.integers(50, 5000),
    st.integers(2, 3000),
    st.lists(st.tuples(st.integers(0, 60_000_000), st.integers(1, 400), st.floats(0, 1), st.booleans()), max_size=20),
)
def test_leased_calls_spent_at_any_instant_of_their_life_keep_the_plans_bound(
    rate: int, burst: int, steps: list[tuple[int, int, float, bool]]
) -> None:
    """Owner restarts included: a new bucket starts empty while leases of the old one are still spent."""
    plan = Plan(name="p", version=1, pricing="free", rate_calls=rate, burst=burst)
    reduced, ttl_ns = lease_terms(plan)
    gcra = Gcra(rate, S, reduced, 0, is_full=True)
    now = 0
    spent: dict[int, int] = {}
    for gap_ns, wanted, delay, is_restart in steps:
        now += gap_ns
        if is_restart:
            gcra = Gcra(rate, S, reduced, now, is_full=False)
        count = min(wanted, gcra.available(now))
        gcra.take(now, count)
        at = now + int(delay * ttl_ns)
        spent[at] = spent.get(at, 0) + count
    instants = sorted(spent)
    for first in range(len(instants)):
        total = 0
        for last in range(first, len(instants)):
            total += spent[instants[last]]
            assert (total - burst) * S <= (instants[last] - instants[first]) * rate
