"""Owns what the usage and ledger routes answer. Amounts are integer nanos (1e-9) beside their decimal text."""

from pydantic import Field

from gateway.control.views import View


class UsageRowView(View):
    """Figures of one group; `group` names the dimensions asked for, for example {"day": "2026-01-31"}."""

    group: dict[str, str | int]
    currency: str
    calls: int
    ok_calls: int
    failed_calls: int
    rows: int
    compute_ns: int
    request_bytes: int
    reply_bytes: int
    charge_nanos: int
    charge: str = Field(description="`charge_nanos` as decimal text of the major unit.")


class UsageView(View):
    by: list[str]
    zone: str
    rows: list[UsageRowView]
    next: str | None = Field(description="Ask again with `after` = this for the next page; null: this was the last.")


class BalanceLineView(View):
    account: str
    currency: str
    debit_nanos: int
    credit_nanos: int
    balance_nanos: int
    balance: str
    calls: int


class TrialBalanceView(View):
    """Every account; per currency all balances sum to zero."""

    is_balanced: bool
    totals_nanos: dict[str, int]
    lines: list[BalanceLineView]


class LedgerEntryView(View):
    """One line of a journal transaction; debits positive, credits negative."""

    tx: int
    line: int
    kind: str
    tenant: str
    posted_at: str | None
    account: str
    currency: str
    amount_nanos: int
    amount: str
    calls: int


class EntriesView(View):
    items: list[LedgerEntryView]
    next: int | None


class CallView(View):
    """A posted call: what was recorded, and the entries of the journal transaction that carries it."""

    call_id: str
    tenant: str
    key_id: str
    plan: str
    model: str
    model_version: str
    at: str | None
    outcome: str
    reason: str
    rows: int
    compute_ns: int
    price_version: int
    charge_nanos: int
    charge: str
    currency: str
    tx: int
    leaf_index: int
    merkle_root: str
    seal: str
    ended_cause: str | None
    entries: list[LedgerEntryView]


class PeriodView(View):
    """A closed period of posting times; it takes no entry any more, and its hash seals what was booked in it."""

    period_id: int
    start: str | None
    end: str | None
    closed_at: str | None
    through_tx: int
    hash: str


class HeldView(View):
    """A call in quarantine: why, and what was recorded. `fate` is empty while it waits for a decision."""

    quarantine_id: int
    reason: str
    field: str
    quarantined_at: str | None
    call_id: str
    tenant: str
    model: str
    at: str | None
    charge: str
    currency: str
    place: str
    fate: str
    note: str
    ended_at: str | None


class ProblemView(View):
    kind: str
    where: str
    detail: str


class ReconcileView(View):
    """Whether every answered call was recorded, and every recorded call has one fate in the ledger."""

    is_ok: bool
    is_flushed: bool
    answered: int
    recorded: int
    posted: int
    voided: int
    quarantined: int
    dismissed: int
    duplicates: int
    pending: int
    unposted: int
    checked_on_disk: int
    transactions: int
    charged_nanos: dict[str, int]
    head: str
    problems: list[ProblemView]
