"""Owns `SqlLedger`, the ledger on a SQL database, and `SqliteLedger`, that on one SQLite file and of one process.

Crash windows: everything of a batch is one SQLite transaction, so `kill -9` before COMMIT leaves nothing and after it
everything; the caller acknowledges its logs only after `post` returned, so the batch is sent again and found to exist.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from billing import failpoint
from billing.events import Reason, encode
from billing.ledger.connect import lock_writer, open_writer, translated
from billing.ledger.journal import OPEN_SINCE, Journal
from billing.ledger.leases import OverLease, end_log, use_leases
from billing.ledger.names import Names
from billing.ledger.port import (
    BATCH_EVENTS_MAX,
    Batch,
    Item,
    LedgerError,
    LedgerState,
    Position,
    PostReport,
    PriceBookConflict,
    Rejected,
    Source,
)
from billing.ledger.posting import Posted, Uses, post_fresh, post_sorted
from billing.ledger.rules import GENESIS
from billing.ledger.stored import find_event
from billing.packed import served_of
from billing.pricebook import decode_price_book, encode_price_book
from billing.rating import PriceBook

#: Quarantine reason of prepaid calls that cost more than was leased to their log.
OVER_LEASE: Final = "over_lease"


class SqlLedger:
    """The `Ledger` on an open database, which is closed with it. Not thread-safe.

    `has_clock`: the database is a server with a clock of its own (PostgreSQL).
    """

    def __init__(self, db: sqlite3.Connection, *, has_clock: bool = False) -> None:
        self._db = db
        self._names = Names(db)
        self.has_clock = has_clock

    def post(self, batch: Batch) -> PostReport:
        if len(batch.posts) > BATCH_EVENTS_MAX:
            raise LedgerError(f"a batch of {len(batch.posts)} events is over the limit of {BATCH_EVENTS_MAX}")
        with translated("post"):
            try:
                return self._post_any(batch)
            except OverLease as over:
                # Nothing was kept of the try. What no lease covers would overdraw the wallet: it waits for a person.
                return self._post_any(self._without_excess(batch, over.room))

    def state(self) -> LedgerState:
        with translated("state"):
            positions = {
                Source(instance, epoch): Position(seq, served, bool(is_ended))
                for instance, epoch, seq, served, is_ended in self._db.execute(
                    "SELECT instance, epoch, seq, served, is_ended FROM watermark JOIN log USING (log_id)"
                )
            }
            totals = [
                self._db.execute(f"SELECT COALESCE(MAX({column}), 0) FROM {table}").fetchone()[0]  # noqa: S608
                for table, column in (
                    ("usage_event", "event_id"),
                    ("voided", "void_id"),
                    ("quarantine", "quarantine_id"),
                    ("seal", "tx_id"),
                )
            ]
            head = self._db.execute("SELECT hash FROM seal ORDER BY tx_id DESC LIMIT 1").fetchone()
        posted, voided, quarantined, transactions = totals
        return LedgerState(positions, posted, voided, quarantined, transactions, head[0] if head else GENESIS)

    def prices(self, book: PriceBook | None = None) -> dict[int, PriceBook]:
        with translated("prices"):
            known = dict(self._db.execute("SELECT version, json FROM price_book"))
            if book is not None:
                text = encode_price_book(book).decode()
                if known.get(book.version, text) != text:
                    raise PriceBookConflict(
                        f"price book version {book.version} is already in use with other content; raise `version`"
                    )
                if book.version not in known:
                    self._db.execute(
                        "INSERT INTO price_book VALUES (?, ?, ?)",
                        (book.version, text, time.time_ns()),
                    )
                    known[book.version] = text
        return {version: decode_price_book(text) for version, text in known.items()}

    def counts(self, windows: Sequence[tuple[str, int]]) -> list[int]:
        with translated("counts"):
            return [self._count(tenant, since_ns) for tenant, since_ns in windows]

    def clock_ns(self) -> int:
        """What the database server's clock shows, to the microsecond. Raises LedgerUnavailable."""
        with translated("clock"):
            (us,) = self._db.execute(
                "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"
            ).fetchone()
        return int(us) * 1_000

    @contextlib.contextmanager
    def journal(self) -> Iterator[Journal]:
        """One transaction for a money command: committed durably on exit, undone by an exception.

        Raises LedgerUnavailable (nothing changed) and LedgerError (a rule of the schema was broken).
        """
        with translated("journal"), self._transaction():
            yield Journal(self._db, self._names)

    def close(self) -> None:
        self._db.close()

    def _post_any(self, batch: Batch) -> PostReport:
        try:
            return self._post(batch, post_fresh)
        except sqlite3.IntegrityError:
            # Some key is known (a batch sent again, a second log with the same call): nothing was kept of the try.
            return self._post(batch, post_sorted)

    def _post(self, batch: Batch, post_groups: Callable[[sqlite3.Connection, Names, Batch], Posted]) -> PostReport:
        with self._transaction():
            (open_since_ns,) = self._db.execute(OPEN_SINCE).fetchone()
            if batch.now_ns < open_since_ns:
                # The clock was set back over the end of a closed period, which takes nothing any more.
                batch = replace(batch, now_ns=open_since_ns)
            posted = post_groups(self._db, self._names, batch)
            quarantined = self._quarantine(batch, posted.conflicts)
            voided = self._void(batch)
            self._use_leases(batch, posted.uses, [*posted.again, *quarantined, *voided])
            self._advance(batch)
        counted = sum(group.posted for group in posted.groups)
        return PostReport(posted.groups, counted, len(voided), len(quarantined))

    def _use_leases(self, batch: Batch, posted: Uses, unpaid: Sequence[Item]) -> None:
        """What was decided need not be held any more; a log that is over holds nothing."""
        otherwise: dict[tuple[int, str, str], int] = {}
        for source, _, call in unpaid:
            served = served_of(call)
            if served.reason == Reason.PREPAID and served.charge_nanos > 0:
                key = (self._names.log(source), served.tenant, served.currency)
                otherwise[key] = otherwise.get(key, 0) + served.charge_nanos
        journal = Journal(self._db, self._names)
        use_leases(journal, {key: nanos for key, nanos in posted.items() if nanos}, otherwise, batch.now_ns)
        for source, position in batch.positions.items():
            if position.is_ended:
                end_log(journal, self._names.log(source), batch.now_ns)

    def _without_excess(self, batch: Batch, room: dict[tuple[int, str, str], int]) -> Batch:
        """`batch` with the prepaid calls beyond `room` rejected, each log's first calls first."""
        left, posts, over = dict(room), list[Item](), list[Rejected]()
        for item in batch.posts:
            source, _, call = item
            served = served_of(call)
            key = (self._names.log(source), served.tenant, served.currency)
            if served.reason != Reason.PREPAID or key not in left or find_event(self._db, call) is not None:
                posts.append(item)
            elif served.charge_nanos <= left[key]:
                left[key] -= served.charge_nanos
                posts.append(item)
            else:
                over.append(Rejected(item, OVER_LEASE, "charge_nanos"))
        return replace(batch, posts=posts, rejected=[*batch.rejected, *over])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            if failpoint.armed:
                failpoint.hit("before_commit")
            self._db.execute("COMMIT")
        except BaseException:
            # Ids given to names in this transaction are gone with it.
            self._names.forget()
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _quarantine(self, batch: Batch, conflicts: Sequence[tuple[Item, str]]) -> list[Item]:
        """Keep what must not be posted; what of it is new."""
        found = [*batch.rejected, *((item, "exists_with_different", field) for item, field in conflicts)]
        return [
            item
            for item, reason, field in found
            for source, seq, served in (item,)
            if self._db.execute(
                "INSERT INTO quarantine (log_id, seq, tenant, call_id, reason, field, quarantined_ns, payload)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (log_id, seq) DO NOTHING",
                (self._names.log(source), seq, *_subject(item), reason, field, batch.now_ns, encode(served_of(served))),
            ).rowcount
        ]

    def _void(self, batch: Batch) -> list[Item]:
        """Record voids, except of calls already posted: their mark was seen and then lost with the power (R8)."""
        voided: list[Item] = []
        for item in batch.voids:
            source, seq, served = item
            stored = find_event(self._db, served)
            if stored is not None and (stored.source, stored.seq) == (source, seq):
                continue
            if self._db.execute(
                "INSERT INTO voided (log_id, seq, tenant, call_id, voided_ns, payload)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (log_id, seq) DO NOTHING",
                (self._names.log(source), seq, served.tenant, served.call_id, batch.now_ns, encode(served_of(served))),
            ).rowcount:
                voided.append(item)
        return voided

    def _advance(self, batch: Batch) -> None:
        self._db.executemany(
            "INSERT INTO watermark VALUES (?, ?, ?, ?, ?) ON CONFLICT (log_id) DO UPDATE SET"
            " seq = excluded.seq, served = excluded.served, is_ended = excluded.is_ended,"
            " updated_ns = excluded.updated_ns"
            " WHERE excluded.seq > watermark.seq OR excluded.is_ended > watermark.is_ended",
            [
                (self._names.log(source), position.seq, position.served, position.is_ended, batch.now_ns)
                for source, position in batch.positions.items()
            ],
        )

    def _count(self, tenant: str, since_ns: int) -> int:
        """Whole transactions by their index; events one by one only where a transaction straddles `since_ns`."""
        whole, straddling = self._db.execute(_COUNT, {"tenant": tenant, "since": since_ns}).fetchone()
        return int(whole) + int(straddling)


