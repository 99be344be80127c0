"""Money commands over PostgreSQL: tests of invoices, subscriptions and rated months run here on an office of its own.

What is imported is collected here again, with this module's `office`; `test_money_postgres_long` takes all of them.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.invoices.desk import Desk
from billing.invoices.verbs import all_verbs
from billing.ledger.opening import set_ledger_url
from billing.ledger.postgres import open_postgres_ledger, open_postgres_reader
from billing.pricebook import encode_price_book
from billing.reconcile import reconcile
from tests.contract.postgres_server import PostgresServer
from tests.unit.billing.invoices.office import Office
from tests.unit.billing.invoices.test_fee_coupons import (  # noqa: F401 - run here on PostgreSQL
    test_a_change_gives_both_back_and_takes_the_percentage_off_the_new_fee,
    test_a_percentage_off_a_fee_is_a_line_of_its_own_that_reduces_liability_and_tax,
    test_it_reduces_as_many_months_of_fees_as_it_has_and_no_more,
)
from tests.unit.billing.invoices.test_gathering import (  # noqa: F401
    small,
    test_a_draft_over_too_much_is_refused_until_it_is_gathered,
    test_many_events_of_others_do_not_make_a_small_tenant_gather,
)
from tests.unit.billing.invoices.test_invoices import (  # noqa: F401
    test_a_draft_is_finalized_as_it_was_shown,
    test_a_voided_invoice_keeps_its_number_and_is_billed_again,
    test_an_overpayment_can_be_given_back_and_no_more,
    test_credit_notes_have_numbers_of_their_own_and_give_all_tax_back_in_parts,
    test_payments_in_parts_pay_the_invoice_and_are_booked_once,
)
from tests.unit.billing.invoices.test_subscriptions import (  # noqa: F401
    test_each_period_is_asked_once_however_often_it_is_renewed,
    test_the_first_fee_is_asked_at_once_and_billed_as_a_liability,
)
from tests.unit.billing.making import BOOK, MeterProcess, call, marked, write_dead_epoch
from tests.unit.billing.test_settlement import (  # noqa: F401
    test_a_month_becomes_items_and_the_invoice_is_list_price_plus_items,
    test_rating_again_adds_items_over_the_differences_only,
)


@pytest.fixture
def office(postgres: PostgresServer, tmp_path: Path) -> Iterator[Office]:
    url = postgres.new_database()
    opened = Office(tmp_path / "unused", open_postgres_ledger(url), open_postgres_reader(url))
    try:
        opened.set_up()
        yield opened
        opened.check()
    finally:
        opened.close()


def test_money_tables_are_found_again_by_the_next_meter(office: Office) -> None:
    office.post_usage(1_000)
    number = office.bill()["number"]
    again = Desk(office.ledger, all_verbs(), lambda: office.now_ns)
    paid = {"invoice": number, "provider": "bank", "reference": "r", "amount_minor": 179}
    assert again.run("invoice.pay", "op-again", paid)["status"] == "paid"


@pytest.mark.parametrize(
    "failpoint", ["before_commit:1", "before_commit:2", "after_commit_before_ack", "before_segment_delete"]
)
def test_meter_on_postgresql_killed_at_a_failpoint_posts_everything_once(
    postgres: PostgresServer, tmp_path: Path, failpoint: str
) -> None:
    set_ledger_url(tmp_path, postgres.new_database())
    (tmp_path / "book.json").write_bytes(encode_price_book(BOOK))
    write_dead_epoch(tmp_path / "usage", marked([call(n) for n in range(1, 301)]))
    prices = ("--prices", str(tmp_path / "book.json"))
    with MeterProcess(tmp_path, *prices, failpoint=failpoint) as doomed:
        doomed.process.wait(30)
        assert doomed.process.returncode == -9, doomed.stderr()
    with MeterProcess(tmp_path, *prices) as meter:
        assert meter.wait_ready()
        meter.ask("flush")
        assert meter.ask("status")["posted"] == 300
        report = reconcile(tmp_path)
        assert report.problems == ()
        assert report.posted == 300
        assert meter.stop() == 0
