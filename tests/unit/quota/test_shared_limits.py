"""Limits over hosts that share a Valkey: one promise each, on a real server, stepped by hand."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from gateway.errors import Code
from gateway.quota.protocol import Ask
from gateway.quota.store_link import Command
from gateway.quota.store_words import HOSTS_MAX, LEASE_S, SETTLE_S
from gateway.snapshot import Plan
from tests.unit.quota.plans import DAY_NS, MS, S, plan_of
from tests.unit.quota.shared_world import PREFIX, Host, World
from tests.unit.quota.valkey import Valkey, valkey

MakeWorld = Callable[..., World]


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with valkey() as one:
        yield one


@pytest.fixture
def world_of(server: Valkey) -> Iterator[MakeWorld]:
    with ExitStack() as stack:

        def make(plan: Plan, *, has_meter: bool = True) -> World:
            world = World(server, plan, has_meter=has_meter)
            stack.callback(world.close)
            return world

        yield make


def send(host: Host, calls: int, *, worker: int = 0) -> None:
    """Calls arrive; what they need is asked of the owner."""
    host.arrive(host.workers[worker], calls)
    host.flush(host.workers[worker])
    host.hear(host.workers[worker])


def receive(host: Host, *, worker: int = 0) -> None:
    host.carry()
    host.deliver(host.workers[worker])


def take(host: Host, calls: int, *, worker: int = 0) -> int:
    """How many of `calls` are admitted at once."""
    before = len(host.workers[worker].flights)
    send(host, calls, worker=worker)
    receive(host, worker=worker)
    return len(host.workers[worker].flights) - before


def finish(host: Host, calls: int, *, is_counted: bool = True) -> None:
    for _ in range(calls):
        host.end(host.workers[0], is_counted=is_counted)
    host.flush(host.workers[0])
    host.hear(host.workers[0])
    host.carry()


def test_slots_are_one_limit_over_hosts(world_of: MakeWorld) -> None:
    world = world_of(plan_of(concurrency=3))
    first, second = world.hosts
    assert take(first, 2) == 2
    assert take(second, 2) == 1
    assert world.refused == {Code.CONCURRENCY_EXCEEDED: 1}
    finish(first, 1)
    assert take(second, 2) == 1


def test_what_an_abandoned_connection_still_delivers_changes_nothing(world_of: MakeWorld) -> None:
    world = world_of(plan_of(concurrency=3))
    first, second = world.hosts
    send(first, 1)
    first.carry(lost="late")
    first.carry()  # registers anew
    first.carry()
    first.deliver(first.workers[0])
    assert take(first, 1) == 1
    first.do_late()
    assert take(second, 3) == 1


def test_slots_stay_taken_while_an_owner_restarts(world_of: MakeWorld) -> None:
    world = world_of(plan_of(concurrency=3))
    first, second = world.hosts
    assert take(first, 3) == 3
    first.restart_owner()
    first.carry()  # a new session that knows of nothing yet
    assert take(second, 1) == 0
    first.come_back()
    first.carry()
    assert take(second, 1) == 0
    finish(first, 1)
    assert take(second, 1) == 1


def test_slots_of_a_machine_that_restarted_are_free(world_of: MakeWorld) -> None:
    world = world_of(plan_of(concurrency=3))
    first, second = world.hosts
    assert take(first, 3) == 3
    first.restart()
    assert take(second, 1) == 0
    first.carry()
    first.carry()  # tells that it holds nothing
    assert take(second, 3) == 3


def test_after_a_flush_nothing_is_decided_before_hosts_could_tell_their_slots(world_of: MakeWorld) -> None:
    world = world_of(plan_of(concurrency=3))
    first, second = world.hosts
    assert take(first, 3) == 3
    world.flush_store()
    for _ in range(2):
        second.carry()
    assert take(second, 3) == 0
    assert not world.refused  # it waits
    for _ in range(3):
        first.carry()
    world.clock.advance(round(SETTLE_S * S))
    second.carry()
    receive(second)
    assert world.refused == {Code.CONCURRENCY_EXCEEDED: 3}


def test_after_a_flush_a_cap_waits_for_the_counts_of_every_host(world_of: MakeWorld) -> None:
    world = world_of(plan_of(calls_per_day=10))
    first, second = world.hosts
    for host in world.hosts:
        assert take(host, 4) == 4
        finish(host, 4)
    world.flush_store()
    for host in world.hosts:
        for _ in range(3):
            host.carry()
    world.clock.advance(round(SETTLE_S * S))
    first.recount()
    assert take(first, 6) == 0
    assert not world.refused
    second.recount()
    second.carry()
    first.carry()
    receive(first)
    assert len(first.workers[0].flights) == 2
    assert world.refused == {Code.DAILY_CAP_EXCEEDED: 4}


def test_a_host_that_does_not_know_the_tenant_counts_it_when_another_asks(world_of: MakeWorld) -> None:
    world = world_of(plan_of(calls_per_day=10))
    first, second = world.hosts
    assert take(second, 4) == 4
    finish(second, 4)
    second.owner.set_policy([], [])
    world.flush_store()
    world.pass_time(round(SETTLE_S * S))
    first.recount()
    assert take(first, 10) == 0
    first.carry()  # asks, and learns who has not counted
    second.carry()  # hears that it is wanted
    second.recount()
    second.carry()
    first.carry()
    receive(first)
    assert len(first.workers[0].flights) == 6


def test_after_a_flush_buckets_are_empty(world_of: MakeWorld) -> None:
    world = world_of(plan_of(rate_calls=5, burst=3))
    first, second = world.hosts
    assert take(first, 4) == 3
    world.flush_store()
    for _ in range(3):
        second.carry()
    assert take(second, 4) == 0
    world.clock.advance(200 * MS)
    assert take(second, 4) == 1


def test_another_run_of_the_server_is_not_believed_what_it_remembers(world_of: MakeWorld) -> None:
    """A failover to a replica that lags, or a restart from an old file."""
    world = world_of(plan_of(calls_per_day=10))
    first, second = world.hosts
    assert take(first, 2) == 2
    old = world.store.fields()
    assert take(first, 6) == 6
    finish(first, 8)
    world.store.client.delete(f"{PREFIX}t:acme")
    world.store.client.hset(f"{PREFIX}t:acme", mapping=old)  # type: ignore[arg-type]
    world.store.run_id = "promoted"
    for host in world.hosts:
        host.owner.on_lost([])
    world.catch_up()
    world.pass_time(round(SETTLE_S * S))
    assert take(second, 10) == 2


def test_a_call_given_back_after_midnight_does_not_open_the_new_day(world_of: MakeWorld) -> None:
    world = world_of(plan_of(calls_per_day=3))
    first, _ = world.hosts
    world.pass_time(DAY_NS - 2 * S)
    assert take(first, 3) == 3
    world.pass_time(4 * S)
    assert take(first, 3) == 3
    assert world.clock.wall_ns() // DAY_NS == world.day
    finish(first, 3, is_counted=False)  # yesterday's
    assert take(first, 1) == 0
    assert world.refused[Code.DAILY_CAP_EXCEEDED] == 1


@pytest.mark.parametrize(("step_ns", "is_recounted"), [(5 * S, False), (5 * S + 1_000_000, True)])
def test_a_clock_set_back_at_midnight_stays_in_the_day_or_has_it_counted(
    world_of: MakeWorld, step_ns: int, is_recounted: bool
) -> None:
    world = world_of(plan_of(calls_per_day=3))
    first, second = world.hosts
    world.pass_time(DAY_NS)
    assert take(first, 2) == 2
    finish(first, 2)
    world.clock.step_wall(-step_ns)
    world.clock.show()
    for host in world.hosts:
        host.carry()
    send(second, 2)
    second.carry()
    assert second.owner.needs_recount() is is_recounted
    if not is_recounted:
        second.deliver(second.workers[0])
        assert len(second.workers[0].flights) == 1


def test_a_new_host_does_not_hold_up_the_others_and_a_host_too_many_is_refused(world_of: MakeWorld) -> None:
    world = world_of(plan_of(calls_per_day=100))
    for at in range(HOSTS_MAX - 2):
        (reply,) = world.store.run(f"new{at}", "s", "e", [Command("register", "", [world.store.run_id])])
        assert list(reply)[:3:2] == [b"OK", b"j"]
    (reply,) = world.store.run("one-more", "s", "e", [Command("register", "", [world.store.run_id])])
    assert list(reply) == [b"HOSTS"]
    assert take(world.hosts[0], 5) == 5


def test_a_host_that_was_away_for_longer_than_its_lease_tells_its_slots_anew(world_of: MakeWorld) -> None:
    world = world_of(plan_of(concurrency=3))
    first, second = world.hosts
    assert take(first, 2) == 2
    world.clock.advance(round(LEASE_S * S) + MS)
    second.carry()  # it was away as well, and is fenced off
    second.carry()
    first.carry()
    first.carry()
    first.carry()
    assert take(second, 3) == 1


def test_a_key_of_another_type_refuses_that_tenant_only(world_of: MakeWorld) -> None:
    world = world_of(plan_of(concurrency=3))
    first, _ = world.hosts
    world.store.client.set(f"{PREFIX}t:acme", "not ours")
    assert take(first, 1) == 0
    assert world.refused == {Code.QUOTA_UNAVAILABLE: 1}
    assert take(first, 1) == 0  # not even asked for a second
    world.store.client.delete(f"{PREFIX}t:acme")
    world.pass_time(S + MS)
    assert take(first, 1) == 1
    assert first.owner.is_registered


def test_leased_calls_end_by_when_they_were_asked_for(world_of: MakeWorld) -> None:
    """The store took them later: however long the reply travels, they never live longer than the proof allows."""
    world = world_of(plan_of(rate_calls=1000, burst=1000))
    first, _ = world.hosts
    world.pass_time(S)
    send(first, 1)
    sent_ns = world.clock.monotonic_ns()
    batch = first.owner.take_batch()
    world.clock.advance(100 * MS)
    replies = world.store.run(first.name, first.session, first.owner.epoch, [one.command for one in batch])
    first.owner.on_replies(batch, replies)
    ((_, answer),) = first.workers[0].answers
    assert answer.spare > 0
    assert answer.expires_ns == sent_ns + 250 * MS


def test_calls_from_a_lease_cost_no_round_trip(world_of: MakeWorld) -> None:
    world = world_of(plan_of(calls_per_month=1_000_000, rate_calls=100_000, burst=100_000))
    first, _ = world.hosts
    world.pass_time(S)
    assert take(first, 1) == 1
    finish(first, 1)
    worker = first.workers[0]
    leased = worker.shelf.lease.calls
    assert leased >= 16
    for _ in range(leased // 2):
        first.arrive(worker, 1)
        first.end(worker, is_counted=True)
    assert not worker.shelf.waiters
    assert not worker.sent
    assert not first.owner.has_work()


def test_while_the_store_is_away_leases_of_closed_plans_are_recalled(world_of: MakeWorld) -> None:
    for mode, recalled in (("closed", True), ("lease", False)):
        world = world_of(plan_of(calls_per_day=1_000_000, store_down=mode))
        first, _ = world.hosts
        assert take(first, 1) == 1
        leased = first.workers[0].shelf.lease.calls
        assert leased > 0
        first.owner.on_lost([])
        first.owner.on_away()
        assert (first.workers[0].shelf.lease.calls == 0) is recalled
        send(first, leased + 1)
        first.deliver(first.workers[0])
        assert (len(first.workers[0].flights) == 1) is recalled
        assert world.refused[Code.QUOTA_UNAVAILABLE] == (leased + 1 if recalled else 1)


def test_an_ask_whose_worker_died_gives_back_what_it_brings(world_of: MakeWorld) -> None:
    world = world_of(plan_of(concurrency=2, calls_per_day=2))
    first, second = world.hosts
    send(first, 2)
    batch = first.owner.take_batch()
    first.kill_worker(0)
    commands = [one.command for one in batch]
    first.owner.on_replies(batch, world.store.run(first.name, first.session, first.owner.epoch, commands))
    first.carry()
    assert take(second, 2) == 2


def test_a_call_that_waits_too_long_is_refused_and_its_grant_goes_back(world_of: MakeWorld) -> None:
    world = world_of(plan_of(concurrency=1))
    first, second = world.hosts
    send(first, 1)
    first.retry(is_final=True)
    first.deliver(first.workers[0])
    assert world.refused == {Code.QUOTA_UNAVAILABLE: 1}
    first.carry()
    first.carry()
    assert take(second, 1) == 1


def test_an_owner_asks_the_store_by_what_it_knows_when_policies_differ(world_of: MakeWorld) -> None:
    world = world_of(plan_of(concurrency=1))
    (first, _), ask = world.hosts, Ask("acme", "plan", 9, 1, 1, 0, 0)
    state = first.workers[0].state
    first.parked[state] = ask
    first.retry()
    assert state in first.parked
    assert first.owner.is_policy_unclear(state, ask)
    first.retry(is_final=True)
    first.carry()
    ((_, answer),) = first.workers[0].answers
    assert answer.calls == 1


def test_without_a_meter_a_host_that_is_asked_late_keeps_what_it_has_counted(world_of: MakeWorld) -> None:
    world = world_of(plan_of(calls_per_day=10), has_meter=False)
    first, second = world.hosts
    send(first, 1)
    first.carry()  # learns that nobody has counted; `second` is asked to
    take(second, 5)
    for _ in range(4):
        first.carry()
        second.carry()
    for host in world.hosts:
        host.deliver(host.workers[0])
    assert world.in_flight() == 6
    world.store.client.sadd(f"{PREFIX}want:{second.name}", "acme")  # asked again, for whatever reason
    for _ in range(3):
        second.carry()
    assert take(first, 10) == 4
