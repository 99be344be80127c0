"""Owns `Journal`: one open transaction of the ledger in which a money command reads, writes its rows and posts entries.

What a command writes and what it posts commit together or not at all, so a document cannot exist without its entries.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from billing.ledger.accounts import kind_of
from billing.ledger.names import Names
from billing.ledger.posting import seal_all
from billing.ledger.rules import Line, Transaction, check_balanced

#: The instant before which nothing can be posted any more (billing.ledger.periods).
OPEN_SINCE: Final = "SELECT COALESCE(MAX(end_ns), 0) FROM period"


class Journal:
    """Handed out by `SqliteLedger.journal`; not to be kept beyond it."""

    def __init__(self, db: sqlite3.Connection, names: Names) -> None:
        self.db = db
        self.names = names

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self.db.execute(statement, tuple(values))

    def forget_names(self) -> None:
        """To be called after a part of the transaction was undone: names may have been made in it."""
        self.names.forget()

    def post(self, kind: str, tenant: str, posted_ns: int, lines: Sequence[Line]) -> int:
        """Seal one journal transaction over `lines`; its id. It carries no events.

        A posting time inside a closed period becomes the first instant of the open one. Raises LedgerError unless
        `lines` sum to zero per currency and all their accounts are in the chart.
        """
        check_balanced(lines)
        for line in lines:
            kind_of(line.account)
        (open_since_ns,) = self.db.execute(OPEN_SINCE).fetchone()
        (tx_id,) = self.db.execute("SELECT COALESCE(MAX(tx_id), 0) + 1 FROM seal").fetchone()
        transaction = Transaction(
            tx_id=tx_id,
            kind=kind,
            tenant=tenant,
            posted_ns=max(posted_ns, open_since_ns),
            first_event_id=0,
            event_count=0,
            ok_count=0,
            t_min_ns=0,
            t_max_ns=0,
            leaf_version=0,
            merkle_root=b"",
            lines=tuple(lines),
        )
        seal_all(self.db, self.names, [transaction])
        return int(tx_id)
