"""The pump on an in-memory ledger and real log files: post, then acknowledge; trouble that passes; counts."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from billing.books import Books
from billing.events import Closed, Outcome, Reason, Record, Sent
from billing.ledger.memory import MemoryLedger
from billing.ledger.port import Batch, LedgerState, LedgerUnavailable, PostReport
from billing.pump import BACKOFF_FIRST_NS, Pump
from billing.rating import PriceBook
from billing.usagelog.reader import UsageReader
from tests.unit.billing.making import BOOK, T0_NS, W0, Epoch, call, marked, write_dead_epoch


class Moody:
    """A ledger that is out of order while `trouble` is set; otherwise its twin."""

    def __init__(self) -> None:
        self.inner = MemoryLedger()
        self.trouble: str | None = None
        self.posts = 0

    def post(self, batch: Batch) -> PostReport:
        self._check()
        self.posts += 1
        return self.inner.post(batch)

    def state(self) -> LedgerState:
        return self.inner.state()

    def prices(self, book: PriceBook | None = None) -> dict[int, PriceBook]:
        self._check()
        return self.inner.prices(book)

    def counts(self, windows: Sequence[tuple[str, int]]) -> list[int]:
        self._check()
        return self.inner.counts(windows)

    def close(self) -> None:
        self.inner.close()

    def _check(self) -> None:
        if self.trouble is not None:
            raise LedgerUnavailable(self.trouble)


class Time:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now_ns = 1

    def __call__(self) -> int:
        return self.now_ns


class Bench:
    """A pump and everything around it, on one folder."""

    def __init__(self, folder: Path, ledger: Moody | None = None, *, is_priced: bool = True) -> None:
        self.folder = folder
        self.time = Time()
        self.ledger = ledger or Moody()
        self.books = Books(self.ledger, folder / "snapshot")
        if is_priced:
            self.books.add(BOOK)
        positions = {tuple(source): at.seq for source, at in self.ledger.state().positions.items()}
        self.reader = UsageReader(folder / "usage", positions)  # type: ignore[arg-type]
        self.pump = Pump(self.ledger, self.reader, self.books, wall_ns=lambda: T0_NS + 10**12, monotonic_ns=self.time)

    def restarted(self) -> "Bench":
        """The same ledger and logs under a new meter."""
        self.reader.close()
        return Bench(self.folder, self.ledger)


def test_posted_log_of_a_dead_worker_is_removed(tmp_path: Path) -> None:
    write_dead_epoch(tmp_path / "usage", [*marked([call(1)]), Closed(t_ns=T0_NS)])
    bench = Bench(tmp_path)
    bench.pump.drain()
    assert bench.ledger.state().posted == 1
    assert not list((tmp_path / "usage").rglob("*.seg"))
    bench.pump.close()


def test_waiting_calls_cost_no_commit(tmp_path: Path) -> None:
    log = Epoch(tmp_path / "usage")
    log.append([call(1), call(2)])
    bench = Bench(tmp_path)
    bench.pump.drain()
    assert bench.ledger.posts == 0
    log.append([Sent(first_seq=1, last_seq=2)])
    bench.pump.drain()
    assert (bench.ledger.posts, bench.ledger.state().posted) == (1, 2)
    log.die()
    bench.pump.close()


def test_unavailable_ledger_is_tried_again_later_and_nothing_is_lost_or_read_meanwhile(tmp_path: Path) -> None:
    log = Epoch(tmp_path / "usage")
    log.append(marked([call(1), call(2)]))
    bench = Bench(tmp_path)
    bench.ledger.trouble = "database or disk is full"
    assert not bench.pump.run_once()
    status = bench.pump.status()
    assert (status["trouble"], status["unposted"], status["failures"]) == ("database or disk is full", 2, 1)
    log.append([call(4), Sent(first_seq=4, last_seq=4)])
    bench.time.now_ns += BACKOFF_FIRST_NS
    bench.pump.run_once()
    assert (bench.pump.status()["failures"], bench.reader.delivered()) == (2, {("w0", 1): 3})
    bench.ledger.trouble = None
    assert not bench.pump.run_once()
    assert bench.ledger.posts == 0, "the pause is waited out"
    bench.time.now_ns += 2 * BACKOFF_FIRST_NS
    bench.pump.run_once()
    assert (bench.ledger.state().posted, bench.pump.status()["trouble"]) == (3, None)
    log.die()
    bench.pump.close()


def test_flush_does_not_wait_out_a_pause_and_says_when_it_cannot(tmp_path: Path) -> None:
    write_dead_epoch(tmp_path / "usage", marked([call(1)]))
    bench = Bench(tmp_path)
    bench.ledger.trouble = "database is locked"
    with pytest.raises(LedgerUnavailable, match="locked"):
        bench.pump.drain()
    bench.ledger.trouble = None
    bench.pump.drain()
    assert bench.ledger.state().posted == 1
    bench.pump.close()


def test_counts_refuse_to_guess_while_the_ledger_is_out_of_order(tmp_path: Path) -> None:
    write_dead_epoch(tmp_path / "usage", marked([call(1)]))
    bench = Bench(tmp_path)
    bench.ledger.trouble = "database is locked"
    with pytest.raises(LedgerUnavailable):
        bench.pump.counts([("acme", 0)])
    bench.pump.close()


def test_counts_hold_waiting_calls_but_no_failed_or_foreign_ones(tmp_path: Path) -> None:
    log = Epoch(tmp_path / "usage")
    log.append(marked([call(1)]))
    log.append([call(3), call(4, outcome=Outcome.FAILED), call(5, tenant="beta"), call(6, reason=Reason.FREE_PLAN)])
    bench = Bench(tmp_path)
    assert bench.pump.counts([("acme", T0_NS), ("acme", call(6).t_ns), ("beta", 0)]) == [3, 1, 1]
    assert bench.pump.status()["oldest_pending_age_ns"] == T0_NS + 10**12 - call(3).t_ns
    log.die()
    bench.pump.close()


def test_restart_reads_waiting_calls_again_and_posts_them_once(tmp_path: Path) -> None:
    log = Epoch(tmp_path / "usage")
    log.append([call(1), call(2), call(3), Sent(first_seq=2, last_seq=3)])
    bench = Bench(tmp_path)
    bench.pump.drain()
    again = bench.restarted()
    again.pump.drain()
    assert again.ledger.state().posted == 2
    assert again.pump.status()["pending"] == 1
    log.append([Sent(first_seq=1, last_seq=1)])
    again.pump.drain()
    state = again.ledger.state()
    assert (state.posted, state.positions[W0].seq, state.positions[W0].served) == (3, 5, 3)
    log.die()
    again.pump.close()


def test_call_of_an_unknown_price_version_waits_for_no_one_but_is_kept(tmp_path: Path) -> None:
    write_dead_epoch(tmp_path / "usage", marked([call(1)]))
    bench = Bench(tmp_path, is_priced=False)
    bench.pump.drain()
    (kept,) = bench.ledger.inner.quarantined.values()
    assert (kept.reason, kept.item[2]) == ("price_version_unknown", call(1))
    bench.pump.close()


def test_book_published_with_the_call_is_learnt_before_judging(tmp_path: Path) -> None:
    bench = Bench(tmp_path, is_priced=False)
    (tmp_path / "snapshot").write_bytes(msgspec.msgpack.encode({"version": 1, "prices": BOOK}))
    write_dead_epoch(tmp_path / "usage", marked([call(1)]))
    bench.pump.drain()
    assert bench.ledger.state().posted == 1
    assert bench.ledger.prices() == {1: BOOK}
    bench.pump.close()


@pytest.mark.parametrize(
    ("snapshot", "conflict"),
    [
        (msgspec.msgpack.encode({"prices": msgspec.structs.replace(BOOK, currency="EUR")}), "already in use"),
        (msgspec.msgpack.encode({"prices": msgspec.structs.replace(BOOK, version=-2)}), "version: -2"),
        (b"\x00damaged", "object"),
    ],
)
def test_published_book_that_cannot_be_used_is_told_and_stops_nothing(
    tmp_path: Path, snapshot: bytes, conflict: str
) -> None:
    (tmp_path / "snapshot").write_bytes(snapshot)
    write_dead_epoch(tmp_path / "usage", marked([call(1)]))
    bench = Bench(tmp_path)
    bench.pump.drain()
    status = bench.pump.status()
    assert conflict in status["price_conflict"]
    assert (status["posted"], status["price_versions"]) == (1, [1])
    bench.pump.close()


def test_damaged_log_is_told_and_others_go_on(tmp_path: Path) -> None:
    log = Epoch(tmp_path / "usage", "w1")
    log.append([call(8)])
    log.append([call(9), Sent(first_seq=1, last_seq=2)])
    (segment,) = log.folder.glob("*.seg")
    raw = bytearray(segment.read_bytes())
    raw[120] ^= 1
    segment.write_bytes(raw)
    log.die()
    write_dead_epoch(tmp_path / "usage", marked([call(1)]))
    bench = Bench(tmp_path)
    bench.pump.drain()
    (damage,) = bench.pump.status()["damaged"]
    assert damage.startswith("w1/1:1 ")
    assert bench.ledger.state().posted == 1
    assert segment.exists()
    bench.pump.close()


def test_a_pass_is_bounded_and_says_that_there_is_more(tmp_path: Path) -> None:
    calls: list[Record] = [call(n) for n in range(1, 4501)]
    write_dead_epoch(tmp_path / "usage", [*calls, Sent(first_seq=1, last_seq=4500)])
    bench = Bench(tmp_path)
    assert bench.pump.run_once()
    bench.pump.drain()
    assert bench.ledger.state().posted == 4500
    assert bench.pump.status()["lag_records"] == 0
    bench.pump.close()
