"""Owns running conversions in the background: one at a time, each in a child process, followed event by event.

The child dies with control (it asks the kernel for that) and sits in its own process group, so that a cancelled one is
ended with all that it started.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gateway.control import rebuild_run
from gateway.control.conversion_store import Conversion, ConversionStore
from gateway.control.errors import conflict
from model_repo.errors import RepositoryError

EVENT_BYTES_MAX: Final = 16 << 20
_SAID_BYTES: Final = 600
#: -P: nothing of the working folder is imported.
COMMAND: Final = (sys.executable, "-P", "-m", "converters", "convert")
_log = logging.getLogger("tollway.control")


class Conversions:
    """`submit` and `cancel` may be called from any thread; `run` belongs to the loop, and ends by being cancelled."""

    def __init__(self, store: ConversionStore, repository: Path, command: Sequence[str] = COMMAND) -> None:
        self.store = store
        self._repository = repository
        self._command = tuple(command)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._current: str | None = None
        self._process: asyncio.subprocess.Process | None = None

    def submit(self, request: Mapping[str, Any], actor: str) -> Conversion:
        """Raises: ControlError `limit_reached`."""
        made = self.store.add(request, actor)
        self._call(self._wake.set)
        return made

    def cancel(self, conversion_id: str) -> Conversion:
        """A queued or running one ends; what it had published by then stays.

        Raises:
            ControlError: `not_found`; `conflict`: it has ended already.
        """
        before = self.store.get(conversion_id)
        after = self.store.finish(conversion_id, "cancelled", result=None, error=None)
        if after.state != "cancelled" or before.state == "cancelled":
            raise conflict(f"conversion {conversion_id!r} is {before.state} already")
        self._call(lambda: self._kill(conversion_id))
        return after

    async def run(self) -> None:
        """Take one after the other. On the way out the one that runs is ended; the next start calls it interrupted."""
        self._loop = asyncio.get_running_loop()
        try:
            while True:
                self._wake.clear()
                one = await asyncio.to_thread(self.store.start_next)
                if one is None:
                    await self._wake.wait()
                else:
                    await self._carry_out(one)
        finally:
            self._loop = None

    def _call(self, what: Any) -> None:
        # Before `run` there is no loop to tell: it looks at the store first of all.
        if self._loop is not None:
            self._loop.call_soon_threadsafe(what)

    def _kill(self, conversion_id: str) -> None:
        if self._current == conversion_id and self._process is not None:
            _end(self._process)

    async def _carry_out(self, one: Conversion) -> None:
        self._current = one.conversion_id
        try:
            last = await (self._convert(one) if one.request.get("rebuild") is None else self._rebuild(one))
        except OSError as error:
            last = _failure("start", f"the converters cannot be started: {error.strerror}")
        finally:
            self._current = self._process = None
        result, error_ = None, None
        if last["ev"] == "result":
            result = _summary(last["value"])
        else:
            error_ = {key: last[key] for key in ("rule", "message", "next_step", "exit_code")}
        state = "succeeded" if result is not None else "failed"
        done = await asyncio.to_thread(self.store.finish, one.conversion_id, state, result=result, error=error_)
        _log.info("conversion_ended id=%s state=%s", one.conversion_id, done.state)

    async def _convert(self, one: Conversion) -> Mapping[str, Any]:
        return await self._follow(one, self._request(one))

    async def _rebuild(self, one: Conversion) -> Mapping[str, Any]:
        """As `_follow`; what was made is published here, unsigned: control has no private key."""
        try:
            request = await asyncio.to_thread(rebuild_run.prepare, self.store, one)
            last = await self._follow(one, request)
            now = await asyncio.to_thread(self.store.get, one.conversion_id)
            if last["ev"] == "result" and now.state == "running":
                published = await asyncio.to_thread(rebuild_run.publish, self.store, one)
                return {**last, "value": {**last["value"], "published": published}}
            return last
        except (RepositoryError, OSError) as error:
            return _failure("rebuild", str(error))
        finally:
            await asyncio.to_thread(rebuild_run.clean, self.store, one)

    async def _follow(self, one: Conversion, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The last event, `result` or `error`. Raises: OSError: no process can be had."""
        folder = self.store.folder(one.conversion_id)
        with (folder / "stderr.txt").open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                cwd=folder,
                start_new_session=True,
                limit=EVENT_BYTES_MAX,
            )
        self._process = process
        try:
            if (await asyncio.to_thread(self.store.get, one.conversion_id)).state != "running":
                _end(process)  # Cancelled between its start and ours.
            return await self._read_events(process, one, request)
        finally:
            _end(process)
            await process.wait()

    async def _read_events(
        self, process: asyncio.subprocess.Process, one: Conversion, request: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        if process.stdin is None or process.stdout is None:
            return _failure("child", "the converters have no pipes")
        with contextlib.suppress(ConnectionError):
            # One that dies at once is told by its exit code below.
            process.stdin.write(json.dumps(request).encode())
            await process.stdin.drain()
            process.stdin.close()
        try:
            async for line in process.stdout:
                event: dict[str, Any] = json.loads(line)
                if event["ev"] in {"result", "error"}:
                    return event
                await self._note(one.conversion_id, event)
        except (ValueError, KeyError, TypeError):
            return _failure("protocol", "the converters said what is no event")
        code = await process.wait()
        said = await asyncio.to_thread((self.store.folder(one.conversion_id) / "stderr.txt").read_bytes)
        text = said[-_SAID_BYTES:].decode(errors="replace").strip().replace("\n", " | ")
        return _failure("child", f"the converters ended with {code} and no result: {text or 'they said nothing'}")

    async def _note(self, conversion_id: str, event: Mapping[str, Any]) -> None:
        if event["ev"] == "progress":
            progress = {key: event[key] for key in ("step", "done", "total")}
            self.store.note_progress(conversion_id, progress)
            text = f"{progress['step']} ({progress['done']}/{progress['total']})"
            await asyncio.to_thread(self.store.note_log, conversion_id, text)
        elif event["ev"] == "log":
            await asyncio.to_thread(self.store.note_log, conversion_id, str(event["text"]))

    def _request(self, one: Conversion) -> dict[str, Any]:
        """What the converters are asked on standard input: paths below our folders, and the job as it was asked for."""
        asked = dict(one.request)
        sources = self.store.sources
        return {
            "source": str(sources / asked.pop("source")),
            "data": str(sources / asked.pop("data")) if asked.get("data") else asked.pop("data", None) or "",
            "repository": str(self._repository.absolute()),
            "cache": str(self.store.cache.absolute()),
            "out": str((self.store.folder(one.conversion_id) / "out").absolute()),
            "dims": asked.pop("dims"),
            "budgets": asked.pop("budgets"),
            "limits": asked.pop("limits"),
            "job": asked,
        }


def _end(process: asyncio.subprocess.Process) -> None:
    """The whole group: the child in its sandbox dies with its parent."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _failure(rule: str, message: str) -> dict[str, Any]:
    step = "see the conversion's log, and control's"
    return {"ev": "error", "rule": rule, "message": message, "next_step": step, "exit_code": 6}


def _summary(report: Mapping[str, Any]) -> dict[str, Any]:
    published = report["published"]
    return {
        "selected": report["selected"],
        "speedup": report["speedup"],
        "version": published["version"],
        "is_new": published["is_new"],
        "is_cached": report["is_cached"],
    }
