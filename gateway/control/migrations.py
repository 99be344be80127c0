"""Owns the numbered steps that bring control.db from any earlier release to this one.

A step is never edited once released; a change is a new step. Each step and its row in `schema_version` commit
together, so a crash between two steps resumes at the next one. A database newer than this code is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from gateway.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """`statements` run in order, in one transaction."""

    version: int
    name: str
    statements: tuple[str, ...]


def _append_only(table: str) -> tuple[str, str]:
    """Triggers that make UPDATE and DELETE of `table` fail whoever asks."""
    return (
        f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END",
        f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END",
    )


MIGRATIONS: Final[tuple[Migration, ...]] = (
    Migration(
        version=1,
        name="policy",
        statements=(
            "CREATE TABLE tenant (tenant TEXT PRIMARY KEY, name TEXT NOT NULL, plan TEXT NOT NULL, zone TEXT NOT NULL,"
            " currency TEXT NOT NULL, is_suspended BOOLEAN NOT NULL, created_ns BIGINT NOT NULL)",
            "CREATE TABLE plan_version (name TEXT NOT NULL, version INTEGER NOT NULL, body TEXT NOT NULL,"
            " created_ns BIGINT NOT NULL, PRIMARY KEY (name, version))",
            *_append_only("plan_version"),
            "CREATE TABLE api_key (key_id TEXT PRIMARY KEY, kid TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL,"
            " name TEXT NOT NULL, scopes TEXT NOT NULL, models TEXT, expires_ns BIGINT, revoked_ns BIGINT,"
            " parent TEXT, created_ns BIGINT NOT NULL)",
            "CREATE INDEX ix_api_key_tenant ON api_key (tenant)",
            "CREATE TABLE key_secret (secret_id INTEGER PRIMARY KEY, key_id TEXT NOT NULL, digest BLOB NOT NULL,"
            " pepper_version INTEGER NOT NULL, not_after_ns BIGINT, created_ns BIGINT NOT NULL)",
            "CREATE INDEX ix_key_secret_key_id ON key_secret (key_id)",
            "CREATE TABLE key_operation (operation_id TEXT PRIMARY KEY, key_id TEXT NOT NULL,"
            " overlap_s INTEGER NOT NULL, not_after_ns BIGINT NOT NULL, created_ns BIGINT NOT NULL)",
            "CREATE TABLE counter (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
        ),
    ),
    Migration(
        version=2,
        name="administration",
        statements=(
            "CREATE TABLE admin_token (token_id INTEGER PRIMARY KEY, digest BLOB NOT NULL,"
            " pepper_version INTEGER NOT NULL, is_bootstrap BOOLEAN NOT NULL, created_ns BIGINT NOT NULL,"
            " expires_ns BIGINT, revoked_ns BIGINT)",
            "CREATE TABLE audit (seq INTEGER PRIMARY KEY, at_ns BIGINT NOT NULL, actor TEXT NOT NULL,"
            " action TEXT NOT NULL, subject TEXT NOT NULL, before TEXT, after TEXT,"
            " previous_hash BLOB NOT NULL, hash BLOB NOT NULL)",
            *_append_only("audit"),
        ),
    ),
    Migration(
        version=3,
        name="price books",
        statements=(
            "CREATE TABLE price_book (version INTEGER PRIMARY KEY, body TEXT NOT NULL, created_ns BIGINT NOT NULL)",
            *_append_only("price_book"),
        ),
    ),
    Migration(
        version=4,
        name="money of plans",
        statements=(
            "CREATE TABLE plan_terms (name TEXT NOT NULL, version INTEGER NOT NULL, body TEXT,"
            " created_ns BIGINT NOT NULL, PRIMARY KEY (name, version))",
            *_append_only("plan_terms"),
            "CREATE TABLE agreement (tenant TEXT NOT NULL, n INTEGER NOT NULL, plan TEXT NOT NULL,"
            " packs INTEGER NOT NULL, since_ns BIGINT NOT NULL, PRIMARY KEY (tenant, n))",
            "INSERT INTO agreement SELECT tenant, 1, plan, 0, created_ns FROM tenant",
            *_append_only("agreement"),
            "CREATE TABLE coupon (code TEXT PRIMARY KEY, body TEXT NOT NULL, created_ns BIGINT NOT NULL)",
            *_append_only("coupon"),
        ),
    ),
    Migration(
        version=5,
        name="webhooks",
        statements=(
            "CREATE TABLE webhook_endpoint (endpoint_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, url TEXT NOT NULL,"
            " events TEXT, generation INTEGER NOT NULL, pepper_version INTEGER NOT NULL, old_until_ns BIGINT,"
            " is_enabled BOOLEAN NOT NULL, disabled_reason TEXT, failing_since_ns BIGINT, cursor_seq BIGINT NOT NULL,"
            " created_ns BIGINT NOT NULL)",
            "CREATE INDEX ix_webhook_endpoint_tenant ON webhook_endpoint (tenant)",
            "CREATE TABLE webhook_delivery (delivery_id INTEGER PRIMARY KEY AUTOINCREMENT, endpoint_id TEXT NOT NULL,"
            " event_seq BIGINT NOT NULL, type TEXT NOT NULL, body TEXT NOT NULL, state TEXT NOT NULL,"
            " attempts INTEGER NOT NULL, next_ns BIGINT NOT NULL, created_ns BIGINT NOT NULL)",
            "CREATE INDEX ix_webhook_delivery_due ON webhook_delivery (state, next_ns)",
            "CREATE INDEX ix_webhook_delivery_endpoint ON webhook_delivery (endpoint_id, delivery_id)",
            "CREATE TABLE webhook_attempt (delivery_id INTEGER NOT NULL, n INTEGER NOT NULL, at_ns BIGINT NOT NULL,"
            " status INTEGER NOT NULL, detail TEXT NOT NULL, took_ms INTEGER NOT NULL, PRIMARY KEY (delivery_id, n))",
        ),
    ),
    Migration(
        version=6,
        name="operations per key",
        statements=(
            "CREATE TABLE key_operation_new (key_id TEXT NOT NULL, operation_id TEXT NOT NULL,"
            " overlap_s INTEGER NOT NULL, not_after_ns BIGINT NOT NULL, created_ns BIGINT NOT NULL,"
            " PRIMARY KEY (key_id, operation_id))",
            "INSERT INTO key_operation_new"
            " SELECT key_id, operation_id, overlap_s, not_after_ns, created_ns FROM key_operation",
            "DROP TABLE key_operation",
            "ALTER TABLE key_operation_new RENAME TO key_operation",
        ),
    ),
)


def migrate(engine: sa.Engine, now_ns: int, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Apply the steps that `engine`'s database lacks; the version it then has.

    Raises SettingsError when the database was written by a newer release.
    """
    with engine.begin() as tx:
        tx.exec_driver_sql(
            "CREATE TABLE IF NOT EXISTS schema_version"
            " (version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_ns BIGINT NOT NULL)"
        )
    have = schema_version(engine)
    newest = migrations[-1].version
    if have > newest:
        raise SettingsError(
            f"control.db has schema {have}, this release knows up to {newest}: start the newer release of tollway"
        )
    for migration in migrations:
        if migration.version > have:
            _apply(engine, migration, now_ns)
    return newest


def schema_version(engine: sa.Engine) -> int:
    """The number of the last step applied; 0 for an empty database."""
    with engine.connect() as tx:
        return int(tx.exec_driver_sql("SELECT coalesce(max(version), 0) FROM schema_version").scalar_one())


def _apply(engine: sa.Engine, migration: Migration, now_ns: int) -> None:
    with engine.begin() as tx:
        for statement in migration.statements:
            tx.exec_driver_sql(statement)
        tx.exec_driver_sql(
            "INSERT INTO schema_version (version, name, applied_ns) VALUES (?, ?, ?)",
            (migration.version, migration.name, now_ns),
        )
