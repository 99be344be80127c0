"""Fakes for HTTP/2 shells: a loop whose time moves by hand, a transport that remembers, a listener that records."""

import asyncio
from collections.abc import Callable
from typing import Any

from gateway.call import Data, Headers
from gateway.clock import FakeClock
from tests.unit.wire.h2_tools import parse


class FakeTimer:
    """A scheduled callback."""

    def __init__(self, when_s: float, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.when_s = when_s
        self.callback = callback
        self.arguments = arguments
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeLoop:
    """call_soon, call_later and time; `turn` runs what is due now, `advance` lets time pass."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.timers: list[FakeTimer] = []

    def time(self) -> float:
        return self.now_s

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> FakeTimer:
        return self.call_later(0, callback, *arguments)

    def call_later(self, delay_s: float, callback: Callable[..., object], *arguments: Any) -> FakeTimer:
        timer = FakeTimer(self.now_s + delay_s, callback, arguments)
        self.timers.append(timer)
        return timer

    def turn(self) -> None:
        """Run everything due, and what that schedules for now."""
        while True:
            due = sorted((timer for timer in self.timers if timer.when_s <= self.now_s), key=lambda timer: timer.when_s)
            if not due:
                return
            timer = due[0]
            self.timers.remove(timer)
            if not timer.is_cancelled:
                timer.callback(*timer.arguments)

    def advance(self, seconds: float, step_s: float = 0.5) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += step_s
            self.turn()

    @property
    def pending(self) -> int:
        return sum(not timer.is_cancelled for timer in self.timers)


class FakeTransport(asyncio.Transport):
    """Keeps what is written, until `take_frames`."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.writes = 0
        self.is_closed = False
        self.was_aborted = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)
        self.writes += 1

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True
        self.was_aborted = True

    def take(self) -> bytes:
        data, self.written = self.written, b""
        return data

    def take_frames(self) -> list[tuple[int, int, int, bytes]]:
        return parse(self.take())


class Account:
    """A budget."""

    def __init__(self) -> None:
        self.held = 0

    def add(self, size_bytes: int) -> None:
        self.held += size_bytes

    def sub(self, size_bytes: int) -> None:
        self.held -= size_bytes


class RecordingListener:
    """Writes down a reply."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.body = b""

    def names(self) -> list[str]:
        return [entry[0] for entry in self.log]

    def on_reply_head(self, status: int, headers: Headers, content_length: int) -> None:
        self.log.append(("head", status, headers, content_length))

    def on_reply_body(self, data: Data) -> None:
        self.body += bytes(data)
        self.log.append(("body", bytes(data)))

    def on_reply_end(self, trailers: Headers) -> None:
        self.log.append(("end", trailers))

    def on_reply(self, status: int, headers: Headers, body: bytes) -> None:
        raise AssertionError("HTTP/2 tells replies in parts")

    def on_reply_error(self, *, is_sent: bool, reason: str) -> None:
        self.log.append(("error", is_sent, reason))

    def on_upstream_writable(self) -> None:
        self.log.append(("writable",))


def as_loop(loop: FakeLoop) -> asyncio.AbstractEventLoop:
    """The fake where a real loop is expected: shells use nothing else of it."""
    made: Any = loop
    typed: asyncio.AbstractEventLoop = made
    return typed


CLOCK = FakeClock()
