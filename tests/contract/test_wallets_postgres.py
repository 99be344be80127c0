"""Wallets over PostgreSQL: tests of billing.wallets, collected here again with an office of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.ledger.postgres import open_postgres_ledger, open_postgres_reader
from tests.contract.postgres_server import PostgresServer
from tests.unit.billing.invoices.office import Office
from tests.unit.billing.wallets.test_wallets import (  # noqa: F401
    test_a_gift_is_no_cash_and_is_never_paid_back,
    test_a_message_that_fits_no_top_up_books_nothing,
    test_gifts_count_as_spent_first_and_leased_money_does_not_go_back,
    test_low_balance_is_told_once_per_crossing,
    test_money_that_came_in_is_booked_once_per_reference,
    test_orders_in_one_request_are_carried_out_in_turn,
    test_the_roll_forward_shows_what_came_in_was_used_and_went_back,
)


@pytest.fixture
def office(postgres: PostgresServer, tmp_path: Path) -> Iterator[Office]:
    url = postgres.new_database()
    opened = Office(tmp_path / "unused", open_postgres_ledger(url), open_postgres_reader(url))
    try:
        opened.set_up(provider="fake", provider_customer="c1")
        yield opened
        opened.check()
    finally:
        opened.close()
