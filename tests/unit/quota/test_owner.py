from typing import Any

import pytest

from gateway.clock import FakeClock
from gateway.errors import Code
from gateway.quota.owner import Owner, Parked, WorkerState
from gateway.quota.protocol import Answer, Ask, Holding, ProtocolError, Return
from gateway.snapshot import Plan, Tenant
from tests.unit.quota.plans import ACME, S, plan_of


class Desk:
    """An owner with connected workers."""

    def __init__(self, plan: Plan, *, has_meter: bool = False, workers: int = 2, is_settled: bool = True) -> None:
        self.clock = FakeClock()
        self.owner = Owner(self.clock, has_meter=has_meter)
        self.owner.set_policy([ACME], [plan])
        self.plan = plan
        self.workers = [WorkerState() for _ in range(workers)]
        for worker in self.workers:
            self.owner.hello(worker, ())
        if is_settled:
            self.owner.settle()

    def ask(self, worker: int = 0, *, is_final: bool = False, **fields: Any) -> Answer | Parked:
        values: dict[str, Any] = {
            "tenant": "acme",
            "plan": self.plan.name,
            "plan_version": self.plan.version,
            "need": 1,
            "slots_need": 0,
            "spare": 0,
            "spare_slots": 0,
        }
        return self.owner.ask(self.workers[worker], Ask(**(values | fields)), is_final=is_final)

    def answer(self, worker: int = 0, **fields: Any) -> Answer:
        answer = self.ask(worker, is_final=True, **fields)
        assert isinstance(answer, Answer)
        return answer


def test_a_rate_that_was_known_at_the_start_begins_with_an_empty_bucket_a_new_tenants_is_full() -> None:
    plan = plan_of(rate_calls=5, burst=3)
    desk = Desk(plan)
    assert desk.answer().code == Code.RATE_EXCEEDED
    desk.clock.advance(S // 5)
    assert desk.answer().calls == 1
    desk.owner.set_policy([ACME, Tenant(tenant="new", plan="plan")], [plan])
    assert desk.answer(tenant="new", need=5).calls == 3


@pytest.mark.parametrize("fields", [{"tenant": "nobody"}, {"plan": "other"}, {"plan_version": 9}])
def test_an_ask_under_an_unknown_policy_waits_for_a_look_at_the_snapshot(fields: dict[str, Any]) -> None:
    assert Desk(plan_of(concurrency=1)).ask(**fields) is Parked.POLICY


def test_finally_the_owners_policy_decides_and_an_unknown_tenant_is_refused() -> None:
    desk = Desk(plan_of(concurrency=1))
    assert desk.answer(plan_version=9, slots_need=1).calls == 1
    assert desk.answer(tenant="nobody").code == Code.QUOTA_UNAVAILABLE


def test_a_zone_that_does_not_exist_refuses_that_tenant_only() -> None:
    desk = Desk(plan_of(concurrency=1))
    desk.owner.set_policy([ACME, Tenant(tenant="lost", plan="plan", zone="Mars/Olympus")], [desk.plan])
    assert desk.answer(tenant="lost").code == Code.QUOTA_UNAVAILABLE
    assert desk.answer().calls == 1


def test_slots_are_not_decided_before_workers_could_tell_theirs() -> None:
    desk = Desk(plan_of(concurrency=2), is_settled=False)
    assert desk.ask(slots_need=1) is Parked.SETTLING
    assert desk.answer(slots_need=1).code == Code.QUOTA_UNAVAILABLE
    late = WorkerState()
    desk.owner.hello(late, [Holding("acme", in_flight=2, unspent=0, finished=0, slots=2)])
    desk.owner.settle()
    assert desk.answer(slots_need=1).code == Code.CONCURRENCY_EXCEEDED
    desk.owner.goodbye(late)
    assert desk.answer(slots_need=1).calls == 1


def test_caps_are_not_decided_before_the_recount_and_count_what_workers_report() -> None:
    desk = Desk(plan_of(calls_per_day=100), has_meter=True)
    assert desk.ask() is Parked.RECOUNT
    sequence = desk.owner.begin_recount()
    desk.owner.report(desk.workers[0], sequence, [Holding("acme", 3, 4, 0, 0)], is_last=True)
    desk.owner.report(desk.workers[1], sequence - 1, [Holding("acme", 50, 0, 0, 0)], is_last=True)  # too late
    desk.owner.hello(WorkerState(), [Holding("acme", 1, 1, 1, 0)])
    (_, day), (_, month) = desk.owner.windows_to_count()
    assert day > 0
    assert month == 0
    desk.owner.finish_recount([60, 0])
    assert desk.answer().day_left == 100 - 60 - 7 - 3 - 1


def test_an_abandoned_recount_keeps_refusing_and_is_wanted_again() -> None:
    desk = Desk(plan_of(calls_per_day=100), has_meter=True)
    desk.owner.begin_recount()
    desk.owner.abandon_recount()
    assert desk.ask() is Parked.RECOUNT
    assert desk.owner.needs_recount()


def test_a_dead_workers_leases_stay_counted_until_the_recount() -> None:
    desk = Desk(plan_of(calls_per_day=10_000), has_meter=True)
    desk.owner.begin_recount()
    desk.owner.finish_recount([0, 0])
    assert desk.answer(0, spare=50).spare == 50
    assert not desk.owner.needs_recount()
    desk.owner.goodbye(desk.workers[0])
    assert desk.answer(1).day_left == 10_000 - 52
    assert desk.owner.needs_recount()
    desk.owner.begin_recount()
    desk.owner.finish_recount([1, 0])
    assert desk.answer(1).day_left == 10_000 - 2


def test_a_cap_is_not_refused_while_another_worker_holds_spares() -> None:
    desk = Desk(plan_of(calls_per_day=1100))
    lease = desk.answer(0, spare=100)
    assert lease.spare == 17
    assert desk.ask(1, need=1083) is Parked.RECALL
    message = Return("acme", 17, lease.day_start_ns, lease.month_start_ns, 0, is_all=True)
    desk.owner.give_back(desk.workers[0], message)
    assert desk.ask(1, need=1083) != Parked.RECALL


def test_a_rate_refusal_recalls_nothing() -> None:
    desk = Desk(plan_of(rate_calls=1000, burst=1000))
    desk.clock.advance(S)
    assert desk.answer(0, spare=100).spare == 100
    refused = desk.ask(1, need=1000)
    assert isinstance(refused, Answer)
    assert refused.code == Code.RATE_EXCEEDED


@pytest.mark.parametrize(
    "fields", [{"need": -1}, {"need": 20_001}, {"slots_need": 2}, {"spare": -1}, {"spare_slots": -1}]
)
def test_impossible_asks_are_the_workers_fault(fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        Desk(plan_of(concurrency=1)).ask(**fields)


def test_more_slots_than_held_cannot_be_returned() -> None:
    desk = Desk(plan_of(concurrency=3))
    desk.answer(slots_need=1)
    with pytest.raises(ProtocolError):
        desk.owner.give_back(desk.workers[0], Return("acme", 0, 0, 0, 2, is_all=False))
    with pytest.raises(ProtocolError):
        desk.owner.declare(desk.workers[0], "acme", -1)
    with pytest.raises(ProtocolError):
        desk.owner.hello(WorkerState(), [Holding("acme", 1, -1, 0, 0)])
