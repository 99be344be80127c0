"""The billing routes carry commands to the meter, audited, and show what the ledger holds."""

from collections.abc import Iterator

import pytest

from gateway.control.audit import list_audit
from tests.unit.billing.invoices.office import ACCOUNT, MONTH_END_NS, Office
from tests.unit.control.billing_desk import command, meter_of
from tests.unit.control.support import Desk


@pytest.fixture
def office(desk: Desk) -> Iterator[Office]:
    with meter_of(desk) as office:
        office.set_up()
        office.post_usage(1_000)
        yield office


def bill(desk: Desk) -> str:
    answer = desk.must(*command("invoice.bill", {"tenant": "acme", "until_ns": MONTH_END_NS}))
    return str(answer["invoice"]["number"])


def test_an_invoice_can_be_made_read_and_printed(desk: Desk, office: Office) -> None:
    number = bill(desk)
    (row,) = desk.must("GET", "/admin/billing/invoices?tenant=acme")["items"]
    assert (row["number"], row["state"]["due_minor"], row["state"]["status"]) == (number, 179, "open")
    found = desk.must("GET", f"/admin/billing/invoices/{number}")
    assert found["document"]["total_minor"] == 179
    assert [step["kind"] for step in found["steps"]] == ["finalized"]
    pdf = desk.ask("GET", f"/admin/billing/invoices/{number}/pdf")
    assert pdf.headers["content-type"] == "application/pdf"
    assert pdf.content.startswith(b"%PDF-")
    assert office.balance("unbilled_receivable:acme") == 0


def test_a_command_is_in_the_audit_trail_and_repeating_it_changes_nothing(desk: Desk, office: Office) -> None:
    body = {"tenant": "acme", "until_ns": MONTH_END_NS}
    first = desk.must(*command("invoice.bill", body, "operation-x"))
    assert desk.must(*command("invoice.bill", body, "operation-x")) == first
    rows = desk.control.registry.read(lambda tx, _: list_audit(tx, after_seq=0, limit=100))
    (row, _) = [row for row in rows if row["action"] == "billing.invoice.bill"]
    assert (row["subject"], row["after"], row["actor"]) == ("operation:operation-x", body, "local")
    assert office.events().count("invoice.finalized") == 1


def test_an_account_shows_what_its_next_invoice_will_hold(desk: Desk, office: Office) -> None:
    desk.must(*command("subscription.start", {"tenant": "acme", "name": "Pro", "fee_minor": 100}))
    draft = desk.must(*command("invoice.draft", {"tenant": "acme", "until_ns": MONTH_END_NS}))
    account = desk.must("GET", "/admin/billing/accounts/acme")
    assert account["draft"] == draft
    assert [item["kind"] for item in account["pending_items"]] == ["subscription"]
    assert [one["name"] for one in account["subscriptions"]] == ["Pro"]
    assert account["billed_until"] is None
    assert [one["tenant"] for one in desk.must("GET", "/admin/billing/accounts")["items"]] == ["acme"]
    assert desk.must("GET", "/admin/billing/seller")["party"]["name"] == "Tollway Ltd"
    assert office.balance("accounts_receivable:acme") == 0


def test_events_come_in_order_and_in_pages(desk: Desk, office: Office) -> None:
    number = bill(desk)
    desk.must(*command("invoice.void", {"document": number}))
    first = desk.must("GET", "/admin/billing/events?limit=1")
    rest = desk.must("GET", f"/admin/billing/events?after={first['next']}")
    assert [one["type"] for one in first["items"] + rest["items"]] == office.events()


@pytest.mark.parametrize(
    ("verb", "body", "status", "code"),
    [
        ("invoice.finalize", {"document": "inv_1"}, 404, "not_found"),
        ("invoice.nonsense", {}, 404, "not_found"),
        ("account.set", ACCOUNT | {"terms_days": 999}, 422, "invalid_field"),
        ("account.set", ACCOUNT | {"nonsense": 1}, 422, "invalid_field"),
        ("account.set", ACCOUNT | {"currency": "EUR"}, 422, "invalid_field"),
        ("invoice.bill", {"tenant": "acme", "until_ns": 2**62}, 409, "conflict"),
    ],
)
@pytest.mark.usefixtures("office")
def test_refusals_have_their_status(desk: Desk, verb: str, body: dict[str, object], status: int, code: str) -> None:
    answer = desk.ask(*command(verb, body))
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


@pytest.mark.usefixtures("office")
def test_what_does_not_exist_is_404(desk: Desk) -> None:
    for path in (
        "/admin/billing/invoices/INV-9",
        "/admin/billing/invoices/INV-9/pdf",
        "/admin/billing/accounts/nobody",
    ):
        assert desk.ask("GET", path).status_code == 404, path


def test_without_a_meter_it_says_so(desk: Desk) -> None:
    answer = desk.ask(*command("invoice.bill", {"tenant": "acme", "until_ns": 1}))
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "unavailable", "1")
    assert desk.ask("GET", "/admin/billing/invoices").status_code == 503


@pytest.mark.usefixtures("office")
def test_an_operation_id_is_needed_and_bounded(desk: Desk) -> None:
    for operation_id in ("", "short", "x" * 129, "with blank"):
        body = {"operation_id": operation_id, "body": {}}
        assert desk.ask("POST", "/admin/billing/commands/invoice.bill", body).status_code == 422, operation_id
