"""I31, short: many writers with shuffled accounts lose nothing and deadlock never, and without their turns they would.

Planted, "unsorted locks": accounts are touched in the order that chance gives, so it is the one lock that every writer
takes first which keeps them apart (`billing/ledger/postgres_db.py`). Taken away, the same run turns red. Ten minutes of
it: test_soak_long.
"""

import random
import threading
import time

import psycopg
import pytest

from billing.ledger.port import LedgerError, LedgerUnavailable
from billing.ledger.postgres import open_postgres_ledger, open_postgres_reader
from billing.ledger.postgres_db import PgDatabase
from billing.ledger.transfers import Transfer, transfer
from billing.ledger.verify import verify_ledger
from tests.contract.postgres_server import PostgresServer
from tests.contract.test_soak_long import CALLS_A_TURN, FUNDED, TENANTS, Soak, wallet_of
from tests.unit.billing.making import BOOK

WRITERS = 8
TURNS = 3


def run(postgres: PostgresServer) -> list[str]:
    """`TURNS` turns of each writer; what went wrong."""
    url = postgres.new_database()
    ledger = open_postgres_ledger(url)
    ledger.prices(BOOK)
    with ledger.journal() as journal:
        funds = [Transfer(f"fund.{t}", t, "single", FUNDED, "cash:psp:x", wallet_of(t), "USD") for t in TENANTS]
        transfer(journal, funds, 7)
    soak, failures = Soak(url, time.monotonic() + 240), list[str]()

    def write(writer: int) -> None:
        chance, own = random.Random(writer), open_postgres_ledger(url)
        try:
            for _ in range(TURNS):
                soak.turn(own, writer, chance)
                soak.turns[writer] += 1
        except (AssertionError, LedgerError, psycopg.Error) as error:
            failures.append(f"{type(error).__name__}: {error}")
        finally:
            own.close()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(250)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    reader = open_postgres_reader(url)
    failures += [f"{problem.kind}: {problem.detail}" for problem in verify_ledger(reader).problems]
    posted = ledger.state().posted
    if posted != TURNS * CALLS_A_TURN * WRITERS // 2:
        failures.append(f"{posted} calls were posted")
    reader.close()
    ledger.close()
    return failures


def test_writers_with_shuffled_accounts_take_turns_and_lose_nothing(postgres: PostgresServer) -> None:
    assert run(postgres) == []


def test_without_their_turns_the_same_run_turns_red(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(self: PgDatabase) -> object:
        connection = self._open()
        cursor = connection.execute("BEGIN")
        self._is_begun = True
        return cursor

    def give_up(self: Soak, work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except LedgerUnavailable as error:
            # A deadlock that the database resolved, by the loss of a transaction.
            raise LedgerError(str(error)) from error

    monkeypatch.setattr(PgDatabase, "_begin", begin)
    monkeypatch.setattr(Soak, "again", give_up)
    assert run(postgres) != []
