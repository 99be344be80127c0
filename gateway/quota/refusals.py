"""Owns the words and headers of a quota refusal; which limit refused is the owner's to say."""

from typing import Final

from gateway.errors import Code, Refusal
from gateway.quota.headers import Field
from gateway.quota.owner import UNAVAILABLE_RETRY_MS
from gateway.quota.store import LIMIT_NAME
from gateway.snapshot import Plan

UNAVAILABLE: Final = Refusal(
    code=Code.QUOTA_UNAVAILABLE,
    message="limits cannot be checked right now",
    retry_after_ms=UNAVAILABLE_RETRY_MS,
)
TOO_MANY_WAIT: Final = Refusal(
    code=Code.OVERLOADED, message="too many calls wait for their limits to be checked", retry_after_ms=1000
)


def refusal_of(plan: Plan, code: Code, retry_after_ms: int, policy: Field | None, value: bytes) -> Refusal:
    """The refusal of one call of `plan`; `policy` and `value` are the RateLimit pair."""
    if code is Code.QUOTA_UNAVAILABLE:
        return UNAVAILABLE
    headers = () if policy is None else (policy, (LIMIT_NAME, value))
    return Refusal(code=code, message=_message(plan, code), retry_after_ms=retry_after_ms, headers=headers)


def _message(plan: Plan, code: Code) -> str:
    match code:
        case Code.CONCURRENCY_EXCEEDED:
            return f"concurrency limit: at most {plan.concurrency} calls at once"
        case Code.RATE_EXCEEDED:
            window = "second" if plan.rate_window_s == 1 else f"{plan.rate_window_s} seconds"
            return f"rate limit: {plan.rate_calls} calls per {window}, bursts of {plan.burst}"
        case Code.DAILY_CAP_EXCEEDED:
            return f"daily cap: {plan.calls_per_day} calls per day"
        case Code.MONTHLY_CAP_EXCEEDED:
            return f"monthly cap: {plan.calls_per_month} calls per month"
        case _:
            raise AssertionError(f"{code} is not a limit")
