"""No change is answered before workers can see it, and no older policy ever replaces a newer one."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from billing.pricebook import default_price_book
from gateway.clock import FakeClock
from gateway.control.backends import engine_backend
from gateway.control.bodies import TenantBody
from gateway.control.database import Database, open_database
from gateway.control.peppers import Peppers
from gateway.control.plans import seed_plans
from gateway.control.policy import Publisher
from gateway.control.registry import Change
from gateway.control.start import open_control
from gateway.control.tenants import create_tenant
from gateway.control.views import TenantView
from gateway.errors import SettingsError
from gateway.snapshot import HEARTBEAT_FILE, SNAPSHOT_FILE, Snapshot, read_snapshot, write_snapshot
from tests.unit.control.support import Desk, open_desk


class FlakyDisk:
    """A snapshot writer that fails while `is_full`, and remembers what it wrote."""

    def __init__(self) -> None:
        self.is_full = False
        self.versions: list[int] = []

    def write(self, data_dir: Path, snapshot: Snapshot) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        write_snapshot(data_dir, snapshot)
        self.versions.append(snapshot.version)


@pytest.fixture
def disk() -> FlakyDisk:
    return FlakyDisk()


def publisher(data_dir: Path, database: Database, disk: FlakyDisk) -> Publisher:
    return Publisher(
        data_dir=data_dir,
        database=database,
        clock=FakeClock(),
        peppers=Peppers(by_version={1: b"p" * 32}),
        prices=default_price_book(),
        backends=(engine_backend(data_dir / "engine.sock"),),
        write=disk.write,
    )


def test_a_start_publishes_everything_workers_need(desk: Desk) -> None:
    snapshot = desk.snapshot
    assert {plan.name for plan in snapshot.plans} == {"free", "pay-per-call", "internal"}
    assert snapshot.backends[0].http == f"unix://{desk.data_dir / 'run' / 'engine.sock'}"
    assert snapshot.prices == default_price_book()
    assert snapshot.peppers == desk.control.registry.peppers.by_version
    assert (desk.data_dir / SNAPSHOT_FILE).stat().st_mode & 0o777 == 0o600


def test_every_change_raises_the_version_by_one(desk: Desk) -> None:
    version = desk.snapshot.version
    desk.new_tenant()
    assert desk.snapshot.version == version + 1
    desk.new_key()
    assert desk.snapshot.version == version + 2
    assert desk.must("GET", "/admin/status")["policy_version"] == version + 2


def test_a_restart_publishes_a_newer_version_even_than_a_lost_database(tmp_path: Path) -> None:
    with open_desk(tmp_path) as desk:
        for number in range(5):
            desk.new_tenant(f"t{number}")
        before = desk.snapshot.version
    with open_desk(tmp_path) as desk:
        assert desk.snapshot.version == before + 1
    (tmp_path / "control.db").unlink()
    with open_desk(tmp_path) as desk:
        assert desk.snapshot.version == before + 2


def test_a_damaged_snapshot_is_replaced_at_the_start(tmp_path: Path) -> None:
    with open_desk(tmp_path):
        pass
    (tmp_path / SNAPSHOT_FILE).write_bytes(b"\xc1 damaged")
    with open_desk(tmp_path) as desk:
        assert len(desk.snapshot.plans) == 3


def test_a_change_that_cannot_be_published_is_refused_and_published_later(tmp_path: Path, disk: FlakyDisk) -> None:
    with open_desk(tmp_path) as desk:
        desk.control.registry.publisher = flaky = publisher(tmp_path, desk.control.registry.database, disk)
        flaky.start()
        os.utime(tmp_path / HEARTBEAT_FILE, (1, 1))
        disk.is_full = True
        answer = desk.ask("POST", "/admin/tenants", {"tenant": "acme"})
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert desk.ask("GET", "/readyz").status_code == 503
        flaky.beat()
        assert (tmp_path / HEARTBEAT_FILE).stat().st_mtime == 1  # workers hear that their policy is stale
        disk.is_full = False
        flaky.beat()
        assert desk.tenant("acme").plan == "free"
        assert (tmp_path / HEARTBEAT_FILE).stat().st_mtime > 1
        assert desk.ask("GET", "/readyz").status_code == 200


def test_a_repeated_rotation_is_published_when_the_first_was_not(tmp_path: Path, disk: FlakyDisk) -> None:
    with open_desk(tmp_path) as desk:
        desk.new_tenant()
        key_id = desk.new_key()["details"]["key_id"]
        desk.control.registry.publisher = flaky = publisher(tmp_path, desk.control.registry.database, disk)
        flaky.start()
        disk.is_full = True
        path, body = f"/admin/keys/{key_id}/rotate", {"operation_id": "operation-1"}
        assert desk.ask("POST", path, body).status_code == 503
        assert desk.ask("POST", path, body).status_code == 503
        disk.is_full = False
        assert desk.must("POST", path, body)["is_repeated"] is True
        assert len(desk.key(key_id).secrets) == 2


def test_a_beat_without_change_writes_no_snapshot(tmp_path: Path, disk: FlakyDisk) -> None:
    database = open_database(tmp_path, 1)
    one = publisher(tmp_path, database, disk)
    one.start()
    one.beat()
    one.beat()
    assert len(disk.versions) == 1
    database.close()


def test_changes_from_many_threads_end_in_one_newest_policy(desk: Desk) -> None:
    registry = desk.control.registry

    def create(number: int) -> str:
        body = TenantBody(tenant=f"t{number}")

        def work(tx: object, now_ns: int) -> Change[TenantView]:
            made = create_tenant(tx, body, book_currency="USD", now_ns=now_ns)  # type: ignore[arg-type]
            return Change(answer=made.after, subject="", before=None, after=made.after)

        name = registry.change("test", "tenant.create", work).tenant
        # Published before the answer, whichever thread wrote the file.
        assert name in {tenant.tenant for tenant in read_snapshot(desk.data_dir).tenants}
        return name

    with ThreadPoolExecutor(8) as threads:
        names = set(threads.map(create, range(24)))
    assert {tenant.tenant for tenant in desk.snapshot.tenants} == names
    assert desk.must("GET", "/admin/status")["audit"]["is_ok"] is True


def test_published_versions_only_grow(tmp_path: Path, disk: FlakyDisk) -> None:
    with open_desk(tmp_path) as desk:
        desk.control.registry.publisher = flaky = publisher(tmp_path, desk.control.registry.database, disk)
        flaky.start()
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda n: desk.new_tenant(f"t{n}"), range(12)))
        assert disk.versions == sorted(set(disk.versions))
        assert disk.versions[-1] == desk.must("GET", "/admin/status")["policy_version"]


def test_a_second_control_on_the_same_data_is_refused(desk: Desk) -> None:
    with pytest.raises(SettingsError, match="already running"):
        open_control(desk.data_dir, prices=default_price_book(), backends=(), clock=FakeClock())


def test_seeding_again_adds_nothing(tmp_path: Path) -> None:
    database = open_database(tmp_path, 1)
    for _ in range(2):
        with database.write() as tx:
            seed_plans(tx, 1)
    with database.read() as tx:
        assert tx.exec_driver_sql("SELECT count(*) FROM plan_version").scalar_one() == 3
    database.close()
