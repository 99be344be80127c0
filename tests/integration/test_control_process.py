"""A real control process at both of its doors, a real meter beside it, and the `tollway` command as people type it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from typer.testing import CliRunner, Result

from gateway.auth.keyring import Keyring, Principal
from gateway.cli import build_app
from gateway.snapshot import read_snapshot
from tests.e2e.harness import free_ports
from tests.unit.billing.making import MeterProcess, call, marked, write_dead_epoch


class ControlProcess:
    """`python -m gateway.control` on a free port. Use as a context manager: it never outlives the block."""

    def __init__(self, data_dir: Path, *arguments: str, port: int | None = None) -> None:
        self.data_dir = data_dir
        self.port = port or free_ports(1)[0]
        self._ready_fd, child_fd = os.pipe()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gateway.control",
                "--data-dir",
                str(data_dir),
                "--port",
                str(self.port),
                "--ready-fd",
                str(child_fd),
                *arguments,
            ],
            pass_fds=[child_fd],
            stderr=subprocess.PIPE,
        )
        os.close(child_fd)

    def wait_ready(self) -> bool:
        """True once it serves, False if it ended first."""
        return os.read(self._ready_fd, 16) == b"ready\n"

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def stderr(self) -> str:
        """What it said; once it has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def local(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.data_dir / "run" / "control.sock"))
        return httpx.Client(transport=transport, base_url="http://control", trust_env=False, timeout=60)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "ControlProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)
        if self.process.stderr is not None:
            self.process.stderr.close()
        os.close(self._ready_fd)


@pytest.fixture(scope="module")
def control() -> Iterator[ControlProcess]:
    """One control for all tests of this file; each uses names of its own."""
    # Not pytest's folder: its long names do not fit into the address of a unix socket.
    with tempfile.TemporaryDirectory(prefix="tw") as folder, ControlProcess(Path(folder) / "d") as process:
        assert process.wait_ready()
        yield process


def tollway(control: ControlProcess, *words: str, env: dict[str, str] | None = None) -> Result:
    environment = {"TOLLWAY_DATA_DIR": str(control.data_dir), "TOLLWAY_ADMIN_TOKEN": "", **(env or {})}
    return CliRunner().invoke(build_app(words[0]), list(words), env=environment)


