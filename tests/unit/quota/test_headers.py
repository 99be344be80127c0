from typing import Any

import pytest

from gateway.quota.headers import Left, policy_of, renderer_of, seconds_until
from tests.unit.quota.plans import S, plan_of

ALL: dict[str, Any] = {
    "concurrency": 4,
    "rate_calls": 5,
    "burst": 12,
    "calls_per_day": 1000,
    "calls_per_month": 20_000,
}
NOW_NS = 1_000 * S


def test_the_policy_names_every_active_limit_in_order_of_decision() -> None:
    assert policy_of(plan_of(**ALL)) == (
        b"ratelimit-policy",
        b'"concurrency";q=4;qu="concurrent-requests", "rate";q=5;w=1, "burst";q=12;w=3, "day";q=1000;w=86400, '
        b'"month";q=20000;w=2678400',
    )


def test_a_plan_without_limits_has_no_policy() -> None:
    assert policy_of(plan_of()) is None


def test_a_slow_rate_keeps_whole_seconds() -> None:
    policy = policy_of(plan_of(rate_calls=1, rate_window_s=60, burst=1))
    assert policy == (b"ratelimit-policy", b'"rate";q=1;w=60, "burst";q=1;w=60')


CONCURRENCY, BURST = b'"concurrency";r=3', b'"burst";r=17;t=1'
DAY, MONTH = b'"day";r=107;t=51', b'"month";r=1007;t=90'


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("concurrency", "rate_calls", "calls_per_day", "calls_per_month"), (CONCURRENCY, BURST, DAY, MONTH)),
        (("concurrency", "rate_calls", "calls_per_day"), (CONCURRENCY, BURST, DAY)),
        (("concurrency", "calls_per_month"), (CONCURRENCY, MONTH)),
        (("concurrency",), (CONCURRENCY,)),
        (("rate_calls", "calls_per_day", "calls_per_month"), (BURST, DAY, MONTH)),
        (("calls_per_day", "calls_per_month"), (DAY, MONTH)),
        (("rate_calls",), (BURST,)),
        ((), ()),
    ],
)
def test_the_limit_field_says_what_is_left_of_exactly_the_active_limits(
    names: tuple[str, ...], parts: tuple[bytes, ...]
) -> None:
    plan = plan_of(**{name: ALL[name] for name in names})
    left = Left(10, 100, NOW_NS + 50 * S + 1, 1000, NOW_NS + 90 * S)
    assert renderer_of(plan, left, NOW_NS).render(3, 7) == b", ".join(parts)


def test_seconds_are_rounded_up_and_never_negative() -> None:
    assert seconds_until(NOW_NS + 1, NOW_NS) == 1
    assert seconds_until(NOW_NS + S, NOW_NS) == 1
    assert seconds_until(NOW_NS - S, NOW_NS) == 0
