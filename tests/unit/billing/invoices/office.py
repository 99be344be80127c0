"""Owns what the invoicing tests are made of: a ledger with usage, a desk of money commands, and a clock to turn."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from billing.invoices import store
from billing.invoices.desk import Desk
from billing.invoices.document import Document
from billing.invoices.life import State
from billing.invoices.period import index_at, period_of
from billing.invoices.subscriptions import list_subscriptions
from billing.invoices.verbs import all_verbs
from billing.ledger.connect import open_reader
from billing.ledger.port import Batch, Position
from billing.ledger.sqlite import SqliteLedger, SqlLedger
from billing.ledger.verify import verify_ledger
from billing.ledger.views import balance_of, trial_balance
from tests.unit.billing.making import BOOK, T0_NS, W0, items

NS_PER_S = 1_000_000_000
DAY_NS = 86_400 * NS_PER_S
#: Usage of `post_usage` lies in January 2026.
MONTH_END_NS = T0_NS + 31 * DAY_NS
ACCOUNT: dict[str, Any] = {
    "tenant": "acme",
    "currency": "USD",
    "buyer": {"name": "Acme GmbH", "tax": {"country": "DE"}, "address": ["Weg 1", "10115 Berlin"]},
    "anchor_ns": T0_NS,
}
SELLER: dict[str, Any] = {
    "party": {"name": "Tollway Ltd", "tax": {"country": "DE", "tax_id": "DE123456789"}, "address": ["Allee 2"]},
    "taxes": {
        "version": 1,
        "rates": [{"jurisdiction": "DE", "name": "USt", "rate_ppm": 190_000}],
        "reverse_charge_zones": [["DE", "FR"]],
    },
}


class Office:
    """A ledger and its desk; `do` runs a command under a new operation id."""

    def __init__(self, path: Path, ledger: SqlLedger | None = None, reader: sqlite3.Connection | None = None) -> None:
        self.path = path
        self.now_ns = MONTH_END_NS + DAY_NS
        self.ledger = ledger or SqliteLedger(path)
        self.ledger.prices(BOOK)
        self.desk = Desk(self.ledger, all_verbs(), lambda: self.now_ns)
        self.reader = reader or open_reader(path)
        self._ids = count(1)
        self._seq = 0

    def do(self, verb: str, body: dict[str, Any], operation_id: str | None = None) -> Any:
        return self.desk.run(verb, operation_id or f"op-{next(self._ids)}", body)

    def set_up(self, **account: Any) -> None:
        self.do("seller.set", SELLER)
        self.do("account.set", ACCOUNT | account)

    def post_usage(self, calls: int, **changes: Any) -> None:
        """`calls` more posted calls, a second apart from the beginning of the month on unless `t_ns` is given."""
        numbers = range(self._seq + 1, self._seq + calls + 1)
        self._seq += calls
        self.ledger.post(
            Batch(posts=items(numbers, **changes), positions={W0: Position(self._seq, self._seq)}, now_ns=self.now_ns)
        )

    def bill(self, until_ns: int = MONTH_END_NS, **fields: Any) -> Any:
        return self.do("invoice.bill", {"tenant": "acme", "until_ns": until_ns} | fields)["invoice"]

    def document(self, name: str) -> Document:
        return store.get_document(self.reader, name)

    def state(self, name: str) -> State:
        return store.state_in(self.reader, self.document(name))

    def balance(self, account: str, currency: str = "USD") -> int:
        return balance_of(self.reader, account, currency)

    def events(self) -> list[str]:
        return [event.type for event in store.list_events(self.reader, after=0, limit=1_000)]

    def check(self) -> None:
        """What must hold whatever was done: the books balance and verify from genesis."""
        assert trial_balance(self.reader).is_balanced
        assert verify_ledger(self.reader).problems == ()

    def close(self) -> None:
        self.reader.close()
        self.ledger.close()


@contextmanager
def open_office(folder: Path) -> Iterator[Office]:
    office = Office(folder / "ledger.db")
    try:
        yield office
        office.check()
    finally:
        office.close()


def earned_of(office: Office, fee: int, start_ns: int, end_ns: int) -> float:
    """What the only subscription of acme earns of a monthly `fee` between two instants, by the length of each month."""
    found = list_subscriptions(office.reader, tenant="acme")[0]
    earned, at = 0.0, start_ns
    while at < end_ns:
        period = period_of(found.anchor_ns, found.zone, "month", index_at(found.anchor_ns, found.zone, "month", at))
        until = min(end_ns, period.end_ns)
        earned += fee * (until - at) / (period.end_ns - period.start_ns)
        at = until
    return earned
