"""Owns the routes over the ledger: usage, trial balance, entries, one call, reconciliation. All of them only read.

Every figure comes from `billing`'s one query path; nothing is summed here.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi import Path as InPath

from billing.ledger import views as ledger
from billing.ledger.opening import open_ledger_reader
from billing.ledger.periods import periods
from billing.ledger.port import LedgerError, LedgerUnavailable
from billing.quarantine import list_held
from billing.reconcile import reconcile
from billing.usage import Dimension, UsageError, usage_by
from gateway.control import report_render as render
from gateway.control.errors import ControlCode, ControlError, invalid, not_found
from gateway.control.report_views import (
    CallView,
    EntriesView,
    HeldView,
    PeriodView,
    ReconcileView,
    TrialBalanceView,
    UsageView,
)
from gateway.control.routes import ERRORS, PAGE_DEFAULT, PAGE_MAX, REQUIRE_ACTOR, Limit
from gateway.control.views import ErrorView, Page

T = TypeVar("T")
_UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"model": ErrorView, "description": "There is no ledger yet, or it is busy: try again."}
}
router = APIRouter(prefix="/admin", dependencies=[REQUIRE_ACTOR], responses=ERRORS | _UNAVAILABLE)

Text = Annotated[str | None, Query(max_length=256)]
Instant = Annotated[int | None, Query(ge=0, le=2**63 - 1, description="UTC nanoseconds.")]


@router.get("/usage", tags=["usage"])
def get_usage(
    request: Request,
    *,
    by: Annotated[list[Dimension] | None, Query(max_length=4, description="Group by these; default: day.")] = None,
    tenant: Text = None,
    model: Text = None,
    key: Annotated[str | None, Query(max_length=64, description="A key's `key_id`.")] = None,
    since_ns: Instant = None,
    until_ns: Instant = None,
    zone: Annotated[str, Query(max_length=64, description="IANA time zone of the days.")] = "UTC",
    limit: Limit = PAGE_MAX,
    after: Annotated[int, Query(ge=0, le=10_000, description="`next` of the page before.")] = 0,
) -> UsageView:
    """Usage of posted calls with since_ns <= time < until_ns, grouped."""
    dimensions: list[Dimension] = by or ["day"]
    rows = _ask(
        request,
        lambda db: usage_by(
            db, dimensions, tenant=tenant, model=model, key=key, since_ns=since_ns, until_ns=until_ns, zone=zone
        ),
    )
    return UsageView(
        by=list(dimensions),
        zone=zone,
        rows=[render.usage_row(dimensions, row) for row in rows[after : after + limit]],
        next=str(after + limit) if after + limit < len(rows) else None,
    )


@router.get("/ledger/trial-balance", tags=["ledger"])
def get_trial_balance(request: Request) -> TrialBalanceView:
    """Every account with its debits, credits and balance."""
    return render.trial_balance(_ask(request, ledger.trial_balance))


@router.get("/ledger/entries", tags=["ledger"])
def list_entries(
    request: Request,
    *,
    account: Text = None,
    tenant: Text = None,
    tx: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="One journal transaction.")] = None,
    call_id: Annotated[str | None, Query(max_length=64, description="The `tollway-call-id` of a reply.")] = None,
    limit: Limit = PAGE_DEFAULT,
    after: Annotated[int, Query(ge=0, le=2**63 - 1, description="`next` of the page before.")] = 0,
) -> EntriesView:
    """Journal entries in posting order; whole transactions, so a page may be a little longer than `limit`."""
    raw_id = None if call_id is None else _call_id(call_id)
    return render.entries(
        _ask(
            request,
            lambda db: ledger.entries(
                db, account=account, tenant=tenant, call_id=raw_id, tx_id=tx, after=after, limit=limit
            ),
        )
    )


@router.get("/ledger/calls/{call_id}", tags=["ledger"])
def get_call(request: Request, call_id: Annotated[str, InPath(max_length=64)]) -> CallView:
    """A posted call by the `tollway-call-id` of its reply, with its entries and its place in the Merkle tree."""
    found = _ask(request, lambda db: ledger.find_call(db, _call_id(call_id)))
    if found is None:
        raise not_found("posted call", call_id)
    return render.call(found)


@router.get("/ledger/periods", tags=["ledger"])
def list_periods(request: Request) -> list[PeriodView]:
    """The closed periods in order. `POST /admin/billing/commands/period.close` closes the next."""
    return [render.period(one) for one in _ask(request, periods)]


@router.get("/ledger/quarantine", tags=["ledger"])
def list_quarantine(
    request: Request, *, limit: Limit = PAGE_DEFAULT, after: Annotated[int, Query(ge=0)] = 0, ended: bool = False
) -> Page[HeldView]:
    """Calls that wait for a decision, with `ended` also those that had one: `quarantine.release` or `.dismiss`."""
    found = _ask(request, lambda db: list_held(db, after=after, limit=limit, waits_only=not ended))
    last = str(found[-1].quarantine_id) if len(found) == limit else None
    return Page(items=[render.held(one) for one in found], next=last)


@router.get("/reconcile", tags=["ledger"])
def get_reconcile(request: Request) -> ReconcileView:
    """Compare usage logs and ledger: answered = recorded = posted. The meter is first asked to post what is due."""
    with _translated():
        return render.report(reconcile(_data_dir(request)))


def _ask(request: Request, question: Callable[[sqlite3.Connection], T]) -> T:
    """The answer of one short query; the connection is not kept, so it never holds the meter up."""
    with _translated():
        db = open_ledger_reader(_data_dir(request))
        try:
            return question(db)
        finally:
            db.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except LedgerUnavailable as error:
        raise ControlError(ControlCode.UNAVAILABLE, str(error), retry_after_s=1) from error
    except sqlite3.OperationalError as error:
        raise ControlError(ControlCode.UNAVAILABLE, "the ledger is busy: try again", retry_after_s=1) from error
    except (LedgerError, UsageError) as error:
        raise invalid(str(error)) from error


def _data_dir(request: Request) -> Path:
    data_dir: Path = request.app.state.data_dir
    return data_dir


def _call_id(text: str) -> bytes:
    try:
        return UUID(text).bytes
    except ValueError:
        raise invalid(f"call_id: {text!r} is not the tollway-call-id of a reply") from None
