"""Owns the meter's part in prepaid: orders of leases, many in one ledger transaction, and the watch over low wallets.

An order that cannot be read refuses its whole request, of which nothing was changed; a wallet that has too little is an
answer, not an error.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from billing import failpoint
from billing.invoices.desk import JournalSource
from billing.ledger.leases import ORDERS_MAX, LeaseOrder, is_possible, order_leases
from billing.ledger.port import PostReport
from billing.meter_client import MeterError
from billing.wallets.store import check_low, watched_tenants

WORKERS_MAX: Final = 256


class FundsDesk:
    """Leases of one ledger's wallets. Blocking, on the meter's one thread."""

    def __init__(self, ledger: JournalSource, now_ns: Callable[[], int]) -> None:
        self._ledger = ledger
        self._now_ns = now_ns

        self._watched = frozenset[str]()
        self.wallets_changed()

    def wallets_changed(self) -> None:
        """A threshold may be new, or what is below it. Raises LedgerUnavailable."""
        with self._ledger.journal() as journal:
            self._watched = watched_tenants(journal.db)
            check_low(journal, sorted(self._watched), self._now_ns())

    def on_posted(self, report: PostReport) -> None:
        """Calls were posted: tell of wallets that they brought below their threshold. Raises LedgerUnavailable."""
        tenants = sorted({group.tenant for group in report.groups if group.posted} & self._watched)
        if tenants:
            with self._ledger.journal() as journal:
                check_low(journal, tenants, self._now_ns())

    def run(self, orders: Any, workers: Any) -> list[tuple[int, int, bool]]:
        """(ceiling, available, is short) for each order, in turn. Raises MeterError, LedgerUnavailable, LedgerError."""
        if not isinstance(workers, int) or not 1 <= workers <= WORKERS_MAX:
            raise MeterError("bad_request", f"workers: must be from 1 to {WORKERS_MAX}")
        try:
            wanted = msgspec.convert(orders, list[LeaseOrder])
        except msgspec.ValidationError as error:
            raise MeterError("bad_request", f"orders: {error}") from error
        if len(wanted) > ORDERS_MAX:
            raise MeterError("bad_request", f"orders: {len(wanted)} are more than {ORDERS_MAX}; order in parts")
        for at, order in enumerate(wanted):
            if not is_possible(order):
                raise MeterError("bad_request", f"orders[{at}]: its numbers are not such as a worker sends")
        with self._ledger.journal() as journal:
            answers = order_leases(journal, wanted, workers, self._now_ns())
        if failpoint.armed:
            failpoint.hit("after_lease_commit")
        return [(one.ceiling, one.available, one.is_short) for one in answers]
