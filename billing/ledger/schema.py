"""Owns the SQLite schema of ledger.db: small rows, append-only tables, and triggers that make breaking a rule an error.

`facet` holds the slow-changing facts of calls once, so that a call's own row is about 65 bytes (+ about 30 of index).
Every append-only table raises on UPDATE and DELETE; inserts that REPLACE would turn into deletes raise as well.
"""

from typing import Final

APPLICATION_ID: Final = 0x546F6C6C  # "Toll"
SCHEMA_VERSION: Final = 3

_TABLES: Final = """
CREATE TABLE log (
  log_id INTEGER PRIMARY KEY, instance TEXT NOT NULL, epoch INTEGER NOT NULL, UNIQUE (instance, epoch)) STRICT;
CREATE TABLE tenant (tenant_id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE facet (
  facet_id INTEGER PRIMARY KEY, key_id TEXT NOT NULL, plan TEXT NOT NULL, model TEXT NOT NULL,
  model_version TEXT NOT NULL, price_version INTEGER NOT NULL, outcome INTEGER NOT NULL, reason INTEGER NOT NULL,
  currency TEXT NOT NULL, protocol INTEGER NOT NULL,
  UNIQUE (key_id, plan, model, model_version, price_version, outcome, reason, currency, protocol)) STRICT;
CREATE TABLE price_book (version INTEGER PRIMARY KEY, json TEXT NOT NULL, added_ns INTEGER NOT NULL) STRICT;
CREATE TABLE account (
  account_id INTEGER PRIMARY KEY, name TEXT NOT NULL, currency TEXT NOT NULL, UNIQUE (name, currency)) STRICT;
CREATE TABLE journal_tx (
  tx_id INTEGER PRIMARY KEY, kind TEXT NOT NULL, tenant_id INTEGER NOT NULL REFERENCES tenant,
  posted_ns INTEGER NOT NULL, first_event_id INTEGER NOT NULL, event_count INTEGER NOT NULL, ok_count INTEGER NOT NULL,
  t_min_ns INTEGER NOT NULL, t_max_ns INTEGER NOT NULL, leaf_version INTEGER NOT NULL,
  merkle_root BLOB NOT NULL) STRICT;
CREATE INDEX journal_tx_window ON journal_tx (tenant_id, t_max_ns, t_min_ns, ok_count);
CREATE TABLE usage_event (
  event_id INTEGER PRIMARY KEY, tenant_id INTEGER NOT NULL, call_id BLOB NOT NULL, kind INTEGER NOT NULL,
  n INTEGER NOT NULL, facet_id INTEGER NOT NULL, tx_id INTEGER NOT NULL, log_id INTEGER NOT NULL, seq INTEGER NOT NULL,
  t_ns INTEGER NOT NULL, rows INTEGER NOT NULL, compute_ns INTEGER NOT NULL, request_bytes INTEGER NOT NULL,
  reply_bytes INTEGER NOT NULL, charge_nanos INTEGER NOT NULL CHECK (charge_nanos >= 0),
  UNIQUE (tenant_id, call_id, kind, n)) STRICT;
CREATE TABLE entry (
  tx_id INTEGER NOT NULL REFERENCES journal_tx, line INTEGER NOT NULL, account_id INTEGER NOT NULL REFERENCES account,
  amount_nanos INTEGER NOT NULL, calls INTEGER NOT NULL CHECK (calls >= 0),
  PRIMARY KEY (tx_id, line)) STRICT, WITHOUT ROWID;
CREATE INDEX entry_by_account ON entry (account_id, tx_id);
CREATE TABLE seal (tx_id INTEGER PRIMARY KEY REFERENCES journal_tx, hash BLOB NOT NULL) STRICT;
CREATE TABLE ended (event_id INTEGER PRIMARY KEY, cause TEXT NOT NULL, bytes_sent INTEGER NOT NULL) STRICT;
CREATE TABLE voided (
  void_id INTEGER PRIMARY KEY, log_id INTEGER NOT NULL, seq INTEGER NOT NULL, tenant TEXT NOT NULL,
  call_id BLOB NOT NULL, voided_ns INTEGER NOT NULL, payload BLOB NOT NULL, UNIQUE (log_id, seq)) STRICT;
CREATE TABLE quarantine (
  quarantine_id INTEGER PRIMARY KEY, log_id INTEGER NOT NULL, seq INTEGER NOT NULL, tenant TEXT NOT NULL,
  call_id BLOB NOT NULL, reason TEXT NOT NULL, field TEXT NOT NULL, quarantined_ns INTEGER NOT NULL,
  payload BLOB NOT NULL, UNIQUE (log_id, seq)) STRICT;
CREATE TABLE duplicate (
  log_id INTEGER NOT NULL, seq INTEGER NOT NULL, tenant_id INTEGER NOT NULL, call_id BLOB NOT NULL,
  PRIMARY KEY (log_id, seq)) STRICT, WITHOUT ROWID;
CREATE TABLE watermark (
  log_id INTEGER PRIMARY KEY REFERENCES log, seq INTEGER NOT NULL, served INTEGER NOT NULL, is_ended INTEGER NOT NULL,
  updated_ns INTEGER NOT NULL) STRICT;
"""

