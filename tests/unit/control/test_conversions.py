"""Conversions in the background: one at a time, followed, cancelled, and told as interrupted after a restart."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.control.conversion_runner import Conversions
from gateway.control.conversion_store import (
    KEPT_MAX,
    LOG_ANSWER_BYTES_MAX,
    LOG_BYTES_MAX,
    QUEUED_MAX,
    Conversion,
    ConversionStore,
)
from gateway.control.errors import ControlError
from tests.unit.control.support import Desk

REQUEST: dict[str, Any] = {
    "source": "m.onnx", "name": "m", "data": None, "engines": ["onnxruntime"], "precisions": ["fp32"], "dims": [],
    "budgets": [], "limits": {"memory_bytes_max": 1 << 30, "time_s_max": 60},
}  # fmt: skip
RESULT = {
    "selected": "onnxruntime-fp32", "speedup": 1.5, "is_cached": False, "published": {"version": 3, "is_new": True},
}  # fmt: skip
#: A stand-in for the converters that speaks their protocol; what it does is in the name that is converted.
CHILD = """
import json, os, sys, time
asked = json.load(sys.stdin)
name = asked["job"]["name"]
def say(**event):
    print(json.dumps(event), flush=True)
say(ev="progress", step=f"first of {name}", done=1, total=2)
say(ev="log", text="a tool said\\nsomething")
if name == "waits":
    open("started", "w").close()
    time.sleep(600)
if name == "dies":
    sys.stderr.write("it was too much\\n")
    sys.exit(9)
if name == "babbles":
    print("no event", flush=True)
if name == "fails":
    say(ev="error", rule="no_variant", message="none fits", next_step="look", exit_code=3)
    sys.exit(3)
