"""Owns the task that keeps a host's session at the shared store: registers, beats, carries batches, one at a time.

A batch goes as soon as the one before is answered; what comes meanwhile travels together, so under load a round trip
serves many calls. Losing the store is logged once per change, not per try.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.clock import Clock
from gateway.quota.shared_owner import SharedOwner
from gateway.quota.store_link import Command, CommandFailed, StoreLink, StoreUnavailable
from gateway.quota.store_words import SessionLost, read_beat, read_done, read_registered

BEAT_S: Final = 0.25
#: Without a session for so long, limits are refused or go on by lease; shorter ones are only waited out.
AWAY_S: Final = 0.5
RETRY_S_MIN: Final = 0.05
RETRY_S_MAX: Final = 0.25
#: A session that ended sooner is not tried again at once: another process may claim to be this host.
SESSION_S_MIN: Final = 1.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Figures:
    """What an operator wants to know of the store. Counts since this process began."""

    is_up: bool = False
    hosts: int = 0
    commands: int = 0
    round_trips: int = 0
    wait_ns: int = 0
    losses: int = 0
    failures: int = 0


class StoreKeeper:
    """The store's task of one host. `host` is its lasting name; `open_link` makes a new link per session."""

    def __init__(
        self,
        owner: SharedOwner,
        make_link: Callable[[], StoreLink],
        *,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        new_id: Callable[[], str] = lambda: secrets.token_hex(8),
        away_s: float = AWAY_S,
    ) -> None:
        self._owner = owner
        self._make_link = make_link
        self._clock = clock
        self._loop = loop
        self._new_id = new_id
        self._away_s = away_s
        self._wanted = asyncio.Event()
        self._link: StoreLink | None = None
        self._session = ""
        self._is_beat_due = True
        self._away: asyncio.TimerHandle | None = None
        self._trouble = ""
        self._served_s = -1.0
        self.registered = asyncio.Event()
        self.figures = Figures()
        owner.call_when_wanted(self._wanted.set)

    async def run(self) -> None:
        """Keep a session until cancelled."""
        pause_s = 0.0
        self._plan_away()
        while True:
            began_s = self._loop.time()
            try:
                await self._serve()
            except (StoreUnavailable, SessionLost) as error:
                self._on_lost(error)
            finally:
                await self._close_link()
            has_lasted = self._served_s >= began_s and self._loop.time() - self._served_s >= SESSION_S_MIN
            pause_s = 0.0 if has_lasted else min(RETRY_S_MAX, max(RETRY_S_MIN, 2 * pause_s))
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Take leave, so that others need not wait for the lease to end. Only after `run` was cancelled.

        Not while workers hold slots: their calls still run, and the next owner of this host goes on with them.
        """
        self._cancel_away()
        if self._owner.holds_slots:
            return
        link = self._make_link()
        try:
            await link.open()
            (reply,) = await link.run(self._session, self._owner.epoch, [Command("goodbye", "", [])])
            if not isinstance(reply, CommandFailed):
                read_done(reply)
        except (StoreUnavailable, SessionLost) as error:
            _log.info("quota_store_left_without_leave: %s", error)
        finally:
            await link.close()

    # -- one session ---------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        link = self._link = self._make_link()
        run_id = await link.open()
        self._session = self._new_id()
        sent_wall_ns = self._clock.wall_ns()
        (reply,) = await link.run(self._session, self._new_id(), [Command("register", "", [run_id])])
        if isinstance(reply, CommandFailed):
            raise StoreUnavailable(reply.text)
        registered = read_registered(reply)
        self._cancel_away()
        if registered.epoch != self._owner.epoch:
            _log.warning("quota_store_epoch: %s with %d hosts", registered.epoch, registered.hosts)
        self._owner.on_registered(registered.epoch, registered.now_ns, sent_wall_ns)
        self._on_up(registered.hosts)
        self._is_beat_due = True
        while True:
            await self._carry(link)
            if not (self._owner.has_work() or self._is_beat_due):
                await self._wanted.wait()
            self._wanted.clear()

    async def _carry(self, link: StoreLink) -> None:
        """One round trip, if there is something to carry."""
        batch = self._owner.take_batch()
        commands = [one.command for one in batch]
        has_beat, self._is_beat_due = self._is_beat_due, False
        if has_beat:
            # The last of its batch: what the batch tells comes before.
            commands.append(Command("beat", "", [int(self._owner.has_told_slots), int(self._owner.is_complete)]))
        if not commands:
            return
        sent_ns, sent_wall_ns = self._clock.monotonic_ns(), self._clock.wall_ns()
        try:
            replies = await link.run(self._session, self._owner.epoch, commands)
        except BaseException:
            self._owner.on_lost(batch)
            raise
        figures = self.figures
        figures.round_trips += 1
        figures.commands += len(commands)
        figures.wait_ns += self._clock.monotonic_ns() - sent_ns
        figures.failures += sum(isinstance(reply, CommandFailed) for reply in replies)
        beaten = replies.pop() if has_beat else None
        self._owner.on_replies(batch, replies)
        if beaten is not None:
            if isinstance(beaten, CommandFailed):
                raise StoreUnavailable(beaten.text)
            beat = read_beat(beaten)
            figures.hosts = beat.hosts
            self._owner.on_beat(beat, sent_wall_ns)
            self._loop.call_later(BEAT_S, self._beat)

    def _beat(self) -> None:
        self._is_beat_due = True
        self._wanted.set()

    # -- up and down ---------------------------------------------------------------------------------------------------

    def _on_up(self, hosts: int) -> None:
        self._served_s = self._loop.time()
        self.figures.is_up, self.figures.hosts = True, hosts
        self.registered.set()
        if self._trouble:
            _log.warning("quota_store_back")
            self._trouble = ""

    def _on_lost(self, error: Exception) -> None:
        self._owner.on_lost([])
        self.registered.clear()
        if self.figures.is_up:
            self.figures.losses += 1
        self.figures.is_up = False
        if str(error) != self._trouble:
            _log.error("quota_store_lost: %s", error)
            self._trouble = str(error)
        self._plan_away()

    def _plan_away(self) -> None:
        if self._away is None:
            self._away = self._loop.call_later(self._away_s, self._owner.on_away)

    def _cancel_away(self) -> None:
        if self._away is not None:
            self._away.cancel()
            self._away = None

    async def _close_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()
