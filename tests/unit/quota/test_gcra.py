import pytest

from gateway.quota.gcra import LEASE_TTL_NS_MAX, Gcra, lease_terms
from tests.unit.quota.plans import MS, S, plan_of


def bucket(calls: int = 5, burst: int = 10, now_ns: int = 0, *, is_full: bool = True) -> Gcra:
    return Gcra(calls, S, burst, now_ns, is_full=is_full)


def test_a_full_bucket_holds_its_burst_and_refills_one_per_interval() -> None:
    gcra = bucket()
    assert gcra.available(0) == 10
    gcra.take(0, 10)
    assert gcra.available(0) == 0
    assert gcra.wait_ns(0) == 200 * MS
    assert gcra.available(200 * MS - 1) == 0
    assert gcra.available(200 * MS) == 1
    assert gcra.wait_ns(200 * MS) == 0


def test_an_empty_bucket_gives_its_first_call_after_one_interval() -> None:
    gcra = bucket(is_full=False)
    assert gcra.wait_ns(0) == 200 * MS
    assert gcra.available(2 * S) == 10


def test_an_interval_that_is_no_whole_nanosecond_does_not_drift() -> None:
    gcra = bucket(calls=3, burst=1)
    admitted = 0
    now = 0
    while now < 1000 * S:
        gcra.take(now, 1)
        admitted += 1
        now += gcra.wait_ns(now)
    assert admitted == 3000


def test_taking_more_than_conforms_is_a_mistake_of_the_caller() -> None:
    gcra = bucket(burst=2)
    with pytest.raises(AssertionError):
        gcra.take(0, 3)


def test_a_plan_change_keeps_the_calls_that_are_owed() -> None:
    gcra = bucket()
    gcra.take(0, 4)
    assert gcra.with_terms(100, S, 20, 0).available(0) == 16
    assert gcra.with_terms(1, S, 3, 0).available(0) == 0


@pytest.mark.parametrize(
    ("rate_calls", "rate_window_s", "burst", "burst_left", "ttl_ns"),
    [
        (5, 1, 10, 10, 0),  # small: by the owner
        (49, 1, 1000, 1000, 0),
        (1000, 60, 1000, 1000, 0),  # 16 per second
        (1000, 1, 10, 10, 0),  # the burst is over too soon to be worth a lease
        (1000, 1, 100, 75, 25 * MS),
        (1_000_000, 1, 1_000_000, 750_000, LEASE_TTL_NS_MAX),
        (3000, 1, 1_000_000, 999_250, LEASE_TTL_NS_MAX),
    ],
)
def test_lease_terms(rate_calls: int, rate_window_s: int, burst: int, burst_left: int, ttl_ns: int) -> None:
    plan = plan_of(rate_calls=rate_calls, rate_window_s=rate_window_s, burst=burst)
    assert lease_terms(plan) == (burst_left, ttl_ns)
