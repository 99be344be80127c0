"""Owns the in-process twin of the fund store: wallets by direct call, every reservation exact, no leases, no sockets.

For tests and for programs of one process.
"""

from gateway.errors import Refusal
from gateway.quota.funds import OnFunds, Purse, too_little


class LocalWallets:
    """Wallets in memory: what each has left, by tenant and currency. Several stores over it are several workers."""

    def __init__(self) -> None:
        self.left: dict[tuple[str, str], int] = {}
        #: Spent since the beginning: what the meter would debit.
        self.spent: dict[tuple[str, str], int] = {}

    def top_up(self, tenant: str, currency: str, nanos: int) -> None:
        self.left[tenant, currency] = self.left.get((tenant, currency), 0) + nanos


class LocalFundStore:
    """One worker's view of `wallets`. Every call is decided at once; nothing is ever short for another's sake."""

    def __init__(self, wallets: LocalWallets) -> None:
        self._wallets = wallets
        self._purses: dict[tuple[str, str], Purse] = {}

    def purse(self, tenant: str, currency: str) -> Purse | None:
        """See `FundStore.purse`; never None here."""
        return self._purses.setdefault((tenant, currency), Purse(tenant, currency))

    def try_reserve(self, purse: Purse, nanos: int, now_ns: int) -> bool:
        """See `FundStore.try_reserve`."""
        wallet = (purse.tenant, purse.currency)
        left = self._wallets.left.get(wallet, 0)
        if nanos > left:
            return False
        self._wallets.left[wallet] = left - nanos
        purse.ceiling += nanos
        return True

    def ask(self, purse: Purse, nanos: int, now_ns: int, on_funds: OnFunds) -> Refusal | None:
        """See `FundStore.ask`; refuses at once, as `try_reserve` has looked at all there is."""
        return too_little(nanos, purse.currency)

    def settle(self, purse: Purse, reserved: int, cost: int) -> None:
        """See `FundStore.settle`."""
        wallet = (purse.tenant, purse.currency)
        purse.ceiling -= reserved - cost
        self._wallets.left[wallet] += reserved - cost
        self._wallets.spent[wallet] = self._wallets.spent.get(wallet, 0) + cost

    async def close(self) -> None:
        """Nothing to give back: what calls have reserved, they settle."""
