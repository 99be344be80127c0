"""Owns the money commands on payments: attempts, their outcomes, providers' messages, and the steps of dunning.

Crash windows of an attempt (begin → provider → finish)
  after begin, before the provider was asked    the attempt is open: it is asked again, with its key
  after the money moved, before finish          the same; the provider answers what it answered
  after a message told, before finish           the payment's reference is booked: finish books nothing more
"""

import sqlite3
from typing import Any, Final, Literal

import msgspec

from billing.invoices import store
from billing.invoices.assemble import InvoiceError
from billing.invoices.bodies import Payment, Refund
from billing.invoices.commands import pay, refund
from billing.invoices.desk import Verb
from billing.invoices.document import Document
from billing.ledger.journal import Journal
from billing.payments.dunning import Done, Policy, validate_policy

_POLICY: Final = "dunning"
Outcome = Literal["succeeded", "declined", "pending", "refused"]
DunningKind = Literal["reminded", "suspended", "resumed"]


class Begin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An attempt to collect what is due; `covers` retry days of the policy are behind us with it."""

    document: str
    covers: int


class Finish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the provider answered to an attempt."""

    attempt_id: str
    outcome: Outcome
    reference: str = ""
    amount_minor: int = 0
    code: str = ""
    is_final: bool = False


class Told(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A verified message of a provider."""

    provider: str
    kind: Literal["succeeded", "failed", "refunded"]
    reference: str
    amount_minor: int
    currency: str
    document_id: str
    code: str = ""


class Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A step of dunning that was carried out."""

    document: str
    kind: DunningKind
    covers: int = 0


def set_policy(journal: Journal, body: Policy, now_ns: int) -> Any:
    """Replace the dunning schedule; it applies to every invoice that is open."""
    text = msgspec.json.encode(validate_policy(body), order="deterministic").decode()
    journal.execute(
        "INSERT INTO billing_setting VALUES (?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET body = excluded.body, updated_ns = excluded.updated_ns",
        (_POLICY, text, now_ns),
    )
    return msgspec.to_builtins(body)


def begin(journal: Journal, body: Begin, now_ns: int) -> Any:
    """Open an attempt, or give the open one back. Raises InvoiceError: nothing is due, or one is pending."""
    document = store.get_document(journal.db, body.document)
    account = store.get_account(journal.db, document.tenant)
    done = done_for(journal.db, document.document_id)
    if done.is_pending:
        raise InvoiceError("payment_pending", f"a payment of {document.number} is pending at the provider")
    if done.is_open:
        row = journal.execute(
            "SELECT attempt_id, provider, amount_minor, at_ns FROM payment_attempt WHERE document_id = ?"
            " ORDER BY at_ns DESC, attempt_id DESC LIMIT 1",
            (document.document_id,),
        ).fetchone()
        return _attempt(document, account.provider_customer, *row[:3]) | {"begun_ns": row[3]}
    state = store.state_in(journal.db, document)
    if state.status != "open":
        raise InvoiceError("invoice_state", f"invoice {document.number} is {state.status}: nothing to collect")
    (count,) = journal.execute(
        "SELECT COUNT(*) FROM payment_attempt WHERE document_id = ?", (document.document_id,)
    ).fetchone()
    attempt_id = f"{document.document_id}-{count + 1:03d}"
    journal.execute(
        "INSERT INTO payment_attempt VALUES (?, ?, ?, ?, ?, ?)",
        (attempt_id, document.document_id, account.provider, body.covers, state.due_minor, now_ns),
    )
    made = _attempt(document, account.provider_customer, attempt_id, account.provider, state.due_minor)
    return made | {"begun_ns": now_ns}


def finish(journal: Journal, body: Finish, now_ns: int) -> Any:
    """Write an attempt's outcome down; money that moved is booked, once per reference."""
    row = journal.execute(
        "SELECT document_id, provider FROM payment_attempt WHERE attempt_id = ?", (body.attempt_id,)
    ).fetchone()
    if row is None:
        raise InvoiceError("not_found", f"attempt {body.attempt_id!r} does not exist")
    document_id, provider = row
    _add_result(journal, body, now_ns)
    if body.outcome == "succeeded":
        payment = Payment(
            invoice=document_id, provider=provider, reference=body.reference, amount_minor=body.amount_minor
        )
        _book(journal, payment, now_ns)
    elif body.outcome in {"declined", "refused"}:
        _tell_failure(journal, document_id, body.code, now_ns)
    return {"document_id": document_id}


def told(journal: Journal, body: Told, now_ns: int) -> Any:
    """Take a provider's message, in whatever order and however often it comes.

    A failure told after the success of the same payment is old news and changes nothing.
    """
    row = journal.execute("SELECT 1 FROM invoice WHERE document_id = ?", (body.document_id,)).fetchone()
    if row is None:
        raise InvoiceError("not_found", f"the message names no invoice of ours: {body.document_id!r}")
    document = store.get_document(journal.db, body.document_id)
    if body.currency != document.currency:
        raise InvoiceError("currency", f"{document.number} is in {document.currency}, the message in {body.currency}")
    if body.kind == "refunded":
        return _told_refund(journal, document, body, now_ns)
    is_booked = _is_booked(journal.db, "payment", f"{body.provider}:{body.reference}")
    if body.kind == "succeeded" and not is_booked:
        payment = Payment(
            invoice=body.document_id,
            provider=body.provider,
            reference=body.reference,
            amount_minor=body.amount_minor,
        )
        _book(journal, payment, now_ns)
    attempt = _pending_attempt(journal.db, body.document_id, body.reference)
    if attempt is not None:
        outcome: Outcome = "succeeded" if body.kind == "succeeded" else "declined"
        _add_result(
            journal,
            Finish(
                attempt_id=attempt,
                outcome=outcome,
                reference=body.reference,
                amount_minor=body.amount_minor,
                code=body.code,
            ),
            now_ns,
        )
        if body.kind == "failed" and not is_booked:
            _tell_failure(journal, body.document_id, body.code, now_ns)
    return {"document_id": body.document_id, "is_news": not is_booked}


def note(journal: Journal, body: Note, now_ns: int) -> Any:
    """Write a step of dunning down and tell it."""
    document = store.get_document(journal.db, body.document)
    journal.execute(
        "INSERT INTO dunning_step SELECT ?, 1 + COALESCE(MAX(n), 0), ?, ?, ? FROM dunning_step WHERE document_id = ?",
        (document.document_id, body.kind, body.covers, now_ns, document.document_id),
    )
    event = {"document_id": document.document_id, "number": document.number, "kind": body.kind}
    store.add_event(journal.db, document.tenant, f"dunning.{body.kind}", event, now_ns)
    return event


def get_policy(db: sqlite3.Connection) -> Policy:
    row = db.execute("SELECT body FROM billing_setting WHERE name = ?", (_POLICY,)).fetchone()
    return Policy() if row is None else msgspec.json.decode(row[0], type=Policy)


def done_for(db: sqlite3.Connection, document_id: str) -> Done:
    """What dunning did for a document so far."""
    tries, is_final = db.execute(
        "SELECT COALESCE(MAX(covers), 0), COALESCE((SELECT MAX(is_final) FROM payment_result JOIN payment_attempt b"
        " USING (attempt_id) WHERE b.document_id = ?), 0) FROM payment_attempt WHERE document_id = ?",
        (document_id, document_id),
    ).fetchone()
    last = db.execute(
        "SELECT (SELECT outcome FROM payment_result r WHERE r.attempt_id = a.attempt_id ORDER BY n DESC LIMIT 1)"
        " FROM payment_attempt a WHERE document_id = ? ORDER BY attempt_id DESC LIMIT 1",
        (document_id,),
    ).fetchone()
    steps = db.execute("SELECT kind, covers FROM dunning_step WHERE document_id = ? ORDER BY n", (document_id,))
    is_suspended = False
    for kind, covers in steps:
        tries = max(tries, covers)
        is_suspended = kind == "suspended" or (is_suspended and kind != "resumed")
    return Done(
        tries=tries,
        is_open=last is not None and last[0] is None,
        is_pending=last is not None and last[0] == "pending",
        is_suspended=is_suspended,
        is_final=bool(is_final),
    )


def suspended_documents(db: sqlite3.Connection) -> list[tuple[str, str]]:
    """(document id, tenant) of each invoice whose newest suspension was not ended."""
    rows = db.execute(
        "SELECT d.document_id, i.tenant FROM dunning_step d JOIN invoice i USING (document_id)"
        " WHERE d.kind = 'suspended' AND NOT EXISTS (SELECT 1 FROM dunning_step e"
        " WHERE e.document_id = d.document_id AND e.n > d.n AND e.kind IN ('resumed', 'suspended'))"
    )
    return [(document_id, tenant) for document_id, tenant in rows]


def _attempt(document: Document, customer: str, attempt_id: str, provider: str, amount_minor: int) -> dict[str, Any]:
    return {
        "attempt_id": attempt_id,
        "provider": provider,
        "customer": customer,
        "amount_minor": amount_minor,
        "currency": document.currency,
        "document_id": document.document_id,
        "number": document.number,
    }


def _book(journal: Journal, payment: Payment, now_ns: int) -> None:
    if not _is_booked(journal.db, "payment", f"{payment.provider}:{payment.reference}"):
        pay(journal, payment, now_ns)


def _told_refund(journal: Journal, document: Document, body: Told, now_ns: int) -> Any:
    """`amount_minor` is what was refunded of the payment in total: the difference to what is booked is news."""
    state = store.state_in(journal.db, document)
    amount = body.amount_minor - state.refunded_minor
    if amount <= 0:
        return {"document_id": document.document_id, "is_news": False}
    if amount > state.refundable_minor:
        event = {"document_id": document.document_id, "reference": body.reference, "amount_minor": amount}
        store.add_event(journal.db, document.tenant, "payment.refund_unexplained", event, now_ns)
        return {"document_id": document.document_id, "is_news": True}
    reference = f"{body.reference}:{body.amount_minor}"
    refund(
        journal,
        Refund(invoice=document.document_id, provider=body.provider, reference=reference, amount_minor=amount),
        now_ns,
    )
    return {"document_id": document.document_id, "is_news": True}


def _add_result(journal: Journal, body: Finish, now_ns: int) -> None:
    journal.execute(
        "INSERT INTO payment_result SELECT ?, 1 + COALESCE(MAX(n), 0), ?, ?, ?, ?, ?, ? FROM payment_result"
        " WHERE attempt_id = ?",
        (
            body.attempt_id,
            body.outcome,
            body.reference,
            body.amount_minor,
            body.code,
            int(body.is_final),
            now_ns,
            body.attempt_id,
        ),
    )


def _tell_failure(journal: Journal, document_id: str, code: str, now_ns: int) -> None:
    document = store.get_document(journal.db, document_id)
    event = {"document_id": document_id, "number": document.number, "code": code}
    store.add_event(journal.db, document.tenant, "payment.failed", event, now_ns)


def _is_booked(db: sqlite3.Connection, kind: str, reference: str) -> bool:
    found = db.execute("SELECT 1 FROM invoice_step WHERE kind = ? AND reference = ?", (kind, reference))
    return found.fetchone() is not None


def _pending_attempt(db: sqlite3.Connection, document_id: str, reference: str) -> str | None:
    """The attempt on a document that waits for a message about that payment."""
    row = db.execute(
        "SELECT a.attempt_id FROM payment_attempt a JOIN payment_result r USING (attempt_id)"
        " WHERE a.document_id = ? AND r.reference = ? AND r.outcome = 'pending' AND NOT EXISTS"
        " (SELECT 1 FROM payment_result s WHERE s.attempt_id = r.attempt_id AND s.n > r.n)",
        (document_id, reference),
    ).fetchone()
    return None if row is None else str(row[0])


VERBS: Final[dict[str, Verb[Any]]] = {
    "dunning.set": Verb(Policy, set_policy),
    "dunning.note": Verb(Note, note),
    "payment.begin": Verb(Begin, begin),
    "payment.finish": Verb(Finish, finish),
    "payment.told": Verb(Told, told),
}
