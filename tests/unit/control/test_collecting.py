"""Billing by itself: periods are billed, what is due is collected once whatever fails, and dunning suspends."""

from collections.abc import Iterator
from typing import Any

import pytest

from billing.payments.fake import FakeProvider
from gateway.control.billing_clock import BillingClock
from gateway.control.collector import Collector
from gateway.control.money import Money
from tests.unit.billing.invoices.office import ACCOUNT, DAY_NS, MONTH_END_NS, SELLER, Office
from tests.unit.control.billing_desk import command, meter_of
from tests.unit.control.support import Desk

TOTAL = 179


class Till:
    """A desk, its office and a fake provider under one clock."""

    def __init__(self, desk: Desk, office: Office) -> None:
        self.desk = desk
        self.office = office
        self.provider = FakeProvider()
        money = Money(desk.data_dir, desk.control.registry, desk.app.state.ask_meter)
        self.collector = Collector(money, desk.control.registry, {"fake": self.provider})
        self.clock = BillingClock(money, desk.control.registry, {"fake": self.provider})
        desk.app.state.providers = {"stripe": self.provider}

    def go_to(self, day: int) -> None:
        """That many days behind the due date of the January invoice."""
        self.office.now_ns = self.due_ns + day * DAY_NS

    def round(self) -> int:
        return self.collector.run_once(self.office.now_ns)

    @property
    def due_ns(self) -> int:
        return self.office.document("INV-000001").due_ns

    @property
    def is_suspended(self) -> bool:
        return self.desk.tenant("acme").is_suspended

    def status(self) -> str:
        return self.office.state("INV-000001").status

    def tell(self, kind: str, **more: Any) -> Any:
        body, headers = self.provider.message(kind, self.provider.asked[-1], **more)
        return self.desk.ask_tcp("POST", "/psp/stripe", content=body, headers=headers)


@pytest.fixture
def till(desk: Desk) -> Iterator[Till]:
    desk.new_tenant()
    with meter_of(desk) as office:
        office.do("seller.set", SELLER)
        office.do("account.set", ACCOUNT | {"collection": "automatic", "provider": "fake", "provider_customer": "c1"})
        office.post_usage(1_000)
        office.bill()
        yield Till(desk, office)
        office.check()
    desk.app.state.providers = {}


def test_what_is_due_is_collected_and_booked(till: Till) -> None:
    till.go_to(-1)
    assert till.round() == 0
    till.go_to(0)
    till.round()
    assert till.status() == "paid"
    assert till.provider.moved == {f"{till.office.document('INV-000001').document_id}-001": TOTAL}
    assert till.round() == 0


@pytest.mark.parametrize("fault", ["timeout_before", "timeout_after"])
def test_a_time_out_is_asked_again_with_the_same_key_and_charged_once(till: Till, fault: str) -> None:
    till.provider.faults.append(fault)
    till.go_to(0)
    till.round()
    assert till.status() == "open"
    till.round()
    assert till.status() == "paid"
    assert len(till.provider.moved) == 1
    assert till.provider.asked[0] == till.provider.asked[1]


def test_an_attempt_that_is_days_old_is_looked_up_before_it_is_asked_again(till: Till) -> None:
    """The money moved, nobody was told, and the provider has forgotten the key by the time that we are back."""
    till.provider.faults.append("timeout_after")
    till.go_to(0)
    till.round()
    # Asked again in the same hour, and again cut off: the answer to `payment.begin` is a stored one from here on.
    till.provider.is_down = True
    till.round()
    till.round()
    till.provider.is_down = False
    till.provider.forget()
    till.go_to(2)
    till.round()
    assert till.status() == "paid"
    assert list(till.provider.moved.values()) == [TOTAL]


def test_an_old_attempt_that_never_arrived_is_asked_again(till: Till) -> None:
    till.provider.faults.append("timeout_before")
    till.go_to(0)
    till.round()
    till.go_to(2)
    till.round()
    assert till.status() == "paid"
    assert list(till.provider.moved.values()) == [TOTAL]


def test_a_decline_waits_for_the_next_retry_day(till: Till) -> None:
    till.provider.faults.append("declined")
    till.go_to(0)
    till.round()
    till.round()
    assert len(till.provider.asked) == 1
    assert "payment.failed" in till.office.events()
    till.go_to(3)
    till.round()
    assert till.status() == "paid"
    assert len({charge.key for charge in till.provider.asked}) == 2


def test_a_card_that_is_stolen_is_not_tried_again(till: Till) -> None:
    till.provider.faults.append("stolen")
    for day in (0, 3, 7, 14):
        till.go_to(day)
        till.round()
    assert len(till.provider.asked) == 1


def test_a_part_is_booked_and_the_rest_collected_later(till: Till) -> None:
    till.provider.faults.append("partial")
    till.go_to(0)
    till.round()
    assert till.office.state("INV-000001").due_minor == TOTAL - TOTAL // 2
    till.go_to(3)
    till.round()
    assert till.status() == "paid"
    assert sum(till.provider.moved.values()) == TOTAL


def test_a_pending_payment_is_decided_by_the_message_however_often_it_comes(till: Till) -> None:
    till.provider.faults.append("pending")
    till.go_to(0)
    till.round()
    till.go_to(3)
    till.round()
    assert len(till.provider.asked) == 1
    assert till.tell("succeeded").json() == {"is_news": True}
    till.tell("succeeded")
    assert till.status() == "paid"
    assert till.office.balance("cash:psp:stripe") == TOTAL * 10**7


