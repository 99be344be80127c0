"""Control makes models anew by itself: once, with a real conversion, and tells what stands in the way."""

import asyncio
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.commands.models import app
from gateway.control import rebuild_attempts
from gateway.control.backends import engine_backend
from gateway.control.conversion_runner import COMMAND, Conversions
from gateway.control.conversion_store import QUEUED_MAX, Conversion
from gateway.control.rebuild_attempts import Attempts, Tried
from gateway.control.rebuild_job import RebuildJob, RebuildRules
from gateway.snapshot import Backend
from model_repo.certificate import CERTIFICATE
from model_repo.host import read_host
from model_repo.manifest import MANIFEST, describe_files, read_manifest
from model_repo.repository import find_model
from model_repo.target import Target
from tests.unit.control.support import Desk
from tests.unit.control.test_conversions import CHILD, open_store, running, until
from tests.unit.engine.certified import CONFIG, Build, scale_onnx, stage
from tests.unit.model_repo.converted import JOB, convert_small

OTHER = Target(isa=("a_set_of_tomorrow",))
FAILS = (sys.executable, "-c", CHILD.replace('name == "fails"', "True"))


def convert_here(folder: Path) -> Path:
    """A repository whose version 1 of `m` was really converted, holds its source, and asks for what no CPU has."""
    convert_small(folder)
    version = folder / "repo" / "m" / "1"
    manifest = read_manifest(version)
    assert manifest is not None
    shutil.rmtree(version / "variants", ignore_errors=True)
    target = replace(manifest.target, isa=OTHER.isa)
    other = replace(manifest, target=target, variants=(), files=describe_files(version))
    (version / MANIFEST).write_bytes(other.to_bytes())
    return folder / "repo"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository whose version 1 of `m` holds a source and asks for what no CPU has."""
    folder = tmp_path / "repo" / "m"
    folder.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    job = json.dumps({"schema": 1, "model": "net.onnx", "job": JOB.to_json()}).encode()
    stage(folder / "1", Build(target=OTHER), files={"source/net.onnx": scale_onnx(2.0), "source/job.json": job})
    return tmp_path / "repo"


class Bench:
    """A rebuild job over `root`; `again` is what a restart of control makes of the same folders."""

    def __init__(self, desk: Desk, root: Path, command: tuple[str, ...], **rules: Any) -> None:
        self.desk, self.root, self.command, self.rules = desk, root, command, rules
        self.conversions = Conversions(open_store(root.parent / "conversions"), root, command)
        asked = RebuildRules(poll_s=1.0, repositories=(root,), **rules)
        self.job = RebuildJob(self.conversions, desk.control.registry, asked)

    def again(self, **rules: Any) -> "Bench":
        return Bench(self.desk, self.root, self.command, **{**self.rules, **rules})

    def carry_out(self) -> Conversion:
        """The only rebuild, run to its end."""
        (one,) = self.conversions.store.list()

        async def run() -> Conversion:
            async with running(self.conversions):
                return await until(self.conversions, one.conversion_id, "succeeded", "failed")

        return asyncio.run(run())

    def spoil_source(self) -> None:
        shutil.rmtree(self.root / "m" / "1" / "source")
        manifest = read_manifest(self.root / "m" / "1")
        assert manifest is not None
        bare = replace(manifest, files=describe_files(self.root / "m" / "1"))
        (self.root / "m" / "1" / MANIFEST).write_bytes(bare.to_bytes())


@pytest.fixture
def bench(desk: Desk, root: Path) -> Iterator[Bench]:
    yield Bench(desk, root, FAILS)
    desk.app.state.rebuilds = desk.app.state.conversions = None


def test_a_version_of_another_host_is_made_anew_once_and_waits_for_approval(
    desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = convert_here(tmp_path)
    bench = Bench(desk, root, COMMAND)
    bench.job.tick()
    (told,) = bench.job.told
    assert (told.name, told.version, told.state) == ("m", 1, "submitted")
    assert "lacks a_set_of_tomorrow" in told.why
    bench.job.tick()
    assert bench.job.told == (told,)
    assert caplog.text.count("rebuild_submitted") == 1
    done = bench.carry_out()
    assert done.result is not None, (done.error, bench.conversions.store.read_log(done.conversion_id))
    assert (done.actor, done.result["version"], done.result["is_new"]) == ("rebuild", 2, True)
    assert not (bench.conversions.store.folder(done.conversion_id) / "work").exists()
    assert (root / "m" / "2" / CERTIFICATE).is_file()
    assert (root / "m" / "2" / "source" / "net.onnx").is_file()
    made = read_manifest(root / "m" / "2")
    assert made is not None
    assert "a_set_of_tomorrow" not in made.target.isa
    bench.job.tick()
    assert list(bench.job.told) == []
    # Where approvals are required it is not let in by itself.
    assert CliRunner().invoke(app, ["approve", "m", "1", "--repository", str(root)]).exit_code == 0
    strict = bench.again(is_approval_required=True)
    strict.job.tick()
    (told,) = strict.job.told
    assert (told.state, told.command) == ("blocked", "tollway models approve m 2")
    assert told.conversion_id == done.conversion_id
    assert len(strict.conversions.store.list()) == 1
    audited = [one["action"] for one in desk.must("GET", "/admin/audit")["items"]]
    assert audited.count("conversion.rebuild") == 1


def test_a_failure_is_kept_and_shown_and_not_repeated_over_restarts(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.job.tick()
    failed = bench.carry_out()
    assert failed.state == "failed"
    bench = bench.again()
    for _ in range(3):
        bench.job.tick()
    (told,) = bench.job.told
    assert told.obstacle == f"{failed.conversion_id} ended: failed: no_variant: none fits"
    assert told.command == "tollway models rebuild m 1"
    assert caplog.text.count("rebuild_blocked") == 1
    # Nor when the conversion itself is long forgotten.
    shutil.rmtree(bench.conversions.store.folder(failed.conversion_id))
    bench = bench.again()
    bench.job.tick()
    assert bench.conversions.store.list() == []
    assert bench.job.told == (told,)
    # Another host is another matter.
    other = bench.again(facts=replace(read_host(), isa=("one",)))
    other.job.tick()
    assert [one.state for one in other.conversions.store.list()] == ["queued"]


def test_a_crash_before_the_attempt_is_noted_does_not_repeat_it(bench: Bench) -> None:
    bench.job.tick()
    (bench.conversions.store.root / rebuild_attempts.FILE).unlink()
    bench = bench.again()
    bench.job.tick()
    assert len(bench.conversions.store.list()) == 1


def test_one_rebuild_is_queued_at_a_time(bench: Bench) -> None:
    shutil.copytree(bench.root / "m", bench.root / "n")
    config = bench.root / "n" / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "m"', 'name: "n"'))
    bench.job.tick()
    bench.job.tick()
    assert [one.request["name"] for one in bench.conversions.store.list()] == ["m"]
    bench.carry_out()
    bench.job.tick()
    assert [one.request["name"] for one in bench.conversions.store.list()] == ["n", "m"]


def test_a_source_that_was_changed_fails_the_rebuild(bench: Bench) -> None:
    (bench.root / "m" / "1" / "source" / "net.onnx").write_bytes(b"other")
    bench.job.tick()
    failed = bench.carry_out()
    assert failed.error is not None
    assert failed.error["rule"] == "rebuild"
    assert "source/net.onnx: sha256" in failed.error["message"]
    folder = find_model(bench.root, "m")
    assert folder is not None
    assert folder.versions == (1,)


def test_without_its_source_it_is_told_once_in_log_route_and_list(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.spoil_source()
    desk = bench.desk
    assert desk.must("GET", "/admin/conversions/rebuilds") == {"is_on": False, "items": []}
    desk.app.state.conversions, desk.app.state.rebuilds = bench.conversions, bench.job
    for _ in range(2):
        bench.job.tick()
    assert caplog.text.count("rebuild_blocked model=m version=1") == 1
    answer = desk.must("GET", "/admin/conversions/rebuilds")
    (item,) = answer["items"]
    assert answer["is_on"]
    assert (item["state"], item["obstacle"]) == ("blocked", "it does not hold its source")
    assert item["command"] == "tollway convert MODEL --name m --keep-source"
    assert bench.conversions.store.list() == []
    assert desk.ask_tcp("GET", "/admin/conversions/rebuilds").status_code == 401
    listed = CliRunner().invoke(app, ["list", "--repository", str(bench.root), "--json"])
    (row,) = json.loads(listed.stdout)["versions"]
    assert row["advice"] == "it does not hold its source: `tollway convert MODEL --name m --keep-source`"


def test_the_list_names_the_verb_where_it_can_be_made_anew(root: Path) -> None:
    listed = CliRunner().invoke(app, ["list", "--repository", str(root), "--json"])
    (row,) = json.loads(listed.stdout)["versions"]
    assert (row["has_source"], row["advice"]) == (True, "`tollway models rebuild m 1`")


def test_a_missing_runtime_is_told_with_the_extra_that_brings_it(bench: Bench) -> None:
    bench = bench.again(facts=replace(read_host(), runtimes={}))
    bench.job.tick()
    (told,) = bench.job.told
    assert told.obstacle == "not installed here: onnxruntime"
    assert told.command == "pip install 'tollway[engine]'"
    assert bench.conversions.store.list() == []


def test_broken_models_and_folders_that_are_not_there_stop_no_other(bench: Bench) -> None:
    (bench.root / "a" / "1").mkdir(parents=True)
    (bench.root / "a" / "config.pbtxt").write_text("no configuration {")
    rules = RebuildRules(poll_s=1.0, repositories=(bench.root.parent / "none", bench.root))
    job = RebuildJob(bench.conversions, bench.desk.control.registry, rules)
    job.tick()
    assert [one.name for one in job.told] == ["m"]


def test_attempts_have_a_limit_and_a_newer_schema_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    most = rebuild_attempts.ATTEMPTS_MAX
    assert most == 1_000
    tried = Tried(repository="/r", name="m", version=1, digest="d", host="h", conversion_id="", state="failed")
    many = {f"cnv_{place}": replace(tried, conversion_id=f"cnv_{place}") for place in range(most + 1)}
    rebuild_attempts._write(tmp_path / rebuild_attempts.FILE, many)
    kept = Attempts(store).refresh()
    assert [kept[0].conversion_id, len(kept)] == ["cnv_1", most]
    (tmp_path / rebuild_attempts.FILE).write_text('{"schema": 2, "attempts": []}')
    with pytest.raises(OSError, match="newer release"):
        Attempts(store).refresh()
    (tmp_path / rebuild_attempts.FILE).write_text('{"schema": 1, "attempts": [{}]}')
    with pytest.raises(OSError, match="malformed"):
        Attempts(store).refresh()


class Index(BaseHTTPRequestHandler):
    """An engine that refused version 1 of `m` by its golden answers, and says so."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        rows = [{"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "golden check: y: differs by 3"}]
        body = json.dumps(rows).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Not into the tests' output."""


