"""Owns the meter's unix socket: framed requests in, answers out; the work itself runs on the pump's one thread."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from billing.funds import FundsDesk
from billing.invoices.assemble import InvoiceError
from billing.invoices.desk import Desk
from billing.ledger.port import LedgerError, LedgerUnavailable, PriceBookConflict
from billing.meter_client import FRAME_BYTES_MAX, LENGTH, MeterError, decode_body, encode_frame
from billing.pricebook import book_from_raw
from billing.pump import WINDOWS_MAX, Pump
from billing.rating import PriceBook, PriceError

CONNECTIONS_MAX: Final = 64

#: Runs a blocking function on the pump's thread.
OnPump = Callable[[Callable[[], Any]], Awaitable[Any]]


class MeterSocket:
    """Serves `status`, `flush`, `counts`, `add_prices`, `money`, `funds`; a connection's answers come in order."""

    def __init__(
        self,
        pump: Pump,
        add_prices: Callable[[PriceBook], None],
        on_pump: OnPump,
        desk: Desk | None = None,
        funds: FundsDesk | None = None,
    ) -> None:
        """`desk` carries out money commands, `funds` orders of leases; without one they are refused."""
        self._desk = desk
        self._funds = funds
        self._pump = pump
        self._add_prices = add_prices
        self._on_pump = on_pump
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, path: Path) -> asyncio.Server:
        """Listen on `path` with mode 600."""
        _make_way(path)
        mask = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(self._serve, path)
        finally:
            os.umask(mask)

    async def close(self) -> None:
        """End open connections; a question being answered is cut, which its asker sees as unreachable."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if len(self._tasks) <= CONNECTIONS_MAX:
                await self._converse(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The asker is gone; nothing was promised to it.
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            if length > FRAME_BYTES_MAX:
                # What follows cannot be told from a new frame: answer and hang up.
                writer.write(
                    encode_frame(_error("frame_too_large", f"a frame of {length} bytes is over {FRAME_BYTES_MAX}"))
                )
                await writer.drain()
                return
            writer.write(await self._answer(await reader.readexactly(length)))
            await writer.drain()

    async def _answer(self, body: bytes) -> bytes:
        try:
            request = decode_body(body)
            return encode_frame(await self._on_pump(lambda: self._work(request)))
        except MeterError as error:
            return encode_frame(_error(error.code, str(error)))
        except InvoiceError as error:
            return encode_frame(_error(error.code, str(error)))
        except LedgerUnavailable as error:
            return encode_frame(_error("unavailable", str(error)))
        except (PriceBookConflict, PriceError) as error:
            return encode_frame(_error("price_book", str(error)))
        except LedgerError as error:
            # The pump meets the same error and ends the process; the asker need not wait for that.
            return encode_frame(_error("ledger", str(error)))

    def _work(self, request: dict[str, Any]) -> dict[str, Any]:
        op = request.get("op")
        if op == "status":
            return self._pump.status()
        if op == "flush":
            self._pump.drain()
            return {"posted": self._pump.status()["posted"]}
        if op == "counts":
            return {"counts": self._pump.counts(_windows(request.get("windows")))}
        if op == "add_prices":
            book = book_from_raw(request.get("book"))
            self._add_prices(book)
            return {"version": book.version}
        if op == "money" and self._desk is not None:
            verb, operation_id = request.get("verb"), request.get("operation_id")
            if not isinstance(verb, str) or not isinstance(operation_id, str):
                raise MeterError("bad_request", "verb and operation_id: must be texts")
            # A document bills what is posted: everything readable is posted first.
            self._pump.drain()
            answer = self._desk.run(verb, operation_id, request.get("body"))
            if verb == "wallet.set" and self._funds is not None:
                self._funds.wallets_changed()
            return {"answer": answer}
        if op == "funds" and self._funds is not None:
            return {"leases": self._funds.run(request.get("orders"), request.get("workers"))}
        raise MeterError("unknown_op", f"op {op!r} is none of status, flush, counts, add_prices, money, funds")


def _make_way(path: Path) -> None:
    """Remove a socket left by a dead meter; that it is dead is proved by our holding the ledger's lock."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.unlink(missing_ok=True)


def _windows(raw: Any) -> list[tuple[str, int]]:
    try:
        windows = msgspec.convert(raw, list[tuple[str, int]])
    except msgspec.ValidationError as error:
        raise MeterError("bad_request", f"windows: must be a list of [tenant, since_ns]: {error}") from error
    if len(windows) > WINDOWS_MAX:
        raise MeterError("bad_request", f"windows: {len(windows)} are more than {WINDOWS_MAX}; ask in parts")
    return windows


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}
