"""Owns the ledgers that the contract suites run over, by name."""

from collections.abc import Callable
from pathlib import Path

from billing.ledger.sqlite import SqliteLedger

#: Ledgers that hand out journals: transfers, periods and money commands run on each.
BOOKS: dict[str, Callable[[Path], SqliteLedger]] = {"sqlite": lambda folder: SqliteLedger(folder / "ledger.db")}