def test_a_version_that_the_engine_refused_by_its_golden_answers_is_made_anew(bench: Bench) -> None:
    version = bench.root / "m" / "1"
    manifest = read_manifest(version)
    assert manifest is not None
    (version / MANIFEST).write_bytes(replace(manifest, target=replace(manifest.target, isa=())).to_bytes())
    bench.job.tick()
    assert list(bench.job.told) == []
    with HTTPServer(("127.0.0.1", 0), Index) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        engine = Backend(name="engine", http=f"http://127.0.0.1:{server.server_port}", grpc=None)
        bench = bench.again(engine=engine)
        bench.job.tick()
        server.shutdown()
    (told,) = bench.job.told
    assert (told.state, told.why) == ("submitted", "golden check: y: differs by 3")


def test_a_queue_that_is_full_is_left_to_those_who_wait(bench: Bench) -> None:
    for _ in range(QUEUED_MAX):
        bench.conversions.store.add({"name": "other", "source": "other.onnx"}, "admin")
    bench.job.tick()
    assert list(bench.job.told) == []
    bench.conversions.cancel(bench.conversions.store.list()[0].conversion_id)
    bench.job.tick()
    assert [one.state for one in bench.job.told] == ["submitted"]


def test_an_engine_that_does_not_answer_refuses_nothing(bench: Bench, tmp_path: Path) -> None:
    bench = bench.again(engine=engine_backend(tmp_path / "none.sock"))
    bench.job.tick()
    assert [one.state for one in bench.job.told] == ["submitted"]
