"""I10 and I11 as a seeded simulation: workers, owner and meter die, orders come late, twice or not at all."""

import pytest

from billing.ledger.port import LedgerError
from gateway.quota.funds_client import FundsClient
from tests.sim.wallet_world import World

SEEDS = range(12)
STEPS = 400


def run(world: World, steps: int) -> None:
    world.top_up(500)
    for _ in range(steps):
        world.step()
        world.check()
    world.come_to_rest()


@pytest.mark.parametrize("seed", SEEDS)
def test_no_wallet_goes_below_zero_and_no_money_is_stranded(seed: int) -> None:
    run(World(seed), STEPS)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 400))
def test_the_same_for_hundreds_of_seeds(seed: int) -> None:
    run(World(seed, workers=1 + seed % 5), 1_500)


def test_a_lease_freed_before_its_log_was_read_turns_it_red() -> None:
    """Planted: `lease freed before recovery`."""
    assert any(_is_red(seed, frees_early=True) for seed in range(20))


def _is_red(seed: int, *, frees_early: bool = False) -> bool:
    try:
        run(World(seed, frees_early=frees_early), STEPS)
    except (AssertionError, LedgerError):
        return True
    return False


def test_a_return_that_is_not_obeyed_at_once_turns_it_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: what is being returned may still be spent until the answer comes."""
    order = FundsClient._order

    def greedy(self: FundsClient, purse: object) -> object:
        ceiling, room = purse.ceiling, purse.room  # type: ignore[attr-defined]
        made = order(self, purse)  # type: ignore[arg-type]
        purse.ceiling, purse.room = ceiling, room  # type: ignore[attr-defined]
        return made

    monkeypatch.setattr(FundsClient, "_order", greedy)
    assert any(_is_red(seed) for seed in range(20))