class SqliteLedger(SqlLedger):
    """The `Ledger` of `sqlite://`; holds the writer's lock until `close`."""

    def __init__(self, path: Path) -> None:
        self._lock_fd: int | None = lock_writer(path)
        try:
            super().__init__(open_writer(path))
        except BaseException:
            self._unlock()
            raise

    def close(self) -> None:
        super().close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


# CROSS JOIN fixes the order: left alone, the planner indexes all events for the sake of a few.
_COUNT = """
WITH t AS (SELECT tx_id, t_min_ns, ok_count FROM journal_tx
           WHERE tenant_id = (SELECT tenant_id FROM tenant WHERE name = :tenant) AND t_max_ns >= :since)
SELECT (SELECT COALESCE(SUM(ok_count), 0) FROM t WHERE t_min_ns >= :since),
       (SELECT COUNT(*) FROM t CROSS JOIN journal_tx j ON j.tx_id = t.tx_id
          CROSS JOIN usage_event e ON e.event_id >= j.first_event_id AND e.event_id < j.first_event_id + j.event_count
          CROSS JOIN facet f ON f.facet_id = e.facet_id
          WHERE t.t_min_ns < :since AND e.t_ns >= :since AND f.outcome = 0)
"""


def _subject(item: Item) -> tuple[str, bytes]:
    return item[2].tenant, item[2].call_id
