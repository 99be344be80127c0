"""Owns the way from billing's values to the views that the API answers. Pure."""

from collections.abc import Sequence

from billing.events import Outcome
from billing.ledger import views as ledger
from billing.ledger.periods import Period
from billing.money import format_nanos
from billing.quarantine import Held
from billing.reconcile import Report
from billing.usage import UsageRow
from gateway.call import format_call_id
from gateway.control.report_views import (
    BalanceLineView,
    CallView,
    EntriesView,
    HeldView,
    LedgerEntryView,
    PeriodView,
    ProblemView,
    ReconcileView,
    TrialBalanceView,
    UsageRowView,
)
from gateway.control.views import instant


def usage_row(by: Sequence[str], row: UsageRow) -> UsageRowView:
    figures = {name: getattr(row, name) for name in UsageRowView.model_fields if name not in ("group", "charge")}
    return UsageRowView(group=dict(zip(by, row.group, strict=True)), charge=format_nanos(row.charge_nanos), **figures)


def trial_balance(balance: ledger.TrialBalance) -> TrialBalanceView:
    return TrialBalanceView(
        is_balanced=balance.is_balanced,
        totals_nanos=balance.totals,
        lines=[
            BalanceLineView(
                account=line.account,
                currency=line.currency,
                debit_nanos=line.debit_nanos,
                credit_nanos=line.credit_nanos,
                balance_nanos=line.balance_nanos,
                balance=format_nanos(line.balance_nanos),
                calls=line.calls,
            )
            for line in balance.lines
        ],
    )


def entries(found: ledger.EntryPage) -> EntriesView:
    return EntriesView(items=[_entry(entry) for entry in found.entries], next=found.next_after)


def call(found: ledger.CallView) -> CallView:
    served = found.event.served
    return CallView(
        call_id=format_call_id(served.call_id),
        tenant=served.tenant,
        key_id=served.key_id,
        plan=served.plan,
        model=served.model,
        model_version=served.model_version,
        at=instant(served.t_ns),
        outcome=Outcome(served.outcome).name.lower(),
        reason=ledger.reason_name(served.reason),
        rows=served.rows,
        compute_ns=served.compute_ns,
        price_version=served.price_version,
        charge_nanos=served.charge_nanos,
        charge=format_nanos(served.charge_nanos),
        currency=served.currency,
        tx=found.event.tx_id,
        leaf_index=found.leaf_index,
        merkle_root=found.merkle_root.hex(),
        seal=found.seal.hex(),
        ended_cause=found.ended_cause,
        entries=[_entry(entry) for entry in found.entries],
    )


def held(found: Held) -> HeldView:
    served = found.served
    return HeldView(
        quarantine_id=found.quarantine_id,
        reason=found.reason,
        field=found.field,
        quarantined_at=instant(found.quarantined_ns),
        call_id=format_call_id(served.call_id),
        tenant=served.tenant,
        model=served.model,
        at=instant(served.t_ns),
        charge=format_nanos(served.charge_nanos),
        currency=served.currency,
        place=f"{found.source.instance}/{found.source.epoch}:{found.seq}",
        fate=found.fate,
        note=found.note,
        ended_at=instant(found.ended_ns) if found.fate else None,
    )


def report(found: Report) -> ReconcileView:
    return ReconcileView(
        is_ok=found.is_ok,
        is_flushed=found.is_flushed,
        answered=found.answered,
        recorded=found.recorded,
        posted=found.posted,
        voided=found.voided,
        quarantined=found.quarantined,
        dismissed=found.dismissed,
        duplicates=found.duplicates,
        pending=found.pending,
        unposted=found.unposted,
        checked_on_disk=found.checked_on_disk,
        transactions=found.transactions,
        charged_nanos=found.charged_nanos,
        head=found.head.hex(),
        problems=[ProblemView(kind=p.kind, where=p.where, detail=p.detail) for p in found.problems],
    )


def _entry(entry: ledger.EntryView) -> LedgerEntryView:
    return LedgerEntryView(
        tx=entry.tx_id,
        line=entry.line,
        kind=entry.kind,
        tenant=entry.tenant,
        posted_at=instant(entry.posted_ns),
        account=entry.account,
        currency=entry.currency,
        amount_nanos=entry.amount_nanos,
        amount=format_nanos(entry.amount_nanos),
        calls=entry.calls,
    )


def period(closed: Period) -> PeriodView:
    return PeriodView(
        period_id=closed.period_id,
        start=instant(closed.start_ns),
        end=instant(closed.end_ns),
        closed_at=instant(closed.closed_ns),
        through_tx=closed.through_tx_id,
        hash=closed.hash.hex(),
    )
