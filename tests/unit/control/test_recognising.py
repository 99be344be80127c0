"""Fees are recognised once a day by itself, and finance reads its reports over the API."""

from collections.abc import Iterator

import pytest

from billing.ledger.rules import Line
from billing.money import from_minor
from gateway.control.money import Money
from gateway.control.recognising import Recognition
from tests.unit.billing.invoices.office import DAY_NS, NS_PER_S, Office
from tests.unit.control.billing_desk import command, meter_of
from tests.unit.control.support import Desk


@pytest.fixture
def office(desk: Desk) -> Iterator[Office]:
    with meter_of(desk) as office:
        office.set_up()
        office.post_usage(10)
        office.do("subscription.start", {"tenant": "acme", "name": "Pro", "fee_minor": 28_00})
        office.bill(office.now_ns - 2 * 3_600 * NS_PER_S)
        yield office


def clock_to(desk: Desk, office: Office, now_ns: int) -> None:
    office.now_ns = now_ns
    desk.clock.step_wall(now_ns - desk.clock.wall_ns())


def test_each_day_is_recognised_once(desk: Desk, office: Office) -> None:
    recognition = Recognition(
        Money(desk.data_dir, desk.control.registry, desk.app.state.ask_meter), desk.control.registry
    )
    start_ns = office.now_ns
    assert start_ns % DAY_NS == 0
    clock_to(desk, office, start_ns + DAY_NS + 5 * NS_PER_S)
    assert [recognition.tick(), recognition.tick()] == [1, 0]
    assert office.balance("revenue:subscription") == -from_minor(1_00, "USD")
    clock_to(desk, office, start_ns + 4 * DAY_NS)
    assert recognition.tick() == 1
    assert office.balance("revenue:subscription") == -from_minor(4_00, "USD")
    office.check()


def test_the_reports_say_what_the_books_hold(desk: Desk, office: Office) -> None:
    clock_to(desk, office, office.now_ns + 60 * DAY_NS)
    found = desk.must("GET", f"/admin/billing/reports/deferred?since_ns=0&until_ns={office.now_ns}")["items"]
    assert [(row["account"], row["closing_nanos"]) for row in found] == [
        ("contract_liability:subscription:acme", from_minor(28_00, "USD"))
    ]
    (ages,) = desk.must("GET", "/admin/billing/reports/ageing")["items"]
    assert (ages["tenant"], ages["days_31_60_minor"]) == ("acme", office.state("INV-000001").due_minor)
    (row,) = desk.must("GET", "/admin/billing/reports/margin?cost_nanos_per_compute_s=1000000000")["items"]
    assert (row["group"], row["margin_nanos"]) == ({"model": "ocr"}, 15_000_000 - 25_000_000)


def test_bad_questions_are_refused(desk: Desk, office: Office) -> None:
    assert office.events()
    for path in ("deferred", "deferred?since_ns=-1&until_ns=1", "margin?cost_nanos_per_compute_s=-1", "margin"):
        assert desk.ask("GET", f"/admin/billing/reports/{path}").status_code == 422, path


def test_without_a_meter_a_round_is_quiet(desk: Desk) -> None:
    assert Recognition(Money(desk.data_dir, desk.control.registry), desk.control.registry).tick() == 0


def test_expired_prepaid_becomes_breakage_by_itself(desk: Desk, office: Office) -> None:
    recognition = Recognition(
        Money(desk.data_dir, desk.control.registry, desk.app.state.ask_meter), desk.control.registry
    )
    start_ns = office.now_ns
    clock_to(desk, office, start_ns)
    with office.ledger.journal() as journal:
        for grant, nanos in (("g1", 500), ("g2", 700), ("kept", 900)):
            account = f"contract_liability:prepaid:acme:{grant}"
            lines = [Line("cash:psp:bank", "USD", nanos, 0), Line(account, "USD", -nanos, 0)]
            journal.post("top_up", "acme", office.now_ns, lines)
    for grant, days in (("g1", 1), ("g2", 3)):
        body = {"tenant": "acme", "grant": grant, "currency": "USD", "expires_ns": start_ns + days * DAY_NS}
        desk.must(*command("prepaid.schedule", body))
    assert recognition.expire() == 0
    clock_to(desk, office, start_ns + DAY_NS)
    assert [recognition.expire(), recognition.expire()] == [1, 0]
    assert office.balance("revenue:breakage") == -500
    clock_to(desk, office, start_ns + 9 * DAY_NS)
    assert [recognition.expire(), recognition.expire()] == [1, 0]
    assert office.balance("revenue:breakage") == -1_200
    assert office.balance("contract_liability:prepaid:acme:kept") == -900
    office.check()