def told(control: ControlProcess, *words: str) -> Any:
    """The JSON that a verb prints; it has to succeed."""
    result = tollway(control, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_both_doors_and_every_file_are_as_promised(control: ControlProcess) -> None:
    run_dir = control.data_dir / "run"
    assert control.data_dir.stat().st_mode & 0o777 == 0o700
    for name in ("control.sock", "bootstrap-token"):
        assert (run_dir / name).stat().st_mode & 0o777 == 0o600
    with control.local() as client:
        assert client.get("/admin/status").status_code == 200
    token = (run_dir / "bootstrap-token").read_text().strip()
    with httpx.Client(base_url=control.url, trust_env=False, timeout=60) as client:
        assert client.get("/readyz").json() == {"ready": True}
        assert client.get("/admin/status").status_code == 401
        assert client.get("/admin/status", headers={"authorization": f"Bearer {token}"}).status_code == 200


def test_a_key_made_by_the_command_opens_at_workers_until_it_is_revoked(control: ControlProcess) -> None:
    told(control, "tenants", "create", "keyed", "--zone", "Asia/Tokyo", "--name", "Keyed Ltd")
    made = told(control, "keys", "create", "--tenant", "keyed", "--model", "ocr", "--expires", "30d")
    key_id, text = made["details"]["key_id"], made["key"]
    assert isinstance(verdict(control, text), Principal)
    rotated = told(control, "keys", "rotate", key_id, "--operation-id", "operation-1", "--overlap", "0")
    assert not isinstance(verdict(control, text), Principal)
    assert isinstance(verdict(control, rotated["key"]), Principal)
    assert told(control, "keys", "rotate", key_id, "--operation-id", "operation-1", "--overlap", "0")["key"] is None
    told(control, "keys", "revoke", key_id)
    assert not isinstance(verdict(control, rotated["key"]), Principal)
    assert told(control, "keys", "show", key_id)["state"] == "revoked"
    assert [key["key_id"] for key in told(control, "keys", "list", "--tenant", "keyed")] == [key_id]


def verdict(control: ControlProcess, text: str) -> object:
    snapshot = read_snapshot(control.data_dir)
    return Keyring(snapshot).authenticate(text.encode(), snapshot.created_ns)


def test_tables_for_people_cut_no_id(control: ControlProcess) -> None:
    told(control, "tenants", "create", "shown")
    key_id = told(control, "keys", "create", "--tenant", "shown", "--name", "a long name " * 8)["details"]["key_id"]
    assert key_id in tollway(control, "keys", "list").stdout
    assert "Keep the key now" in tollway(control, "keys", "create", "--tenant", "shown").stderr


def test_tenants_and_plans_are_managed_by_the_command(control: ControlProcess, tmp_path: Path) -> None:
    file = tmp_path / "plans.toml"
    file.write_text('[[plans]]\nname = "gold"\npricing = "priced"\nrate_calls = 7\n')
    assert told(control, "plans", "add", str(file))[0]["version"] == 1
    file.write_text('name = "gold"\npricing = "priced"\nrate_calls = 8\n')
    assert told(control, "plans", "add", str(file))[0]["version"] == 2
    assert [plan["rate_calls"] for plan in told(control, "plans", "show", "gold")] == [7, 8]
    assert "8/s" in tollway(control, "plans", "list").stdout
    told(control, "tenants", "create", "planned")
    assert told(control, "tenants", "set-plan", "planned", "gold")["plan"] == "gold"
    assert told(control, "tenants", "suspend", "planned")["is_suspended"] is True
    assert told(control, "tenants", "resume", "planned")["is_suspended"] is False
    assert "planned" in tollway(control, "tenants", "list").stdout


def test_usage_ledger_and_reconcile_tell_what_the_meter_posted(control: ControlProcess) -> None:
    write_dead_epoch(control.data_dir / "usage", marked([call(n) for n in (1, 2, 3)]))
    with MeterProcess(control.data_dir) as meter:
        assert meter.wait_ready()
        assert told(control, "reconcile")["posted"] == 3
        assert meter.stop() == 0
    assert [(row["group"], row["calls"], row["charge"]) for row in told(control, "usage", "--by", "model")] == [
        ({"model": "ocr"}, 3, "0.0045")
    ]
    assert told(control, "usage", "--since", "2026-01-02") == []
    assert told(control, "ledger", "trial-balance")["is_balanced"] is True
    call_id = call(2).call_id.hex()
    assert told(control, "ledger", "entries", "--call", call_id) == told(control, "ledger", "call", call_id)["entries"]
    for words in (("usage",), ("ledger", "trial-balance"), ("ledger", "entries"), ("ledger", "call", call_id)):
        assert "0.00" in tollway(control, *words).stdout


def test_receipts_are_published_given_and_compared_over_the_api(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tw") as folder, ControlProcess(Path(folder) / "d") as control:
        assert control.wait_ready()
        with MeterProcess(control.data_dir) as meter:
            assert meter.wait_ready()
            write_dead_epoch(control.data_dir / "usage", marked([call(n) for n in (1, 2, 3)]))
            assert told(control, "reconcile")["posted"] == 3
            held = tollway(control, "receipts", "show", str(UUID(bytes=call(2).call_id)), "--tenant", "acme")
            assert held.exit_code == 0, held.output
            head = json.loads(tollway(control, "receipts", "head", "--tenant", "acme").stdout)
            assert json.loads(held.stdout)["head"] == head
            assert told(control, "receipts", "heads", "--tenant", "acme") == [head]
            keys = json.loads(tollway(control, "receipts", "keys").stdout)
            rotated = tollway(control, "receipts", "rotate-key").stdout.strip()
            write_dead_epoch(control.data_dir / "usage", marked([call(n) for n in (4, 5)]), epoch=2)
            assert told(control, "reconcile")["posted"] == 5
            newer = tollway(control, "receipts", "consistency", "--tenant", "acme", "--first", "1")
            assert newer.exit_code == 0, newer.output
            assert rotated in json.loads(tollway(control, "receipts", "keys").stdout)
            (tmp_path / "held.json").write_text(held.stdout)
            (tmp_path / "newer.json").write_text(newer.stdout)
            keys |= json.loads(tollway(control, "receipts", "keys").stdout)
            trusted = [word for key in keys.values() for word in ("--public-key", key)]
            compared = [str(tmp_path / "held.json"), str(tmp_path / "newer.json")]
            assert tollway(control, "receipts", "verify", compared[0], *trusted).exit_code == 0
            assert tollway(control, "receipts", "compare", *compared, *trusted).exit_code == 0
            assert tollway(control, "receipts", "compare", *reversed(compared), *trusted).exit_code == 1
            assert tollway(control, "receipts", "show", "0" * 32, "--tenant", "acme").exit_code == 1
            assert meter.stop() == 0


def test_reconcile_ends_with_1_when_something_is_not_posted(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tw") as folder, ControlProcess(Path(folder) / "d") as process:
        assert process.wait_ready()
        with MeterProcess(process.data_dir) as meter:
            assert meter.wait_ready()
            assert meter.stop() == 0
        write_dead_epoch(process.data_dir / "usage", marked([call(1)]))
        result = tollway(process, "reconcile")
        assert result.exit_code == 1
        assert "NOT ok" in result.stdout


def test_admin_verbs_work_without_a_token_and_the_new_token_works_at_tcp(control: ControlProcess) -> None:
    token = told(control, "admin", "rotate-token")["token"]
    remote = {"TOLLWAY_ADMIN_TOKEN": token}
    assert tollway(control, "keys", "list", "--api", control.url, env=remote).exit_code == 0
    assert "must_rotate no" in tollway(control, "admin", "status").stdout
    assert "token.rotate" in tollway(control, "admin", "audit").stdout
    assert told(control, "admin", "audit", "--limit", "1")[0]["seq"] == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("keys", "show", "key_0"), "key 'key_0' does not exist"),
        (("keys", "create", "--tenant", "nobody"), "tenant 'nobody' does not exist"),
        (("keys", "create", "--tenant", "x", "--expires", "soon"), "is no duration"),
        (("tenants", "create", "Bad Name"), "tenant: string should match"),
        (("plans", "add", "missing.toml"), "missing.toml: No such file"),
        (("usage", "--since", "yesterday"), "is no day"),
        (("usage", "--by", "colour"), "by.0: input should be"),
        (("keys", "list", "--api", "http://127.0.0.1:1"), "TOLLWAY_ADMIN_TOKEN is not set"),
        (("keys", "list", "--data-dir", "nowhere"), "start it with `make run` or `tollway up`"),
    ],
)
def test_what_goes_wrong_is_one_line_that_says_what_to_do(control: ControlProcess, words: Any, text: str) -> None:
    result = tollway(control, *words)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert text in result.stderr
    assert result.stderr.startswith("tollway: ")
    assert result.stderr.count("\n") == 1


