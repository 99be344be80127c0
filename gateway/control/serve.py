"""Owns the listeners of control, and its heartbeat.

TCP has the token guard and the local unix socket the local one; the socket that workers relay to shows self-service and
nothing else, so that no mistake of a worker's opens administration.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, cast

import uvicorn
from sqlalchemy.exc import OperationalError

from billing.payments.port import PaymentProvider
from gateway.clock import Clock
from gateway.control.app import build_app
from gateway.control.billing_clock import ROUND_S, BillingClock
from gateway.control.conversion_runner import Conversions
from gateway.control.conversion_store import ConversionStore
from gateway.control.equality_job import ROUND_S as EQUALITY_ROUND_S
from gateway.control.equality_job import EqualityJob
from gateway.control.guard import App, local_guard, token_guard
from gateway.control.me_guard import Callers, me_guard, nothing_else
from gateway.control.money import Money
from gateway.control.policy import Publisher
from gateway.control.rebuild_job import RebuildJob, RebuildRules
from gateway.control.receipts import ROUND_S as HEADS_ROUND_S
from gateway.control.receipts import HeadRounds
from gateway.control.recognising import ROUND_S as RECOGNITION_ROUND_S
from gateway.control.recognising import Recognition
from gateway.control.start import Control
from gateway.control.webhook_runner import ROUND_S as WEBHOOK_ROUND_S
from gateway.control.webhook_runner import WebhookRunner
from gateway.errors import SettingsError

BACKLOG: Final = 128
CONNECTIONS_MAX: Final = 256
KEEPALIVE_S: Final = 30
#: Time for requests in flight to end after SIGTERM.
DRAIN_S: Final = 5
BEAT_S: Final = 1.0
_log = logging.getLogger("tollway.control")


class Listener(uvicorn.Server):
    """One uvicorn server that leaves signals to `serve` and tells when it accepts.

    uvicorn offers no other way to run two servers in one loop: each would take SIGTERM from the other.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepts = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepts.set()


async def serve(
    control: Control,
    *,
    data_dir: Path,
    tcp: socket.socket,
    local: socket.socket,
    relayed: socket.socket,
    clock: Clock,
    on_ready: Callable[[], None],
    providers: Mapping[str, PaymentProvider] | None = None,
    repository: Path | None = None,
    rebuilds: RebuildRules | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then end requests in flight. `on_ready` is called once all listeners accept.

    `repository`: where conversions publish; None: there are none. `rebuilds`: what is made anew by itself.
    """
    application = build_app(control.registry, data_dir)
    application.state.providers = providers or {}
    conversions = None if repository is None else _open_conversions(data_dir, repository, clock)
    application.state.conversions = conversions
    rebuild_job = (
        None if conversions is None or rebuilds is None else RebuildJob(conversions, control.registry, rebuilds)
    )
    application.state.rebuilds = rebuild_job
    money = Money(data_dir, control.registry)
    billing = BillingClock(money, control.registry, providers or {})
    webhooks = WebhookRunner(money, control.registry)
    recognition = Recognition(money, control.registry)
    equality = EqualityJob(money, control.registry)
    heads = HeadRounds(money, control.registry, data_dir)
    app = cast(App, application)
    callers = Callers(data_dir, control.publisher)
    failures = control.failures
    doors = {
        "tcp": (tcp, token_guard(app, tokens=control.tokens, failures=failures, clock=clock), failures),
        "local": (local, local_guard(app), failures),
        "relayed": (relayed, nothing_else, None),
    }
    listeners = {
        name: (Listener(_config(me_guard(app, otherwise, callers=callers, failures=counted, clock=clock))), sock)
        for name, (sock, otherwise, counted) in doors.items()
    }
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopped.set)
    async with asyncio.TaskGroup() as tasks:
        for name, (listener, sock) in listeners.items():
            tasks.create_task(listener.serve(sockets=[sock]), name=f"listener-{name}")
        heart = tasks.create_task(_beat(control.publisher), name="heartbeat")
        rounds = [
            tasks.create_task(_rounds(billing.tick, ROUND_S), name="billing-clock"),
            tasks.create_task(_rounds(recognition.tick, RECOGNITION_ROUND_S), name="recognition"),
            tasks.create_task(_rounds(recognition.expire, RECOGNITION_ROUND_S), name="expiry"),
            tasks.create_task(_rounds(equality.tick, EQUALITY_ROUND_S), name="equality"),
            tasks.create_task(_rounds(heads.tick, HEADS_ROUND_S), name="heads"),
            tasks.create_task(_rounds(webhooks.tick, WEBHOOK_ROUND_S), name="webhooks"),
        ]
        if conversions is not None:
            rounds.append(tasks.create_task(conversions.run(), name="conversions"))
        if rebuild_job is not None and rebuilds is not None:
            rounds.append(tasks.create_task(_rounds(rebuild_job.tick, rebuilds.poll_s), name="rebuilds"))
        for listener, _ in listeners.values():
            await listener.accepts.wait()
        on_ready()
        await stopped.wait()
        for listener, _ in listeners.values():
            listener.should_exit = True
        heart.cancel()
        for round_task in rounds:
            round_task.cancel()


def _open_conversions(data_dir: Path, repository: Path, clock: Clock) -> Conversions:
    store = ConversionStore(data_dir / "conversions", clock.wall_ns)
    store.open()
    return Conversions(store, repository)


def listen_tcp(host: str, port: int) -> socket.socket:
    """Raises SettingsError when the address cannot be had."""
    try:
        return socket.create_server((host, port), backlog=BACKLOG, family=_family(host))
    except OSError as error:
        raise SettingsError(
            f"control cannot listen on {host}:{port} ({error.strerror}): free the port or choose another api_port"
        ) from error


def listen_local(path: Path) -> socket.socket:
    """The unix socket, never open to others: made under a name nobody waits at, mode 600, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(temporary))
        temporary.chmod(0o600)
        sock.listen(BACKLOG)
        temporary.replace(path)
    except OSError as error:
        sock.close()
        temporary.unlink(missing_ok=True)
        raise SettingsError(f"control cannot listen on {path} ({error}): use a shorter or writable data_dir") from error
    return sock


async def _beat(publisher: Publisher) -> None:
    """Once a second, in a worker thread: a slow disk must not stop the answers."""
    while True:
        await asyncio.to_thread(publisher.beat)
        await asyncio.sleep(BEAT_S)


async def _rounds(tick: Callable[[], object], pause_s: float) -> None:
    """What is done by itself, in a worker thread. A round that has begun is finished before the process ends."""
    while True:
        await asyncio.sleep(pause_s)
        try:
            await asyncio.to_thread(tick)
        except (OSError, OperationalError) as error:
            # A full disk or a locked database: the next round comes.
            _log.error("round_cut error=%s", type(error).__name__)


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        # The peer of a failed attempt is the socket's, never a header's.
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_keep_alive=KEEPALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
