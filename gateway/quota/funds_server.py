"""Owns the owner process's part in prepaid: gathers workers' orders, has the meter lease, recalls what others hold.

It decides nothing about money and keeps nothing that matters: ceilings stand in the ledger under each worker's usage
log, so this process may die at any point. Orders that wait while the meter is asked travel in one request: one ledger
transaction for all of them.

An order that finds too little is tried once more after other workers were asked to return what they do not need.
"""

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec

from billing import failpoint
from gateway.quota.funds_protocol import (
    FUNDS_VERSION,
    Begin,
    FromOwner,
    Leased,
    Order,
    Recall,
    decode_from_worker,
    encode_frames,
)
from gateway.quota.protocol import WORKERS_MAX, FrameSplitter, ProtocolError

#: What the ledger takes (billing.ledger.leases).
CEILING_NANOS_MAX: Final = 4 * 10**18
CURRENCY_CHARS: Final = 3
#: Orders in one request to the meter.
ORDERS_MAX: Final = 1_000
#: How long the meter may take; it posts usage in between.
METER_S: Final = 5.0
#: How long a short order waits for what others return; they do so at once, unless they wait for money themselves.
RECALL_S: Final = 0.5
WRITE_BUFFER_BYTES_MAX: Final = 8 * 1024 * 1024
_ANSWER_BYTES_MAX: Final = 1024 * 1024
Wallet = tuple[str, str]

_log = logging.getLogger(__name__)


class MeterAway(Exception):
    """The meter could not be asked, or did not answer in time."""


class _Answer(msgspec.Struct):
    leases: list[tuple[int, int, bool]] | None = None
    error: dict[str, str] | None = None


class _Asked(NamedTuple):
    """An order on its way. `is_final`: its answer goes to the worker whatever it says."""

    link: "WorkerLink"
    order: Order
    is_final: bool


