"""Owns the tables of invoicing inside the ledger's database, in numbered steps, and the triggers that keep them true.

They stand beside the journal so that a document, its number and its entries commit in one transaction. A finalized
document is a row that nothing can change or delete; what happens to it later is appended as steps (I22).
"""

import sqlite3
from typing import Final

from billing.ledger.port import LedgerError

_INVOICES: Final = """
CREATE TABLE billing_setting (name TEXT PRIMARY KEY, body TEXT NOT NULL, updated_ns INTEGER NOT NULL);
CREATE TABLE billing_account (
  tenant TEXT PRIMARY KEY, currency TEXT NOT NULL, body TEXT NOT NULL, updated_ns INTEGER NOT NULL);
CREATE TABLE pending_item (
  item_id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, source TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
  description TEXT NOT NULL, account TEXT NOT NULL, amount_nanos INTEGER NOT NULL, tax_category TEXT NOT NULL,
  start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL, created_ns INTEGER NOT NULL);
CREATE INDEX pending_item_by_tenant ON pending_item (tenant, item_id);
CREATE TABLE item_billed (item_id INTEGER PRIMARY KEY REFERENCES pending_item, document_id TEXT NOT NULL);
CREATE TABLE invoice_draft (
  tenant TEXT PRIMARY KEY, document_id TEXT NOT NULL UNIQUE, body TEXT NOT NULL, created_ns INTEGER NOT NULL);
CREATE TABLE invoice (
  document_id TEXT PRIMARY KEY, series TEXT NOT NULL, serial INTEGER NOT NULL, number TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL, tenant TEXT NOT NULL, currency TEXT NOT NULL, total_minor INTEGER NOT NULL,
  issued_ns INTEGER NOT NULL, due_ns INTEGER NOT NULL, start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
  corrects TEXT NOT NULL, body TEXT NOT NULL, digest TEXT NOT NULL, UNIQUE (series, serial));
CREATE INDEX invoice_by_tenant ON invoice (tenant, issued_ns);
CREATE TABLE invoice_step (
  document_id TEXT NOT NULL REFERENCES invoice, n INTEGER NOT NULL, kind TEXT NOT NULL, at_ns INTEGER NOT NULL,
  amount_minor INTEGER NOT NULL, tx_id INTEGER NOT NULL REFERENCES journal_tx, reference TEXT NOT NULL,
  note TEXT NOT NULL, PRIMARY KEY (document_id, n));
CREATE UNIQUE INDEX invoice_step_reference ON invoice_step (kind, reference) WHERE reference <> '';
CREATE TABLE usage_cut (
  tenant TEXT NOT NULL, n INTEGER NOT NULL, event_id INTEGER NOT NULL, end_ns INTEGER NOT NULL,
  document_id TEXT NOT NULL, PRIMARY KEY (tenant, n));
CREATE TABLE billed_until (
  tenant TEXT NOT NULL, end_ns INTEGER NOT NULL, at_ns INTEGER NOT NULL, PRIMARY KEY (tenant, end_ns));
CREATE TABLE subscription (
  subscription_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, status TEXT NOT NULL, next_ns INTEGER NOT NULL,
  body TEXT NOT NULL, updated_ns INTEGER NOT NULL);
CREATE INDEX subscription_by_tenant ON subscription (tenant, subscription_id);
CREATE INDEX subscription_due ON subscription (status, next_ns);
CREATE TABLE money_operation (
  operation_id TEXT PRIMARY KEY, verb TEXT NOT NULL, digest TEXT NOT NULL, answer TEXT NOT NULL,
  at_ns INTEGER NOT NULL);
CREATE TABLE billing_event (
  seq INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, tenant TEXT NOT NULL, type TEXT NOT NULL, body TEXT NOT NULL);
CREATE TRIGGER invoice_gapless BEFORE INSERT ON invoice
WHEN NEW.serial <> 1 + COALESCE((SELECT MAX(serial) FROM invoice WHERE series = NEW.series), 0)
BEGIN SELECT RAISE(ABORT, 'invoice: numbers of a series count up by one'); END;
CREATE TRIGGER invoice_step_order BEFORE INSERT ON invoice_step
WHEN NEW.n <> 1 + COALESCE((SELECT MAX(n) FROM invoice_step WHERE document_id = NEW.document_id), 0)
BEGIN SELECT RAISE(ABORT, 'invoice_step: steps count up by one'); END;
CREATE TRIGGER usage_cut_forward BEFORE INSERT ON usage_cut
WHEN NEW.n <> 1 + COALESCE((SELECT MAX(n) FROM usage_cut WHERE tenant = NEW.tenant), 0) OR EXISTS (
  SELECT 1 FROM usage_cut WHERE tenant = NEW.tenant AND (event_id > NEW.event_id OR end_ns > NEW.end_ns))
BEGIN SELECT RAISE(ABORT, 'usage_cut: cuts only grow'); END;
CREATE TRIGGER billing_account_currency BEFORE UPDATE ON billing_account
WHEN NEW.tenant <> OLD.tenant OR NEW.currency <> OLD.currency
BEGIN SELECT RAISE(ABORT, 'billing_account: the currency of an account never changes'); END;
"""

