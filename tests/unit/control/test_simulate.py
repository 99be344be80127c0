"""The replay itself: it decides as the quota code decides, and what it may answer is bounded."""

from collections.abc import Iterator
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.rating import compile_book
from gateway.control.simulate import BUCKETS_MAX, Event, Offer, Outcome, SimulateError, read_events, simulate
from gateway.snapshot import Plan
from tests.unit.billing.invoices.office import MONTH_END_NS, open_office
from tests.unit.billing.making import BOOK, T0_NS

NS_PER_S = 1_000_000_000
UTC = ZoneInfo("UTC")
BERLIN = ZoneInfo("Europe/Berlin")
RATER = compile_book(BOOK)


def event(t_ns: int, outcome: int = 0, compute_ns: int = 0) -> Event:
    return Event(t_ns, "ocr", outcome, 1, compute_ns, 0, 1_500_000)


def replay(events: list[Event] | Iterator[Event], zone: ZoneInfo = UTC, bucket_s: int = 86_400, **plan: int) -> Outcome:
    offer = Offer(Plan(name="p", version=1, pricing="priced", **plan), None, RATER, 0)  # type: ignore[arg-type]
    return simulate(events, offer, zone, bucket_s=bucket_s)


def test_there_are_at_most_so_many_points() -> None:
    def steps(count: int) -> Iterator[Event]:
        return (event(T0_NS + step * NS_PER_S) for step in range(count))

    assert len(replay(steps(BUCKETS_MAX), bucket_s=1).buckets) == BUCKETS_MAX
    with pytest.raises(SimulateError, match="make bucket_s larger"):
        replay(steps(BUCKETS_MAX + 1), bucket_s=1)


def test_days_begin_in_the_tenants_zone() -> None:
    # 23:30 UTC on January 1 is January 2 in Berlin.
    events = [event(T0_NS + NS_PER_S), event(T0_NS + 84_600 * NS_PER_S)]
    assert replay(events, calls_per_day=1).refused == {"daily_cap_exceeded": 1}
    assert replay(events, BERLIN, calls_per_day=1).refused == {}


def test_months_are_summed_apart() -> None:
    events = [event(T0_NS), event(T0_NS + 31 * 86_400 * NS_PER_S), event(T0_NS + 32 * 86_400 * NS_PER_S)]
    assert [month.list_nanos for month in replay(events).months] == [1_500_000, 3_000_000]


def test_a_failed_call_gives_its_caps_back_and_costs_nothing() -> None:
    events = [event(T0_NS, outcome=1), event(T0_NS + 1), event(T0_NS + 2)]
    found = replay(events, calls_per_day=1)
    assert (found.admitted, found.refused) == (2, {"daily_cap_exceeded": 1})
    assert [month.list_nanos for month in found.months] == [1_500_000]


@given(
    st.lists(st.integers(0, 3 * NS_PER_S), max_size=60),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 5),
)
def test_no_window_ever_holds_more_than_the_rate_allows(gaps: list[int], rate: int, burst: int, window_s: int) -> None:
    """The bound of GCRA over any window: burst + what the rate gives in it (I12), as in production."""
    instants, now = [], T0_NS
    for gap in gaps:
        now += gap
        instants.append(now)
    admitted: list[int] = []
    before = 0
    for count in range(1, len(instants) + 1):
        got = replay(
            [event(t_ns) for t_ns in instants[:count]], rate_calls=rate, burst=burst, rate_window_s=window_s
        ).admitted
        if got > before:
            admitted.append(instants[count - 1])
        before = got
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            span_ns = admitted[last] - admitted[first]
            assert last - first + 1 <= burst + span_ns * rate // (window_s * NS_PER_S)


@given(st.lists(st.booleans(), max_size=50), st.integers(0, 10))
def test_every_call_is_admitted_or_refused_and_only_good_ones_are_charged(fails: list[bool], cap: int) -> None:
    events = [event(T0_NS + n, outcome=int(is_failed)) for n, is_failed in enumerate(fails)]
    found = replay(events, calls_per_day=cap)
    assert found.calls == len(fails) == found.admitted + sum(found.refused.values())
    assert sum(month.list_nanos for month in found.months) <= cap * 1_500_000
    assert sum(one.admitted + one.refused for one in found.buckets) == len(fails)


def test_events_come_in_the_order_of_their_instants_up_to_a_most(tmp_path: Path) -> None:
    with open_office(tmp_path) as office:
        for second in (5, 1, 3):
            office.post_usage(1, t_ns=T0_NS + second * NS_PER_S)
        office.post_usage(1, tenant="globex")
        office.post_usage(1, t_ns=MONTH_END_NS)
        found = read_events(office.reader, "acme", T0_NS, MONTH_END_NS)
        assert [one.t_ns - T0_NS for one in found] == [NS_PER_S, 3 * NS_PER_S, 5 * NS_PER_S]
        assert read_events(office.reader, "acme", T0_NS, MONTH_END_NS, events_max=3) == found
        with pytest.raises(SimulateError, match="more than 2 calls: choose a shorter time"):
            read_events(office.reader, "acme", T0_NS, MONTH_END_NS, events_max=2)
