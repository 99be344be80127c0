"""Owns the owner's socket: frames in, decisions out, asks that must wait, and the recount task.

Everything is decided synchronously as bytes arrive; an ask that cannot be decided yet is parked, bounded in number by
"one per tenant and worker" and in time by `PARK_S`, then decided or refused.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, assert_never, cast

from gateway.quota.decider import Decider, Remote
from gateway.quota.owner import Parked, WorkerState
from gateway.quota.protocol import (
    VERSION,
    WORKERS_MAX,
    Answer,
    Ask,
    Declare,
    FrameSplitter,
    FromOwner,
    FromWorker,
    Hello,
    Holding,
    ProtocolError,
    Recall,
    Report,
    ReportPlease,
    Return,
    decode_from_worker,
    encode_frame,
)
from gateway.quota.recount import MeterError, ask_counts

PARK_S: Final = 1.0
RECALL_S: Final = 0.05
#: Time for workers of a lost owner to reconnect; they try every 50 ms.
SETTLE_S: Final = 0.5
REPORT_S: Final = 2.0
RECOUNT_RETRY_S: Final = 0.2
#: Answers a worker does not read are kept up to this; then it is cut off.
WRITE_BUFFER_BYTES_MAX: Final = 8 * 1024 * 1024

_log = logging.getLogger(__name__)

_ParkedKey = tuple["WorkerConnection", str]
Refresh = Callable[[], Awaitable[None]]


def bind(path: Path) -> socket.socket:
    """A socket at `path` (mode 600), replacing one that a dead owner left."""
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        path.chmod(0o600)  # before `listen`, so that nobody connects while the mode is wider
    except BaseException:
        listening.close()
        raise
    return listening


class QuotaServer:
    """Serves one `Decider`. `refresh_policy` looks for a newer snapshot and hands it to the owner."""

    def __init__(
        self,
        owner: Decider,
        loop: asyncio.AbstractEventLoop,
        refresh_policy: Refresh,
        meter_socket: Path | None,
        *,
        workers_expected: int = 0,
        settle_s: float = SETTLE_S,
        park_s: float = PARK_S,
    ) -> None:
        self.owner = owner
        self.loop = loop
        self.connections: set[WorkerConnection] = set()
        self._refresh_policy = refresh_policy
        self._meter_socket = meter_socket
        self._workers_expected = workers_expected
        self._settle_s = settle_s
        self._park_s = park_s
        self._parked: dict[_ParkedKey, tuple[Ask, asyncio.TimerHandle]] = {}
        self._by_state: dict[WorkerState, WorkerConnection] = {}
        self._recalled: set[_ParkedKey] = set()
        self._all_said_hello = asyncio.Event()
        self._policy_wanted = asyncio.Event()
        self._recount_wanted = asyncio.Event()
        self._reported = asyncio.Event()
        self._server: asyncio.AbstractServer | None = None

    async def listen(self, path: Path) -> None:
        """Bind `path` (mode 600), replacing a socket that a dead owner left."""
        listening = bind(path)
        self._server = await self.loop.create_unix_server(lambda: WorkerConnection(self), sock=listening)

    async def run(self) -> None:
        """The owner's tasks; runs until cancelled, and fails when one of them does."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._settle_and_recount(), name="quota recount")
            group.create_task(self._follow_policy(), name="quota policy")

    async def close(self) -> None:
        """Stop accepting, cut the workers off (they refuse or go on by their plans), forget parked asks."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        for _, timer in self._parked.values():
            timer.cancel()
        self._parked.clear()
        self._recalled.clear()

    def speak_for(self, remote: Remote) -> None:
        """Hear of decisions that come later, and of what workers must do meanwhile."""
        remote.listen(
            on_decided=self.retry_one,
            on_news=self.retry_parked,
            on_recall=self.recall,
            on_count_wanted=self._want_recount,
        )

    def policy_changed(self) -> None:
        """The owner was given a new policy: tenants may need a count, asks may be decidable."""
        self._want_recount()
        self.retry_parked()

    # -- asks ----------------------------------------------------------------------------------------------------------

    def ask(self, connection: "WorkerConnection", ask: Ask) -> None:
        """Decide, or park. Raises ProtocolError when this worker's last ask for the tenant is still open."""
        key = (connection, ask.tenant)
        if key in self._parked:
            raise ProtocolError("a worker asked twice for one tenant")
        outcome = self.owner.ask(connection.state, ask, is_final=False)
        if isinstance(outcome, Answer):
            connection.send(outcome)
            return
        if outcome is Parked.RECALL:
            self._recalled.add(key)
        self._set_deadline(key, ask, RECALL_S if outcome is Parked.RECALL else self._park_s)
        self._wait_for(outcome, key)

    def retry_parked(self, tenant: str | None = None) -> None:
        """Try every parked ask (of one tenant) again; one that must still wait keeps its deadline."""
        for key in [key for key in self._parked if tenant is None or key[1] == tenant]:
            if key in self._parked:  # a decision may have been the end of another
                self._retry(key, False)

    def retry_one(self, worker: WorkerState, tenant: str) -> None:
        """Try one parked ask again, if it is still there."""
        connection = self._by_state.get(worker)
        if connection is not None and (connection, tenant) in self._parked:
            self._retry((connection, tenant), False)

    def recall(self, worker: WorkerState, tenant: str) -> None:
        """Have a worker return everything unspent of `tenant`."""
        connection = self._by_state.get(worker)
        if connection is not None:
            connection.send(Recall(tenant))

    def _retry(self, key: _ParkedKey, is_final: bool) -> None:
        connection, (ask, timer) = key[0], self._parked[key]
        outcome = self.owner.ask(connection.state, ask, is_final=is_final)
        if isinstance(outcome, Parked):
            if is_final:  # only now a store may be asked
                self._set_deadline(key, ask, self._park_s)
            elif outcome is Parked.RECALL and key not in self._recalled:
                self._recalled.add(key)
                timer.cancel()
                self._set_deadline(key, ask, RECALL_S)
            self._wait_for(outcome, key)
            return
        del self._parked[key]
        self._recalled.discard(key)
        timer.cancel()
        connection.send(outcome)

    def _set_deadline(self, key: _ParkedKey, ask: Ask, wait_s: float) -> None:
        self._parked[key] = (ask, self.loop.call_later(wait_s, self._retry, key, True))

    def _wait_for(self, reason: Parked, key: _ParkedKey) -> None:
        """Set in motion what a parked ask waits for."""
        match reason:
            case Parked.POLICY:
                self._policy_wanted.set()
            case Parked.RECOUNT:
                self._recount_wanted.set()
            case Parked.RECALL:
                holders = self.owner.spare_holders(key[0].state, key[1])
                for other in self.connections:
                    if other.state in holders:
                        other.send(Recall(key[1]))
            case Parked.SETTLING | Parked.STORE | Parked.HOSTS:
                pass  # the recount task tells when, or the store's keeper
            case _:
                assert_never(reason)

    def forget(self, connection: "WorkerConnection") -> None:
        """A worker is gone, and what it asked with it."""
        self.connections.discard(connection)
        for key in [key for key in self._parked if key[0] is connection]:
            self._parked.pop(key)[1].cancel()
            self._recalled.discard(key)
        self._by_state.pop(connection.state, None)
        if connection.is_welcome:
            self.owner.goodbye(connection.state)
            self._want_recount()
            self._reported.set()
            self.retry_parked()  # its slots are free

    def said_hello(self, connection: "WorkerConnection") -> None:
        self._by_state[connection.state] = connection
        if self._workers_expected and len(self.owner.workers) >= self._workers_expected:
            self._all_said_hello.set()

    def has_reported(self) -> None:
        self._reported.set()

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def _want_recount(self) -> None:
        if self._meter_socket is not None and self.owner.needs_recount():
            self._recount_wanted.set()

    async def _settle_and_recount(self) -> None:
        try:
            async with asyncio.timeout(self._settle_s):
                await self._all_said_hello.wait()
        except TimeoutError:
            pass  # workers that are not back by now are dead or new
        self.owner.settle()
        self._want_recount()
        self.retry_parked()
        while True:
            await self._recount_wanted.wait()
            self._recount_wanted.clear()
            if self.owner.needs_recount() and not await self._recount():
                await asyncio.sleep(RECOUNT_RETRY_S)
            self._want_recount()
            self.retry_parked()

    async def _recount(self) -> bool:
        """One recount. False: the meter did not answer."""
        assert self._meter_socket is not None
        sequence = self.owner.begin_recount()
        # Reports first, the meter after: a call that ended before its worker's report is in the log by then.
        for connection in self.connections:
            connection.send(ReportPlease(sequence))
        try:
            async with asyncio.timeout(REPORT_S):
                while waiting := [one for one in self.owner.workers if one.reported != sequence]:
                    self._reported.clear()
                    await self._reported.wait()
        except TimeoutError:
            # A worker that does not answer cannot be told from a dead one; cut off, it comes back with a hello.
            for connection in list(self.connections):
                if connection.state in waiting:
                    connection.transport.abort()
            self.owner.abandon_recount()
            return False
        try:
            counts = await ask_counts(self._meter_socket, self.owner.windows_to_count())
        except MeterError as error:
            _log.warning("quota_recount_failed: %s", error)
            self.owner.abandon_recount()
            return False
        self.owner.finish_recount(counts)
        return True

    async def _follow_policy(self) -> None:
        while True:
            await self._policy_wanted.wait()
            self._policy_wanted.clear()
            await self._refresh_policy()
            # What is still unknown after a fresh look is decided by what the owner knows.
            for key, (ask, timer) in list(self._parked.items()):
                if self.owner.is_policy_unclear(key[0].state, ask):
                    timer.cancel()
                    self._retry(key, True)


