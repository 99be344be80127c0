"""Owns the composition of one data-plane worker: settings → concrete objects → a running process.

Started by the supervisor, which hands over listening sockets by file descriptor. Stops gracefully on SIGTERM: stop
accepting → finish or expire what is in flight → flush usage → close backends → exit 0.
"""

import argparse
import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from billing import failpoint
from billing.rating import compile_book
from gateway.auth.keyring import Keyring
from gateway.clock import SystemClock
from gateway.metering.log import LogLimits, UsageLog
from gateway.monitoring.call_log import CallLog
from gateway.monitoring.metrics import CallCounters
from gateway.net.address import parse_address
from gateway.net.budget import BufferBudget
from gateway.net.exchange import UpstreamPool
from gateway.net.h1_outbound import H1UpstreamPool
from gateway.net.h2_outbound import H2PoolLimits, H2UpstreamPool
from gateway.net.listener import Listener, h2_wire_limits_of
from gateway.net.tls import tls_context
from gateway.pipeline import Gateway
from gateway.quota.funds import FundStore
from gateway.quota.funds_client import FundsClient
from gateway.quota.memory_client import MemoryQuotaStore
from gateway.quota.store import QuotaStore
from gateway.relay import Relay
from gateway.replays import REPLAY_FOLDER, ReplayStore
from gateway.routing import health
from gateway.routing.router import Endpoint, Router
from gateway.settings import Limits, Settings, parse_settings
from gateway.snapshot import Backend, Snapshot
from gateway.snapshot_watcher import SnapshotWatcher
from gateway.tickets import Policy

_SWEEP_S: Final = 1.0
#: SIGINT (Ctrl-C) asks for a quick end; SIGTERM for a patient one.
_QUICK_DRAIN_S: Final = 1.0
#: How long calls on kept connections are still taken, while their callers are being sent elsewhere.
_GRACE_S: Final = 1.0
#: A disk that takes nothing must not hold up the end: then what waits to be recorded is given up, as in a crash.
_QUICK_CLOSE_S: Final = 0.8


def policy_of(snapshot: Snapshot) -> Policy:
    """What `snapshot` means to a pipeline."""
    return Policy(
        version=snapshot.version,
        keyring=Keyring(snapshot),
        rater=compile_book(snapshot.prices),
        price_version=snapshot.prices.version,
        currency=snapshot.prices.currency,
    )


