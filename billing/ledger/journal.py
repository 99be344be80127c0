"""Owns `Journal`: one open transaction of the ledger in which a money command reads, writes its rows and posts entries.

What a command writes and what it posts commit together or not at all, so a document cannot exist without its entries.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any

from billing.ledger.names import Names
from billing.ledger.posting import seal_all
from billing.ledger.rules import Line, Transaction, check_balanced


class Journal:
    """Handed out by `SqliteLedger.journal`; not to be kept beyond it."""

    def __init__(self, db: sqlite3.Connection, names: Names) -> None:
        self.db = db
        self._names = names

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self.db.execute(statement, tuple(values))

    def post(self, kind: str, tenant: str, posted_ns: int, lines: Sequence[Line]) -> int:
        """Seal one journal transaction over `lines`; its id. It carries no events.

        Raises LedgerError unless `lines` sum to zero per currency.
        """
        check_balanced(lines)
        (tx_id,) = self.db.execute("SELECT COALESCE(MAX(tx_id), 0) + 1 FROM seal").fetchone()
        transaction = Transaction(
            tx_id=tx_id,
            kind=kind,
            tenant=tenant,
            posted_ns=posted_ns,
            first_event_id=0,
            event_count=0,
            ok_count=0,
            t_min_ns=0,
            t_max_ns=0,
            leaf_version=0,
            merkle_root=b"",
            lines=tuple(lines),
        )
        seal_all(self.db, self._names, [transaction])
        return int(tx_id)
