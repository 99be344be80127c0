"""I24 on a real server: a host whose clock is off the database's by more than five minutes posts nothing it stamped."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.books import Books
from billing.clock_watch import CLOCK_SKEWED, ClockWatch
from billing.ledger.postgres import open_postgres_ledger
from billing.ledger.sqlite import SqliteLedger, SqlLedger
from billing.ledger.views import quarantined
from billing.pump import Pump
from billing.usagelog.reader import UsageReader
from tests.contract.postgres_server import PostgresServer
from tests.unit.billing.making import BOOK, call, marked, write_dead_epoch

MINUTE = 60 * 10**9


class Host:
    """A meter on a host whose wall clock is `off_ns` ahead of ours, and of the server's."""

    def __init__(self, ledger: SqlLedger, folder: Path) -> None:
        self.off_ns = 0
        self.folder = folder
        self.ledger = ledger
        self._calls = 0
        self._epoch = 0
        books = Books(ledger, folder / "snapshot")
        books.add(BOOK)
        watch = ClockWatch(folder, ledger.clock_ns, wall_ns=self.wall_ns, monotonic_ns=time.monotonic_ns)
        reader = UsageReader(folder / "usage")
        self.pump = Pump(ledger, reader, books, wall_ns=self.wall_ns, clock=watch)

    def wall_ns(self) -> int:
        return time.time_ns() + self.off_ns

    def serve(self, t_ns: int) -> None:
        """One call by a worker that is gone by now."""
        self._calls, self._epoch = self._calls + 1, self._epoch + 1
        write_dead_epoch(self.folder / "usage", marked([call(self._calls, t_ns=t_ns)]), epoch=self._epoch)

    def figures(self) -> tuple[int, int]:
        """(posted, quarantined), after a pass."""
        self.pump.drain()
        state = self.ledger.state()
        return state.posted, state.quarantined


@pytest.fixture
def host(postgres: PostgresServer, tmp_path: Path) -> Iterator[Host]:
    made = Host(open_postgres_ledger(postgres.new_database()), tmp_path)
    yield made
    made.pump.close()


def test_calls_of_a_skewed_clock_wait_and_late_ones_do_not(host: Host) -> None:
    late = host.wall_ns()
    host.serve(host.wall_ns())
    assert host.figures() == (1, 0)
    host.off_ns = 10 * MINUTE
    host.serve(host.wall_ns())
    host.serve(late)
    assert host.figures() == (2, 1)
    (held,) = quarantined(host.ledger._db)
    assert (held.reason, held.field) == (CLOCK_SKEWED, "t_ns")
    status = host.pump.status()
    assert abs(status["clock_skew_ns"] - 10 * MINUTE) < MINUTE
    host.off_ns = 0
    host.serve(host.wall_ns())
    assert host.figures() == (3, 1)


def test_a_clock_within_the_bound_is_left_alone(host: Host) -> None:
    host.off_ns = -4 * MINUTE
    host.serve(host.wall_ns())
    assert host.figures() == (1, 0)


def test_only_a_server_has_a_clock_of_its_own(host: Host, tmp_path: Path) -> None:
    local = SqliteLedger(tmp_path / "ledger.db")
    assert (host.ledger.has_clock, local.has_clock) == (True, False)
    assert abs(host.ledger.clock_ns() - time.time_ns()) < MINUTE
    local.close()
