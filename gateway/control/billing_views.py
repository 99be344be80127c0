"""Owns what the billing routes accept and answer. Documents are the canonical JSON of billing.invoices.document."""

from collections.abc import Sequence
from typing import Any

import msgspec
from pydantic import Field

from billing.equality import Equality
from billing.invoices.document import Document
from billing.invoices.life import State, Step
from billing.invoices.store import Event, InvoiceRow
from billing.recognition.reports import Ageing, Margin, RollForward
from gateway.control.bodies import Body
from gateway.control.views import View, instant


class CommandBody(Body):
    """A money command. Repeating an operation id with the same body changes nothing and answers the same."""

    operation_id: str = Field(
        min_length=8, max_length=128, pattern=r"^[\x21-\x7e]+$", description="Chosen by the caller, new per command."
    )
    body: dict[str, Any] = Field(description="The command's fields (docs/billing-api.md); an unknown one is refused.")


class StateView(View):
    """Where an invoice stands; amounts in minor units of its currency."""

    status: str
    total_minor: int
    paid_minor: int
    credited_minor: int
    refunded_minor: int
    due_minor: int
    refundable_minor: int


class InvoiceRowView(View):
    document_id: str
    number: str
    kind: str
    tenant: str
    currency: str
    total_minor: int
    issued_at: str | None
    due_at: str | None
    period_start: str | None
    period_end: str | None
    corrects: str
    digest: str = Field(description="SHA-256 of the document's canonical JSON.")
    state: StateView


class StepView(View):
    kind: str
    at: str | None
    amount_minor: int
    tx: int = Field(description="The journal transaction that books it.")
    reference: str
    note: str


class InvoiceView(View):
    """A finalized document, where it stands, and what happened to it."""

    document: dict[str, Any]
    state: StateView
    steps: list[StepView]


class AccountView(View):
    """A billing account with what its next invoice will hold."""

    account: dict[str, Any]
    pending_items: list[dict[str, Any]]
    subscriptions: list[dict[str, Any]]
    draft: dict[str, Any] | None
    billed_until: str | None


class EventView(View):
    seq: int
    at: str | None
    tenant: str
    type: str
    body: dict[str, Any]


class RollForwardView(View):
    """opening + added - recognised - other = closing, in nanos; a liability is positive."""

    account: str
    currency: str
    opening_nanos: int
    added_nanos: int
    recognised_nanos: int
    other_nanos: int = Field(description="Credit notes and voids.")
    closing_nanos: int


class AgeingView(View):
    """What a tenant owes, in minor units, by days past the due date."""

    tenant: str
    currency: str
    not_due_minor: int
    days_1_30_minor: int
    days_31_60_minor: int
    days_61_90_minor: int
    over_90_minor: int
    owed_back_minor: int


class MarginView(View):
    group: dict[str, str | int]
    currency: str
    calls: int
    compute_ns: int
    revenue_nanos: int
    cost_nanos: int
    margin_nanos: int


class DifferenceView(View):
    tenant: str
    currency: str
    what: str
    expected_nanos: int
    found_nanos: int


class EqualityView(View):
    """Whether usage, invoices and ledger say the same for every tenant."""

    is_ok: bool
    tenants: int
    differences: list[DifferenceView]


def equality_view(found: Equality) -> EqualityView:
    return EqualityView(
        is_ok=not found.differences,
        tenants=found.tenants,
        differences=[DifferenceView(**one._asdict()) for one in found.differences],
    )


def roll_forward_view(row: RollForward) -> RollForwardView:
    return RollForwardView(**row._asdict())


def ageing_view(row: Ageing) -> AgeingView:
    names = ("not_due_minor", "days_1_30_minor", "days_31_60_minor", "days_61_90_minor", "over_90_minor")
    return AgeingView(
        tenant=row.tenant,
        currency=row.currency,
        owed_back_minor=row.owed_back_minor,
        **dict(zip(names, row.buckets_minor, strict=True)),
    )


def margin_view(by: Sequence[str], row: Margin) -> MarginView:
    return MarginView(
        group=dict(zip(by, row.group, strict=True)),
        currency=row.currency,
        calls=row.calls,
        compute_ns=row.compute_ns,
        revenue_nanos=row.revenue_nanos,
        cost_nanos=row.cost_nanos,
        margin_nanos=row.margin_nanos,
    )


def state_view(state: State) -> StateView:
    return StateView(**state._asdict(), due_minor=state.due_minor, refundable_minor=state.refundable_minor)


def row_view(row: InvoiceRow) -> InvoiceRowView:
    return InvoiceRowView(
        document_id=row.document_id,
        number=row.number,
        kind=row.kind,
        tenant=row.tenant,
        currency=row.currency,
        total_minor=row.total_minor,
        issued_at=instant(row.issued_ns),
        due_at=instant(row.due_ns),
        period_start=instant(row.start_ns),
        period_end=instant(row.end_ns),
        corrects=row.corrects,
        digest=row.digest,
        state=state_view(row.state),
    )


def invoice_view(document: Document, state: State, steps: Sequence[Step]) -> InvoiceView:
    return InvoiceView(
        document=msgspec.to_builtins(document),
        state=state_view(state),
        steps=[
            StepView(
                kind=step.kind,
                at=instant(step.at_ns),
                amount_minor=step.amount_minor,
                tx=step.tx_id,
                reference=step.reference,
                note=step.note,
            )
            for step in steps
        ],
    )


def event_view(event: Event) -> EventView:
    return EventView(
        seq=event.seq, at=instant(event.at_ns), tenant=event.tenant, type=event.type, body=dict(event.body)
    )
