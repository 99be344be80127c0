"""Owns the dunning schedule: what is due for an unpaid invoice at an instant, as a pure function of what was done.

due date → attempts or reminders on `retry_days` → the tenant is suspended → the invoice is given up
"""

from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from billing.invoices.assemble import InvoiceError

NS_PER_DAY: Final = 86_400_000_000_000
RETRIES_MAX: Final = 20
DAYS_MAX: Final = 366


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Days after the due date. `retry_days`: when it is collected (or reminded of, with manual collection)."""

    retry_days: tuple[int, ...] = (0, 3, 7, 14)
    #: None: the tenant is never suspended, or the invoice never given up.
    suspend_day: int | None = 21
    give_up_day: int | None = 60


class Action(StrEnum):
    """What is to be done next."""

    ATTEMPT = "attempt"
    REMIND = "remind"
    SUSPEND = "suspend"
    GIVE_UP = "give_up"
    WAIT = "wait"


class Done(NamedTuple):
    """What was done for an invoice so far. `tries`: how many of the policy's retry days are behind us, tried or missed
    (days missed while we were down are not made up for one by one)."""

    tries: int = 0
    #: An attempt was begun and its outcome is not known; or the provider said that it will tell later.
    is_open: bool = False
    is_pending: bool = False
    is_suspended: bool = False
    #: The provider said that no later attempt can help.
    is_final: bool = False


def validate_policy(policy: Policy) -> Policy:
    """`policy` itself. Raises InvoiceError naming the field."""
    days = policy.retry_days
    if len(days) > RETRIES_MAX or list(days) != sorted(set(days)) or any(not 0 <= day <= DAYS_MAX for day in days):
        raise InvoiceError("field", f"retry_days: {days} must be at most {RETRIES_MAX} rising days up to {DAYS_MAX}")
    for name, day in (("suspend_day", policy.suspend_day), ("give_up_day", policy.give_up_day)):
        if day is not None and not 0 <= day <= DAYS_MAX:
            raise InvoiceError("field", f"{name}: {day} must be from 0 to {DAYS_MAX}, or absent")
    if policy.suspend_day is not None and policy.give_up_day is not None and policy.give_up_day < policy.suspend_day:
        raise InvoiceError("field", f"give_up_day: {policy.give_up_day} comes before suspend_day {policy.suspend_day}")
    return policy


def tries_due(policy: Policy, due_ns: int, now_ns: int) -> int:
    """How many of the policy's retry days have come."""
    day = (now_ns - due_ns) // NS_PER_DAY
    return sum(day >= retry for retry in policy.retry_days)


def next_action(policy: Policy, due_ns: int, done: Done, now_ns: int, *, is_automatic: bool) -> Action:
    """The one thing to do now; ask again after it is done.

    An attempt whose outcome is unknown is asked again first, with its own key, so it cannot charge twice; while one is
    pending at the provider no other is made.
    """
    if done.is_open:
        return Action.ATTEMPT
    day = (now_ns - due_ns) // NS_PER_DAY
    if policy.give_up_day is not None and day >= policy.give_up_day and not done.is_pending:
        return Action.GIVE_UP
    if policy.suspend_day is not None and day >= policy.suspend_day and not done.is_suspended:
        return Action.SUSPEND
    if done.tries < tries_due(policy, due_ns, now_ns) and not done.is_pending and not (is_automatic and done.is_final):
        return Action.ATTEMPT if is_automatic else Action.REMIND
    return Action.WAIT
