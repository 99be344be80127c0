"""Owns the life of a finalized invoice: open → paid | void | uncollectible, as a fold over its steps. Pure.

due = total - credited - paid + refunded        (an invoice with nothing due is paid; less than nothing is owed back)
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from billing.invoices.assemble import InvoiceError
from billing.invoices.document import Status

StepKind = Literal["finalized", "payment", "credit", "refund", "void", "uncollectible"]
STEP_KINDS = get_args(StepKind)


class Step(NamedTuple):
    """Something that happened to an invoice, with the journal transaction that books it."""

    kind: StepKind
    at_ns: int
    amount_minor: int
    tx_id: int
    reference: str
    note: str


class State(NamedTuple):
    """Where an invoice stands; amounts in minor units."""

    status: Status
    total_minor: int
    paid_minor: int
    credited_minor: int
    refunded_minor: int

    @property
    def due_minor(self) -> int:
        return self.total_minor - self.credited_minor - self.paid_minor + self.refunded_minor

    @property
    def refundable_minor(self) -> int:
        """What was paid beyond what is asked."""
        return max(0, -self.due_minor)


def state_of(total_minor: int, steps: Iterable[Step]) -> State:
    """The state after `steps`."""
    sums = dict.fromkeys(STEP_KINDS, 0)
    kinds = set()
    for step in steps:
        sums[step.kind] += step.amount_minor
        kinds.add(step.kind)
    state = State("open", total_minor, sums["payment"], sums["credit"], sums["refund"])
    if "void" in kinds:
        return state._replace(status="void")
    if state.due_minor <= 0:
        return state._replace(status="paid")
    return state._replace(status="uncollectible") if "uncollectible" in kinds else state


def check_step(number: str, state: State, kind: StepKind, amount_minor: int) -> None:
    """Raises InvoiceError when an invoice in `state` cannot take that step."""
    if state.status == "void":
        raise InvoiceError("invoice_state", f"invoice {number} is void: nothing more happens to it")
    if kind == "void" and (state.paid_minor or state.credited_minor or state.refunded_minor):
        raise InvoiceError("invoice_state", f"invoice {number} has payments or credits: use a credit note, not void")
    if kind == "void" and state.status != "open":
        raise InvoiceError("invoice_state", f"invoice {number} is {state.status}, only an open one can be voided")
    if kind == "uncollectible" and state.status != "open":
        raise InvoiceError("invoice_state", f"invoice {number} is {state.status}, only an open one can be given up")
    if kind == "payment" and amount_minor <= 0:
        raise InvoiceError("amount", f"amount_minor: {amount_minor} must be positive")
    if kind == "credit" and state.status == "uncollectible":
        raise InvoiceError("invoice_state", f"invoice {number} was written off: there is nothing left to credit")
    if kind == "refund" and not 0 < amount_minor <= state.refundable_minor:
        raise InvoiceError(
            "amount",
            f"amount_minor: {amount_minor} must be from 1 to {state.refundable_minor}, what {number} was overpaid by",
        )