def test_remote_errors_are_told_without_the_token(control: ControlProcess) -> None:
    env = {"TOLLWAY_ADMIN_TOKEN": "canary-token"}
    wrong = tollway(control, "keys", "list", "--api", control.url, env=env)
    gone = tollway(control, "keys", "list", "--api", f"http://127.0.0.1:{free_ports(1)[0]}", env=env)
    strange = tollway(control, "keys", "list", "--api", "ftp://x", env=env)
    assert "the admin token is wrong" in wrong.stderr
    assert "control is not running at" in gone.stderr
    assert "is no address" in strange.stderr
    assert "canary" not in wrong.output + gone.output + strange.output


def test_sigterm_ends_it_with_0_and_a_restart_keeps_everything() -> None:
    with tempfile.TemporaryDirectory(prefix="tw") as folder:
        data_dir = Path(folder) / "d"
        with ControlProcess(data_dir) as first:
            assert first.wait_ready()
            told(first, "tenants", "create", "kept")
            version = read_snapshot(data_dir).version
            assert first.stop() == 0
            assert first.stderr() == ""
        assert not (data_dir / "run" / "control.sock").exists()
        with ControlProcess(data_dir) as second:
            assert second.wait_ready()
            assert read_snapshot(data_dir).version == version + 1
            assert [tenant["tenant"] for tenant in told(second, "tenants", "list")] == ["kept"]


def test_killed_control_starts_again_on_what_it_left() -> None:
    with tempfile.TemporaryDirectory(prefix="tw") as folder:
        data_dir = Path(folder) / "d"
        with ControlProcess(data_dir) as first:
            assert first.wait_ready()
            made = [told(first, "tenants", "create", f"t{n}")["tenant"] for n in range(3)]
            first.process.kill()
            first.process.wait(60)
        with ControlProcess(data_dir) as second:
            assert second.wait_ready()
            assert [tenant["tenant"] for tenant in told(second, "tenants", "list")] == made
            assert told(second, "admin", "status")["audit"]["is_ok"] is True


def test_what_cannot_start_says_why_in_one_line(control: ControlProcess, tmp_path: Path) -> None:
    starts = (
        (ControlProcess(control.data_dir), "already running"),
        (ControlProcess(tmp_path / "d", port=control.port), "free the port"),
        (ControlProcess(tmp_path / "e", "--backends", "{}"), "--backends"),
        (ControlProcess(tmp_path / "f", "--prices", "none.toml"), "none.toml"),
    )
    for start, text in starts:
        with start:
            assert not start.wait_ready()
            assert start.process.wait(60) == 2
            said = start.stderr()
            assert text in said
            assert said.count("\n") == 1
