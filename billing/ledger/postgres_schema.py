"""Owns the ledger's schema on PostgreSQL: the same tables and guards, made from the SQLite text, and what only it has.

Only here: rights (the writer's role has no UPDATE or DELETE on append-only tables), a deferred constraint trigger on
the sum of entries, row-level security per tenant, refused TRUNCATE. Ids that SQLite counts up are counted by a trigger,
without gaps, because writers take turns. Functions with SQLite's names (two-argument max and min, sum of truth values)
let queries be written once.
"""

import re
from typing import Final

import psycopg
from psycopg import sql

from billing.ledger.port import LedgerError
from billing.ledger.postgres_db import READER, SCHEMA, TENANT, WRITER
from billing.ledger.schema import SCHEMA_VERSION, schema_sql

#: Key of the advisory lock under which the schema is made.
_SCHEMA_LOCK: Final = 0x546F6C6D
_TRIGGER: Final = re.compile(
    r"CREATE TRIGGER (\w+) BEFORE (INSERT|UPDATE|DELETE) ON (\w+)\s*(?:WHEN (.*?)\s*)?"
    r"BEGIN SELECT RAISE\(ABORT, '([^']*)'\); END",
    re.DOTALL,
)
_TABLE: Final = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+) \(\s*(\w+) INTEGER PRIMARY KEY")
#: A call's row and its key are written a million times: small numbers take small columns. A ledger made before has
#: BIGINT there, which every statement takes as well.
_NARROW_TYPES: Final = {"kind": "SMALLINT", "n": "SMALLINT", "facet_id": "INT", "log_id": "INT"}
#: Tables that name no tenant: whose a row is, by what it hangs on (which has a rule of its own).
_OWN_BY_PARENT: Final = {
    "tenant": "name = current_setting('tollway.tenant', true)",
    "entry": "EXISTS (SELECT 1 FROM journal_tx p WHERE p.tx_id = entry.tx_id)",
    "seal": "EXISTS (SELECT 1 FROM journal_tx p WHERE p.tx_id = seal.tx_id)",
    # Names only, and of what the tenant's own rows point to.
    "account": "EXISTS (SELECT 1 FROM entry p WHERE p.account_id = account.account_id)",
    "facet": "EXISTS (SELECT 1 FROM usage_event p WHERE p.facet_id = facet.facet_id)",
    "ended": "EXISTS (SELECT 1 FROM usage_event p WHERE p.event_id = ended.event_id)",
    # Others may have entries in it: its balance is the tenant's only where its name says so.
    "wallet_balance": "EXISTS (SELECT 1 FROM account p WHERE p.account_id = wallet_balance.account_id AND"
    " starts_with(p.name || ':', 'contract_liability:prepaid:' || current_setting('tollway.tenant', true) || ':'))",
    "transfer_open": "EXISTS (SELECT 1 FROM transfer p WHERE p.transfer_id = transfer_open.transfer_id)",
    "invoice_step": "EXISTS (SELECT 1 FROM invoice p WHERE p.document_id = invoice_step.document_id)",
    "item_billed": "EXISTS (SELECT 1 FROM pending_item p WHERE p.item_id = item_billed.item_id)",
    "payment_attempt": "EXISTS (SELECT 1 FROM invoice p WHERE p.document_id = payment_attempt.document_id)",
    "payment_result": "EXISTS (SELECT 1 FROM payment_attempt p WHERE p.attempt_id = payment_result.attempt_id)",
    "dunning_step": "EXISTS (SELECT 1 FROM invoice p WHERE p.document_id = dunning_step.document_id)",
    "credit_burn": "EXISTS (SELECT 1 FROM credit_grant p WHERE p.grant_id = credit_burn.grant_id)",
    "recognition": "EXISTS (SELECT 1 FROM contract p WHERE p.contract_id = recognition.contract_id)",
    "top_up_step": "EXISTS (SELECT 1 FROM top_up p WHERE p.top_up_id = top_up_step.top_up_id)",
    "top_up_booked": "EXISTS (SELECT 1 FROM top_up p WHERE p.top_up_id = top_up_booked.top_up_id)",
    "billing_setting": "name = 'seller'",
}
#: Every tenant may read these: which workers wrote logs, what models cost (every proof of a bill holds it), and which
#: tables there are.
_OPEN_TO_TENANTS: Final = ("log", "price_book", "sqlite_schema")
_NARROW: Final = re.compile(rf"\b({'|'.join(_NARROW_TYPES)}) INTEGER NOT NULL")
#: Tables whose writers always give the id: a trigger per row would cost as much as the row.
_NUMBERED_BY_WRITER: Final = frozenset(
    {"usage_event", "journal_tx", "seal", "price_book", "watermark", "ended", "period", "money_schema"}
)


def ensure_postgres_schema(connection: "psycopg.Connection[tuple[object, ...]]") -> None:
    """Make roles, schema and tables, or bring them up to date. `connection` may create roles and is in autocommit.

    Raises LedgerError for a newer schema, psycopg.Error.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
        _ensure_roles(connection)
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        connection.execute(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {WRITER}, {READER}, {TENANT}")
        connection.execute(f"SET LOCAL search_path = {SCHEMA}")
        connection.execute("CREATE TABLE IF NOT EXISTS ledger_schema (version BIGINT PRIMARY KEY)")
        connection.execute(f"GRANT SELECT ON ledger_schema TO {WRITER}, {READER}, {TENANT}")
        row = connection.execute("SELECT COALESCE(MAX(version), 0) FROM ledger_schema").fetchone()
        assert row is not None
        have = int(str(row[0]))
        if have > SCHEMA_VERSION:
            raise LedgerError(f"the ledger has schema {have}, this release reads {SCHEMA_VERSION}")
        if have < SCHEMA_VERSION:
            _bring_up(connection, have)
        _ensure_own(connection)


def _bring_up(connection: "psycopg.Connection[tuple[object, ...]]", have: int) -> None:
    if have == 0:
        for statement in _HELPERS:
            connection.execute(statement)
    for statement in postgres_statements(schema_sql(have)):
        connection.execute(statement)
    if have == 0:
        for statement in _SUMS:
            connection.execute(statement)
    connection.execute("INSERT INTO ledger_schema VALUES (%s)", (SCHEMA_VERSION,))


def _ensure_own(connection: "psycopg.Connection[tuple[object, ...]]") -> None:
    """Rules of `_OWN_BY_PARENT` that a table made by an older release does not have yet."""
    tables = {
        str(name) for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'tollway'")
    }
    ruled = {
        str(name)
        for (name,) in connection.execute(
            "SELECT tablename FROM pg_policies WHERE schemaname = 'tollway' AND policyname = 'own'"
        )
    }
    for name in sorted((tables & _OWN_BY_PARENT.keys()) - ruled):
        for statement in _own_rows(name, _OWN_BY_PARENT[name]):
            connection.execute(statement.encode())
    for name in _OPEN_TO_TENANTS:
        connection.execute(f"GRANT SELECT ON {name} TO {TENANT}".encode())


def postgres_statements(script: str) -> list[str]:
    """PostgreSQL's statements for a script of tables, indexes and triggers in the form that our schemas have."""
    guards = [statement for match in _TRIGGER.finditer(script) for statement in _trigger(match)]
    tables, extras = [], []
    for part in _TRIGGER.sub("", script).split(";"):
        statement = part.strip()
        if not statement:
            continue
        tables.append(_types(statement))
        if statement.startswith("CREATE TABLE"):
            extras += _table_extras(statement)
    return [*tables, *extras, *guards]


def _types(statement: str) -> str:
    text = re.sub(r"\)\s*STRICT(, WITHOUT ROWID)?$", ")", statement)
    if text.startswith("CREATE TABLE usage_event "):
        text = _NARROW.sub(lambda match: f"{match[1]} {_NARROW_TYPES[match[1]]} NOT NULL", text)
    text = re.sub(r"\bINTEGER\b", "BIGINT", text)
    return re.sub(r"\bBLOB\b", "BYTEA", text)


def _table_extras(statement: str) -> list[str]:
    """Rights, row-level security and counted ids of a new table."""
    match = re.match(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)", statement)
    assert match is not None
    name = match[1]
    extras = [
        f"REVOKE ALL ON {name} FROM PUBLIC",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO {WRITER}",
        f"GRANT SELECT ON {name} TO {READER}",
    ]
    numbered = _TABLE.match(statement)
    if numbered and name not in _NUMBERED_BY_WRITER:
        extras.append(
            f"CREATE TRIGGER aa_{name}_next_id BEFORE INSERT ON {name} FOR EACH ROW"
            f" WHEN (NEW.{numbered[2]} IS NULL) EXECUTE FUNCTION next_id('{numbered[2]}')"
        )
    return extras + _row_security(name, statement)


def _row_security(name: str, statement: str) -> list[str]:
    if re.search(r"\btenant_id INTEGER NOT NULL", statement):
        own = "tenant_id = (SELECT t.tenant_id FROM tenant t WHERE t.name = current_setting('tollway.tenant', true))"
    elif re.search(r"\btenant TEXT\b", statement):
        own = "tenant = current_setting('tollway.tenant', true)"
    elif name in _OWN_BY_PARENT:
        own = _OWN_BY_PARENT[name]
    else:
        return []
    return _own_rows(name, own)


def _own_rows(name: str, own: str) -> list[str]:
    """A tenant's role reads the rows of `name` for which `own` holds; staff reads and writes all."""
    return [
        f"GRANT SELECT ON {name} TO {TENANT}",
        f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY staff ON {name} TO {WRITER}, {READER} USING (true) WITH CHECK (true)",
        f"CREATE POLICY own ON {name} FOR SELECT TO {TENANT} USING ({own})",
    ]


def _trigger(match: re.Match[str]) -> list[str]:
    """A guard; and where UPDATE is refused at all, the rights to it go as well."""
    name, verb, table, condition, message = match.groups()
    row = "OLD" if verb == "DELETE" else "NEW"
    raising = f"RAISE EXCEPTION '{message}';"
    body = raising if condition is None else f"IF {condition} THEN {raising} END IF; RETURN {row};"
    made = [
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SET search_path = {SCHEMA}"
        f" AS $$ BEGIN {body} END $$",
        f"CREATE TRIGGER {name} BEFORE {verb} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()",
    ]
    if name == f"{table}_no_update":
        made += [
            f"REVOKE UPDATE, DELETE, TRUNCATE ON {table} FROM {WRITER}",
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} EXECUTE FUNCTION refuse_truncate()",
        ]
    return made


