"""`kill -9` of every process under load, at failpoints and at any moment: nobody pays twice, or for nothing."""

import os
import secrets

import pytest

from tests.e2e.crash import kills, scenario

KILLS = 40
KILLS_LONG = 200
SEED_VARIABLE = "TOLLWAY_CRASH_SEED"


def seed_of_today() -> int:
    """A new one for every run; set TOLLWAY_CRASH_SEED to repeat one."""
    return int(os.environ.get(SEED_VARIABLE) or secrets.randbelow(10**9))


def _run(kill_count: int) -> None:
    seed = seed_of_today()
    print(f"crash suite: {SEED_VARIABLE}={seed}", flush=True)
    outcome = scenario.run(seed, kills.plan(seed, kill_count), workers=2)
    print(outcome.report(), flush=True)
    assert outcome.is_sound, outcome.report()
    assert outcome.tally.total >= kill_count
    assert outcome.answered > 10 * outcome.tally.total, "the load hardly ran: nothing was proved"


@pytest.mark.timeout(600)
def test_ledger_matches_the_callers_own_record_after_forty_kills() -> None:
    _run(KILLS)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ledger_matches_the_callers_own_record_after_two_hundred_kills() -> None:
    _run(KILLS_LONG)
