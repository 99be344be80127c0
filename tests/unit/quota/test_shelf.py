from gateway.quota.protocol import Answer
from gateway.quota.shelf import Shelf
from gateway.quota.store import Decision, Grant
from gateway.snapshot import Plan
from tests.unit.quota.plans import MS, WALL_NS, S, plan_of

TTL_NS = 100 * MS
FAST = plan_of(rate_calls=10_000, burst=10_000, calls_per_day=10**6)


def answer_of(*, calls: int = 0, spare: int = 0, slots: int = 0, expires_ns: int = 0, slots_left: int = 0) -> Answer:
    return Answer(
        "acme",
        calls,
        spare,
        slots,
        expires_ns,
        1,
        WALL_NS + S,
        0,
        0,
        100,
        100,
        0,
        slots_left,
        code=None,
        retry_after_ms=0,
    )


def ignore(decision: Decision) -> None:
    """Nobody waits in these tests."""


def leased(plan: Plan, spare: int, now_ns: int = 0) -> Shelf:
    """A shelf that got one call for a waiter and `spare` for later."""
    shelf = Shelf("acme", plan, now_ns)
    shelf.waiters.append(ignore)
    ask = shelf.take_ask(now_ns)
    assert ask is not None
    assert ask.need == 1
    ((_, decision),) = shelf.take_answer(answer_of(calls=1, spare=spare, expires_ns=now_ns + TTL_NS), now_ns, WALL_NS)
    assert isinstance(decision, Grant)
    return shelf


def test_a_leased_call_is_not_spent_after_its_end() -> None:
    shelf = leased(FAST, 10)
    assert shelf.try_take(TTL_NS - 1) is not None
    assert shelf.try_take(TTL_NS) is None


def test_a_lease_holds_exactly_its_calls() -> None:
    shelf = leased(FAST, 3)
    assert [shelf.try_take(1) is not None for _ in range(4)] == [True, True, True, False]


def test_what_lapses_goes_back_to_the_caps_when_the_next_lease_begins() -> None:
    shelf = leased(FAST, 10)
    shelf.try_take(TTL_NS // 2)
    assert shelf.wants_renewal
    assert shelf.take_ask(TTL_NS // 2) is not None
    shelf.take_answer(answer_of(spare=20, expires_ns=2 * TTL_NS), TTL_NS // 2, WALL_NS)
    assert shelf.try_take(TTL_NS) is not None
    (message,) = shelf.take_returns(slots_kept=0, is_all=False)
    assert (message.calls, message.day_start_ns, message.slots) == (9, 1, 0)


def test_the_next_lease_is_asked_for_before_the_current_one_ends() -> None:
    shelf = leased(FAST, 10)
    for _ in range(5):
        shelf.try_take(1)
    assert not shelf.wants_renewal
    shelf.try_take(1)
    assert shelf.wants_renewal
    ask = shelf.take_ask(1)
    assert ask is not None
    assert (ask.need, ask.spare) == (0, 128)  # gone in less than half its time: twice as many
    assert shelf.take_ask(1) is None


def test_a_freed_slot_is_kept_for_the_next_call_but_not_while_draining() -> None:
    shelf = Shelf("acme", plan_of(concurrency=100), 0)
    shelf.waiters.append(ignore)
    shelf.take_ask(0)
    shelf.take_answer(answer_of(calls=1, slots=1, slots_left=99), 0, WALL_NS)
    shelf.end_call()
    assert shelf.try_take(0) is not None
    shelf.set_plan(plan_of(version=2, concurrency=64), 0)
    shelf.end_call()
    assert shelf.try_take(0) is None
    (message,) = shelf.take_returns(slots_kept=64, is_all=False)
    assert message.slots == 1


def test_a_lost_owner_voids_leases_unless_the_plan_says_otherwise() -> None:
    closed, lease = leased(FAST, 5), leased(plan_of(calls_per_day=9, store_down="lease"), 5)
    for shelf in (closed, lease):
        shelf.give_up()
    assert closed.try_take(1) is None
    assert lease.try_take(1) is not None
    assert lease.renew(1).unspent == 4
    holding = closed.renew(1)
    assert (holding.in_flight, holding.unspent) == (1, 0)


def test_what_is_given_back_without_an_owner_is_not_told_to_the_next_one() -> None:
    """The next owner counts what is in flight and what was finished; it never counted this call."""
    for plan in (FAST, plan_of(calls_per_day=9, store_down="lease")):
        shelf = leased(plan, 5)
        shelf.give_up()
        shelf.end_call()
        shelf.put_back(shelf.lease, 1)
        assert shelf.renew(1).in_flight == 0
        assert not shelf.take_returns(slots_kept=64, is_all=False)


def test_slots_freed_between_two_owners_are_not_returned_to_the_second() -> None:
    """Under the first new owner the worker drains; what ends before the next one's hello was never told to it."""
    shelf = Shelf("acme", plan_of(concurrency=2), 0)
    shelf.waiters.append(ignore)
    assert shelf.take_ask(0) is not None
    shelf.take_answer(answer_of(calls=1, slots=1, expires_ns=TTL_NS), 0, WALL_NS)
    for is_over in (False, True):
        shelf.give_up()
        if is_over:
            shelf.end_call()
        assert shelf.renew(1).slots == 1 - is_over
    assert shelf.take_returns(slots_kept=0, is_all=False) == []
