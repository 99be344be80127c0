"""Owns following releases: an alias or approval that changes on disk takes effect while the engine serves.

The files are looked at from time to time, off the loop; only what they say of aliases and approvals counts. Where the
same versions are served afterwards, aliases change in one step; else the model is loaded anew beside the old one.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Final

from gateway.engine.admission import Unapproved
from gateway.engine.host import Host
from gateway.engine.overrides import Override
from gateway.engine.registry import Registry
from gateway.errors import TollwayError
from model_repo.errors import RepositoryError
from model_repo.release import RELEASE, read_release

_LOG: Final = logging.getLogger("tollway.engine")
#: Model → what identifies its release file as it lies there.
_Marks = dict[str, tuple[int, int, int]]


class Follower:
    """What was last seen of each model's release. All methods but `look` belong to the loop's thread."""

    def __init__(self, registry: Registry, roots: Iterable[Path], host: Host) -> None:
        self._registry = registry
        self._roots = tuple(roots)
        self._host = host
        self._marks: _Marks = {}
        self._known: dict[str, Any] = {}

    def look(self) -> list[str]:
        """Models whose aliases or approvals differ from what was last seen. Blocks; one call at a time."""
        changed = []
        marks = _marks(self._roots)
        for name in sorted(marks.keys() | self._marks.keys()):
            if marks.get(name) == self._marks.get(name):
                continue
            facts = self._read(name)
            if facts != self._known.get(name, ({}, {})):
                self._known[name] = facts
                changed.append(name)
        self._marks = marks
        return changed

    def _read(self, name: str) -> Any:
        folder = self._registry.find_folder(name)
        if folder is None:
            return {}, {}
        try:
            release = read_release(folder.path)
        except RepositoryError as error:
            return str(error)
        return dict(release.aliases), dict(release.approvals)

    async def follow(self, poll_s: float, on_look: Callable[[], None] = lambda: None) -> None:
        """Look every `poll_s` seconds until cancelled; `look` was called once before. `on_look`: after each."""
        while True:
            await asyncio.sleep(poll_s)
            for name in await self._host.loop.run_in_executor(self._host.pool, self.look):
                await self.apply(name)
            on_look()

    async def apply(self, name: str) -> None:
        """Bring a model in line with its release. One that was unloaded on demand stays so."""
        if self._registry.is_unloaded(name):
            return
        try:
            if await self._registry.rename(name):
                _LOG.info("aliases_changed model=%s", name)
                return
            await self._change(self._registry.changes.load(name, Override()), name)
        except Unapproved as error:
            await self._withdraw(name, str(error))
        except (RepositoryError, TollwayError) as error:
            _LOG.error("release_not_followed model=%s reason=%s", name, error)

    async def _withdraw(self, name: str, reason: str) -> None:
        """The last approval of a model was taken back: calls under way end, new ones are refused."""
        _LOG.warning("approval_withdrawn model=%s", name)
        await self._change(self._registry.changes.unload(name, reason=reason), name)

    async def _change(self, change: Coroutine[Any, Any, None], name: str) -> None:
        """Run it to its end, also where following is cancelled meanwhile."""
        await asyncio.shield(self._registry.changes.start(change, f"follow {name}"))


def _marks(roots: Iterable[Path]) -> _Marks:
    marks: _Marks = {}
    for root in roots:
        for path in root.glob(f"*/{RELEASE}"):
            try:
                status = path.lstat()
            except OSError:
                continue  # Replaced at this moment: the next look sees it.
            marks.setdefault(path.parent.name, (status.st_ino, status.st_size, status.st_mtime_ns))
    return marks