def test_a_message_that_overtakes_the_answer_is_booked_once(till: Till) -> None:
    """The money moved, our call timed out, the message came first: asking again must not book twice."""
    till.provider.name = "fake"
    till.desk.app.state.providers = {"stripe": till.provider}
    till.office.do("account.set", ACCOUNT | {"collection": "automatic", "provider": "stripe", "provider_customer": "c"})
    till.collector = Collector(
        Money(till.desk.data_dir, till.desk.control.registry, till.desk.app.state.ask_meter),
        till.desk.control.registry,
        {"stripe": till.provider},
    )
    till.provider.faults.append("timeout_after")
    till.go_to(0)
    till.round()
    assert till.tell("succeeded").json() == {"is_news": True}
    assert till.status() == "paid"
    till.go_to(3)
    till.round()
    assert till.office.state("INV-000001").paid_minor == TOTAL
    assert till.tell("failed").json() == {"is_news": False}
    assert till.status() == "paid"


def test_a_refund_at_the_provider_that_we_did_not_ask_for_is_told(till: Till) -> None:
    till.go_to(0)
    till.round()
    assert till.tell("refunded", amount_minor=50).status_code == 200
    assert till.office.events()[-1] == "payment.refund_unexplained"
    till.office.do("invoice.credit", {"invoice": "INV-000001", "amount_minor": 60, "reason": "outage"})
    body, headers = till.provider.message("refunded", till.provider.asked[-1]._replace(key="x"), amount_minor=60)
    assert till.desk.ask_tcp("POST", "/psp/stripe", content=body, headers=headers).json() == {"is_news": True}
    assert till.office.state("INV-000001").refunded_minor == 60


def test_a_message_without_its_signature_is_refused_and_books_nothing(till: Till) -> None:
    till.provider.faults.append("pending")
    till.go_to(0)
    till.round()
    body, _ = till.provider.message("succeeded", till.provider.asked[-1])
    answer = till.desk.ask_tcp("POST", "/psp/stripe", content=body, headers={"fake-signature": "00"})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert till.status() == "open"


def test_a_provider_that_is_not_set_up_is_404(till: Till) -> None:
    till.desk.app.state.providers = {}
    assert till.desk.ask_tcp("POST", "/psp/stripe", content=b"{}").status_code == 404


def test_who_does_not_pay_is_suspended_and_resumed_when_paid(till: Till) -> None:
    till.provider.faults.extend(["declined"] * 4)
    for day in (0, 3, 7, 14, 20):
        till.go_to(day)
        till.round()
    assert not till.is_suspended
    till.go_to(21)
    till.round()
    assert till.is_suspended
    till.desk.must(*command("invoice.pay", _transfer(TOTAL)))
    till.round()
    assert not till.is_suspended
    assert till.office.events()[-1] == "dunning.resumed"
    assert till.round() == 0


def test_a_tenant_with_another_unpaid_invoice_stays_suspended(till: Till) -> None:
    till.office.do("account.set", ACCOUNT)
    item = {"tenant": "acme", "kind": "adjustment", "description": "fee", "source": "s", "amount_nanos": 10**9}
    till.office.do("item.add", item)
    till.office.bill(MONTH_END_NS + 1)
    till.go_to(21)
    till.round()
    assert till.is_suspended
    till.desk.must(*command("invoice.pay", _transfer(TOTAL)))
    till.round()
    assert till.is_suspended


def test_reminders_are_sent_where_the_customer_pays_by_transfer(till: Till) -> None:
    till.office.do("account.set", ACCOUNT)
    for day in (0, 1, 3, 7, 14):
        till.go_to(day)
        till.round()
    assert till.office.events().count("dunning.reminded") == 4
    assert till.provider.asked == []


def test_an_invoice_is_given_up_in_the_end(till: Till) -> None:
    till.office.do("account.set", ACCOUNT)
    till.go_to(60)
    till.round()
    assert till.status() == "uncollectible"


def test_the_clock_bills_every_period_that_is_over_once(desk: Desk) -> None:
    desk.new_tenant()
    with meter_of(desk) as office:
        office.set_up()
        office.post_usage(1_000)
        office.post_usage(2_000, t_ns=MONTH_END_NS + 1)
        office.do("subscription.start", {"tenant": "acme", "name": "Pro", "fee_minor": 5})
        clock = BillingClock(
            Money(desk.data_dir, desk.control.registry, desk.app.state.ask_meter), desk.control.registry, {}
        )
        office.now_ns = MONTH_END_NS + 40 * DAY_NS
        _set(desk, office.now_ns)
        clock.tick()
        clock.tick()
        events = office.events()
        assert events.count("invoice.finalized") == 2
        assert events.count("subscription.renewed") == 1
        assert [office.document(f"INV-00000{n}").lines[0].quantity for n in (1, 2)] == [1_000, 2_000]
        office.check()


def test_a_round_without_a_meter_is_quiet(desk: Desk) -> None:
    registry = desk.control.registry
    BillingClock(Money(desk.data_dir, registry), registry, {}).tick()


def _transfer(amount_minor: int) -> dict[str, Any]:
    return {"invoice": "INV-000001", "provider": "bank", "reference": "t1", "amount_minor": amount_minor}


def _set(desk: Desk, now_ns: int) -> None:
    desk.clock.step_wall(now_ns - desk.clock.wall_ns())