_PAYMENTS: Final = """
CREATE TABLE payment_attempt (
  attempt_id TEXT PRIMARY KEY, document_id TEXT NOT NULL REFERENCES invoice, provider TEXT NOT NULL,
  covers INTEGER NOT NULL, amount_minor INTEGER NOT NULL, at_ns INTEGER NOT NULL);
CREATE INDEX payment_attempt_by_document ON payment_attempt (document_id, at_ns);
CREATE TABLE payment_result (
  attempt_id TEXT NOT NULL REFERENCES payment_attempt, n INTEGER NOT NULL, outcome TEXT NOT NULL,
  reference TEXT NOT NULL, amount_minor INTEGER NOT NULL, code TEXT NOT NULL, is_final INTEGER NOT NULL,
  at_ns INTEGER NOT NULL, PRIMARY KEY (attempt_id, n));
CREATE INDEX payment_result_reference ON payment_result (reference);
CREATE TABLE dunning_step (
  document_id TEXT NOT NULL REFERENCES invoice, n INTEGER NOT NULL, kind TEXT NOT NULL, covers INTEGER NOT NULL,
  at_ns INTEGER NOT NULL, PRIMARY KEY (document_id, n));
"""

#: What `billing.credit_store` and `billing.settlement` keep. A burn may be negative: a month rated again gave it back.
_CREDIT: Final = """
CREATE TABLE credit_grant (
  grant_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, amount_nanos INTEGER NOT NULL, body TEXT NOT NULL,
  created_ns INTEGER NOT NULL);
CREATE INDEX credit_grant_by_tenant ON credit_grant (tenant);
CREATE TABLE credit_burn (
  burn_id INTEGER PRIMARY KEY, grant_id TEXT NOT NULL REFERENCES credit_grant, month_start_ns INTEGER NOT NULL,
  amount_nanos INTEGER NOT NULL, at_ns INTEGER NOT NULL);
CREATE INDEX credit_burn_by_grant ON credit_burn (grant_id);
CREATE TABLE coupon_redemption (
  tenant TEXT NOT NULL, code TEXT NOT NULL, body TEXT NOT NULL, redeemed_ns INTEGER NOT NULL,
  PRIMARY KEY (tenant, code));
CREATE INDEX coupon_redemption_by_code ON coupon_redemption (code);
CREATE TABLE month_run (
  tenant TEXT NOT NULL, start_ns INTEGER NOT NULL, n INTEGER NOT NULL, end_ns INTEGER NOT NULL, body TEXT NOT NULL,
  at_ns INTEGER NOT NULL, PRIMARY KEY (tenant, start_ns, n));
CREATE TRIGGER credit_burn_within BEFORE INSERT ON credit_burn
WHEN NEW.amount_nanos + COALESCE((SELECT SUM(amount_nanos) FROM credit_burn WHERE grant_id = NEW.grant_id), 0)
  NOT BETWEEN 0 AND (SELECT amount_nanos FROM credit_grant WHERE grant_id = NEW.grant_id)
BEGIN SELECT RAISE(ABORT, 'credit_burn: a grant burns at most what was granted'); END;
"""

_RECOGNITION: Final = """
CREATE TABLE contract (
  contract_id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, currency TEXT NOT NULL, document_id TEXT NOT NULL,
  line INTEGER NOT NULL, amount_nanos INTEGER NOT NULL, start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
  created_ns INTEGER NOT NULL);
CREATE INDEX contract_by_tenant ON contract (tenant, contract_id);
CREATE INDEX contract_by_line ON contract (document_id, line);
CREATE TABLE recognition (
  contract_id INTEGER NOT NULL REFERENCES contract, through_ns INTEGER NOT NULL, amount_nanos INTEGER NOT NULL,
  tx_id INTEGER NOT NULL REFERENCES journal_tx, PRIMARY KEY (contract_id, through_ns));
CREATE TABLE recognition_run (
  tenant TEXT NOT NULL, through_ns INTEGER NOT NULL, at_ns INTEGER NOT NULL, PRIMARY KEY (tenant, through_ns));
"""

#: What `billing.receipts.heads` keeps.
_HEADS: Final = """
CREATE TABLE tree_head (
  tenant TEXT NOT NULL, size INTEGER NOT NULL, root TEXT NOT NULL, at_ns INTEGER NOT NULL, key_id TEXT NOT NULL,
  signature TEXT NOT NULL, PRIMARY KEY (tenant, size));
CREATE TRIGGER tree_head_grows BEFORE INSERT ON tree_head
WHEN EXISTS (SELECT 1 FROM tree_head WHERE tenant = NEW.tenant AND size >= NEW.size)
BEGIN SELECT RAISE(ABORT, 'tree_head: heads of a tenant only grow'); END;
"""

#: What `billing.tally` keeps: sums of a month's usage up to an event, so that no query has to walk the whole month.
_TALLIES: Final = """
CREATE TABLE month_tally (
  tenant TEXT NOT NULL, start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL, through_event_id INTEGER NOT NULL,
  body TEXT NOT NULL, at_ns INTEGER NOT NULL, PRIMARY KEY (tenant, start_ns, end_ns, through_event_id));
"""

