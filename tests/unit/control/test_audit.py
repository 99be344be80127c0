"""The audit trail tells every change, and shows that nobody has altered it since."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.control.audit import append_audit, verify_audit
from gateway.control.database import Database, open_database
from tests.unit.control.support import Desk


@pytest.fixture
def database(tmp_path: Path) -> Database:
    opened = open_database(tmp_path, 1)
    for number in range(5):
        with opened.write() as tx:
            append_audit(tx, at_ns=number, actor="me", action="do", subject="it", before=None, after={"n": number})
    return opened


def test_untouched_chain_holds(database: Database) -> None:
    with database.read() as tx:
        report = verify_audit(tx)
    assert report.is_ok
    assert report.rows == 5
    database.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET after = '{\"n\": 7}' WHERE seq = 3",
        "UPDATE audit SET actor = 'you' WHERE seq = 3",
        "UPDATE audit SET at_ns = 9 WHERE seq = 3",
        "DELETE FROM audit WHERE seq = 3",
        "UPDATE audit SET hash = x'00' WHERE seq = 3",
    ],
)
def test_a_touched_row_breaks_the_chain_there(database: Database, statement: str) -> None:
    with database.write() as tx:
        # What someone with the file in hands can do: the triggers stop programs, the chain shows people.
        tx.exec_driver_sql("DROP TRIGGER audit_no_update")
        tx.exec_driver_sql("DROP TRIGGER audit_no_delete")
        tx.execute(sa.text(statement))
    with database.read() as tx:
        assert verify_audit(tx).broken_seq in (3, 4)
    database.close()


def test_every_change_is_told_once_with_before_and_after(desk: Desk) -> None:
    desk.new_tenant()
    desk.must("POST", "/admin/tenants/acme/suspend")
    desk.must("POST", "/admin/tenants/acme/suspend")  # changes nothing, so there is nothing to tell
    rows = desk.must("GET", "/admin/audit")["items"]
    assert [(row["actor"], row["action"], row["subject"]) for row in rows] == [
        ("start", "token.bootstrap", "admin-token"),
        ("local", "tenant.create", "tenant:acme"),
        ("local", "tenant.suspend", "tenant:acme"),
    ]
    assert rows[2]["before"]["is_suspended"] is False
    assert rows[2]["after"]["is_suspended"] is True


def test_a_refused_change_is_not_told_and_not_published(desk: Desk) -> None:
    version = desk.snapshot.version
    assert desk.ask("POST", "/admin/tenants", {"tenant": "acme", "plan": "none"}).status_code == 422
    assert len(desk.must("GET", "/admin/audit")["items"]) == 1
    assert desk.snapshot.version == version


def test_the_actor_is_the_door_and_not_what_a_client_says(desk: Desk) -> None:
    desk.ask_tcp(
        "POST", "/admin/tenants", {"tenant": "acme"}, token=desk.bootstrap_token, headers={"tollway.actor": "root"}
    )
    assert desk.must("GET", "/admin/audit")["items"][-1]["actor"] == "admin-token"


def test_audit_comes_in_pages(desk: Desk) -> None:
    for name in ("a", "b", "c"):
        desk.new_tenant(name)
    first = desk.must("GET", "/admin/audit?limit=2")
    second = desk.must("GET", f"/admin/audit?limit=2&after={first['next']}")
    assert [row["seq"] for row in first["items"] + second["items"]] == [1, 2, 3, 4]
