"""Composition root of the quota owner: `python -m gateway.quota --socket S --data-dir D [--meter-socket M] …`.

Without `--meter-socket` (metering is off) calendar caps start from zero. With `--workers N` the owner decides as soon
as N workers have said hello, else half a second after its start. With `--settings F` whose `quota_store` names a Redis
or Valkey, limits are decided there, over all hosts that share it; this process is then its host's part (`SharedOwner`).
Ready means: listening; a store that cannot be reached yet is tried for ever.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

import uvloop

from billing import failpoint
from gateway.clock import SystemClock
from gateway.quota.funds_server import FundsServer
from gateway.quota.owner import Owner
from gateway.quota.server import QuotaServer
from gateway.quota.shared_owner import SharedOwner
from gateway.quota.status import serve_figures
from gateway.quota.store_keeper import StoreKeeper
from gateway.quota_address import QuotaAddress, parse_quota_address
from gateway.settings import parse_settings
from gateway.snapshot import Snapshot
from gateway.snapshot_watcher import SnapshotWatcher

HOST_FILE: Final = "quota-host"


#: Beside the socket for quotas: leases of wallets (`Settings.funds_socket`).
FUNDS_SOCKET: Final = "funds.sock"


async def serve(arguments: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT. Raises what made serving impossible."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    clock, has_meter = SystemClock(), arguments.meter_socket is not None
    address = _address(arguments.settings)
    owner: Owner | SharedOwner = Owner(clock, has_meter=has_meter)
    keeper: StoreKeeper | None = None
    if address is not None:
        owner = SharedOwner(clock, has_meter=has_meter)
        keeper = _keeper(owner, address, arguments.data_dir, clock, loop)
    server: QuotaServer | None = None

    def obey(snapshot: Snapshot) -> None:
        owner.set_policy(snapshot.tenants, snapshot.plans)
        if server is not None:
            server.policy_changed()

    watcher = SnapshotWatcher(arguments.data_dir, loop, obey)
    if not await _until(stop, watcher.start()):
        return
    assert watcher.snapshot is not None
    obey(watcher.snapshot)
    server = QuotaServer(owner, loop, watcher.refresh, arguments.meter_socket, workers_expected=arguments.workers)
    if isinstance(owner, SharedOwner):
        server.speak_for(owner)
    await server.listen(arguments.socket)
    status = None
    if keeper is not None and arguments.status_socket is not None:
        status = await serve_figures(arguments.status_socket, keeper.figures)
    funds: FundsServer | None = None
    if arguments.meter_socket is not None:
        funds = FundsServer(loop, arguments.meter_socket)
        await funds.listen(arguments.socket.with_name(FUNDS_SOCKET))
    if arguments.ready_fd is not None:
        os.write(arguments.ready_fd, b"ready\n")
        os.close(arguments.ready_fd)
    try:
        await _until(
            stop,
            server.run(),
            watcher.wait_closed(),
            *([] if funds is None else [funds.run()]),
            *([] if keeper is None else [keeper.run()]),
        )
        if keeper is not None:
            await keeper.close()
    finally:
        if funds is not None:
            await funds.close()
            arguments.socket.with_name(FUNDS_SOCKET).unlink(missing_ok=True)
        await server.close()
        arguments.socket.unlink(missing_ok=True)
        if status is not None:
            status.close()
            arguments.status_socket.unlink(missing_ok=True)
        await watcher.close()


def _address(settings_file: Path | None) -> QuotaAddress | None:
    """From the settings, not from arguments: those can be read by others, and an address may hold a password."""
    if settings_file is None:
        return None
    return parse_quota_address(parse_settings(settings_file.read_bytes()).quota_store)


def _keeper(
    owner: SharedOwner, address: QuotaAddress, data_dir: Path, clock: SystemClock, loop: asyncio.AbstractEventLoop
) -> StoreKeeper:
    from gateway.quota.link_redis import RedisLink  # an optional dependency

    host = host_name(data_dir)
    return StoreKeeper(owner, lambda: RedisLink(address, host), clock=clock, loop=loop)


def host_name(data_dir: Path) -> str:
    """The lasting name of this data directory at a shared store; made once."""
    path = data_dir / HOST_FILE
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="ascii").strip()
    temporary = data_dir / f".{HOST_FILE}.{os.getpid()}"
    temporary.write_text(secrets.token_hex(8) + "\n", encoding="ascii")
    temporary.replace(path)
    return path.read_text(encoding="ascii").strip()


async def _until(stop: asyncio.Event, *jobs: Coroutine[Any, Any, object]) -> bool:
    """Run `jobs` until one ends (True) or `stop` is set (False); the others are cancelled. Raises what a job raised."""
    stopping = asyncio.create_task(stop.wait(), name="stop")
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in tasks if task.done()]
        for task in ended:
            task.result()
        return bool(ended)
    finally:
        for task in (stopping, *tasks):
            task.cancel()
        await asyncio.wait([stopping, *tasks])


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gateway.quota", description="The quota owner of one machine.")
    parser.add_argument("--socket", type=Path, required=True, help="unix socket to serve workers on")
    parser.add_argument("--data-dir", type=Path, required=True, help="where control publishes the snapshot")
    parser.add_argument("--meter-socket", type=Path, help="the meter's socket; without it caps start from zero")
    parser.add_argument("--settings", type=Path, help="the supervisor's settings; without it limits are kept in memory")
    parser.add_argument("--status-socket", type=Path, help="where to tell how it stands with a shared store")
    parser.add_argument("--workers", type=int, default=0, help="workers expected; 0: unknown")
    parser.add_argument("--ready-fd", type=int, help="file descriptor that is told when this serves")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    failpoint.arm(os.environ.get("TOLLWAY_FAILPOINT", ""))
    uvloop.run(serve(parse_arguments(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