def _ensure_roles(connection: "psycopg.Connection[tuple[object, ...]]") -> None:
    for role in (WRITER, READER, TENANT):
        if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is None:
            connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(role)))
        connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(role)))


_HELPERS: Final = (
    "CREATE FUNCTION max(a BIGINT, b BIGINT) RETURNS BIGINT LANGUAGE sql IMMUTABLE AS 'SELECT GREATEST(a, b)'",
    "CREATE FUNCTION min(a BIGINT, b BIGINT) RETURNS BIGINT LANGUAGE sql IMMUTABLE AS 'SELECT LEAST(a, b)'",
    "CREATE FUNCTION add_truth(total BIGINT, value BOOLEAN) RETURNS BIGINT LANGUAGE sql IMMUTABLE"
    " AS 'SELECT total + CASE WHEN value THEN 1 ELSE 0 END'",
    f"CREATE AGGREGATE sum(BOOLEAN) (SFUNC = {SCHEMA}.add_truth, STYPE = BIGINT, INITCOND = '0')",
    "CREATE VIEW sqlite_schema AS SELECT tablename::text AS name FROM pg_catalog.pg_tables"
    " WHERE schemaname = 'tollway'",
    f"GRANT SELECT ON sqlite_schema TO {WRITER}, {READER}",
    "CREATE FUNCTION refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE EXCEPTION '%: append-only, TRUNCATE is refused', TG_TABLE_NAME; END $$",
    "CREATE FUNCTION next_id() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE next BIGINT; BEGIN"
    " EXECUTE format('SELECT COALESCE(MAX(%I), 0) + 1 FROM %I.%I', TG_ARGV[0], TG_TABLE_SCHEMA, TG_TABLE_NAME)"
    " INTO next;"
    " NEW := jsonb_populate_record(NEW, jsonb_build_object(TG_ARGV[0], next)); RETURN NEW; END $$",
)
_ENTRY_SUMS: Final = """
CREATE FUNCTION entry_sums() RETURNS trigger LANGUAGE plpgsql SET search_path = tollway AS $$ BEGIN
  IF EXISTS (SELECT 1 FROM entry e JOIN account a USING (account_id) WHERE e.tx_id = NEW.tx_id
             GROUP BY a.currency HAVING SUM(e.amount_nanos) <> 0)
     OR NOT EXISTS (SELECT 1 FROM seal WHERE tx_id = NEW.tx_id)
  THEN RAISE EXCEPTION 'journal_tx %: its entries do not sum to zero, or it is not sealed', NEW.tx_id; END IF;
  RETURN NULL; END $$
"""
#: At the end of a transaction every journal transaction in it sums to zero per currency and is sealed (I7).
_SUMS: Final = (
    _ENTRY_SUMS,
    "CREATE CONSTRAINT TRIGGER entry_sums AFTER INSERT ON journal_tx DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION entry_sums()",
)
