"""I16, I31, I32, by hand (`make test-long`): 64 writers for ten minutes; a million calls, flat in memory, rated again.

`TOLLWAY_SOAK_S` sets how long the writers write.
"""

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from billing.ledger.connect import open_reader
from billing.ledger.port import Batch, LedgerUnavailable
from billing.ledger.postgres import open_postgres_ledger, open_postgres_reader
from billing.ledger.sqlite import SqlLedger
from billing.ledger.transfers import Transfer, TransferOutcome, transfer
from billing.ledger.verify import verify_ledger
from billing.ledger.views import balance_of
from billing.rating import Price, PriceBook, compile_book
from billing.rerate import rerate
from loadtests.billing.posting import run_posting
from tests.contract.postgres_server import PostgresServer
from tests.perf.meter import measure_pump
from tests.unit.billing.making import BOOK, W0, call

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
WRITERS = 64
#: Every event is offered by two writers; accounts are touched in the order that chance gives.
TENANTS = [f"tenant-{number}" for number in range(16)]
FUNDED = 10_000
CALLS_A_TURN = 40


class Soak:
    """What all writers share: the turn that is next, what came of transfers, what went wrong."""

    def __init__(self, url: str, until_s: float) -> None:
        self.url = url
        self.until_s = until_s
        self.failures: list[BaseException] = []
        self.retries = 0
        self.turns = [0] * WRITERS
        self.taken = dict.fromkeys(TENANTS, 0)
        self.lock = threading.Lock()

    def write(self, writer: int) -> None:
        chance, ledger = random.Random(writer), open_postgres_ledger(self.url)
        try:
            while time.monotonic() < self.until_s:
                self.turn(ledger, writer, chance)
                self.turns[writer] += 1
        except BaseException as error:
            self.failures.append(error)
            raise
        finally:
            ledger.close()

    def turn(self, ledger: SqlLedger, writer: int, chance: random.Random) -> None:
        # Writers 2n and 2n+1 offer the same events.
        first = 1 + CALLS_A_TURN * (self.turns[writer] * (WRITERS // 2) + writer // 2)
        numbers = list(range(first, first + CALLS_A_TURN))
        chance.shuffle(numbers)
        posts = [(W0, n, call(n, tenant=TENANTS[n % len(TENANTS)])) for n in numbers]
        self.again(lambda: ledger.post(Batch(posts=posts, now_ns=9)))
        orders = [
            Transfer(
                f"{writer}.{self.turns[writer]}.{tenant}",
                tenant,
                "single",
                1,
                wallet_of(tenant),
                "revenue:breakage",
                "USD",
            )
            for tenant in chance.sample(TENANTS, 4)
        ]
        self.again(lambda: self._pay(ledger, orders))

    def _pay(self, ledger: SqlLedger, orders: list[Transfer]) -> None:
        with ledger.journal() as journal:
            results = transfer(journal, orders, 9)
        with self.lock:
            for order, result in zip(orders, results, strict=True):
                # A repeat after a lost answer finds it done: counted once, when it is known to be.
                if result.outcome in {TransferOutcome.POSTED, TransferOutcome.EXISTS}:
                    self.taken[order.tenant] += 1
                else:
                    assert result.outcome == TransferOutcome.WOULD_OVERDRAW, result

    def again(self, work: Callable[[], object]) -> None:
        """Repeat what another writer's turn took too long for: it must lose nothing."""
        while True:
            try:
                work()
                return
            except LedgerUnavailable:
                with self.lock:
                    self.retries += 1


def wallet_of(tenant: str) -> str:
    return f"contract_liability:prepaid:{tenant}"


def test_64_writers_with_shuffled_accounts_deadlock_never_and_lose_nothing(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    ledger = open_postgres_ledger(url)
    ledger.prices(BOOK)
    with ledger.journal() as journal:
        funds = [Transfer(f"fund.{t}", t, "single", FUNDED, "cash:psp:x", wallet_of(t), "USD") for t in TENANTS]
        transfer(journal, funds, 7)
    seconds = float(os.environ.get("TOLLWAY_SOAK_S", "600"))
    soak = Soak(url, time.monotonic() + seconds)
    threads = [threading.Thread(target=soak.write, args=(writer,)) for writer in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 300)
    assert soak.failures == []
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    offered = sum(max(soak.turns[at : at + 2]) for at in range(0, WRITERS, 2)) * CALLS_A_TURN
    posted = ledger.state().posted
    print(f"{seconds:.0f} s: {sum(soak.turns)} turns, {posted} calls, {sum(soak.taken.values())} payments, "
          f"{soak.retries} repeats")  # fmt: skip
    assert posted == offered
    reader = open_postgres_reader(url)
    assert verify_ledger(reader).problems == ()
    assert {t: -balance_of(reader, wallet_of(t), "USD") for t in TENANTS} == {
        t: FUNDED - soak.taken[t] for t in TENANTS
    }
    reader.close()
    ledger.close()


def test_a_million_calls_leave_memory_flat_and_the_ledger_small(tmp_path: Path) -> None:
    figures = run_posting(ROOT, tmp_path, "sqlite", 1_000_000)
    print(f"a million calls: resident {figures['resident_growth_kib']:.0f} KiB more after the first fifth, "
          f"{figures['ledger_bytes_per_call']:.0f} ledger bytes a call")  # fmt: skip
    assert figures["calls"] >= 1_000_000
    assert figures["resident_growth_kib"] < 8 * 1024
    assert figures["ledger_bytes_per_call"] < 300


def test_a_million_calls_rated_again_by_their_pinned_version_do_not_differ(tmp_path: Path) -> None:
    """I16: byte for byte the same run twice, and no nano between what was posted and what the pinned book says."""
    measure_pump("sqlite", tmp_path, calls=1_000_000, pass_calls=4_000)
    reader = open_reader(tmp_path / "ledger.db")
    try:
        raters = {BOOK.version: compile_book(BOOK)}
        begun_s = time.monotonic()
        first, second = (rerate(reader, raters, since_ns=0, until_ns=2**63 - 1) for _ in range(2))
        print(f"a million calls rated again twice in {time.monotonic() - begun_s:.0f} s, digest {first.digest[:16]}")
        assert msgspec.json.encode(first) == msgspec.json.encode(second)
        assert sum(line.calls for line in first.lines) >= 1_000_000
        assert [line for line in first.lines if line.difference_nanos] == []
        posted = {line.tenant: 0 for line in first.lines}
        for line in first.lines:
            posted[line.tenant] += line.posted_nanos
        # The journal says the same as the calls do.
        assert {t: balance_of(reader, f"unbilled_receivable:{t}", "USD") for t in posted} == posted
        # Another book does differ, so the comparison can fail.
        dearer = compile_book(PriceBook(version=2, currency="USD", default=Price(per_call_nanos=1)))
        other = rerate(reader, raters | {2: dearer}, since_ns=0, until_ns=2**63 - 1, against=2)
        assert all(line.difference_nanos for line in other.lines)
    finally:
        reader.close()
