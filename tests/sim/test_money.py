"""Seeded simulation of the whole way of money over fake disk, clock, net and store (MONEY.md §6).

I1-I3, I5, I7, I14 and I15 hold after every step, through crashes, power cuts, full and failing disks, lost questions
and answers, dying meters. A failing seed is in the message: `MoneyWorld(seed).run(STEPS)` replays it.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

import msgspec
import pytest

from billing.books import Books
from billing.ledger.memory import MemoryLedger
from billing.ledger.port import Batch, PostReport
from billing.packed import served_of
from billing.pump import Pump
from billing.usagelog.reader import UsageReader
from tests.sim.disk import Sync
from tests.sim.money_world import Link, MoneyWorld
from tests.sim.world import Violation

STEPS = 150
SEEDS = 60
SEEDS_PLANTED = 100


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What the meter says of each simulated fault would be most of the work."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["plain", "recycling"])
def test_thousands_of_seeds(kind: str) -> None:
    first_seed = Random().randrange(10**9)
    print(f"seeds from {first_seed}")
    for seed in range(first_seed, first_seed + 3_000):
        run(seed, lambda seed: MoneyWorld(seed, is_recycling=kind == "recycling"))


def run(seed: int, world: Callable[[int], MoneyWorld] = MoneyWorld) -> MoneyWorld:
    made = world(seed)
    try:
        made.run(STEPS)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error
    return made


@pytest.mark.parametrize("first_seed", range(0, 5 * SEEDS, SEEDS))
def test_every_answered_call_is_posted_once_or_void_whatever_fails(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + SEEDS):
        run(seed)


def test_the_simulation_reaches_what_it_is_about() -> None:
    posted = voided = closed = 0
    faults: dict[str, int] = {}
    for seed in range(40):
        world = run(seed)
        posted += len(world.store.events)
        voided += len(world.store.voided)
        closed += len(world.closed)
        for name, count in world.link.faults.items():
            faults[name] = faults.get(name, 0) + count
    assert posted > 200
    assert voided > 20
    assert closed > 0
    assert all(count > 5 for count in faults.values()), faults


class _RandomIds(Link):
    """An event's id is made per emission."""

    def _apply(self, batch: Batch) -> PostReport:
        posts = [
            (at, seq, msgspec.structs.replace(served_of(one), call_id=self._rng.randbytes(16)))
            for at, seq, one in batch.posts
        ]
        return self.store.post(replace(batch, posts=posts))


class _ClaimFirst(Link):
    """Ids are claimed in a table of their own, before the posting."""

    def __init__(self, store: MemoryLedger, rng: Random) -> None:
        super().__init__(store, rng)
        self._claims: set[bytes] = set()

    def post(self, batch: Batch) -> PostReport:
        fresh = [item for item in batch.posts if item[2].call_id not in self._claims]
        self._claims.update(item[2].call_id for item in fresh)
        return super().post(replace(batch, posts=fresh))


class _AckFirst(Pump):
    """The logs are acknowledged before the commit."""

    def _post_all(self) -> None:
        for batch in self._batches:
            for source, position in batch.positions.items():
                self._reader.ack(source.instance, source.epoch, position.seq)
        super()._post_all()


def ack_first(link: Link, reader: UsageReader, books: Books, clock: Any) -> Pump:
    return _AckFirst(link, reader, books, wall_ns=clock.wall_ns, monotonic_ns=clock.monotonic_ns)


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(lambda seed: MoneyWorld(seed, sync=Sync.NEVER), id="no_fsync"),
        pytest.param(lambda seed: MoneyWorld(seed, make_pump=ack_first), id="acknowledge_before_commit"),
        pytest.param(lambda seed: MoneyWorld(seed, make_link=_ClaimFirst), id="dedupe_claim_before_write"),
        pytest.param(lambda seed: MoneyWorld(seed, make_link=_RandomIds), id="random_event_id"),
        pytest.param(lambda seed: MoneyWorld(seed, is_high_water=True), id="high_water_mark"),
    ],
)
def test_a_planted_bug_turns_the_simulation_red(world: Callable[[int], MoneyWorld]) -> None:
    red = 0
    for seed in range(SEEDS_PLANTED):
        try:
            world(seed).run(STEPS)
        except Violation:
            red += 1
    assert red, f"the planted bug survived {SEEDS_PLANTED} seeds"
