"""What a policy means for one caller of one model: verdicts, charges and their texts, and that it is forgotten."""

import msgspec
import pytest

from billing.events import Reason, Served, decode
from billing.rating import compile_book
from gateway.auth.keyring import Keyring, Principal
from gateway.errors import Code
from gateway.snapshot import Plan
from gateway.tickets import Charge, Policy
from tests.unit.test_pipeline import BOOK, KEY, snapshot


def policy_and_caller(**snapshot_of: object) -> tuple[Policy, Principal]:
    keyring = Keyring(snapshot(**snapshot_of))  # type: ignore[arg-type]
    principal = keyring.authenticate(KEY.text.encode(), 1)
    assert isinstance(principal, Principal)
    policy = Policy(version=1, keyring=keyring, rater=compile_book(BOOK), price_version=3, currency="USD")
    return policy, principal


@pytest.mark.parametrize(
    ("nanos", "reason", "text"),
    [
        (0, Reason.FREE_PLAN, b"0 USD; reason=free_plan; price=3"),
        (1, Reason.PRICED, b"0.000000001 USD; reason=priced; price=3"),
        (20_000, Reason.PRICED, b"0.00002 USD; reason=priced; price=3"),
        (1_000_000_000, Reason.PRICED, b"1 USD; reason=priced; price=3"),
        (12_340_000_000, Reason.PRICED, b"12.34 USD; reason=priced; price=3"),
        (10**15, Reason.PRICED, b"1000000 USD; reason=priced; price=3"),
        (0, Reason.NOT_BILLABLE, b"0 USD; reason=not_billable; price=3"),
        (0, Reason.INTERNAL_PLAN, b"0 USD; reason=internal_plan; price=3"),
    ],
)
def test_charges_are_exact_decimals(nanos: int, reason: Reason, text: bytes) -> None:
    assert Charge(nanos, int(reason), 3, "USD").text == text


def test_a_ticket_is_made_once_and_the_memory_is_bounded() -> None:
    policy, principal = policy_and_caller()
    first = policy.ticket(principal, "flat", "", is_grpc=False)
    assert policy.ticket(principal, "flat", "", is_grpc=False) is first
    assert policy.ticket(principal, "flat", "", is_grpc=True) is not first
    for number in range(5000):
        policy.ticket(principal, f"m{number}", "", is_grpc=False)
    assert len(policy._tickets) <= 4096
    assert policy.ticket(principal, "flat", "", is_grpc=False) is not first


@pytest.mark.parametrize("model", ["flat", "rows", "timed"])
def test_the_charge_is_the_raters_for_every_row_and_time(model: str) -> None:
    policy, principal = policy_and_caller()
    ticket = policy.ticket(principal, model, "", is_grpc=False)
    for _ in range(2):
        for rows, compute_ns in ((1, 0), (7, 999_999), (7, 5_500_000), (3000, 10**9)):
            charge = ticket.charge(rows, compute_ns)
            assert (charge.nanos, charge.reason) == policy.rater.charge(model, "priced", 0, rows, compute_ns)
    for rows in range(3000):
        ticket.charge(rows, 0)
    assert len(ticket._charges) <= 1024


def test_a_ticket_says_what_may_not_be_sold_unmeasured() -> None:
    policy, principal = policy_and_caller()
    timed = policy.ticket(principal, "timed", "", is_grpc=False)
    assert timed.unmeasured is not None
    assert timed.unmeasured.code is Code.METERING_UNAVAILABLE
    rows = policy.ticket(principal, "rows", "", is_grpc=False)
    assert (rows.unmeasured, rows.needs_rows) == (None, True)
    flat = policy.ticket(principal, "flat", "", is_grpc=False)
    assert (flat.unmeasured, flat.needs_rows, flat.refusal) == (None, False, None)


def test_a_ticket_of_a_limited_key_refuses() -> None:
    policy, principal = policy_and_caller(models=("flat",))
    refusal = policy.ticket(principal, "rows", "", is_grpc=False).refusal
    assert refusal is not None
    assert refusal.code is Code.MODEL_FORBIDDEN


def test_the_record_names_caller_model_and_protocol() -> None:
    policy, principal = policy_and_caller()
    ticket = policy.ticket(principal, "flat", "2", is_grpc=True)
    record = decode(ticket.template.encode(b"i" * 16, 5, 0, 0, 1, 0, 10, 20, 7))
    assert isinstance(record, Served)
    assert (record.tenant, record.model, record.model_version, record.protocol) == ("acme", "flat", "2", 1)
    assert (record.price_version, record.charge_nanos) == (3, 7)
    assert b'"model":"flat"' in ticket.log_fields


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({}, b"acme"),
        ({"queue_weight": 3}, b"acme;weight=3"),
        ({"priority_best": 2}, b"acme;priority=2"),
        ({"queue_weight": 100, "priority_best": 64}, b"acme;weight=100;priority=64"),
    ],
)
def test_a_trusted_backend_is_told_what_the_plan_says_of_queues(limits: dict[str, int], told: bytes) -> None:
    plan = msgspec.structs.replace(Plan(name="payg", version=1, pricing="priced"), **limits)
    keyring = Keyring(msgspec.structs.replace(snapshot(), plans=(plan,)))
    principal = keyring.authenticate(KEY.text.encode(), 1)
    assert isinstance(principal, Principal)
    policy = Policy(version=1, keyring=keyring, rater=compile_book(BOOK), price_version=3, currency="USD")
    assert policy.ticket(principal, "flat", "", is_grpc=False).tenant == told
