"""Owns making models anew by itself: control looks at its repositories, decides, and queues one rebuild at a time.

`model_repo.rebuild_plan.decide` is the decision; here are the looks, the queue, and what is told of it.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from gateway.control.backends import list_models
from gateway.control.conversion_runner import Conversions
from gateway.control.conversion_store import FINAL, QUEUED_MAX
from gateway.control.errors import ControlError
from gateway.control.rebuild_attempts import Attempts, Tried
from gateway.control.rebuild_run import request_of
from gateway.control.registry import Change, Registry
from gateway.snapshot import Backend
from model_repo import lifecycle
from model_repo.errors import RepositoryError
from model_repo.host import HostFacts, read_host
from model_repo.rebuild_facts import host_sha256, is_installed, read_versions
from model_repo.rebuild_plan import Attempt, Blocked, Rebuild, VersionFacts, decide, find_missing
from model_repo.repository import version_number
from model_repo.signing import parse_trusted
from model_repo.stores import FileStore

ACTOR: Final = "rebuild"
#: How the engine says that a version answers otherwise here than where it was certified.
_REFUSED: Final = "golden check: "
_log = logging.getLogger("tollway.control")

#: Version → why the engine refused it, by model.
Refusals = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildRules:
    """`poll_s`: seconds between two looks. `engine`: whose refusals count, None: none. `facts` None: this host's."""

    poll_s: float
    repositories: tuple[Path, ...]
    is_approval_required: bool = False
    trusted_keys: tuple[str, ...] = ()
    engine: Backend | None = None
    facts: HostFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A model that this host cannot run, as of the last look. `state`: submitted, blocked."""

    repository: str
    name: str
    version: int
    state: str
    why: str
    obstacle: str
    command: str
    conversion_id: str


class RebuildJob:
    """`tick` is for one worker thread; `told` may be read from any."""

    def __init__(self, conversions: Conversions, registry: Registry, rules: RebuildRules) -> None:
        self.told: tuple[Told, ...] = ()
        self._conversions = conversions
        self._registry = registry
        self._rules = rules
        self._attempts = Attempts(conversions.store)

    def tick(self) -> None:
        """Look once, queue at most one rebuild, and log what was not told before. Raises: OSError."""
        host = self._rules.facts or read_host()
        tried = self._attempts.refresh()
        refusals = _ask_refusals(self._rules.engine)
        before = set(self.told)
        found: list[Told] = []
        for root in self._rules.repositories:
            try:
                store = FileStore(root)
                names = store.names()
            except RepositoryError as error:
                _log.debug("rebuild_unreadable repository=%s reason=%s", root, error)
                continue
            for name in names:
                try:
                    one = self._look(store, name, host, tried=tried, refusals=refusals.get(name, {}))
                except RepositoryError as error:
                    # Of no use to any host; the engine says so to those who look at the model.
                    _log.debug("rebuild_unreadable model=%s reason=%s", name, error)
                    continue
                if one is not None:
                    found.append(one)
        self.told = tuple(found)
        for one in found:
            if one not in before:
                _tell(one)

    def _look(
        self,
        store: FileStore,
        name: str,
        host: HostFacts,
        *,
        tried: tuple[Tried, ...],
        refusals: Mapping[int, str],
    ) -> Told | None:
        root = store.root
        state = lifecycle.get_model(store, name)
        versions = read_versions(
            store,
            state,
            host,
            is_approval_required=self._rules.is_approval_required,
            trusted=parse_trusted(self._rules.trusted_keys),
            refusals=refusals,
        )
        engine = state.config.platform
        host_id = host_sha256(host)
        own = [one for one in tried if (one.repository, one.name, one.host) == (str(root.absolute()), name, host_id)]
        todo = decide(name, engine, versions, _attempts(own, versions), find_missing(engine, host, is_installed))
        match todo:
            case None:
                return None
            case Blocked() if any(one.is_under_way and one.conversion_id == todo.conversion_id for one in own):
                return _submitted(root, name, todo.number, todo.why, todo.conversion_id)
            case Blocked():
                return _blocked(root, name, todo)
            case Rebuild():
                return self._submit(root, name, todo, versions, host_id)

    def _submit(self, root: Path, name: str, todo: Rebuild, versions: list[VersionFacts], host_id: str) -> Told | None:
        """None: another one is under way; its turn comes."""
        open_ones = [one for one in self._conversions.store.list() if one.state not in FINAL]
        if len(open_ones) >= QUEUED_MAX or any("rebuild" in one.request for one in open_ones):
            return None
        digest = next(one.digest for one in versions if one.number == todo.number)
        request = request_of(root, name, todo.number, digest=digest, host=host_id)

        def work(_tx: Connection, _now_ns: int) -> Change[str]:
            made = self._conversions.submit(request, ACTOR)
            return Change(answer=made.conversion_id, subject=made.conversion_id, before=None, after=None)

        try:
            conversion_id = self._registry.change(ACTOR, "conversion.rebuild", work)
        except ControlError as error:
            # The queue filled up meanwhile, or the policy cannot be published: the next look comes.
            _log.debug("rebuild_waits model=%s code=%s", name, error.code)
            return None
        self._attempts.refresh()
        return _submitted(root, name, todo.number, todo.why, conversion_id)


def _attempts(tried: list[Tried], versions: list[VersionFacts]) -> list[Attempt]:
    """Those for versions as they are now, and all that made one."""
    digests = {one.number: one.digest for one in versions}
    found = []
    for one in tried:
        number = one.version if digests.get(one.version) == one.digest else 0
        if number or one.made:
            found.append(Attempt(number=number, conversion_id=one.conversion_id, outcome=one.outcome, made=one.made))
    return found


def _submitted(root: Path, name: str, version: int, why: str, conversion_id: str) -> Told:
    return Told(
        repository=str(root),
        name=name,
        version=version,
        state="submitted",
        why=why,
        obstacle="",
        command="",
        conversion_id=conversion_id,
    )


def _blocked(root: Path, name: str, todo: Blocked) -> Told:
    return Told(
        repository=str(root),
        name=name,
        version=todo.number,
        state="blocked",
        why=todo.why,
        obstacle=todo.obstacle,
        command=todo.command,
        conversion_id=todo.conversion_id,
    )


def _tell(one: Told) -> None:
    if one.state == "submitted":
        text = "rebuild_submitted model=%s version=%d conversion=%s reason=%s"
        _log.warning(text, one.name, one.version, one.conversion_id, one.why)
        return
    text = "rebuild_blocked model=%s version=%d reason=%s obstacle=%s command=%s"
    _log.warning(text, one.name, one.version, one.why, one.obstacle, one.command)


def _ask_refusals(engine: Backend | None) -> Refusals:
    """Golden checks that failed in the engine; none where it does not answer: the next look comes."""
    if engine is None:
        return {}
    found: dict[str, dict[int, str]] = {}
    for model in asyncio.run(list_models((engine,))).models:
        number = version_number(model.version or "")
        if number and _REFUSED in model.reason and model.state != "READY":
            found.setdefault(model.name, {})[number] = model.reason
    return found