say(ev="result", value=json.loads(sys.argv[1]))
"""


class Ticks:
    """An instant later at each look, so that the order of things is plain."""

    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns


def open_store(root: Path) -> ConversionStore:
    store = ConversionStore(root, Ticks())
    store.open()
    return store


def conversions_of(tmp_path: Path) -> Conversions:
    command = (sys.executable, "-c", CHILD, json.dumps(RESULT))
    return Conversions(open_store(tmp_path / "conversions"), tmp_path / "models", command)


@asynccontextmanager
async def running(conversions: Conversions) -> AsyncIterator[None]:
    task = asyncio.create_task(conversions.run(), name="conversions")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(conversions: Conversions, conversion_id: str, *states: str) -> Conversion:
    while (one := conversions.store.get(conversion_id)).state not in states:
        await asyncio.sleep(0.01)
    return one


def test_a_conversion_runs_to_its_end_and_tells_what_it_did(tmp_path: Path) -> None:
    async def scenario() -> None:
        conversions = conversions_of(tmp_path)
        made = conversions.submit({**REQUEST, "name": "works"}, "admin")
        assert made.state == "queued"
        async with running(conversions):
            done = await until(conversions, made.conversion_id, "succeeded", "failed")
        assert done.state == "succeeded"
        assert done.result == {
            "selected": "onnxruntime-fp32", "speedup": 1.5, "version": 3, "is_new": True, "is_cached": False,
        }  # fmt: skip
        assert done.progress == {"step": "first of works", "done": 1, "total": 2}
        assert conversions.store.read_log(made.conversion_id) == "first of works (1/2)\na tool said something\n"
        assert made.created_ns < (done.started_ns or 0) < (done.finished_ns or 0)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "rule", "text"),
    [("fails", "no_variant", "none fits"), ("dies", "child", "it was too much"), ("babbles", "protocol", "no event")],
)
def test_what_goes_wrong_is_told(name: str, rule: str, text: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        conversions = conversions_of(tmp_path)
        made = conversions.submit({**REQUEST, "name": name}, "admin")
        async with running(conversions):
            done = await until(conversions, made.conversion_id, "succeeded", "failed")
        assert done.state == "failed"
        assert done.error is not None
        assert (done.error["rule"], done.result) == (rule, None)
        assert text in done.error["message"]

    asyncio.run(scenario())


def test_converters_that_cannot_be_started_fail_the_conversion_and_not_control(tmp_path: Path) -> None:
    async def scenario() -> None:
        conversions = Conversions(open_store(tmp_path / "c"), tmp_path, (str(tmp_path / "nothing"),))
        first, second = (conversions.submit(REQUEST, "admin").conversion_id for _ in range(2))
        async with running(conversions):
            for one in (first, second):
                done = await until(conversions, one, "failed")
                assert done.error is not None
                assert done.error["rule"] == "start"

    asyncio.run(scenario())


async def until_there(path: Path) -> None:
    while not await asyncio.to_thread(path.exists):
        await asyncio.sleep(0.01)


def test_they_run_one_after_the_other_and_a_running_one_can_be_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        conversions = conversions_of(tmp_path)
        first = conversions.submit({**REQUEST, "name": "waits"}, "admin").conversion_id
        second = conversions.submit({**REQUEST, "name": "works"}, "admin").conversion_id
        async with running(conversions):
            await until_there(conversions.store.folder(first) / "started")
            assert conversions.store.get(second).state == "queued"
            assert conversions.cancel(first).state == "cancelled"
            assert (await until(conversions, second, "succeeded", "failed")).state == "succeeded"
        assert conversions.store.get(first).state == "cancelled"
        with pytest.raises(ControlError, match="cancelled already"):
            conversions.cancel(first)
        with pytest.raises(ControlError, match="succeeded already"):
            conversions.cancel(second)

    asyncio.run(scenario())


def test_a_queued_one_that_is_cancelled_never_starts(tmp_path: Path) -> None:
    async def scenario() -> None:
        conversions = conversions_of(tmp_path)
        first = conversions.submit({**REQUEST, "name": "works"}, "admin").conversion_id
        conversions.cancel(first)
        second = conversions.submit({**REQUEST, "name": "works"}, "admin").conversion_id
        async with running(conversions):
            await until(conversions, second, "succeeded")
        assert conversions.store.get(first).state == "cancelled"
        assert conversions.store.get(first).started_ns is None

    asyncio.run(scenario())


def test_the_end_of_control_ends_the_child_and_the_next_start_says_interrupted(tmp_path: Path) -> None:
    pids: list[int] = []

    async def scenario() -> tuple[str, str]:
        conversions = conversions_of(tmp_path)
        first = conversions.submit({**REQUEST, "name": "waits"}, "admin").conversion_id
        second = conversions.submit({**REQUEST, "name": "works"}, "admin").conversion_id
        async with running(conversions):
            await until_there(conversions.store.folder(first) / "started")
            assert conversions._process is not None
            pids.append(conversions._process.pid)
        return first, second

    first, second = asyncio.run(scenario())
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    again = conversions_of(tmp_path)
    found = again.store.get(first)
    assert found.state == "interrupted"
    assert found.error is not None
    assert found.error["rule"] == "interrupted"
    assert again.store.get(second).state == "queued"

    async def later() -> None:
        async with running(again):
            assert (await until(again, second, "succeeded", "failed")).state == "succeeded"

    asyncio.run(later())


def test_the_queue_is_bounded_and_room_comes_back(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    made = [store.add(REQUEST, "admin").conversion_id for _ in range(QUEUED_MAX)]
    with pytest.raises(ControlError, match="wait already") as refused:
        store.add(REQUEST, "admin")
    assert refused.value.code == "limit_reached"
    store.finish(made[3], "cancelled", result=None, error=None)
    assert store.add(REQUEST, "admin").state == "queued"


def test_the_oldest_that_ended_are_forgotten_and_none_that_has_not(tmp_path: Path) -> None:
    assert KEPT_MAX == 200
    store = ConversionStore(tmp_path, Ticks(), kept_max=6)
    store.open()
    waiting = store.add(REQUEST, "admin").conversion_id
    ended = []
    for _ in range(8):
        one = store.add(REQUEST, "admin").conversion_id
        store.finish(one, "cancelled", result=None, error=None)
        ended.append(one)
    known = {one.conversion_id for one in store.list()}
    assert waiting in known
    assert known == {waiting, *ended[3:]}
    assert not store.folder(ended[0]).exists()
    assert {one.conversion_id for one in open_store(tmp_path).list()} == known


def test_a_log_has_a_greatest_size_and_its_end_is_answered(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    one = store.add(REQUEST, "admin").conversion_id
    assert store.read_log(one) == ""
    line = "x" * 9_999
    for _ in range(LOG_BYTES_MAX // 10_000 + 5):
        store.note_log(one, line)
    size = (store.folder(one) / "log.txt").stat().st_size
    assert LOG_BYTES_MAX - 10_000 < size <= LOG_BYTES_MAX
    assert len(store.read_log(one)) == LOG_ANSWER_BYTES_MAX


def test_a_state_cut_short_by_a_crash_is_the_one_before(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    one = store.add(REQUEST, "admin")
    (store.folder(one.conversion_id) / "job.new").write_bytes(b'{"schema"')
    bare = tmp_path / "jobs" / "cnv_0123456789abcdef"
    bare.mkdir()
    assert [found.conversion_id for found in open_store(tmp_path).list()] == [one.conversion_id]
    assert not bare.exists()
    assert open_store(tmp_path).get(one.conversion_id) == replace(one)


BODY = {"source": "resnet/m.onnx", "name": "resnet"}


@contextmanager
def with_conversions(desk: Desk, tmp_path: Path) -> Iterator[Conversions]:
    conversions = conversions_of(tmp_path)
    desk.app.state.conversions = conversions
    try:
        yield conversions
    finally:
        desk.app.state.conversions = None


def test_the_routes_tell_the_life_of_a_conversion(desk: Desk, tmp_path: Path) -> None:
    with with_conversions(desk, tmp_path) as conversions:
        made = desk.ask("POST", "/admin/conversions", BODY)
        assert made.status_code == 202
        view = made.json()
        path = f"/admin/conversions/{view['conversion_id']}"
        assert (view["state"], view["actor"], view["source"]) == ("queued", "local", "resnet/m.onnx")
        assert desk.must("GET", path) == view
        assert desk.must("GET", path + "/log") == {"text": ""}
        assert desk.ask("GET", path + "/report").status_code == 404

        async def carry_out() -> None:
            async with running(conversions):
                await until(conversions, view["conversion_id"], "succeeded")

        asyncio.run(carry_out())
        assert desk.must("GET", path)["result"]["version"] == 3
        out = conversions.store.folder(view["conversion_id"]) / "out"
        out.mkdir()
        (out / "report.json").write_text('{"selected": "a"}')
        (out / "report.html").write_text("<p>a")
        assert desk.must("GET", path + "/report") == {"selected": "a"}
        page = desk.ask("GET", path + "/report.html")
        assert (page.text, page.headers["content-type"]) == ("<p>a", "text/html; charset=utf-8")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        second = desk.must("POST", "/admin/conversions", BODY)["conversion_id"]
        assert desk.must("GET", "/admin/conversions")["items"][0]["conversion_id"] == second
        assert desk.must("GET", f"/admin/conversions?after={second}")["items"][0]["state"] == "succeeded"
        assert desk.must("POST", f"/admin/conversions/{second}/cancel")["state"] == "cancelled"
        assert desk.ask("POST", f"/admin/conversions/{second}/cancel").status_code == 409
        actions = [one["action"] for one in desk.must("GET", "/admin/audit")["items"]]
        assert actions[-3:] == ["conversion.create", "conversion.create", "conversion.cancel"]


@pytest.mark.parametrize(
    "change",
    [
        {"source": "../m.onnx"}, {"source": "/etc/passwd"}, {"source": "a/./b"}, {"source": "a//b"}, {"source": ""},
        {"source": "/".join("a" * 9)}, {"data": ".."}, {"name": "../up"}, {"name": ""}, {"rounds": 2}, {"time_s": 0},
        {"engines": []}, {"unknown": 1}, {"metric_drop": 1.5}, {"memory_bytes": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_body_that_leads_elsewhere_or_is_out_of_bounds_is_refused(
    change: dict[str, Any], desk: Desk, tmp_path: Path
) -> None:
    with with_conversions(desk, tmp_path) as conversions:
        assert desk.ask("POST", "/admin/conversions", {**BODY, **change}).status_code == 422
        assert conversions.store.list() == []


def test_only_administrators_may_ask(desk: Desk, tmp_path: Path) -> None:
    with with_conversions(desk, tmp_path) as conversions:
        assert desk.ask_tcp("POST", "/admin/conversions", BODY).status_code == 401
        assert desk.ask_tcp("POST", "/admin/conversions", BODY, token=desk.bootstrap_token).status_code == 202
        assert [one.actor for one in conversions.store.list()] == ["admin-token"]
        assert desk.ask("GET", "/admin/conversions/cnv_none").status_code == 404
        assert desk.ask("POST", "/admin/conversions/cnv_none/cancel").status_code == 404


def test_a_control_without_a_repository_says_so(desk: Desk) -> None:
    desk.app.state.conversions = None
    assert desk.ask("POST", "/admin/conversions", BODY).status_code == 503
