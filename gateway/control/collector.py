"""Owns dunning carried out: collects what is due, suspends who does not pay, resumes who has paid.

The schedule is pure (`billing.payments.dunning`), the books are the meter's, the provider is asked here. A suspension
reaches the snapshot before it is noted, so a crash in between suspends again, which is no change; a resumption is noted
last for the same reason. Only what dunning suspended is resumed by it.
"""

import logging
import sqlite3
from collections.abc import Mapping
from functools import partial
from typing import Final, NamedTuple

from sqlalchemy import Connection

from billing.invoices import store
from billing.invoices.account import Account
from billing.invoices.document import Document
from billing.payments.commands import done_for, get_policy, suspended_documents
from billing.payments.dunning import Action, next_action, tries_due
from billing.payments.port import (
    Charge,
    Declined,
    PaymentProvider,
    Pending,
    ProviderRefused,
    ProviderUnavailable,
    Succeeded,
)
from gateway.control import tenants
from gateway.control.errors import ControlCode, ControlError
from gateway.control.money import Money
from gateway.control.registry import Change, Registry

ACTOR: Final = "dunning"
#: Steps for one invoice in one round: each step changes what is next, and a fault must not spin.
STEPS_MAX: Final = 6
#: Providers remember our keys for a day at least; well before that an open attempt is looked up instead.
KEY_LIFE_NS: Final = 12 * 3_600 * 1_000_000_000
_log = logging.getLogger("tollway.control")


class _Case(NamedTuple):
    document: Document
    account: Account
    action: Action
    covers: int
    steps: int


class Collector:
    """One round at a time, in a worker thread. `providers` by name."""

    def __init__(self, money: Money, registry: Registry, providers: Mapping[str, PaymentProvider]) -> None:
        self._money = money
        self._registry = registry
        self._providers = providers

    def run_once(self, now_ns: int) -> int:
        """Carry out what is due; how many steps were taken. A provider that is down is tried again next round."""
        taken = 0
        for name in self._money.read(lambda db: open_documents(db, now_ns)):
            try:
                taken += self._work_on(name, now_ns)
            except ControlError as error:
                if error.code is ControlCode.UNAVAILABLE:
                    raise
                # One invoice's trouble (its tenant is gone, say) does not keep the others waiting.
                _log.error("dunning_failed document=%s code=%s", name, error.code)
        return taken + self._resume_paid()

    def _work_on(self, document_id: str, now_ns: int) -> int:
        for taken in range(STEPS_MAX):
            case = self._money.read(partial(_case, document_id=document_id, now_ns=now_ns))
            if case is None or not self._step(case, now_ns):
                return taken
        return STEPS_MAX

    def _step(self, case: _Case, now_ns: int) -> bool:
        """Do what is next for one invoice. False: nothing more for now."""
        document_id = case.document.document_id
        operation = f"dunning:{document_id}:{case.action}:{case.covers}:{case.steps}"
        if case.action is Action.ATTEMPT:
            return self._attempt(case, operation, now_ns)
        if case.action is Action.REMIND:
            self._note(operation, document_id, "reminded", case.covers)
        elif case.action is Action.SUSPEND:
            self._suspend(case.document.tenant, is_suspended=True)
            self._note(operation, document_id, "suspended", 0)
        elif case.action is Action.GIVE_UP:
            body = {"document": document_id, "note": f"given up {now_ns}"}
            self._money.run(ACTOR, "invoice.write_off", f"dunning:{document_id}:write_off", body)
        return case.action is not Action.WAIT

    def _attempt(self, case: _Case, operation: str, now_ns: int) -> bool:
        provider = self._providers.get(case.account.provider)
        if provider is None:
            _log.error("payment_provider_missing provider=%s", case.account.provider)
            return False
        begun = self._money.run(
            ACTOR, "payment.begin", operation, {"document": case.document.document_id, "covers": case.covers}
        )
        charge = Charge(
            key=begun["attempt_id"],
            customer=begun["customer"],
            amount_minor=begun["amount_minor"],
            currency=begun["currency"],
            document_id=begun["document_id"],
            description=f"Invoice {begun['number']}",
        )
        try:
            finish = _finish(provider, charge, is_old=now_ns - begun["begun_ns"] >= KEY_LIFE_NS)
        except ProviderUnavailable as error:
            # The attempt stays open: the next round asks the same again, with the same key.
            _log.warning("payment_outcome_unknown attempt=%s error=%s", charge.key, error)
            return False
        self._money.run(ACTOR, "payment.finish", f"finish:{charge.key}", {"attempt_id": charge.key, **finish})
        return True

    def _note(self, operation: str, document_id: str, kind: str, covers: int) -> None:
        self._money.run(ACTOR, "dunning.note", operation, {"document": document_id, "kind": kind, "covers": covers})

    def _resume_paid(self) -> int:
        """Resume each tenant none of whose suspending invoices is still unpaid."""
        suspended = self._money.read(suspended_documents)
        unpaid = {tenant for name, tenant in suspended if self._money.read(partial(_is_owed, document_id=name))}
        resumed = 0
        for document_id, tenant in suspended:
            if tenant in unpaid:
                continue
            self._suspend(tenant, is_suspended=False)
            steps = self._money.read(partial(_steps, document_id=document_id))
            self._note(f"dunning:{document_id}:resumed:{steps}", document_id, "resumed", 0)
            resumed += 1
        return resumed

    def _suspend(self, tenant: str, *, is_suspended: bool) -> None:
        def work(tx: Connection, _now_ns: int) -> Change[None]:
            changed = tenants.set_suspended(tx, tenant, is_suspended=is_suspended)
            return Change(
                answer=None,
                subject=f"tenant:{tenant}",
                before=changed.before,
                after=changed.after,
                is_needed=changed.before != changed.after,
            )

        self._registry.change(ACTOR, "tenant.suspend" if is_suspended else "tenant.resume", work)


