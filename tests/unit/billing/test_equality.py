"""I30: usage, invoices and ledger say the same whatever was done, and a forged figure is found."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.equality import compare_all
from tests.unit.billing.invoices.office import DAY_NS, MONTH_END_NS, Office, open_office


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with open_office(tmp_path) as opened:
        opened.set_up()
        yield opened


def test_nothing_differs_through_usage_invoices_late_calls_voids_and_credits(office: Office) -> None:
    office.post_usage(700, tenant="beta")
    for step in range(6):
        office.post_usage(100 + step, model="ocr" if step % 2 else "file_type")
        if step == 1:
            office.bill()
        elif step == 2:
            office.do("invoice.void", {"document": "INV-000001"})
        elif step == 3:
            office.now_ns += 31 * DAY_NS
            office.bill(MONTH_END_NS + 20 * DAY_NS)
        elif step == 4:
            office.do("invoice.credit", {"invoice": "INV-000002", "amount_minor": 1, "reason": "r"})
        report = compare_all(office.reader)
        assert (report.tenants, report.differences) == (2, ())


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE usage_event SET charge_nanos = charge_nanos + 1 WHERE event_id = 7", "usage and ledger"),
        ("UPDATE usage_event SET charge_nanos = charge_nanos + 1 WHERE event_id = 7", "usage and invoices"),
        (
            "UPDATE entry SET amount_nanos = amount_nanos + 1 WHERE tx_id = 2 AND account_id ="
            " (SELECT account_id FROM account WHERE name = 'unbilled_receivable:acme')",
            "invoices and ledger",
        ),
        # A document that says void while its entries were never mirrored.
        (
            "INSERT INTO invoice_step SELECT document_id, 2, 'void', 1, 0, tx_id, '', '' FROM invoice_step LIMIT 1",
            "invoices and ledger",
        ),
    ],
)
def test_a_forged_figure_is_found(tmp_path: Path, statement: str, what: str) -> None:
    office = Office(tmp_path / "ledger.db")
    try:
        office.set_up()
        office.post_usage(1_000)
        office.bill()
        with office.ledger.journal() as journal:
            for table in ("usage_event", "entry"):
                journal.execute(f"DROP TRIGGER {table}_no_update")
            journal.execute(statement)
        found = [difference.what for difference in compare_all(office.reader).differences]
        assert what in found
    finally:
        office.close()