#: When prepaid grants expire (`prepaid.schedule`), and which did.
_EXPIRIES: Final = """
CREATE TABLE prepaid_expiry (
  tenant TEXT NOT NULL, grant_id TEXT NOT NULL, currency TEXT NOT NULL, expires_ns INTEGER NOT NULL,
  created_ns INTEGER NOT NULL, PRIMARY KEY (tenant, grant_id, currency));
CREATE INDEX prepaid_expiry_due ON prepaid_expiry (expires_ns);
CREATE TABLE prepaid_expired (
  tenant TEXT NOT NULL, grant_id TEXT NOT NULL, currency TEXT NOT NULL, amount_nanos INTEGER NOT NULL,
  at_ns INTEGER NOT NULL, PRIMARY KEY (tenant, grant_id, currency));
"""

#: Which fees' months each coupon has reduced (`billing.invoices.fee_coupons`).
_FEE_COUPONS: Final = """
CREATE TABLE fee_coupon (
  tenant TEXT NOT NULL, code TEXT NOT NULL, subscription_id TEXT NOT NULL, start_ns INTEGER NOT NULL,
  months INTEGER NOT NULL, at_ns INTEGER NOT NULL, PRIMARY KEY (tenant, code, subscription_id, start_ns));
"""

#: How records in quarantine ended (`billing.quarantine`).
_QUARANTINE: Final = """
CREATE TABLE quarantine_end (
  tenant TEXT NOT NULL, quarantine_id INTEGER NOT NULL REFERENCES quarantine,
  fate TEXT NOT NULL CHECK (fate IN ('posted', 'dismissed')), note TEXT NOT NULL, at_ns INTEGER NOT NULL,
  PRIMARY KEY (quarantine_id));
"""

#: What `billing.invoices.gathering` keeps: figures towards an invoice, beyond the cut of the one before.
_PARTS: Final = """
CREATE TABLE invoice_part (
  tenant TEXT NOT NULL, end_ns INTEGER NOT NULL, cut_event_id INTEGER NOT NULL, cut_end_ns INTEGER NOT NULL,
  through_event_id INTEGER NOT NULL, body TEXT NOT NULL, at_ns INTEGER NOT NULL,
  PRIMARY KEY (tenant, end_ns, cut_event_id, cut_end_ns, through_event_id));
"""

#: (version, statements, tables that take no UPDATE and no DELETE). A released step is never edited.
STEPS: Final = (
    (
        1,
        _INVOICES,
        (
            "pending_item",
            "item_billed",
            "invoice",
            "invoice_step",
            "usage_cut",
            "billed_until",
            "money_operation",
            "billing_event",
        ),
    ),
    (2, _PAYMENTS, ("payment_attempt", "payment_result", "dunning_step")),
    (3, _CREDIT, ("credit_grant", "credit_burn", "coupon_redemption", "month_run")),
    (4, _RECOGNITION, ("contract", "recognition", "recognition_run")),
    (5, _HEADS, ("tree_head",)),
    (6, _TALLIES, ("month_tally",)),
    (7, _EXPIRIES, ("prepaid_expiry", "prepaid_expired")),
    (8, _FEE_COUPONS, ("fee_coupon",)),
    (9, _QUARANTINE, ("quarantine_end",)),
    (10, _PARTS, ("invoice_part",)),
)


def ensure_schema(db: sqlite3.Connection, now_ns: int) -> None:
    """Bring the invoicing tables of a ledger up to date, inside the caller's transaction.

    Raises LedgerError when they were written by a newer release.
    """
    db.execute("CREATE TABLE IF NOT EXISTS money_schema (version INTEGER PRIMARY KEY, applied_ns INTEGER NOT NULL)")
    (have,) = db.execute("SELECT COALESCE(MAX(version), 0) FROM money_schema").fetchone()
    if have > STEPS[-1][0]:
        raise LedgerError(f"invoicing has schema {have}, this release knows up to {STEPS[-1][0]}: start the newer one")
    for version, script, append_only in STEPS:
        if version <= have:
            continue
        for statement in _statements(script + "".join(_guards(table) for table in append_only)):
            db.execute(statement)
        db.execute("INSERT INTO money_schema VALUES (?, ?)", (version, now_ns))


def has_schema(db: sqlite3.Connection) -> bool:
    """Whether a ledger holds the invoicing tables: they appear when a meter that knows them has started."""
    return db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'money_schema'").fetchone() is not None


def _guards(table: str) -> str:
    return "".join(
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table}: append-only, {verb} is refused'); END;\n"
        for verb in ("UPDATE", "DELETE")
    )


def _statements(script: str) -> list[str]:
    """Complete statements one by one: executescript would commit the caller's transaction."""
    found, pending = [], ""
    for part in script.split(";"):
        pending += part + ";"
        if sqlite3.complete_statement(pending):
            if pending.strip(" \n;"):
                found.append(pending)
            pending = ""
    return found
