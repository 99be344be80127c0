"""Owns conversions as they are remembered: one folder each below DATA/conversions/jobs, written before it is told.

A state is replaced by one rename after it was flushed. A control that is killed leaves a conversion `running`; the next
one finds that nobody runs it and says `interrupted`. Queued ones wait on.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Final

from gateway.control.errors import ControlCode, ControlError, not_found

QUEUED_MAX: Final = 8
KEPT_MAX: Final = 200
LOG_BYTES_MAX: Final = 1 << 20
LOG_ANSWER_BYTES_MAX: Final = 64 << 10
FINAL: Final = frozenset({"succeeded", "failed", "cancelled", "interrupted"})
_ID: Final = re.compile(r"cnv_[0-9a-f]{16}")
_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """`state`: queued, running, or one of FINAL. `request`: as it was asked for. `progress`: step, done, total."""

    conversion_id: str
    state: str
    actor: str
    request: dict[str, Any]
    created_ns: int
    started_ns: int | None = None
    finished_ns: int | None = None
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class ConversionStore:
    """Thread-safe. Every method may wait for the disk."""

    def __init__(self, root: Path, now_ns: Callable[[], int], *, kept_max: int = KEPT_MAX) -> None:
        self.root = root
        self.sources = root / "sources"
        self.cache = root / "cache"
        self._jobs = root / "jobs"
        self._now_ns = now_ns
        self._kept_max = kept_max
        self._lock = Lock()
        self._known: dict[str, Conversion] = {}

    def open(self) -> None:
        """Make the folders and read what is there; what was running is now interrupted."""
        for folder in (self.root, self.sources, self._jobs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock:
            for path in self._jobs.iterdir():
                found = _read(path) if _ID.fullmatch(path.name) else None
                if found is None:
                    # A crash between the folder and its first state: nobody was told of it.
                    shutil.rmtree(path)
                else:
                    self._known[found.conversion_id] = found
            for one in list(self._known.values()):
                if one.state == "running":
                    said = "control ended while it ran"
                    error = {"rule": "interrupted", "message": said, "next_step": "ask for it again", "exit_code": 6}
                    self._put(replace(one, state="interrupted", finished_ns=self._now_ns(), error=error))

    def add(self, request: Mapping[str, Any], actor: str) -> Conversion:
        """Raises: ControlError `limit_reached`: too many wait."""
        with self._lock:
            waiting = sum(one.state == "queued" for one in self._known.values())
            if waiting >= QUEUED_MAX:
                text = f"{waiting} conversions wait already: wait for one to end, or cancel one"
                raise ControlError(ControlCode.LIMIT_REACHED, text)
            made = Conversion(
                conversion_id=f"cnv_{secrets.token_hex(8)}",
                state="queued",
                actor=actor,
                request=dict(request),
                created_ns=self._now_ns(),
            )
            (self._jobs / made.conversion_id).mkdir(mode=0o700)
            self._put(made)
            self._forget_old()
            return made

    def list(self) -> list[Conversion]:
        """The newest first."""
        with self._lock:
            return sorted(self._known.values(), key=lambda one: (-one.created_ns, one.conversion_id))

    def get(self, conversion_id: str) -> Conversion:
        """Raises: ControlError `not_found`."""
        with self._lock:
            return self._get(conversion_id)

    def start_next(self) -> Conversion | None:
        """The oldest that waits, now running."""
        with self._lock:
            waiting = [one for one in self._known.values() if one.state == "queued"]
            if not waiting:
                return None
            first = min(waiting, key=lambda one: (one.created_ns, one.conversion_id))
            return self._put(replace(first, state="running", started_ns=self._now_ns()))

    def note_progress(self, conversion_id: str, progress: Mapping[str, Any]) -> None:
        """Kept in memory: of a conversion that is interrupted nobody needs the last step."""
        with self._lock:
            self._known[conversion_id] = replace(self._get(conversion_id), progress=dict(progress))

    def note_log(self, conversion_id: str, text: str) -> None:
        """A line; beyond LOG_BYTES_MAX lines are dropped."""
        path = self.folder(conversion_id) / "log.txt"
        with self._lock, path.open("ab") as file:
            line = text.replace("\n", " ").encode() + b"\n"
            if file.tell() + len(line) <= LOG_BYTES_MAX:
                file.write(line)

    def read_log(self, conversion_id: str) -> str:
        """The end of the log. Raises: ControlError `not_found`."""
        self.get(conversion_id)
        try:
            data = (self.folder(conversion_id) / "log.txt").read_bytes()
        except FileNotFoundError:
            return ""
        return data[-LOG_ANSWER_BYTES_MAX:].decode(errors="replace")

    def finish(
        self, conversion_id: str, state: str, *, result: dict[str, Any] | None, error: dict[str, Any] | None
    ) -> Conversion:
        """A conversion that ended already stays as it is."""
        with self._lock:
            one = self._get(conversion_id)
            if one.state in FINAL:
                return one
            return self._put(replace(one, state=state, finished_ns=self._now_ns(), result=result, error=error))

    def folder(self, conversion_id: str) -> Path:
        return self._jobs / conversion_id

    def _get(self, conversion_id: str) -> Conversion:
        found = self._known.get(conversion_id)
        if found is None:
            raise not_found("conversion", conversion_id[:40])
        return found

    def _put(self, conversion: Conversion) -> Conversion:
        path = self._jobs / conversion.conversion_id / "job.json"
        data = json.dumps({"schema": _SCHEMA, **asdict(conversion)}).encode()
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self._known[conversion.conversion_id] = conversion
        return conversion

    def _forget_old(self) -> None:
        ended = sorted((one for one in self._known.values() if one.state in FINAL), key=lambda one: one.created_ns)
        for one in ended[: max(0, len(self._known) - self._kept_max)]:
            shutil.rmtree(self._jobs / one.conversion_id)
            del self._known[one.conversion_id]


def _read(folder: Path) -> Conversion | None:
    try:
        value = json.loads((folder / "job.json").read_bytes())
    except FileNotFoundError:
        return None
    if value.pop("schema") != _SCHEMA:
        raise OSError(0, "is of a newer release", str(folder / "job.json"))
    return Conversion(**value)
