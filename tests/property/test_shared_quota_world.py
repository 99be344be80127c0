"""I12 and I13 over hosts that share a Valkey: delays, lost and late batches, deaths, a store that forgets."""

import random
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import Code
from gateway.quota.store_words import LEASE_S
from gateway.snapshot import Plan
from tests.unit.quota.plans import MS, S
from tests.unit.quota.shared_world import World
from tests.unit.quota.valkey import Valkey, valkey

Step = tuple[str, int, int]

plans = st.builds(
    lambda rate, concurrency, day: Plan(
        name="plan",
        version=1,
        pricing="free",
        rate_calls=rate[0],
        burst=rate[1],
        concurrency=concurrency,
        calls_per_day=day,
        store_down="lease" if day is not None and day % 2 else "closed",
    ),
    st.sampled_from([(None, 1), (5, 3), (100, 80), (1000, 90), (20_000, 2000)]),
    st.sampled_from([None, 1, 5, 70, 200]),
    st.sampled_from([None, 1, 20, 1101, 5000]),
)
steps = st.lists(
    st.tuples(st.sampled_from("aaaafffhhhccccddddeexttpbBLlwkosOgG"), st.integers(0, 3), st.integers(1, 40)),
    max_size=60,
)


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with valkey() as one:
        yield one


def step(world: World, verb: str, at: int, count: int) -> None:
    host = world.hosts[at % len(world.hosts)]
    worker = host.workers[at // 2 % len(host.workers)]
    match verb:
        case "a":
            host.arrive(worker, count)
        case "f":
            host.flush(worker)
        case "h":
            host.hear(worker)
        case "c":
            host.carry()
        case "d":
            host.deliver(worker)
        case "e" | "x":
            for _ in range(count):
                host.end(worker, is_counted=verb == "e")
        case "t":
            world.pass_time(count * count * MS)
        case "p":
            host.retry(is_final=True)
        case "b" | "B" | "L":
            host.carry(lost={"b": "before", "B": "after", "L": "late"}[verb])
        case "l":
            host.do_late()
        case "w":
            host.recount()
        case "k":
            host.kill_worker(at // 2 % len(host.workers))
        case "o":
            host.restart_owner()
        case "s":
            host.come_back()
        case "O":
            host.restart()
        case "g" | "G":
            world.flush_store(is_restarted=verb == "G")


def run(server: Valkey, plan: Plan, script: list[Step], *, hosts: int = 2) -> World:
    world = World(server, plan, hosts=hosts)
    with closing(world):
        for verb, at, count in script:
            step(world, verb, at, count)
            world.check()
        world.check_rate()
        world.quiet()
        world.check_nothing_is_stranded()
    return world


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plans, steps)
def test_no_limit_is_ever_passed_whatever_happens(server: Valkey, plan: Plan, script: list[Step]) -> None:
    run(server, plan, script)


@pytest.mark.long
@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plans, steps)
def test_no_limit_is_ever_passed_at_size(server: Valkey, plan: Plan, script: list[Step]) -> None:
    run(server, plan, script)


def loaded(seed: int, length: int) -> tuple[Plan, list[Step]]:
    """A plan, and demand that is always above it."""
    rng = random.Random(seed)
    rate, burst = rng.choice([(None, 1), (100, 80), (1000, 90), (2000, 500)])
    plan = Plan(
        name="plan",
        version=1,
        pricing="free",
        rate_calls=rate,
        burst=burst,
        concurrency=rng.choice([None, 5, 70, 200]) if rate is None else None,
        calls_per_day=rng.choice([1101, 2000]) if rate is None else None,
        store_down=rng.choice(["lease", "closed"]),
    )
    weights = (8, 6, 6, 12, 8, 3, 1, 4, 1, 1, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1)
    return plan, [
        (verb, rng.randrange(6), rng.randint(1, 12 if verb == "t" else 40))
        for verb in rng.choices("afhcdextpwbBLlkosOgG", weights=weights, k=length)
    ]


def disastrous(seed: int, length: int) -> tuple[Plan, list[Step]]:
    """Small limits, and something breaks at every tenth step."""
    rng = random.Random(seed)
    rate, burst = rng.choice([(None, 1), (None, 1), (5, 3), (100, 80)])
    plan = Plan(
        name="plan",
        version=1,
        pricing="free",
        rate_calls=rate,
        burst=burst,
        concurrency=rng.choice([None, 3, 8, 70]),
        calls_per_day=rng.choice([None, 15, 60, 150]),
        store_down=rng.choice(["lease", "closed"]),
    )
    weights = (8, 8, 8, 16, 10, 3, 2, 6, 1, 3, 0.7, 0.7, 1.5, 1.5, 0.5, 1.5, 0.7, 0.5, 0.7, 0.7)
    return plan, [
        (verb, rng.randrange(6), rng.randint(1, 36 if verb == "t" else 6))
        for verb in rng.choices("afhcdextpwbBLlkosOgG", weights=weights, k=length)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_no_limit_is_passed_in_long_runs_under_load(server: Valkey, seed: int) -> None:
    run(server, *loaded(seed, 200), hosts=3)


@pytest.mark.parametrize("seed", range(10))
def test_no_limit_is_passed_by_one_disaster_after_another(server: Valkey, seed: int) -> None:
    run(server, *disastrous(seed, 200), hosts=3)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10, 110))
def test_no_limit_is_passed_in_many_long_runs_under_load(server: Valkey, seed: int) -> None:
    run(server, *loaded(seed, 1000), hosts=3)
    run(server, *disastrous(seed, 1000), hosts=3)


def test_the_world_can_reach_every_limit(server: Valkey) -> None:
    """The property above would hold vacuously in a world that admits nothing."""
    plan = Plan(name="plan", version=1, pricing="free", concurrency=70, calls_per_day=1101)
    script = [(verb, at, 40) for _ in range(60) for verb in "afhcde" for at in range(4)]
    world = run(server, plan, script)
    assert world.counted[world.day] == 1101
    assert world.refused[Code.CONCURRENCY_EXCEEDED] > 0
    assert world.refused[Code.DAILY_CAP_EXCEEDED] > 0


def test_a_dead_hosts_slots_come_back_when_its_lease_ends(server: Valkey) -> None:
    plan = Plan(name="plan", version=1, pricing="free", concurrency=3)
    world = World(server, plan)
    with closing(world):
        dead, living = world.hosts
        ask_for(world, 0, 3)
        assert world.in_flight() == 3
        world.forget(dead.workers[0])
        world.clock.advance(round(LEASE_S * S) - 1000 * MS)
        living.carry()
        ask_for(world, 1, 3)
        assert world.in_flight() == 0
        world.clock.advance(1001 * MS)
        living.carry()
        ask_for(world, 1, 3)
        assert world.in_flight() == 3


def ask_for(world: World, host_at: int, count: int) -> None:
    """`count` calls at the first worker of a host, decided."""
    host = world.hosts[host_at]
    worker = host.workers[0]
    host.arrive(worker, count)
    host.flush(worker)
    host.hear(worker)
    host.carry()
    host.deliver(worker)