class WorkerConnection(asyncio.Protocol):
    """One worker's connection."""

    transport: asyncio.Transport

    def __init__(self, server: QuotaServer) -> None:
        self._server = server
        self._frames = FrameSplitter()
        self._outbox: list[FromOwner] = []
        self._is_batching = False
        self._greeting: list[Holding] = []
        self.state = WorkerState()
        self.name = "?"
        self.is_welcome = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it
        if len(self._server.connections) >= WORKERS_MAX:
            _log.error("quota_workers_max: a connection beyond %d was refused", WORKERS_MAX)
            self.transport.abort()
            return
        self._server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.forget(self)

    def data_received(self, data: bytes) -> None:
        self._is_batching = True
        try:
            for payload in self._frames.feed(data):
                for message in decode_from_worker(payload):
                    self._on_message(message)
        except ProtocolError as error:
            self._cut_off(error)
        finally:
            self._is_batching = False
            self._flush()

    def send(self, message: FromOwner) -> None:
        """Send now, or with the rest of the frame that is being answered."""
        self._outbox.append(message)
        if not self._is_batching:
            self._flush()

    def _on_message(self, message: FromWorker) -> None:
        server, owner = self._server, self._server.owner
        if isinstance(message, Hello):
            self._on_hello(message)
            return
        if not self.is_welcome:
            raise ProtocolError("a worker must say hello first")
        match message:
            case Ask():
                server.ask(self, message)
            case Return():
                owner.give_back(self.state, message)
                server.retry_parked(message.tenant)
            case Declare():
                owner.declare(self.state, message.tenant, message.slots)
            case Report():
                owner.report(self.state, message.sequence, message.holdings, is_last=message.is_last)
                server.has_reported()

    def _on_hello(self, message: Hello) -> None:
        if message.version != VERSION:
            raise ProtocolError(f"worker {message.worker} speaks version {message.version}, not {VERSION}")
        if self.is_welcome:
            raise ProtocolError("a worker said hello twice")
        self._greeting += message.holdings
        if message.is_last:
            greeting, self._greeting = self._greeting, []
            self.name, self.is_welcome = message.worker, True
            self._server.owner.hello(self.state, greeting)
            self._server.said_hello(self)

    def _cut_off(self, error: ProtocolError) -> None:
        _log.error("quota_protocol_error: worker %s: %s", self.name, error)
        self._outbox.clear()
        self.transport.abort()

    def _flush(self) -> None:
        if not self._outbox or self.transport.is_closing():
            return
        self.transport.write(encode_frame(self._outbox))
        self._outbox = []
        if self.transport.get_write_buffer_size() > WRITE_BUFFER_BYTES_MAX:
            _log.error("quota_worker_does_not_read: worker %s", self.name)
            self.transport.abort()
