"""One suite over every ledger with books: the chart, two-phase transfers, linked groups, closed periods."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.invoices.assemble import InvoiceError
from billing.invoices.desk import Desk
from billing.invoices.verbs import all_verbs
from billing.ledger.balances import available_nanos, balance_nanos, held_nanos
from billing.ledger.periods import broken_periods, close_period, open_since_ns, periods, turnover
from billing.ledger.port import Batch, LedgerError
from billing.ledger.rules import Line
from billing.ledger.sqlite import SqlLedger
from billing.ledger.transfers import (
    AMOUNT_NANOS_MAX,
    ID_MAX,
    TRANSFERS_MAX,
    Transfer,
    TransferOutcome,
    TransferResult,
    expired,
    transfer,
)
from billing.ledger.views import trial_balance
from billing.receipts.keys import open_signer, public_keys
from billing.receipts.prover import make_receipt
from billing.receipts.receipt import verify_receipt
from tests.contract.ledgers import BOOKS, open_books
from tests.unit.billing.making import call, items

CASH, WALLET, REVENUE = "cash:psp:bank", "contract_liability:prepaid:acme", "revenue:model_call:ocr"
To = TransferOutcome


@pytest.fixture(params=BOOKS)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlLedger]:
    opened = open_books(request.param, tmp_path, request)
    yield opened
    opened.close()


def run(ledger: SqlLedger, *orders: Transfer, now_ns: int = 10) -> list[TransferResult]:
    with ledger.journal() as journal:
        return transfer(journal, orders, now_ns)


def outcomes(ledger: SqlLedger, *orders: Transfer, now_ns: int = 10) -> list[TransferOutcome]:
    return [result.outcome for result in run(ledger, *orders, now_ns=now_ns)]


def top_up(amount: int, name: str = "top") -> Transfer:
    return Transfer(name, "acme", "single", amount, CASH, WALLET, "USD")


def hold(amount: int, name: str = "hold", expires_ns: int = 0) -> Transfer:
    return Transfer(name, "acme", "pending", amount, WALLET, REVENUE, "USD", expires_ns=expires_ns)


def available(ledger: SqlLedger) -> int:
    with ledger.journal() as journal:
        return available_nanos(journal.db, WALLET, "USD")


def test_pending_holds_post_books_and_gives_back_the_rest(ledger: SqlLedger) -> None:
    assert outcomes(ledger, top_up(100), hold(60)) == [To.POSTED, To.POSTED]
    assert available(ledger) == 40
    assert outcomes(ledger, Transfer("end", "acme", "post", 25, pending_id="hold")) == [To.POSTED]
    assert available(ledger) == 75
    with ledger.journal() as journal:
        assert balance_nanos(journal.db, REVENUE, "USD") == -25
        assert held_nanos(journal.db, WALLET, "USD") == 0
        assert trial_balance(journal.db).is_balanced


def test_void_gives_all_back_and_books_nothing(ledger: SqlLedger) -> None:
    run(ledger, top_up(100), hold(60))
    before = ledger.state().transactions
    assert outcomes(ledger, Transfer("end", "acme", "void", 0, pending_id="hold")) == [To.POSTED]
    assert (available(ledger), ledger.state().transactions) == (100, before)


@pytest.mark.parametrize("first", ["post", "void"])
@pytest.mark.parametrize("second", ["post", "void"])
def test_pending_ends_exactly_once(ledger: SqlLedger, first: str, second: str) -> None:
    run(ledger, top_up(100), hold(60))
    ends = [Transfer(f"e{n}", "acme", phase, 0, pending_id="hold") for n, phase in enumerate((first, second))]  # type: ignore[arg-type]
    assert outcomes(ledger, *ends) == [To.POSTED, To.PENDING_ENDED]


@pytest.mark.parametrize(
    ("order", "outcome", "field"),
    [
        (top_up(0), To.FIELD_INVALID, "amount_nanos"),
        (top_up(-1), To.FIELD_INVALID, "amount_nanos"),
        (top_up(5, ""), To.FIELD_INVALID, "transfer_id"),
        (top_up(5)._replace(currency=""), To.FIELD_INVALID, "currency"),
        (top_up(5)._replace(expires_ns=4), To.FIELD_INVALID, "expires_ns"),
        (Transfer("e", "acme", "post", 0), To.FIELD_INVALID, "pending_id"),
        (Transfer("e", "acme", "void", 1, pending_id="held"), To.FIELD_INVALID, "amount_nanos"),
        (Transfer("e", "acme", "post", 1, debit=CASH, pending_id="held"), To.FIELD_INVALID, "account"),
        (top_up(5)._replace(debit="petty_cash"), To.ACCOUNT_UNKNOWN, "debit"),
        (top_up(5)._replace(credit="revenue:"), To.ACCOUNT_UNKNOWN, "credit"),
        (top_up(5)._replace(credit=CASH), To.SAME_ACCOUNT, ""),
        (top_up(99, "known"), To.EXISTS_WITH_DIFFERENT, "amount_nanos"),
        (top_up(100, "known")._replace(tenant="beta"), To.EXISTS_WITH_DIFFERENT, "tenant"),
        (top_up(100, "known"), To.EXISTS, ""),
        (Transfer("e", "acme", "post", 1, pending_id="nobody"), To.PENDING_NOT_FOUND, ""),
        (Transfer("e", "acme", "post", 1, pending_id="known"), To.PENDING_NOT_FOUND, ""),
        (Transfer("e", "acme", "post", 61, pending_id="held"), To.EXCEEDS_PENDING, ""),
        (hold(41), To.WOULD_OVERDRAW, ""),
        (hold(40)._replace(debit="contract_liability:prepaid:beta"), To.WOULD_OVERDRAW, ""),
        (hold(40), To.POSTED, ""),
    ],
)  # fmt: skip
def test_refusals_say_why_and_change_nothing(
    ledger: SqlLedger, order: Transfer, outcome: TransferOutcome, field: str
) -> None:
    run(ledger, top_up(100, "known"), hold(60, "held"))
    before = ledger.state()
    (result,) = run(ledger, order)
    assert (result.outcome, result.field) == (outcome, field)
    if outcome is not To.POSTED:
        assert (available(ledger), ledger.state()) == (40, before)


def test_linked_transfers_happen_whole_or_not_at_all(ledger: SqlLedger) -> None:
    group = [top_up(100)._replace(is_linked=True), hold(60)._replace(is_linked=True), hold(60, "over")]
    assert outcomes(ledger, *group, top_up(5, "alone")) == [
        To.LINKED_FAILED,
        To.LINKED_FAILED,
        To.WOULD_OVERDRAW,
        To.POSTED,
    ]
    assert available(ledger) == 5
    group[2] = hold(40, "fits")
    assert outcomes(ledger, *group) == [To.POSTED] * 3
    assert outcomes(ledger, *group) == [To.EXISTS] * 3
    assert outcomes(ledger, group[0]) == [To.LINK_OPEN]


def test_expired_are_those_past_their_time_that_nothing_ended(ledger: SqlLedger) -> None:
    run(ledger, top_up(100), hold(10, "a", expires_ns=50), hold(10, "b", expires_ns=60), hold(10, "c"))
    run(ledger, Transfer("end", "acme", "void", 0, pending_id="a"))
    with ledger.journal() as journal:
        assert [one.transfer_id for one in expired(journal, 59)] == []
        assert [one.transfer_id for one in expired(journal, 60)] == ["b"]


def test_account_outside_the_chart_takes_no_entry(ledger: SqlLedger) -> None:
    with pytest.raises(LedgerError, match="chart"), ledger.journal() as journal:
        journal.post("x", "acme", 5, [Line("slush_fund", "USD", 1, 0), Line(CASH, "USD", -1, 0)])
    assert ledger.state().transactions == 0


def test_closed_period_takes_no_entry_and_late_calls_post_to_the_open_one(ledger: SqlLedger) -> None:
    ledger.post(Batch(posts=items([1, 2]), now_ns=500))
    with ledger.journal() as journal:
        closed = close_period(journal, 1_000, 1_000)
    assert closed.start_ns == 0
    ledger.post(Batch(posts=items([3]), now_ns=700))
    run(ledger, top_up(7), now_ns=999)
    with ledger.journal() as journal:
        posted = [row[0] for row in journal.execute("SELECT posted_ns FROM journal_tx ORDER BY tx_id")]
        assert posted == [500, 1_000, 1_000]
        assert open_since_ns(journal.db) == 1_000
        assert sum(one.calls for one in turnover(journal.db, 0, 1_000)) == 4
        assert broken_periods(journal.db) == []


@pytest.mark.parametrize(
    ("end_ns", "is_fine"), [(1_000, False), (999, False), (1_001, True), (2_000, True), (2_001, False)]
)
def test_periods_follow_each_other_up_to_now(ledger: SqlLedger, end_ns: int, is_fine: bool) -> None:
    with ledger.journal() as journal:
        close_period(journal, 1_000, 1_500)
    if is_fine:
        with ledger.journal() as journal:
            close_period(journal, end_ns, 2_000)
            assert [(one.start_ns, one.end_ns) for one in periods(journal.db)] == [(0, 1_000), (1_000, end_ns)]
    else:
        with pytest.raises(LedgerError, match="end_ns"), ledger.journal() as journal:
            close_period(journal, end_ns, 2_000)


def test_balance_is_snapshot_plus_tail_is_the_sum_of_all_entries(ledger: SqlLedger) -> None:
    chance = random.Random(20261124)
    now_ns = 1_000
    for number in range(60):
        now_ns += chance.randrange(1, 90)
        name = f"t{number}"
        if chance.random() < 0.2:
            with ledger.journal() as journal:
                if now_ns > open_since_ns(journal.db):
                    close_period(journal, now_ns, now_ns)
        elif chance.random() < 0.5:
            run(ledger, top_up(chance.randrange(1, 4 * 10**18), name), now_ns=now_ns)
        else:
            run(ledger, hold(chance.randrange(1, 10**18), name), now_ns=now_ns)
            run(ledger, Transfer(f"e{number}", "acme", "post", 1, pending_id=name), now_ns=now_ns)
        with ledger.journal() as journal:
            lines = {(line.account, line.currency): line.balance_nanos for line in trial_balance(journal.db).lines}
            assert {key: balance_nanos(journal.db, *key) for key in lines} == lines
            assert available_nanos(journal.db, WALLET, "USD") >= 0
            assert broken_periods(journal.db) == []


def test_a_command_takes_so_many_transfers_and_no_more(ledger: SqlLedger) -> None:
    empty = top_up(0)
    assert len(run(ledger, *[empty] * TRANSFERS_MAX)) == TRANSFERS_MAX
    with pytest.raises(ValueError, match="1001 transfers are more than 1000"):
        run(ledger, *[empty] * (TRANSFERS_MAX + 1))


@pytest.mark.parametrize(
    ("order", "outcome"),
    [
        (top_up(AMOUNT_NANOS_MAX), To.POSTED),
        (top_up(AMOUNT_NANOS_MAX + 1), To.FIELD_INVALID),
        (top_up(1, "x" * ID_MAX), To.POSTED),
        (top_up(1, "x" * (ID_MAX + 1)), To.FIELD_INVALID),
    ],
)
def test_amounts_and_ids_go_up_to_their_limits(ledger: SqlLedger, order: Transfer, outcome: TransferOutcome) -> None:
    assert outcomes(ledger, order) == [outcome]


def test_commands_close_a_period_and_transfer_once_however_often_they_are_repeated(ledger: SqlLedger) -> None:
    desk = Desk(ledger, all_verbs(), lambda: 5_000)
    order = {
        "transfer_id": "t",
        "tenant": "acme",
        "phase": "single",
        "amount_nanos": 5,
        "debit": CASH,
        "credit": WALLET,
    }
    body = {"transfers": [order | {"currency": "USD"}, order | {"transfer_id": "u"}]}
    answer = desk.run("ledger.transfer", "op-1", body)
    assert [one["outcome"] for one in answer] == ["posted", "field_invalid"]
    assert desk.run("ledger.transfer", "op-1", body) == answer
    closed = desk.run("period.close", "op-2", {"end_ns": 5_000})
    assert desk.run("period.close", "op-2", {"end_ns": 5_000}) == closed
    for verb, wrong in (
        ("period.close", {"end_ns": 4_000}),
        ("period.close", {"end_ns": 5_001}),
        ("period.close", {"end_ns": "x"}),
        ("ledger.transfer", {"transfers": []}),
        ("ledger.transfer", {"transfers": [{}]}),
    ):
        with pytest.raises(InvoiceError):
            desk.run(verb, f"op-{wrong}", wrong)
    assert available(ledger) == 5


def test_calls_on_either_database_have_receipts_that_hold(ledger: SqlLedger, tmp_path: Path) -> None:
    ledger.post(Batch(posts=items(range(1, 40)), now_ns=5))
    with ledger.journal() as journal:
        receipt = make_receipt(journal.db, "acme", call(33).call_id, open_signer(tmp_path), 9)
    assert receipt is not None
    assert verify_receipt(receipt, public_keys(tmp_path)) == call(33)