class Worker:
    """One worker's objects and tasks."""

    def __init__(self, settings: Settings, index: int, generation: int, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self.index = index
        self.generation = generation
        self.loop = loop
        self.clock = SystemClock()
        self.stop = asyncio.Event()
        self.drain_s = self.close_s = settings.limits.drain_s
        self.failure: BaseException | None = None
        self._endpoints: dict[str, tuple[Backend, Endpoint, asyncio.Task[None]]] = {}

    async def run(self, sockets: Sequence[socket.socket], ready_fd: int) -> None:
        """Serve until told to stop. Raises what made serving impossible."""
        settings, limits = self.settings, self.settings.limits
        self.watcher = SnapshotWatcher(settings.data_dir, self.loop, self._on_snapshot)
        snapshot = await self.watcher.start()
        budget = self.budget = BufferBudget(limits.worker_buffer_bytes_max)
        self.log = self._open_log()
        self.gateway = Gateway(
            policy=policy_of(snapshot),
            router=self._build_router(snapshot.backends),
            quota=await self._open_quota(),
            log=self.log,
            limits=limits,
            clock=self.clock,
            loop=self.loop,
            counters=CallCounters(),
            call_log=self._open_call_log(),
            budget=budget,
            is_key_required=settings.require_key,
            replays=ReplayStore(settings.data_dir / REPLAY_FOLDER),
            funds=self._open_funds(),
            relay=self._open_relay(),
            is_reflecting=settings.grpc_reflection,
        )
        self.listener = Listener(
            self.gateway, limits, self.loop, tls=tls_context(settings.tls_certificate, settings.tls_key), budget=budget
        )
        # Asked once before the first call is taken: a replacement must not answer 503 for want of having looked.
        await asyncio.gather(*(health.probe(endpoint) for _, endpoint, _ in self._endpoints.values()))
        for sock in sockets:
            await self.listener.listen_socket(sock)
        metrics_path = settings.run_dir / f"worker-{self.index}-{self.generation}.sock"
        metrics = await asyncio.start_unix_server(self._serve_metrics, metrics_path)
        metrics_path.chmod(0o600)
        self._sweep()
        # What exists now lives as long as the process: keep the collector from walking it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        os.write(ready_fd, b"ready\n")
        os.close(ready_fd)
        await self.stop.wait()
        metrics.close()
        metrics_path.unlink(missing_ok=True)
        await self._shut_down()
        if self.failure is not None:
            raise self.failure

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _open_log(self) -> UsageLog | None:
        settings = self.settings
        if not settings.metering:
            return None
        return UsageLog(
            folder=settings.usage_root / f"w{self.index}",
            loop=self.loop,
            clock=self.clock,
            limits=LogLimits(segment_bytes=settings.usage_segment_bytes),
            on_fatal=self._fail,
        )

    def _open_call_log(self) -> CallLog | None:
        if not self.settings.call_log:
            return None
        folder = self.settings.data_dir / "log"
        folder.mkdir(mode=0o700, exist_ok=True)
        return CallLog(folder / f"calls-w{self.index}.jsonl", self.loop.call_later)

    async def _open_quota(self) -> QuotaStore | None:
        if not self.settings.require_key:
            return None
        store = MemoryQuotaStore(
            self.settings.quota_socket, worker=f"w{self.index}-{self.generation}", clock=self.clock, loop=self.loop
        )
        await store.start()
        return store

    def _open_funds(self) -> FundStore | None:
        """Leases of wallets, to this worker's usage log. Connects when the first prepaid call comes."""
        if self.log is None or not self.settings.require_key:
            return None
        epoch = self.log.epoch
        return FundsClient(
            self.settings.funds_socket, instance=epoch.instance, epoch=epoch.number, clock=self.clock, loop=self.loop
        )

    def _build_router(self, backends: Sequence[Backend]) -> Router:
        """Endpoints for `backends`; those that did not change keep their connections and what is known of them."""
        wanted = {backend.name: backend for backend in backends}
        for name, (backend, endpoint, task) in list(self._endpoints.items()):
            if wanted.get(name) != backend:
                task.cancel()
                del self._endpoints[name]
                # Calls in flight keep the old pools until they end; idle connections close with their sweep.
                self.loop.call_later(self.settings.limits.call_s, _close_pools, endpoint)
        for name, backend in wanted.items():
            if name not in self._endpoints:
                endpoint = self._build_endpoint(backend)
                task = self.loop.create_task(self._watch(endpoint), name=f"health {name}")
                self._endpoints[name] = (backend, endpoint, task)
        ordered = [self._endpoints[backend.name][1] for backend in backends]
        return Router(ordered, is_triton_compat=self.settings.triton_compat)

    def _open_relay(self) -> Relay:
        """Control connects to when first asked; while it is away, self-service answers 503 and calls go on."""
        settings = self.settings
        pool = H1UpstreamPool(parse_address(self_service_address(settings)), settings.limits, self.loop)
        control = Endpoint(name="control", models=None, http=pool, grpc=None, is_trusted=False, is_up=True, reason="")
        return Relay(control)

    def _build_endpoint(self, backend: Backend) -> Endpoint:
        limits = self.settings.limits
        http: UpstreamPool | None = None
        probe: UpstreamPool | None = None
        grpc: UpstreamPool | None = None
        if backend.http is not None:
            http = H1UpstreamPool(parse_address(backend.http), limits, self.loop)
            probe = H1UpstreamPool(parse_address(backend.http), limits, self.loop)
        if backend.grpc is not None:
            grpc = H2UpstreamPool(backend.grpc, pool_limits_of(limits), self.loop, self.clock.monotonic_ns, self.budget)
        models = None if "*" in backend.models else frozenset(backend.models)
        return Endpoint(
            name=backend.name,
            models=models,
            http=http,
            grpc=grpc,
            is_trusted=backend.is_trusted,
            probe_http=probe,
        )

    async def _watch(self, endpoint: Endpoint) -> None:
        """The health task of one endpoint; its unexpected death ends the worker loudly (STYLE.md 24)."""
        try:
            await health.watch(endpoint)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._fail(error)
            raise

    # -- events --------------------------------------------------------------------------------------------------------

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        self.gateway.policy = policy_of(snapshot)
        self.gateway.router = self._build_router(snapshot.backends)

    def _fail(self, error: BaseException) -> None:
        """Something the worker cannot serve without is broken: end the process, the supervisor starts a fresh one."""
        if self.failure is None:
            self.failure = error
        self.stop.set()

    def ask_to_stop(self, *, is_quick: bool) -> None:
        if is_quick:
            self.close_s = _QUICK_CLOSE_S
            self.drain_s = min(self.drain_s, _QUICK_DRAIN_S)
        self.stop.set()

    def _sweep(self) -> None:
        gateway, limits = self.gateway, self.settings.limits
        gateway.is_policy_refused = self.watcher.age_s() > limits.policy_refuse_s
        gateway.sweep()
        if gateway.replays is not None:
            gateway.replays.sweep(self.clock.wall_ns() // 1_000_000_000)
        now_s = self.loop.time()
        relays = [] if gateway.relay is None else [gateway.relay.endpoint]
        for endpoint in [*(endpoint for _, endpoint, _ in self._endpoints.values()), *relays]:
            if isinstance(endpoint.http, H1UpstreamPool):
                endpoint.http.sweep(now_s)
        self._sweeper = self.loop.call_later(_SWEEP_S, self._sweep)

    async def _serve_metrics(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One scrape per connection: write everything, close."""
        gateway = self.gateway
        gauges = {
            "tollway_calls_in_flight": float(len(gateway.live)),
            "tollway_connections": float(self.listener.connection_count),
            "tollway_buffered_bytes": float(gateway.budget.bytes_used),
            "tollway_usage_log_accepting": float(gateway.log is None or gateway.log.is_accepting),
            "tollway_policy_age_seconds": self.watcher.age_s(),
            "tollway_policy_stale": float(self.watcher.age_s() > self.settings.limits.policy_stale_s),
            "tollway_policy_version": float(gateway.policy.version),
            "tollway_worker_resident_bytes": float(resident_bytes()),
            "tollway_call_log_dropped_lines": float(gateway.call_log.dropped_lines if gateway.call_log else 0),
        }
        backends = {endpoint.name: float(endpoint.is_up) for endpoint in gateway.router.endpoints}
        writer.write(msgspec.msgpack.encode(gateway.counters.export(gauges, backends)))
        try:
            await writer.drain()
        except ConnectionError:
            return  # the scraper left; the next scrape asks again
        finally:
            writer.close()

    async def _shut_down(self) -> None:
        gateway = self.gateway
        gateway.is_leaving = True
        gateway.services.leave()
        grace_s = min(_GRACE_S, self.drain_s / 4)
        await self.listener.wind_down(grace_s)
        gateway.is_draining = True
        await self.listener.drain(self.drain_s - grace_s)
        self._sweeper.cancel()
        for call in list(gateway.live):
            call.on_hang_up()
        if self.log is not None and self.failure is None:
            await self._close_log(self.log)
        if gateway.quota is not None:
            await gateway.quota.close()
        if gateway.funds is not None:
            await gateway.funds.close()
        for _, endpoint, task in self._endpoints.values():
            task.cancel()
            _close_pools(endpoint)
        if gateway.relay is not None:
            _close_pools(gateway.relay.endpoint)
        await self.watcher.close()
        if gateway.call_log is not None:
            await self.loop.run_in_executor(None, gateway.call_log.close)

    async def _close_log(self, log: UsageLog) -> None:
        """Flush what was served. Its callers hold no complete reply, so what cannot be flushed in time costs nobody."""
        try:
            async with asyncio.timeout(self.close_s):
                await log.close()
        except TimeoutError:
            why = f": {log.trouble}" if log.trouble is not None else ""
            sys.stderr.write(f"worker w{self.index}: usage could not be flushed within {self.close_s:.1f} s{why}\n")


def _close_pools(endpoint: Endpoint) -> None:
    for pool in (endpoint.http, endpoint.grpc, endpoint.probe_http):
        if pool is not None:
            pool.close()


def pool_limits_of(limits: Limits) -> H2PoolLimits:
    """Limits of an outbound gRPC pool."""
    return H2PoolLimits(
        wire=h2_wire_limits_of(limits), connect_s=limits.upstream_connect_s, idle_s=limits.upstream_idle_s
    )


def resident_bytes() -> int:
    """Resident set size of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def self_service_address(settings: Settings) -> str:
    """Where control answers `/me`; a whole path, though the data directory may be a relative one."""
    return f"unix://{settings.self_service_socket.absolute()}"


async def serve(settings: Settings, index: int, generation: int, fds: Sequence[int], ready_fd: int) -> None:
    """Run one worker on the current loop."""
    loop = asyncio.get_running_loop()
    worker = Worker(settings, index, generation, loop)
    loop.add_signal_handler(signal.SIGTERM, lambda: worker.ask_to_stop(is_quick=False))
    loop.add_signal_handler(signal.SIGINT, lambda: worker.ask_to_stop(is_quick=True))
    sockets = [socket.socket(fileno=fd) for fd in fds]
    for sock in sockets:
        sock.setblocking(False)
    await worker.run(sockets, ready_fd)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="gateway.worker", description="One data-plane worker (started by tollway up)."
    )
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--generation", type=int, default=0)
    parser.add_argument("--fd", type=int, action="append", required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    failpoint.arm(os.environ.get("TOLLWAY_FAILPOINT", ""))
    settings = parse_settings(options.settings.read_bytes())
    try:
        uvloop.run(serve(settings, options.index, options.generation, options.fd, options.ready_fd))
    except Exception as error:
        sys.stderr.write(f"worker w{options.index}: {type(error).__name__}: {error}\n")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
