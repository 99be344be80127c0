"""SQLite specifics: opening, locking, journal mode, failure and retry, size of a call, exact sums."""

import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from billing.ledger.connect import journal_mode_for, open_reader, statements
from billing.ledger.names import CACHE_MAX, Names
from billing.ledger.periods import close_period
from billing.ledger.port import Batch, LedgerError, LedgerUnavailable, Position
from billing.ledger.schema import APPLICATION_ID, SCHEMA_VERSION, STEPS, append_only_sql
from billing.ledger.sqlite import SqliteLedger
from billing.ledger.verify import verify_ledger
from billing.ledger.views import balance_of
from tests.unit.billing.making import BOOK, W0, call, items


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[SqliteLedger]:
    opened = SqliteLedger(path)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("version", "mode"),
    [((3, 40, 1), "persist"), ((3, 51, 2), "persist"), ((3, 51, 3), "wal"), ((3, 52, 0), "wal"), ((4, 0, 0), "wal")],
)
def test_wal_is_used_only_where_it_is_safe(version: tuple[int, int, int], mode: str) -> None:
    assert journal_mode_for(version) == mode


def test_file_is_private_and_its_journal_mode_fits_this_sqlite(ledger: SqliteLedger, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    reader = open_reader(path)
    assert reader.execute("PRAGMA journal_mode").fetchone()[0] in ("wal", "delete")
    reader.close()


def test_second_writer_is_refused_until_the_first_closes(ledger: SqliteLedger, path: Path) -> None:
    with pytest.raises(LedgerError, match="another meter is writing it"):
        SqliteLedger(path)
    ledger.close()
    ledger.close()
    SqliteLedger(path).close()


def test_foreign_database_is_refused(path: Path) -> None:
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE notes (text)")
    foreign.execute("PRAGMA application_id = 5")
    foreign.close()
    with pytest.raises(LedgerError, match="is not a Tollway ledger"):
        SqliteLedger(path)


def test_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(LedgerError, match="not a database"):
        SqliteLedger(path)
    with pytest.raises(LedgerError, match="not a database"):
        open_reader(path)


def test_newer_schema_is_refused(ledger: SqliteLedger, path: Path) -> None:
    ledger.close()
    later = sqlite3.connect(path)
    later.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    later.close()
    with pytest.raises(LedgerError, match=f"has schema {SCHEMA_VERSION + 1}, this release reads {SCHEMA_VERSION}"):
        SqliteLedger(path)


def test_ledger_of_the_first_release_is_brought_up_to_date(path: Path) -> None:
    old = sqlite3.connect(path, isolation_level=None)
    for version, script, tables in STEPS:
        if version == 1:
            for statement in statements(script + "".join(append_only_sql(table) for table in tables)):
                old.execute(statement)
    old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    old.execute("PRAGMA user_version = 1")
    old.close()
    with pytest.raises(LedgerUnavailable, match="has schema 1; the meter of this release"):
        open_reader(path)
    ledger = SqliteLedger(path)
    assert ledger.post(Batch(posts=items([1]), now_ns=5)).posted == 1
    with ledger.journal() as journal:
        assert close_period(journal, 6, 6).period_id == 1
    ledger.close()
    open_reader(path).close()


def test_reader_cannot_write_and_says_when_there_is_nothing_yet(ledger: SqliteLedger, path: Path) -> None:
    reader = open_reader(path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("INSERT INTO tenant VALUES (1, 'x')")
    reader.close()
    with pytest.raises(LedgerUnavailable, match="no ledger yet"):
        open_reader(path.with_name("other.db"))
    path.with_name("other.db").touch()
    with pytest.raises(LedgerUnavailable, match="is being created"):
        open_reader(path.with_name("other.db"))


def test_locked_ledger_is_unavailable_and_the_same_batch_posts_later(ledger: SqliteLedger, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    ledger._db.execute("PRAGMA busy_timeout = 1")
    other.execute("BEGIN IMMEDIATE")
    batch = Batch(posts=items([1]), positions={W0: Position(1, 1)}, now_ns=5)
    with pytest.raises(LedgerUnavailable, match="locked"):
        ledger.post(batch)
    other.execute("ROLLBACK")
    other.close()
    assert ledger.post(batch).posted == 1


def test_full_disk_leaves_nothing_behind_and_the_same_batch_posts_later(ledger: SqliteLedger, path: Path) -> None:
    ledger.prices(BOOK)
    ledger.post(Batch(posts=items([1]), now_ns=5))
    (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")
    batch = Batch(posts=items(list(range(2, 900)), tenant="beta"), now_ns=6)
    with pytest.raises(LedgerUnavailable, match="full"):
        ledger.post(batch)
    assert ledger.state().posted == 1
    ledger._db.execute("PRAGMA max_page_count = 1000000")
    # The tenant's id was given in the failed transaction: it must be given again, not remembered.
    assert ledger.post(batch).posted == 898
    reader = open_reader(path)
    assert verify_ledger(reader).problems == ()
    reader.close()


def test_broken_invariant_is_an_error_not_a_retry(ledger: SqliteLedger) -> None:
    with pytest.raises(LedgerError) as broken:
        ledger.post(Batch(posts=[(W0, 1, call(1, charge_nanos=-1))], now_ns=5))
    assert not isinstance(broken.value, LedgerUnavailable)
    assert ledger.state().posted == 0


def test_a_call_takes_less_than_300_bytes(ledger: SqliteLedger, path: Path) -> None:
    ledger.post(Batch(posts=items([0]), now_ns=5))
    empty_bytes = path.stat().st_size
    for first in range(1, 4001, 1000):
        ledger.post(Batch(posts=items(list(range(first, first + 1000))), now_ns=5))
    assert (path.stat().st_size - empty_bytes) / 4000 < 300


def test_balances_beyond_64_bits_are_exact(ledger: SqliteLedger, path: Path) -> None:
    total = 0
    for batch in range(10):
        posts = [(W0, n, call(n, charge_nanos=10**15 - n)) for n in range(batch * 1000 + 1, batch * 1000 + 1001)]
        total += sum(served.charge_nanos for _, _, served in posts)
        ledger.post(Batch(posts=posts, now_ns=5))
    assert total > 2**63
    reader = open_reader(path)
    assert balance_of(reader, "unbilled_receivable:acme", "USD") == total
    assert balance_of(reader, "revenue:model_call:ocr", "USD") == -total
    reader.close()


def test_name_cache_is_bounded(ledger: SqliteLedger) -> None:
    names = Names(ledger._db)
    names.facets.update({("k", "p", "m", str(n), 1, 0, 0, "USD", 0): n for n in range(CACHE_MAX)})
    assert names.facet(("k", "p", "m", "v", 1, 0, 0, "USD", 0)) > 0
    assert len(names.facets) == 1


def steps(ledger: SqliteLedger, work: Callable[[], object]) -> int:
    """Hundreds of virtual machine steps that SQLite takes for `work`: the same on every machine."""
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    ledger._db.set_progress_handler(count, 100)
    work()
    ledger._db.set_progress_handler(None, 0)
    return taken


def test_posting_and_counting_cost_the_same_on_a_big_ledger(ledger: SqliteLedger) -> None:
    def post(first: int) -> int:
        return steps(ledger, lambda: ledger.post(Batch(posts=items(list(range(first, first + 200))), now_ns=5)))

    def count(since: int) -> int:
        # In the middle of the newest transaction, so that its events are told apart one by one.
        return steps(ledger, lambda: ledger.counts([("acme", call(since).t_ns)]))

    post(1)
    small = post(201), count(300)
    for first in range(401, 8_401, 200):
        post(first)
    big = post(8_401), count(8_500)
    assert big[0] <= 2 * small[0]
    assert big[1] <= 2 * small[1]
