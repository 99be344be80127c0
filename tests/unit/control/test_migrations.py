"""control.db reaches the newest schema from any earlier one, step by step and whole steps only."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.control.database import open_database, open_engine
from gateway.control.migrations import MIGRATIONS, Migration, migrate, schema_version
from gateway.control.schema import metadata
from gateway.errors import SettingsError


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    opened = open_engine(tmp_path / "control.db")
    yield opened
    opened.dispose()


def shape(engine: sa.Engine) -> dict[str, dict[str, tuple[bool, bool]]]:
    """table → column → (may be null, is part of the primary key)."""
    inspector = sa.inspect(engine)
    return {
        table: {
            column["name"]: (
                column["nullable"],
                column["name"] in inspector.get_pk_constraint(table)["constrained_columns"],
            )
            for column in inspector.get_columns(table)
        }
        for table in inspector.get_table_names()
        if table != "schema_version"
    }


def declared() -> dict[str, dict[str, tuple[bool, bool]]]:
    return {
        table.name: {column.name: (bool(column.nullable), column.primary_key) for column in table.columns}
        for table in metadata.tables.values()
    }


def test_migrated_schema_is_what_the_code_expects(engine: sa.Engine) -> None:
    migrate(engine, 1)
    migrated = shape(engine)
    # SQLite lets a TEXT primary key be null unless it says otherwise; SQLAlchemy declares every one not null.
    for table, columns in declared().items():
        assert set(migrated[table]) == set(columns)
        for name, (is_nullable, is_key) in columns.items():
            assert migrated[table][name][1] == is_key
            assert is_key or migrated[table][name][0] == is_nullable
    assert set(migrated) == set(declared())


def test_rotations_done_before_operations_were_per_key_stay_known(engine: sa.Engine) -> None:
    migrate(engine, 1, MIGRATIONS[:5])
    with engine.begin() as tx:
        tx.exec_driver_sql("INSERT INTO key_operation VALUES ('operation-1', 'key_1', 60, 7, 8)")
    migrate(engine, 2)
    with engine.connect() as tx:
        rows = tx.exec_driver_sql("SELECT key_id, operation_id, overlap_s, not_after_ns, created_ns FROM key_operation")
        assert [tuple(row) for row in rows] == [("key_1", "operation-1", 60, 7, 8)]


@pytest.mark.parametrize("start", range(len(MIGRATIONS) + 1))
def test_every_earlier_release_reaches_the_newest_and_keeps_its_data(engine: sa.Engine, start: int) -> None:
    if start:
        migrate(engine, 1, MIGRATIONS[:start])
        with engine.begin() as tx:
            tx.exec_driver_sql("INSERT INTO counter (name, value) VALUES ('snapshot_version', 41)")
    assert migrate(engine, 2) == MIGRATIONS[-1].version
    assert schema_version(engine) == MIGRATIONS[-1].version
    if start:
        with engine.connect() as tx:
            assert tx.exec_driver_sql("SELECT value FROM counter").scalar_one() == 41


def test_numbers_grow_by_one() -> None:
    assert [migration.version for migration in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


def test_migrating_twice_changes_nothing(engine: sa.Engine) -> None:
    migrate(engine, 1)
    before = shape(engine)
    migrate(engine, 2)
    assert shape(engine) == before


def test_a_step_that_fails_leaves_nothing_of_itself(engine: sa.Engine) -> None:
    broken = Migration(
        version=len(MIGRATIONS) + 1, name="broken", statements=("CREATE TABLE half (a INTEGER)", "CREATE NONSENSE")
    )
    migrate(engine, 1)
    with pytest.raises(sa.exc.OperationalError):
        migrate(engine, 2, (*MIGRATIONS, broken))
    assert schema_version(engine) == len(MIGRATIONS)
    assert "half" not in shape(engine)


def test_a_database_of_a_newer_release_is_refused(engine: sa.Engine) -> None:
    migrate(engine, 1, (*MIGRATIONS, Migration(version=len(MIGRATIONS) + 1, name="later", statements=())))
    with pytest.raises(SettingsError, match="newer release"):
        migrate(engine, 2)


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("plan_version", "(name, version, body, created_ns) VALUES ('a', 1, '{}', 1)"),
        ("plan_terms", "(name, version, body, created_ns) VALUES ('a', 1, '{}', 1)"),
        ("agreement", "(tenant, n, plan, packs, since_ns) VALUES ('a', 1, 'free', 0, 1)"),
        ("coupon", "(code, body, created_ns) VALUES ('A', '{}', 1)"),
        ("price_book", "(version, body, created_ns) VALUES (1, '{}', 1)"),
        (
            "audit",
            "(seq, at_ns, actor, action, subject, previous_hash, hash) VALUES (1, 1, 'a', 'b', 'c', x'00', x'00')",
        ),
    ],
)
def test_what_is_written_once_can_neither_be_changed_nor_deleted(engine: sa.Engine, table: str, columns: str) -> None:
    migrate(engine, 1)
    with engine.begin() as tx:
        tx.exec_driver_sql(f"INSERT INTO {table} {columns}")
    for statement in (f"UPDATE {table} SET rowid = 9", f"DELETE FROM {table}"):
        with pytest.raises(sa.exc.IntegrityError, match="append-only"), engine.begin() as tx:
            tx.exec_driver_sql(statement)


def test_database_is_private_and_every_commit_is_synced(tmp_path: Path) -> None:
    database = open_database(tmp_path, 1)
    with database.read() as tx:
        assert tx.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert tx.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "persist"
    database.close()
    assert (tmp_path / "control.db").stat().st_mode & 0o777 == 0o600
