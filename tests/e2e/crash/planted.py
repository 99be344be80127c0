"""Owns the planted bugs: `python -m tests.e2e.crash.planted MODULE …` runs one of our processes with one of them in it.

TOLLWAY_PLANTED names the bug. Everything is patched here, before `main`; the product knows nothing of it. As
`… planted up …` it is `tollway up` whose children are started through this module.
"""

import os
import runpy
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from billing.events import Sent, Served, encode

VARIABLE: Final = "TOLLWAY_PLANTED"
THIS: Final = "tests.e2e.crash.planted"


def acknowledge_before_durable() -> None:
    """The reply leaves as soon as its record is appended, not when it is on disk."""
    from gateway.metering.log import UsageLog

    append = UsageLog.append

    def eager(self: UsageLog, payload: bytes, on_durable: Callable[[int], None]) -> int:
        on_durable(self._next_seq)
        return append(self, payload, lambda _seq: None)

    UsageLog.append = eager  # type: ignore[method-assign]


def mark_before_sending() -> None:
    """The terminal mark is written together with the record instead of after the reply."""
    from gateway.metering.log import UsageLog

    append = UsageLog.append

    def eager(self: UsageLog, payload: bytes, on_durable: Callable[[int], None]) -> int:
        seq = append(self, payload, on_durable)
        self._append_mark(encode(Sent(first_seq=seq, last_seq=seq)))
        return seq

    UsageLog.append = eager  # type: ignore[method-assign]


def random_event_id() -> None:
    """The meter makes up an id whenever it reads a record: per emission, not per call."""
    from billing.intake import LogPairing

    feed = LogPairing.feed

    def minting(self: LogPairing, records: Any) -> Any:
        return feed(self, [(seq, _minted(record)) for seq, record in records])

    LogPairing.feed = minting  # type: ignore[method-assign]


def _minted(record: Any) -> Any:
    unpack = getattr(record, "served", None)  # the meter may read calls as bytes with their numbers at hand
    if unpack is not None:
        record = unpack()
    return msgspec.structs.replace(record, call_id=uuid.uuid4().bytes) if isinstance(record, Served) else record


def high_water_mark() -> None:
    """The watermark is the last number read, whether or not everything below it is decided."""
    from billing.intake import LogPairing
    from billing.ledger.port import Position

    def newest(self: LogPairing) -> Position:
        self._served += len(self._above)
        self._above.clear()
        return Position(self.seq, self._served, self.is_ended)

    LogPairing.position = newest  # type: ignore[method-assign]


def acknowledge_before_commit() -> None:
    """The meter lets go of the logs before the ledger has committed."""
    from billing.pump import Pump

    post_all = Pump._post_all

    def hasty(self: Pump) -> None:
        for batch in self._batches:
            for source, position in batch.positions.items():
                self._reader.ack(source.instance, source.epoch, position.seq)
        post_all(self)

    Pump._post_all = hasty  # type: ignore[method-assign]


def forget_counts() -> None:
    """A restarted quota owner begins its days at zero."""
    from gateway.quota import server

    async def nothing(_meter_socket: object, windows: Sequence[tuple[str, int]]) -> list[int]:
        return [0 for _ in windows]

    setattr(server, "ask_counts", nothing)


def say_less_than_charged() -> None:
    """The charge in the reply is not the one in the record."""
    from gateway.tickets import Charge

    make = Charge.__init__

    def cheaper(self: Charge, nanos: int, reason: int, price_version: int, currency: str) -> None:
        make(self, nanos // 2, reason, price_version, currency)
        self.nanos = nanos

    Charge.__init__ = cheaper  # type: ignore[method-assign]


BUGS: Final[dict[str, Callable[[], None]]] = {
    bug.__name__: bug
    for bug in (
        acknowledge_before_durable,
        mark_before_sending,
        random_event_id,
        high_water_mark,
        acknowledge_before_commit,
        forget_counts,
        say_less_than_charged,
    )
}


def _plant_children() -> None:
    """Every child of this `tollway up` is started through this module."""
    from gateway import supervisor

    original: Callable[..., list[str]] = getattr(supervisor, "python_module")

    def through_here(module: str, *arguments: str) -> list[str]:
        return original(THIS, module, *arguments)

    setattr(supervisor, "python_module", through_here)
    # Bugs are planted into the sources; compiled modules would not have them.
    setattr(supervisor, "find_compiled", lambda: None)


def main(words: Sequence[str]) -> None:
    """Plant, then be the process that the words name."""
    if words[0] == "up":
        _plant_children()
        module = "gateway.cli"
        sys.argv = [module, *words]
    else:
        BUGS[os.environ[VARIABLE]]()
        module = words[0]
        sys.argv = list(words)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
