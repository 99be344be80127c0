"""One suite over every ledger with books: leases of wallets to usage logs, and what posting calls does to them."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.events import Reason
from billing.ledger.balances import available_nanos, balance_nanos, held_nanos, wallet_nanos
from billing.ledger.connect import statements
from billing.ledger.leases import CEILING_NANOS_MAX, LeaseAnswer, LeaseOrder, order_leases
from billing.ledger.port import Batch, Item, LedgerError, Position, Rejected, Source
from billing.ledger.schema import APPLICATION_ID, STEPS, append_only_sql
from billing.ledger.sqlite import OVER_LEASE, SqliteLedger, SqlLedger
from billing.ledger.transfers import Transfer, transfer
from billing.ledger.verify import verify_ledger
from billing.ledger.views import quarantined
from tests.contract.ledgers import BOOKS, open_books
from tests.unit.billing.making import BOOK, W0, call

WALLET = "contract_liability:prepaid:acme"
W1 = Source("w1", 1)
#: What a call of `ocr` costs.
CALL = 1_500_000


class Wallets:
    """One ledger with a wallet of `acme`, and the orders of its workers."""

    def __init__(self, ledger: SqlLedger, funds: int) -> None:
        self.ledger = ledger
        self._seq = 0
        ledger.prices(BOOK)
        with ledger.journal() as journal:
            transfer(journal, [Transfer("top", "acme", "single", funds, "cash:psp:bank", WALLET, "USD")], 1)

    def order(self, source: Source = W0, *, workers: int = 1, now_ns: int = 10, **fields: int | bool) -> LeaseAnswer:
        self._seq += 1
        order = LeaseOrder(source, "acme", "USD", **({"seq": self._seq, "committed": 0} | fields))  # type: ignore[arg-type]
        with self.ledger.journal() as journal:
            (answer,) = order_leases(journal, [order], workers, now_ns)
        return answer

    def post(self, *items: Item, ended: Source | None = None, **fields: object) -> None:
        positions = {} if ended is None else {ended: Position(99, len(items), is_ended=True)}
        self.ledger.post(Batch(posts=items, positions=positions, now_ns=20, **fields))  # type: ignore[arg-type]

    @property
    def figures(self) -> tuple[int, int, int]:
        """(balance, held, available), after looking whether the books hold."""
        with self.ledger.journal() as journal:
            db = journal.db
            assert -balance_nanos(db, WALLET, "USD") == wallet_nanos(db, WALLET, "USD") >= 0
            assert verify_ledger(db).problems == ()
            return (
                wallet_nanos(db, WALLET, "USD"),
                held_nanos(db, WALLET, "USD"),
                available_nanos(db, WALLET, "USD"),
            )

    def count(self, statement: str) -> int:
        with self.ledger.journal() as journal:
            return int(journal.execute(statement).fetchone()[0])

    def rooms(self) -> int:
        return self.count("SELECT COUNT(*) FROM transfer_open")


@pytest.fixture(params=BOOKS)
def wallets(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Wallets]:
    opened = open_books(request.param, tmp_path, request)
    yield Wallets(opened, 100 * CALL)
    opened.close()


def paid(number: int, source: Source = W0, **changes: object) -> Item:
    return (source, number, call(number, reason=Reason.PREPAID, **changes))


def test_calls_debit_the_wallet_and_use_the_lease_up(wallets: Wallets) -> None:
    assert wallets.order(least=CALL, need=2 * CALL) == LeaseAnswer(2 * CALL, 98 * CALL, is_short=False)
    assert wallets.figures == (100 * CALL, 2 * CALL, 98 * CALL)
    wallets.post(paid(1))
    assert wallets.figures == (99 * CALL, CALL, 98 * CALL)
    wallets.post(paid(2))
    assert wallets.figures == (98 * CALL, 0, 98 * CALL)
    assert wallets.rooms() == 0


def test_prepaid_and_other_calls_of_a_batch_go_to_their_own_accounts(wallets: Wallets) -> None:
    wallets.order(need=3 * CALL)
    wallets.post(paid(1), (W0, 2, call(2)), paid(3), (W0, 4, call(4, reason=Reason.FREE_PLAN)))
    with wallets.ledger.journal() as journal:
        assert balance_nanos(journal.db, "unbilled_receivable:acme", "USD") == CALL
        assert balance_nanos(journal.db, "revenue:model_call:ocr", "USD") == -3 * CALL
    assert wallets.figures == (98 * CALL, CALL, 97 * CALL)


def test_spare_money_is_a_share_and_need_is_not(wallets: Wallets) -> None:
    assert wallets.order(need=10 * CALL, spare=10**15, workers=3).ceiling == 10 * CALL + 90 * CALL // 6
    assert wallets.order(W1, need=75 * CALL, workers=3) == LeaseAnswer(75 * CALL, 0, is_short=False)


def test_what_is_there_is_given_if_it_serves_a_call(wallets: Wallets) -> None:
    assert wallets.order(least=60 * CALL, need=120 * CALL) == LeaseAnswer(100 * CALL, 0, is_short=True)
    assert wallets.order(W1, least=CALL, need=CALL) == LeaseAnswer(0, 0, is_short=True)
    assert wallets.rooms() == 1


def test_too_little_for_any_call_is_left_to_others(wallets: Wallets) -> None:
    assert wallets.order(least=101 * CALL, need=202 * CALL) == LeaseAnswer(0, 100 * CALL, is_short=True)
    assert wallets.order(W1, least=CALL, need=CALL).ceiling == CALL


def test_a_return_gives_back_what_no_call_may_cost(wallets: Wallets) -> None:
    wallets.order(need=50 * CALL)
    wallets.post(paid(1))
    assert wallets.order(committed=3 * CALL, is_return=True).ceiling == 3 * CALL
    assert wallets.figures == (99 * CALL, 2 * CALL, 97 * CALL)
    wallets.post(paid(2), paid(3))
    assert wallets.figures == (97 * CALL, 0, 97 * CALL)
    assert wallets.order(committed=3 * CALL, is_return=True).ceiling == 3 * CALL


def test_an_order_that_comes_late_or_twice_changes_nothing(wallets: Wallets) -> None:
    wallets.order(need=10 * CALL, seq=7)
    assert wallets.order(committed=CALL, is_return=True, seq=6).ceiling == 10 * CALL
    assert wallets.order(need=20 * CALL, seq=7).ceiling == 10 * CALL
    assert wallets.figures == (100 * CALL, 10 * CALL, 90 * CALL)


def test_every_pending_transfer_ends_exactly_once(wallets: Wallets) -> None:
    for number in range(1, 6):
        wallets.order(need=10 * number * CALL)
        wallets.order(committed=number * CALL, is_return=True)
        wallets.post(paid(number))
    begun = wallets.count("SELECT COUNT(*) FROM transfer WHERE phase = 'pending'")
    ended = wallets.count("SELECT COUNT(*) FROM transfer WHERE phase IN ('post', 'void')")
    assert begun == ended > 5
    assert wallets.rooms() == 0


def test_a_lease_is_freed_when_its_log_is_over_and_not_before(wallets: Wallets) -> None:
    wallets.order(need=40 * CALL, now_ns=10)
    assert wallets.order(W1, need=70 * CALL, now_ns=10**18).is_short
    wallets.post(paid(1), ended=W0)
    assert wallets.figures == (99 * CALL, 60 * CALL, 39 * CALL)
    assert wallets.count("SELECT COUNT(*) FROM fund_lease") == 1


def test_an_order_of_a_log_that_is_over_gets_nothing(wallets: Wallets) -> None:
    wallets.order(need=CALL)
    wallets.post(ended=W0)
    assert wallets.order(need=CALL) == LeaseAnswer(0, 100 * CALL, is_short=True)
    assert wallets.figures == (100 * CALL, 0, 100 * CALL)


def test_voided_and_quarantined_calls_are_not_held_any_more(wallets: Wallets) -> None:
    wallets.order(need=10 * CALL)
    wallets.post(voids=[paid(1)], rejected=[Rejected(paid(2), "malformed", "rows")])
    wallets.post(voids=[paid(1)], rejected=[Rejected(paid(2), "malformed", "rows")])
    assert wallets.figures == (100 * CALL, 8 * CALL, 92 * CALL)


def test_a_call_recorded_twice_is_paid_once_and_held_by_neither(wallets: Wallets) -> None:
    wallets.order(need=CALL)
    wallets.order(W1, need=CALL)
    for _ in range(2):
        wallets.post(paid(1), paid(1, W1))
        assert wallets.figures == (99 * CALL, 0, 99 * CALL)


def test_a_batch_sent_again_uses_nothing_twice(wallets: Wallets) -> None:
    wallets.order(need=10 * CALL)
    wallets.post(paid(1), paid(2))
    wallets.post(paid(1), paid(2), paid(3))
    assert wallets.figures == (97 * CALL, 7 * CALL, 90 * CALL)


def test_calls_beyond_the_lease_wait_in_quarantine(wallets: Wallets) -> None:
    wallets.order(need=2 * CALL)
    wallets.post(*(paid(number) for number in range(1, 5)), (W0, 9, call(9)))
    assert wallets.figures == (98 * CALL, 0, 98 * CALL)
    with wallets.ledger.journal() as journal:
        found = quarantined(journal.db)
        assert [(one.seq, one.reason, one.field) for one in found] == [
            (3, OVER_LEASE, "charge_nanos"),
            (4, OVER_LEASE, "charge_nanos"),
        ]
        assert balance_nanos(journal.db, "unbilled_receivable:acme", "USD") == CALL


def test_calls_of_a_log_without_a_lease_wait_in_quarantine(wallets: Wallets) -> None:
    wallets.post(paid(1), (W0, 2, call(2)))
    assert wallets.figures == (100 * CALL, 0, 100 * CALL)
    assert (wallets.ledger.state().quarantined, wallets.ledger.state().posted) == (1, 1)


def test_held_money_cannot_be_moved(wallets: Wallets) -> None:
    wallets.order(need=60 * CALL)
    wallets.post(paid(1))
    back = Transfer("back", "acme", "single", 41 * CALL, WALLET, "cash:psp:bank", "USD")
    with wallets.ledger.journal() as journal:
        assert transfer(journal, [back], 9)[0].outcome.name == "WOULD_OVERDRAW"
        assert transfer(journal, [back._replace(amount_nanos=40 * CALL)], 9)[0].outcome.name == "POSTED"
    assert wallets.figures == (59 * CALL, 59 * CALL, 0)


@pytest.mark.parametrize(
    "fields",
    [{"committed": -1}, {"need": -1}, {"spare": -1}, {"least": 2, "need": 1}, {"need": CEILING_NANOS_MAX + 1}],
)
def test_impossible_orders_are_refused(wallets: Wallets, fields: dict[str, int]) -> None:
    with pytest.raises(LedgerError, match="is not possible"):
        wallets.order(W0, **fields)


def test_a_ledger_of_the_release_before_gets_its_balances(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    for _, script, tables in STEPS[:2]:
        for statement in statements(script + "".join(append_only_sql(table) for table in tables)):
            db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute("PRAGMA user_version = 2")
    db.execute("INSERT INTO tenant VALUES (1, 'acme')")
    db.execute("INSERT INTO account VALUES (1, 'cash:psp:bank', 'USD'), (2, ?, 'USD')", (WALLET,))
    db.execute("INSERT INTO journal_tx VALUES (1, 'transfer', 1, 5, 0, 0, 0, 0, 0, 0, x'')")
    db.execute("INSERT INTO entry VALUES (1, 0, 1, 2500000001, 0), (1, 1, 2, -2500000001, 0)")
    db.execute("INSERT INTO seal VALUES (1, x'00')")
    db.close()
    ledger = SqliteLedger(tmp_path / "ledger.db")
    with ledger.journal() as journal:
        assert wallet_nanos(journal.db, WALLET, "USD") == 2_500_000_001
    ledger.close()
