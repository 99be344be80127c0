"""Measures what prepaid adds to a worker's call: CPU µs of the whole pipeline under a prepaid plan less a priced one.

    python -m tests.perf.prepaid [--calls 20000] [--rounds 9] [--json]

Real pipeline, tickets and purses around a connection, a pool and a log that do nothing. Rounds alternate; the figure is
the median of the rounds' differences. Models: `flat` by HTTP (priced by the call) and `rows` by gRPC (priced by rows,
which the peek knows anyway). A JSON body of a model priced by rows costs its parsing on top (`json`). Compiled:
`python -P` with PYTHONPATH=$(python -m gateway.compiled --check).
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from billing.rating import Price, PriceBook, compile_book
from gateway import bounds
from gateway.auth.keyring import Keyring
from gateway.call import Data, Headers, RequestHead
from gateway.clock import SystemClock
from gateway.monitoring.metrics import CallCounters
from gateway.net.budget import BufferBudget
from gateway.pipeline import Gateway
from gateway.quota.funds_client import FundsClient
from gateway.routing.router import Endpoint, Router
from gateway.settings import Limits
from gateway.snapshot import Plan
from gateway.tickets import Policy
from tests.unit.test_pipeline import KEY_TEXT, snapshot

BOOK: Final = PriceBook(
    version=1,
    currency="USD",
    default=Price(per_call_nanos=1_000, per_row_nanos=10),
    models={"flat": Price(per_call_nanos=1_000)},
)
BODY: Final = json.dumps({"inputs": [{"name": "x", "shape": [4, 16], "datatype": "FP32", "data": [0.5] * 64}]}).encode()
#: A gRPC message: model `rows`, inputs[0] of shape [4, 16].
_MESSAGE: Final = b"\x0a\x04rows\x2a\x0d\x0a\x01x\x12\x04FP32\x1a\x02\x04\x10" + b"\x3a\x80\x04" + bytes(512)
GRPC_BODY: Final = b"\0" + len(_MESSAGE).to_bytes(4, "big") + _MESSAGE


class _Exchange:
    """A connection that takes everything."""

    is_writable = True
    is_h2 = False

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.call: Any = None
        self.status = 0

    def reply(self, status: int, headers: Headers, body: Data, trailers: Headers | None = None) -> None:
        self.status = status


class _Upstream:
    is_writable = True

    def send_body(self, data: Data) -> None: ...

    def send_end(self) -> None: ...


class _Pool:
    """Takes a request and answers it when asked."""

    listener: Any = None

    def request(self, method: bytes, target: bytes, headers: Headers, length: int, listener: Any) -> _Upstream:
        self.listener = listener
        return _Upstream()

    def close(self) -> None: ...


class _Log:
    is_accepting = True

    def __init__(self) -> None:
        self.on_durable: Callable[[int], None] | None = None

    def append(self, payload: bytes, on_durable: Callable[[int], None]) -> int:
        self.on_durable = on_durable
        return 1

    def mark_ended(self, served_seq: int, cause: str, bytes_sent: int) -> None: ...


class Bench:
    """One pipeline and its two plans."""

    def __init__(self) -> None:
        loop, clock = asyncio.get_running_loop(), SystemClock()
        self.pool, self.log = _Pool(), _Log()
        endpoint = Endpoint(name="e", models=None, http=self.pool, grpc=self.pool, is_trusted=True, is_up=True)  # type: ignore[arg-type]
        endpoint.catalogue = {name: {"1": True} for name in ("flat", "rows")}
        self.policies = {pricing: _policy(pricing) for pricing in ("priced", "prepaid")}
        funds = FundsClient(Path("nowhere"), instance="w0", epoch=1, clock=clock, loop=loop)
        purse = funds.purse("acme", "USD")
        assert purse is not None
        # Leased: what is measured is the call that needs no more.
        purse.ceiling = purse.room = 10**17
        purse.expires_ns = clock.monotonic_ns() + 10**15
        self.gateway = Gateway(
            policy=self.policies["priced"],
            router=Router([endpoint]),
            quota=None,
            log=self.log,
            limits=Limits(),
            clock=clock,
            loop=loop,
            counters=CallCounters(),
            call_log=None,
            budget=BufferBudget(10**9),
            funds=funds,
        )

    def run(self, pricing: str, head: RequestHead, body: bytes, trailers: Headers, calls: int) -> float:
        """CPU seconds of `calls` calls."""
        self.gateway.policy = self.policies[pricing]
        on_request, pool, log = self.gateway.on_request, self.pool, self.log
        begun = time.process_time()
        for _ in range(calls):
            exchange = _Exchange(head)
            on_request(exchange, body)  # type: ignore[arg-type]
            pool.listener.on_reply_whole(200, _HEADERS, b"{}", trailers)
            assert log.on_durable is not None
            log.on_durable(1)
        spent = time.process_time() - begun
        assert exchange.status == 200
        return spent


_HEADERS: Final[Headers] = [(b"content-type", b"application/json")]


def _policy(pricing: str) -> Policy:
    plans = (Plan(name="payg", version=1, pricing=pricing),)
    keyring = Keyring(msgspec.structs.replace(snapshot(), plans=plans, prices=BOOK))
    return Policy(version=1, keyring=keyring, rater=compile_book(BOOK), price_version=1, currency="USD")


def _head(target: bytes, *, is_grpc: bool) -> RequestHead:
    headers = [(b"authorization", b"Bearer " + KEY_TEXT), (b"content-type", b"application/json")]
    return RequestHead(b"POST", target, headers, b"host", -1 if is_grpc else len(BODY), is_grpc=is_grpc)


CASES: Final = {
    "flat": (_head(b"/v2/models/flat/infer", is_grpc=False), BODY, []),
    "grpc": (
        _head(b"/inference.GRPCInferenceService/ModelInfer", is_grpc=True),
        GRPC_BODY,
        [(b"grpc-status", b"0")],
    ),
    "json": (_head(b"/v2/models/rows/infer", is_grpc=False), BODY, []),
}


async def measure(calls: int, rounds: int) -> dict[str, float]:
    """µs per call that prepaid adds, by case, and what a priced call costs here."""
    bench = Bench()
    figures: dict[str, float] = {}
    for name, (head, body, trailers) in CASES.items():
        added, base = [], []
        for pricing in ("priced", "prepaid"):
            bench.run(pricing, head, body, trailers, calls // 4)
        for number in range(rounds):
            order = ("priced", "prepaid") if number % 2 else ("prepaid", "priced")
            spent = {pricing: bench.run(pricing, head, body, trailers, calls) for pricing in order}
            added.append((spent["prepaid"] - spent["priced"]) / calls * 1e6)
            base.append(spent["priced"] / calls * 1e6)
        figures[name], figures[f"{name}_priced"] = statistics.median(added), statistics.median(base)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.perf.prepaid", description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.calls, options.rounds))
    figures["is_compiled"] = not str(bounds.__file__).endswith(".py")
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    for name in CASES:
        sys.stdout.write(f"{name}: {figures[name]:+.2f} us on {figures[f'{name}_priced']:.1f} us\n")
    sys.stdout.write(f"compiled: {'yes' if figures['is_compiled'] else 'no'}\n")


if __name__ == "__main__":
    main()
