"""Seeded crash simulations of the usage log: nothing acknowledged is lost, nothing wrong is read, no number is missing.

A failing seed is in the test's name or message: `World(seed).run(STEPS)` replays it.
"""

from collections.abc import Callable

import pytest

from billing.usagelog.framing import FrameCodec
from tests.sim.disk import Sync
from tests.sim.world import Violation, World

STEPS = 150
SEEDS = 250
#: Seeds within which a planted bug must show.
SEEDS_PLANTED = 200


@pytest.mark.parametrize("first_seed", range(0, 8 * SEEDS, SEEDS))
def test_every_acknowledged_record_survives_crashes(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + SEEDS):
        _run(seed, World)


@pytest.mark.parametrize("first_seed", range(0, 2 * SEEDS, SEEDS))
def test_stale_bytes_of_recycled_segments_never_parse(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + SEEDS):
        _run(seed, lambda seed: World(seed, is_recycling=True, record_size_max=1))


@pytest.mark.parametrize("first_seed", range(0, 2 * SEEDS, SEEDS))
def test_flipped_bits_are_reported_and_never_read_as_another_record(first_seed: int) -> None:
    damaged = 0
    for seed in range(first_seed, first_seed + SEEDS):
        world = World(seed, is_flipping=True)
        world.run(STEPS)
        damaged += len(world.damages)
    assert damaged, "no flip was ever reported: the simulation tests nothing"


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(lambda seed: World(seed, sync=Sync.NEVER), id="no_fsync"),
        pytest.param(lambda seed: World(seed, sync=Sync.LATE), id="acknowledge_before_sync"),
        pytest.param(
            lambda seed: World(
                seed, codec_for=lambda _instance, _epoch: FrameCodec("", 0), is_recycling=True, record_size_max=1
            ),
            id="crc_without_epoch",
        ),
    ],
)
def test_a_planted_bug_turns_the_simulation_red(world: Callable[[int], World]) -> None:
    red = 0
    for seed in range(SEEDS_PLANTED):
        try:
            world(seed).run(STEPS)
        except Violation:
            red += 1
    assert red, f"the planted bug survived {SEEDS_PLANTED} seeds"


def test_the_simulation_reaches_what_it_is_about() -> None:
    epochs = segments = records = acknowledged = 0
    for seed in range(50):
        world = World(seed)
        world.run(STEPS)
        epochs += len(world.appended)
        records += sum(map(len, world.appended.values()))
        acknowledged += sum(map(len, world.acked.values()))
        segments += sum(max(found, default=0) > 8 for found in world.committed.values())
    assert epochs > 100
    assert segments > 50
    assert 0 < acknowledged < records, "crashes must lose some records that nobody was told about"


def _run(seed: int, make: Callable[[int], World]) -> None:
    try:
        make(seed).run(STEPS)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error
