"""I21 as a stateful model: burn order is deterministic, expired credit stays unused, promo is never cash.

The model keeps every grant's life in plain lists and recomputes by brute force which grant a unit must come from.
"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from billing.credits import (
    Burn,
    CreditError,
    Grant,
    Holding,
    Need,
    burn,
    burn_order,
    is_live,
    refund,
    roll_over,
    unused,
)

MODELS = ["", "llm", "ocr"]


class Wallet(RuleBasedStateMachine):
    """One tenant's credit over time."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 1
        self.grants: dict[str, Grant] = {}
        self.left: dict[str, int] = {}
        self.given = self.burnt = self.refunded = self.lost = self.rolled = 0

    def holdings(self) -> list[Holding]:
        return [Holding(grant, self.left[grant.grant_id]) for grant in self.grants.values()]

    @rule(
        kind=st.sampled_from(["paid", "promo"]),
        amount=st.integers(1, 50),
        life=st.one_of(st.none(), st.integers(1, 20)),
        priority=st.integers(1, 3),
        models=st.sampled_from([(), ("ocr",), ("llm", "ocr")]),
        rollovers=st.integers(0, 2),
        most=st.one_of(st.none(), st.integers(0, 30)),
    )
    def grant(self, kind: str, amount: int, life: int | None, priority: int, models, rollovers: int, most) -> None:  # type: ignore[no-untyped-def]
        made = Grant(
            grant_id=f"g{len(self.grants)}",
            kind=kind,  # type: ignore[arg-type]
            amount_nanos=amount,
            currency="USD",
            granted_ns=self.now_ns,
            expires_ns=None if life is None else self.now_ns + life,
            priority=priority,
            models=models,
            rollovers=rollovers,
            rollover_nanos_max=most,
        )
        self.grants[made.grant_id] = made
        self.left[made.grant_id] = amount
        self.given += amount

    @rule(needs=st.lists(st.tuples(st.sampled_from(MODELS), st.integers(1, 40)), min_size=1, max_size=3))
    def use(self, needs: list[tuple[str, int]]) -> None:
        wanted = [Need(model, amount) for model, amount in needs]
        before = self.holdings()
        burns = burn(before, wanted, "USD", self.now_ns)
        assert burns == burn(list(reversed(before)), wanted, "USD", self.now_ns)
        assert burn(before, wanted, "EUR", self.now_ns) == []
        orders = [burn_order(self.grants[one.grant_id]) for one in burns]
        assert orders == sorted(orders)
        assert sum(one.amount_nanos for one in burns) <= sum(amount for _, amount in needs)
        for grant_id, amount in burns:
            grant = self.grants[grant_id]
            assert is_live(grant, self.now_ns)
            assert 0 < amount <= self.left[grant_id]
            self.left[grant_id] -= amount
            self.burnt += amount
        self.check_nothing_cheaper_was_skipped(wanted, burns)

    def check_nothing_cheaper_was_skipped(self, wanted: list[Need], burns: list[Burn]) -> None:
        """A usable grant with something left means that every need it may pay is paid."""
        paid = sum(one.amount_nanos for one in burns)
        for grant in self.grants.values():
            if not is_live(grant, self.now_ns) or not self.left[grant.grant_id]:
                continue
            if not grant.models:
                assert paid == sum(need.amount_nanos for need in wanted)

    @precondition(lambda self: self.grants)
    @rule(index=st.integers(0, 1_000), amount=st.integers(1, 60))
    def pay_out(self, index: int, amount: int) -> None:
        holding = self.holdings()[index % len(self.grants)]
        if holding.grant.kind == "promo":
            with pytest.raises(CreditError, match="promotional"):
                refund(holding, amount)
        elif amount > holding.left_nanos:
            with pytest.raises(CreditError, match="what is left"):
                refund(holding, amount)
        else:
            self.left[holding.grant.grant_id] -= refund(holding, amount).amount_nanos
            self.refunded += amount

    @rule(ticks=st.integers(1, 10))
    def pass_time(self, ticks: int) -> None:
        self.now_ns += ticks
        # Each step may uncover a grant that expired meanwhile as well.
        while any([self.turn_over(holding) for holding in self.holdings()]):  # noqa: C419 - all of them, each time
            pass

    def turn_over(self, holding: Holding) -> bool:
        made = roll_over(holding, self.now_ns)
        grant_id = holding.grant.grant_id
        if made is None:
            return False
        assert roll_over(holding, self.now_ns) == made
        assert made.grant_id not in self.grants
        assert made.granted_ns == holding.grant.expires_ns
        self.lost += holding.left_nanos - made.amount_nanos
        self.rolled += 1
        self.left[grant_id] = 0
        self.grants[made.grant_id] = made
        self.left[made.grant_id] = made.amount_nanos
        return True

    @invariant()
    def every_nano_has_one_fate(self) -> None:
        assert self.given == sum(self.left.values()) + self.burnt + self.refunded + self.lost

    @invariant()
    def expired_credit_is_not_spendable(self) -> None:
        live = sum(self.left[grant.grant_id] for grant in self.grants.values() if is_live(grant, self.now_ns))
        assert unused(self.holdings(), "USD", self.now_ns) == live


TestWallet = Wallet.TestCase
TestWallet.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_the_order_is_priority_then_expiry_then_age() -> None:
    def made(grant_id: str, priority: int, granted_ns: int, expires_ns: int | None) -> Holding:
        return Holding(
            Grant(
                grant_id=grant_id,
                kind="promo",
                amount_nanos=10,
                currency="USD",
                granted_ns=granted_ns,
                expires_ns=expires_ns,
                priority=priority,
            ),
            10,
        )

    holdings = [made("never", 1, 1, None), made("late", 1, 2, 90), made("soon", 1, 3, 50), made("old", 1, 2, 50)]
    burns = burn([*holdings, made("first", 0, 9, None)], [Need("", 45)], "USD", 10)
    assert [one.grant_id for one in burns] == ["first", "old", "soon", "late", "never"]
    assert burns[-1].amount_nanos == 5
