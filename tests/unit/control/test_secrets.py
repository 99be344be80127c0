"""Canaries: no secret that passed through control is in any file, log line, error or listing of it (MONEY.md I29)."""

import logging

import pytest

from tests.unit.control.support import Desk


def test_no_secret_is_written_logged_or_answered_twice(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    bootstrap = desk.bootstrap_token
    desk.new_tenant()
    made = desk.new_key()
    key_id = made["details"]["key_id"]
    rotated = desk.must("POST", f"/admin/keys/{key_id}/rotate", {"operation_id": "operation-1"})
    token = desk.ask_tcp("POST", "/admin/token/rotate", token=bootstrap).json()["token"]
    (desk.data_dir / "run" / "bootstrap-token").unlink()  # the supervisor has shown it
    key_secrets = [text.split("_")[3] for text in (made["key"], rotated["key"])]
    canaries = [*key_secrets, bootstrap.removeprefix("tw_admin_"), token.removeprefix("tw_admin_")]
    answers = [
        desk.ask("GET", path).text
        for path in ("/admin/keys", f"/admin/keys/{key_id}", "/admin/audit", "/admin/status", "/admin/tenants")
    ]
    answers += [
        desk.ask_tcp("GET", "/admin/keys", token=f"{token}x").text,
        desk.ask_tcp("GET", "/admin/keys", token=made["key"]).text,
        desk.ask("POST", "/admin/keys", {"tenant": "acme", "scopes": [made["key"]]}).text,
        desk.ask("POST", f"/admin/keys/{key_id}/rotate", {"operation_id": "operation-1"}).text,
    ]
    files = {path: path.read_bytes() for path in desk.data_dir.rglob("*") if path.is_file()}
    assert {path.name for path in files} >= {"control.db", "snapshot", "pepper"}
    for canary in canaries:
        assert len(canary) >= 43
        assert not [answer for answer in answers if canary in answer]
        assert not [path for path, data in files.items() if canary.encode() in data]
        assert canary not in caplog.text


def test_the_pepper_is_in_its_file_and_the_snapshot_only(desk: Desk) -> None:
    pepper = desk.control.registry.peppers.newest
    desk.new_tenant()
    desk.new_key()
    holders = {
        path.name
        for path in desk.data_dir.rglob("*")
        if path.is_file() and (pepper in path.read_bytes() or pepper.hex().encode() in path.read_bytes())
    }
    assert holders == {"pepper", "snapshot"}


def test_everything_control_writes_is_private(desk: Desk) -> None:
    desk.new_tenant()
    modes = {path.name: path.stat().st_mode & 0o077 for path in desk.data_dir.rglob("*") if path.is_file()}
    assert not [name for name, others in modes.items() if others]


def test_a_failed_statement_shows_no_values(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.new_tenant()
    with desk.control.registry.database.write() as tx:
        tx.exec_driver_sql("DROP TABLE key_secret")
    answer = desk.ask("POST", "/admin/keys", {"tenant": "acme", "name": "canary-canary"})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "key_secret" not in answer.text
    assert "canary-canary" not in caplog.text
    assert "database_unavailable" in caplog.text


def test_objects_that_hold_secrets_do_not_print_them(desk: Desk) -> None:
    minted = desk.control.registry.minter.new_key()
    assert minted.text not in repr(minted)
    assert repr(minted.digest) not in repr(minted)
