"""The dunning schedule does one thing at a time, never skips the suspension, and never charges over an open attempt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.invoices.assemble import InvoiceError
from billing.payments.dunning import (
    DAYS_MAX,
    NS_PER_DAY,
    Action,
    Done,
    Policy,
    next_action,
    tries_due,
    validate_policy,
)

POLICY = Policy()
DUE_NS = 1_000 * NS_PER_DAY


def at(day: int, done: Done = Done(), *, is_automatic: bool = True, policy: Policy = POLICY) -> Action:
    return next_action(policy, DUE_NS, done, DUE_NS + day * NS_PER_DAY, is_automatic=is_automatic)


@pytest.mark.parametrize(
    ("day", "done", "expected"),
    [
        (-1, Done(), Action.WAIT),
        (0, Done(), Action.ATTEMPT),
        (0, Done(tries=1), Action.WAIT),
        (3, Done(tries=1), Action.ATTEMPT),
        (3, Done(tries=1, is_final=True), Action.WAIT),
        (3, Done(tries=1, is_pending=True), Action.WAIT),
        (3, Done(tries=2, is_open=True), Action.ATTEMPT),
        (20, Done(tries=4), Action.WAIT),
        (21, Done(tries=4), Action.SUSPEND),
        (21, Done(tries=4, is_suspended=True), Action.WAIT),
        (59, Done(tries=4, is_suspended=True), Action.WAIT),
        (60, Done(tries=4, is_suspended=True), Action.GIVE_UP),
        (60, Done(tries=4, is_suspended=True, is_pending=True), Action.WAIT),
        (60, Done(tries=4, is_open=True), Action.ATTEMPT),
    ],
)
def test_the_schedule_day_by_day(day: int, done: Done, expected: Action) -> None:
    assert at(day, done) is expected


def test_manual_collection_reminds() -> None:
    assert at(0, is_automatic=False) is Action.REMIND
    assert at(3, Done(tries=1, is_final=True), is_automatic=False) is Action.REMIND


def test_missed_days_are_not_made_up_for_one_by_one() -> None:
    assert at(8) is Action.ATTEMPT
    assert tries_due(POLICY, DUE_NS, DUE_NS + 8 * NS_PER_DAY) == 3


def test_a_policy_without_suspension_never_suspends() -> None:
    assert at(300, Done(tries=4), policy=Policy(suspend_day=None, give_up_day=None)) is Action.WAIT


@given(st.integers(-5, 400), st.booleans(), st.booleans())
def test_a_round_always_comes_to_rest(day: int, is_automatic: bool, is_final: bool) -> None:
    done = Done(is_final=is_final)
    for _ in range(5):
        action = at(day, done, is_automatic=is_automatic)
        if action in {Action.WAIT, Action.GIVE_UP}:
            return
        if action is Action.SUSPEND:
            done = done._replace(is_suspended=True)
        else:
            done = done._replace(tries=tries_due(POLICY, DUE_NS, DUE_NS + day * NS_PER_DAY))
    raise AssertionError("it goes on and on")


@pytest.mark.parametrize(
    "policy",
    [
        Policy(retry_days=(3, 0)),
        Policy(retry_days=(1, 1)),
        Policy(retry_days=(-1,)),
        Policy(retry_days=(DAYS_MAX + 1,)),
        Policy(retry_days=tuple(range(21))),
        Policy(suspend_day=-1),
        Policy(give_up_day=DAYS_MAX + 1),
        Policy(suspend_day=10, give_up_day=9),
    ],
)
def test_a_bad_policy_is_refused(policy: Policy) -> None:
    with pytest.raises(InvoiceError):
        validate_policy(policy)


def test_the_largest_policy_is_taken() -> None:
    validate_policy(Policy(retry_days=tuple(range(20)), suspend_day=DAYS_MAX, give_up_day=DAYS_MAX))