def _bind(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        path.chmod(0o600)  # before `listen`, so that nobody connects while the mode is wider
    except BaseException:
        listening.close()
        raise
    return listening


class _Recall(NamedTuple):
    """Short orders for one wallet, and who was asked to return and has not yet."""

    orders: list[_Asked]
    holders: set["WorkerLink"]


class FundsServer:
    """Serves the workers of one machine; `meter_socket` is where leases come from."""

    def __init__(self, loop: asyncio.AbstractEventLoop, meter_socket: Path) -> None:
        self.loop = loop
        self.links: set[WorkerLink] = set()
        self._meter = _MeterLink(meter_socket)
        self._queue: list[_Asked] = []
        self._is_wanted = asyncio.Event()
        self._recalls: dict[Wallet, _Recall] = {}
        self._server: asyncio.AbstractServer | None = None

    async def listen(self, path: Path) -> None:
        """Bind `path` (mode 600), replacing a socket that a dead owner left."""
        listening = _bind(path)
        try:
            self._server = await self.loop.create_unix_server(lambda: WorkerLink(self), sock=listening)
        except BaseException:
            listening.close()
            raise

    async def run(self) -> None:
        """Carry orders to the meter; runs until cancelled."""
        try:
            while True:
                await self._is_wanted.wait()
                self._is_wanted.clear()
                while self._queue:
                    asked, self._queue = self._queue[:ORDERS_MAX], self._queue[ORDERS_MAX:]
                    await self._carry_out(asked)
        finally:
            self._meter.close()

    async def close(self) -> None:
        """Stop accepting and cut the workers off: they go on with what they hold."""
        if self._server is not None:
            self._server.close()
        for link in list(self.links):
            link.transport.abort()

    def order(self, link: "WorkerLink", order: Order) -> None:
        """Queue an order; returns go first, so that what they free is there for the others."""
        asked = _Asked(link, order, is_final=False)
        if order.is_return:
            self._queue.insert(0, asked)
        else:
            self._queue.append(asked)
        self._is_wanted.set()

    async def _carry_out(self, asked: list[_Asked]) -> None:
        orders = [
            (
                (one.link.instance, one.link.epoch),
                one.order.tenant,
                one.order.currency,
                # A second try is a new order to the ledger: workers count by two.
                one.order.seq + one.is_final,
                one.order.committed,
                one.order.least,
                one.order.need,
                one.order.spare,
                one.order.is_return,
            )
            for one in asked
        ]
        workers = min(WORKERS_MAX, max(1, len(self.links)))
        try:
            leases = await self._meter.ask({"op": "funds", "workers": workers, "orders": orders})
        except MeterAway as error:
            _log.warning("funds_meter_away: %s", error)
            for one in asked:
                one.link.send(Leased(one.order.tenant, one.order.currency, 0, is_short=False, is_unavailable=True))
            return
        if failpoint.armed:
            failpoint.hit("lease_granted")
        for one, (ceiling, _, is_short) in zip(asked, leases, strict=True):
            self._answer(one, ceiling, is_short=is_short)

    def _answer(self, one: _Asked, ceiling: int, *, is_short: bool) -> None:
        order, wallet = one.order, (one.order.tenant, one.order.currency)
        if is_short and not one.is_final and self._recall(one, wallet):
            return
        if ceiling > order.committed:
            one.link.holds.add(wallet)
        elif order.is_return:
            one.link.holds.discard(wallet)
        one.link.send(Leased(*wallet, ceiling, is_short, is_unavailable=False))
        if order.is_return:
            self._has_returned(wallet, one.link)

    def _recall(self, one: _Asked, wallet: Wallet) -> bool:
        """Ask others to return; False: nobody holds anything, so the answer stands."""
        recall = self._recalls.get(wallet)
        if recall is not None:
            recall.orders.append(one)
            return True
        holders = {link for link in self.links if link is not one.link and wallet in link.holds}
        if not holders:
            return False
        self._recalls[wallet] = _Recall([one], holders)
        for link in holders:
            link.send(Recall(*wallet))
        self.loop.call_later(RECALL_S, self._try_again, wallet)
        return True

    def _has_returned(self, wallet: Wallet, link: "WorkerLink") -> None:
        recall = self._recalls.get(wallet)
        if recall is not None:
            recall.holders.discard(link)
            if not recall.holders:
                self._try_again(wallet)

    def forget(self, link: "WorkerLink") -> None:
        """A worker is gone; what it held is freed when its log was read to the end."""
        self.links.discard(link)
        for wallet in link.holds:
            self._has_returned(wallet, link)

    def _try_again(self, wallet: Wallet) -> None:
        recall = self._recalls.pop(wallet, None)
        for one in () if recall is None else recall.orders:
            if one.link in self.links:
                self._queue.append(one._replace(is_final=True))
                self._is_wanted.set()


class _MeterLink:
    """One connection to the meter's socket, opened when needed; one question at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: dict[str, Any]) -> list[tuple[int, int, bool]]:
        """The leases. Raises MeterAway; then what was asked may have been carried out or not."""
        try:
            async with asyncio.timeout(METER_S):
                answer = await self._converse(msgspec.msgpack.encode(request))
        except (OSError, TimeoutError, asyncio.IncompleteReadError, msgspec.DecodeError) as error:
            self.close()
            raise MeterAway(f"{type(error).__name__}: {error}") from error
        if answer.leases is None or len(answer.leases) != len(request["orders"]):
            raise MeterAway(f"the meter refused: {answer.error}")
        return answer.leases

    async def _converse(self, payload: bytes) -> _Answer:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(str(self._path))
        reader, writer = self._streams
        writer.write(len(payload).to_bytes(4, "little") + payload)
        await writer.drain()
        size = int.from_bytes(await reader.readexactly(4), "little")
        if size > _ANSWER_BYTES_MAX:
            raise OSError(f"the meter's answer of {size} bytes is over the limit")
        return msgspec.msgpack.decode(await reader.readexactly(size), type=_Answer)

    def close(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()


class WorkerLink(asyncio.Protocol):
    """One worker's connection."""

    transport: asyncio.Transport

    def __init__(self, server: FundsServer) -> None:
        self._server = server
        self._frames = FrameSplitter()
        self._open: set[Wallet] = set()
        self.instance = ""
        self.epoch = 0
        #: Wallets of which it may hold more than its calls need.
        self.holds: set[Wallet] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it
        if len(self._server.links) >= WORKERS_MAX:
            _log.error("funds_workers_max: a connection beyond %d was refused", WORKERS_MAX)
            self.transport.abort()
            return
        self._server.links.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.forget(self)

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._frames.feed(data):
                for message in decode_from_worker(payload):
                    self._on_message(message)
        except ProtocolError as error:
            _log.error("funds_protocol_error: worker %s/%d: %s", self.instance or "?", self.epoch, error)
            self.transport.abort()

    def _on_message(self, message: Begin | Order) -> None:
        if isinstance(message, Begin):
            if message.version != FUNDS_VERSION:
                raise ProtocolError(f"it speaks version {message.version}, not {FUNDS_VERSION}")
            if self.instance or not message.instance:
                raise ProtocolError("a worker begins once, with the name of its usage log")
            self.instance, self.epoch = message.instance, message.epoch
            return
        wallet = (message.tenant, message.currency)
        if not self.instance or wallet in self._open:
            raise ProtocolError("an order before Begin, or a second one for a wallet")
        # The meter refuses such orders with all that travel with them.
        amounts = (message.committed, message.least, message.need, message.spare)
        if min(message.seq, *amounts) < 0 or max(amounts) > CEILING_NANOS_MAX or message.least > message.need:
            raise ProtocolError("an order whose numbers make no sense")
        if not message.tenant or len(message.currency) != CURRENCY_CHARS:
            raise ProtocolError("an order without a wallet")
        self._open.add(wallet)
        self._server.order(self, message)

    def send(self, message: FromOwner) -> None:
        """Write one message; a worker that does not read is cut off."""
        if self.transport.is_closing():
            return
        if isinstance(message, Leased):
            self._open.discard((message.tenant, message.currency))
        self.transport.write(encode_frames([message]))
        if self.transport.get_write_buffer_size() > WRITE_BUFFER_BYTES_MAX:
            _log.error("funds_worker_does_not_read: worker %s/%d", self.instance, self.epoch)
            self.transport.abort()