def _finish(provider: PaymentProvider, charge: Charge, *, is_old: bool) -> dict[str, object]:
    """The body of `payment.finish` for what the provider answers. Raises ProviderUnavailable.

    `is_old`: the provider may have forgotten the key, so it is asked what became of the charge, not to charge again.
    """
    try:
        result = (provider.find(charge.key) if is_old else None) or provider.charge(charge)
    except ProviderRefused as error:
        _log.error("payment_refused attempt=%s error=%s", charge.key, error)
        return {"outcome": "refused", "code": "provider_refused"}
    if isinstance(result, Succeeded):
        return {"outcome": "succeeded", "reference": result.reference, "amount_minor": result.amount_minor}
    if isinstance(result, Pending):
        return {"outcome": "pending", "reference": result.reference, "amount_minor": charge.amount_minor}
    assert isinstance(result, Declined)
    return {"outcome": "declined", "code": result.code, "is_final": result.is_final}


def open_documents(db: sqlite3.Connection, now_ns: int) -> list[str]:
    """Invoices past their due date that still have something due, the longest due first."""
    return [document_id for (document_id,) in db.execute(_OPEN, (now_ns,))]


def _is_owed(db: sqlite3.Connection, document_id: str) -> bool:
    return store.state_in(db, store.get_document(db, document_id)).status == "open"


def _case(db: sqlite3.Connection, document_id: str, now_ns: int) -> _Case | None:
    document = store.get_document(db, document_id)
    account = store.find_account(db, document.tenant)
    if account is None or store.state_in(db, document).status != "open":
        return None
    policy = get_policy(db)
    action = next_action(
        policy,
        document.due_ns,
        done_for(db, document_id),
        now_ns,
        is_automatic=account.collection == "automatic",
    )
    covers = tries_due(policy, document.due_ns, now_ns)
    return _Case(document, account, action, covers, _steps(db, document_id))


def _steps(db: sqlite3.Connection, document_id: str) -> int:
    """How many steps were written down: part of the operation id, so that each is carried out once."""
    (count,) = db.execute(
        "SELECT (SELECT COUNT(*) FROM payment_attempt WHERE document_id = ?1)"
        " + (SELECT COUNT(*) FROM payment_result JOIN payment_attempt USING (attempt_id) WHERE document_id = ?1)"
        " + (SELECT COUNT(*) FROM dunning_step WHERE document_id = ?1)",
        (document_id,),
    ).fetchone()
    return int(count)


_OPEN: Final = """
SELECT i.document_id FROM invoice i LEFT JOIN invoice_step s USING (document_id)
WHERE i.kind = 'invoice' AND i.due_ns <= ? GROUP BY i.document_id
HAVING COALESCE(SUM(s.kind IN ('void', 'uncollectible')), 0) = 0 AND i.total_minor > COALESCE(SUM(
  CASE s.kind WHEN 'payment' THEN s.amount_minor WHEN 'credit' THEN s.amount_minor
  WHEN 'refund' THEN -s.amount_minor ELSE 0 END), 0)
ORDER BY i.due_ns, i.document_id
"""