APPEND_ONLY: Final = (
    "log",
    "tenant",
    "facet",
    "price_book",
    "account",
    "journal_tx",
    "usage_event",
    "entry",
    "seal",
    "ended",
    "voided",
    "quarantine",
    "duplicate",
)

# Ids count up by one: a REPLACE, a gap or an insert into the past is refused. For events that is checked once per
# transaction, at its seal: a trigger per event would cost as much as the insert itself (3 µs), and the Merkle root sees
# what it would have seen.
# `+e.tenant_id` keeps the planner from walking all events of the tenant instead of the transaction's range of ids.
_GUARDS: Final = """
CREATE TRIGGER journal_tx_order BEFORE INSERT ON journal_tx
WHEN NEW.tx_id <> 1 + COALESCE((SELECT MAX(tx_id) FROM seal), 0)
BEGIN SELECT RAISE(ABORT, 'journal_tx: the previous transaction must be sealed first, ids count up by one'); END;
CREATE TRIGGER entry_open BEFORE INSERT ON entry
WHEN EXISTS (SELECT 1 FROM seal WHERE tx_id = NEW.tx_id)
  OR NOT EXISTS (SELECT 1 FROM journal_tx WHERE tx_id = NEW.tx_id)
  OR EXISTS (SELECT 1 FROM entry WHERE tx_id = NEW.tx_id AND line = NEW.line)
BEGIN SELECT RAISE(ABORT, 'entry: its transaction is sealed or unknown, or the line exists'); END;
CREATE TRIGGER seal_order BEFORE INSERT ON seal
WHEN NEW.tx_id <> (SELECT MAX(tx_id) FROM journal_tx) OR EXISTS (SELECT 1 FROM seal WHERE tx_id = NEW.tx_id)
BEGIN SELECT RAISE(ABORT, 'seal: only the newest, unsealed transaction can be sealed'); END;
CREATE TRIGGER seal_balance BEFORE INSERT ON seal
WHEN NOT EXISTS (SELECT 1 FROM entry WHERE tx_id = NEW.tx_id) OR EXISTS (
  SELECT 1 FROM entry JOIN account USING (account_id) WHERE entry.tx_id = NEW.tx_id
  GROUP BY account.currency HAVING SUM(amount_nanos) <> 0)
BEGIN SELECT RAISE(ABORT, 'seal: entries must exist and sum to zero in every currency'); END;
CREATE TRIGGER seal_events BEFORE INSERT ON seal
WHEN EXISTS (
  SELECT 1 FROM journal_tx t WHERE t.tx_id = NEW.tx_id AND t.kind = 'usage' AND (
    (SELECT SUM(calls) FROM entry WHERE tx_id = NEW.tx_id) <> 2 * t.event_count
    OR t.first_event_id <> COALESCE(
      (SELECT p.first_event_id + p.event_count FROM journal_tx p WHERE p.kind = 'usage' AND p.tx_id < t.tx_id
       ORDER BY p.tx_id DESC LIMIT 1), 1)
    OR t.event_count <> (SELECT COUNT(*) FROM usage_event e WHERE e.tx_id = t.tx_id AND +e.tenant_id = t.tenant_id
      AND e.event_id >= t.first_event_id AND e.event_id < t.first_event_id + t.event_count)))
BEGIN SELECT RAISE(ABORT, 'seal: a usage transaction must hold exactly its events'); END;
CREATE TRIGGER watermark_forward BEFORE UPDATE ON watermark
WHEN NEW.log_id <> OLD.log_id OR NEW.seq < OLD.seq OR NEW.served < OLD.served OR NEW.is_ended < OLD.is_ended
BEGIN SELECT RAISE(ABORT, 'watermark: only moves forward'); END;
CREATE TRIGGER watermark_kept BEFORE DELETE ON watermark
BEGIN SELECT RAISE(ABORT, 'watermark: is never deleted'); END;
"""


