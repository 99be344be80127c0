"""The long forms of the usage log's suites: `make test-long`, or `pytest -m long tests/sim`. Seeds are printed."""

from pathlib import Path
from random import Random

import pytest

from tests.sim.test_usage_log_kill import check, run_writer
from tests.sim.world import World

pytestmark = pytest.mark.long
SEEDS = 5_000
STEPS = 300
KILLS = 200
POINTS = ("after_append", "before_sync", "after_sync", "after_send_before_mark")


@pytest.fixture(autouse=True)
def only_if_asked_for(request: pytest.FixtureRequest) -> None:
    if "long" not in request.config.getoption("markexpr"):
        pytest.skip("long: run by `make test-long`")


@pytest.mark.parametrize("kind", ["plain", "recycling", "flipping"])
def test_thousands_of_crash_runs(kind: str) -> None:
    first_seed = Random().randrange(10**9)
    print(f"seeds from {first_seed}")
    for seed in range(first_seed, first_seed + SEEDS):
        world = World(seed, is_recycling=kind == "recycling", is_flipping=kind == "flipping")
        try:
            world.run(STEPS)
        except AssertionError as error:
            raise AssertionError(f"{kind} seed {seed}: {error}") from error


@pytest.mark.parametrize("kind", ["failpoint", "any_time"])
def test_hundreds_of_kills(tmp_path: Path, kind: str) -> None:
    seed = Random().randrange(10**9)
    print(f"seed {seed}")
    rng = Random(seed)
    for number in range(KILLS):
        root = tmp_path / str(number)
        if kind == "failpoint":
            status, told = run_writer(root, failpoint=f"{rng.choice(POINTS)}:{rng.randrange(1, 45)}")
        else:
            status, told = run_writer(root, kill_after=rng.randrange(1, 390))
        check(root, told, is_clean=True if status == 0 else None)