#: What version 2 added: closed periods with the balances at their closing, and two-phase transfers.
_PERIODS: Final = """
CREATE TABLE period (
  period_id INTEGER PRIMARY KEY, start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL CHECK (end_ns > start_ns),
  through_tx_id INTEGER NOT NULL, closed_ns INTEGER NOT NULL CHECK (closed_ns >= end_ns), hash BLOB NOT NULL) STRICT;
CREATE TABLE period_balance (
  period_id INTEGER NOT NULL, account_id INTEGER NOT NULL REFERENCES account, units INTEGER NOT NULL,
  nanos INTEGER NOT NULL, PRIMARY KEY (period_id, account_id)) STRICT, WITHOUT ROWID;
CREATE TABLE transfer (
  transfer_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, phase TEXT NOT NULL CHECK (phase IN
    ('single', 'pending', 'post', 'void')), pending_id TEXT NOT NULL, debit TEXT NOT NULL, credit TEXT NOT NULL,
  currency TEXT NOT NULL, amount_nanos INTEGER NOT NULL CHECK (amount_nanos >= 0), expires_ns INTEGER NOT NULL,
  at_ns INTEGER NOT NULL, tx_id INTEGER NOT NULL) STRICT;
CREATE UNIQUE INDEX transfer_ends_once ON transfer (pending_id) WHERE pending_id <> '';
CREATE TABLE transfer_open (
  transfer_id TEXT PRIMARY KEY REFERENCES transfer, debit TEXT NOT NULL, currency TEXT NOT NULL,
  amount_nanos INTEGER NOT NULL) STRICT;
CREATE INDEX transfer_open_by_debit ON transfer_open (debit, currency);
CREATE TRIGGER period_next BEFORE INSERT ON period
WHEN NEW.period_id <> 1 + COALESCE((SELECT MAX(period_id) FROM period), 0)
  OR NEW.start_ns <> COALESCE((SELECT MAX(end_ns) FROM period), 0)
BEGIN SELECT RAISE(ABORT, 'period: begins where the one before ended'); END;
CREATE TRIGGER period_closed BEFORE INSERT ON journal_tx
WHEN NEW.posted_ns < COALESCE((SELECT MAX(end_ns) FROM period), 0)
BEGIN SELECT RAISE(ABORT, 'journal_tx: its period is closed and takes no entry'); END;
CREATE TRIGGER transfer_end BEFORE INSERT ON transfer
WHEN NEW.pending_id <> '' AND NOT EXISTS (
  SELECT 1 FROM transfer WHERE transfer_id = NEW.pending_id AND phase = 'pending' AND amount_nanos >= NEW.amount_nanos)
BEGIN SELECT RAISE(ABORT, 'transfer: ends no pending one, or takes more than was held'); END;
CREATE TRIGGER transfer_open_fixed BEFORE UPDATE ON transfer_open
WHEN NEW.amount_nanos <> OLD.amount_nanos OR NEW.debit <> OLD.debit OR NEW.transfer_id <> OLD.transfer_id
BEGIN SELECT RAISE(ABORT, 'transfer_open: never changes'); END;
CREATE TRIGGER transfer_open_ended BEFORE DELETE ON transfer_open
WHEN NOT EXISTS (SELECT 1 FROM transfer WHERE pending_id = OLD.transfer_id)
BEGIN SELECT RAISE(ABORT, 'transfer_open: is closed only by a post or a void'); END;
"""
#: What version 3 added: the balances of guarded accounts, how much of a wallet each usage log may still spend, and what
#: `billing.wallets` keeps.
#: `ceiling_nanos` is what the log's prepaid calls may cost in all, `used_nanos` what was decided of them; the rest is
#: held by the pending transfer `lease_id` ("": nothing is), which was made when `held_from_nanos` had been used.
_WALLETS: Final = """
CREATE TABLE wallet_balance (
  account_id INTEGER PRIMARY KEY REFERENCES account, units INTEGER NOT NULL, nanos INTEGER NOT NULL) STRICT;
INSERT INTO wallet_balance SELECT account_id, SUM(amount_nanos / 1000000000), SUM(amount_nanos % 1000000000)
  FROM entry JOIN account USING (account_id) WHERE name LIKE 'contract_liability:prepaid:%' GROUP BY account_id;
CREATE TABLE fund_lease (
  log_id INTEGER NOT NULL REFERENCES log, tenant TEXT NOT NULL, currency TEXT NOT NULL, seq INTEGER NOT NULL,
  issued INTEGER NOT NULL, ceiling_nanos INTEGER NOT NULL, used_nanos INTEGER NOT NULL,
  held_from_nanos INTEGER NOT NULL, lease_id TEXT NOT NULL, PRIMARY KEY (log_id, tenant, currency),
  CHECK (0 <= held_from_nanos AND held_from_nanos <= used_nanos AND used_nanos <= ceiling_nanos)) STRICT;
CREATE INDEX fund_lease_by_transfer ON fund_lease (lease_id);
CREATE TABLE wallet (
  tenant TEXT NOT NULL, currency TEXT NOT NULL, low_nanos INTEGER NOT NULL, is_low INTEGER NOT NULL,
  updated_ns INTEGER NOT NULL, PRIMARY KEY (tenant, currency)) STRICT;
CREATE TABLE top_up (
  top_up_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, currency TEXT NOT NULL, amount_nanos INTEGER NOT NULL,
  source TEXT NOT NULL, provider TEXT NOT NULL, created_ns INTEGER NOT NULL) STRICT;
CREATE INDEX top_up_by_tenant ON top_up (tenant, top_up_id);
CREATE TABLE top_up_step (
  top_up_id TEXT NOT NULL REFERENCES top_up, n INTEGER NOT NULL, outcome TEXT NOT NULL, reference TEXT NOT NULL,
  amount_nanos INTEGER NOT NULL, code TEXT NOT NULL, at_ns INTEGER NOT NULL, tx_id INTEGER NOT NULL,
  PRIMARY KEY (top_up_id, n)) STRICT;
CREATE TABLE top_up_booked (
  provider TEXT NOT NULL, reference TEXT NOT NULL, top_up_id TEXT NOT NULL REFERENCES top_up,
  PRIMARY KEY (provider, reference)) STRICT;
"""

#: (version, tables and guards, tables that take no UPDATE and no DELETE). A released step is never edited.
STEPS: Final = (
    (1, _TABLES + _GUARDS, APPEND_ONLY),
    (2, _PERIODS, ("period", "period_balance", "transfer")),
    (3, _WALLETS, ("top_up", "top_up_step", "top_up_booked")),
)


def schema_sql(have: int = 0) -> str:
    """Every statement that brings a ledger of version `have` (0: an empty file) up to SCHEMA_VERSION."""
    return "".join(
        script + "".join(append_only_sql(table) for table in tables)
        for version, script, tables in STEPS
        if version > have
    )


def append_only_sql(table: str) -> str:
    """The triggers that refuse UPDATE and DELETE on `table`."""
    return "".join(
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table}: append-only, {verb} is refused'); END;\n"
        for verb in ("UPDATE", "DELETE")
    )
