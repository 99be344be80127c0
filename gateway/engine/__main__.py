"""Owns the engine's process: arguments → concrete objects, ready when it accepts, orderly stop on SIGTERM.

Ready (`--ready-fd`) means that the socket answers; whether the models are up is told by /v2/health/ready.
"""

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import uvloop

from gateway.clock import SystemClock
from gateway.engine.admission import Rules
from gateway.engine.following import Follower
from gateway.engine.host import Host
from gateway.engine.offload import Coder
from gateway.engine.python_process import DEFAULT_LIMITS, PythonLimits
from gateway.engine.registry import Registry
from gateway.engine.residency import Bounds, Residency, sweep_forever
from gateway.engine.rest import RestServer
from gateway.engine.rpc import RpcServer
from gateway.engine.service import BODY_BYTES_MAX, BUFFERED_BYTES_MAX, Engine
from gateway.engine.store_sync import StoreSync
from gateway.engine.threads import BatchThreads
from gateway.net.listener import Listener
from gateway.settings import Limits
from model_repo.errors import RepositoryError
from model_repo.signing import parse_trusted

_LOG: Final = logging.getLogger("tollway.engine")
#: What the gateway writes anew for each call and the engine has no use for.
_IGNORED_FIELDS: Final = (b"x-request-id", b"traceparent")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gateway.engine", description="The embedded engine (started by tollway up).")
    parser.add_argument("--repository", type=Path, action="append", default=[], help="a folder in Triton's layout")
    parser.add_argument("--socket", type=Path, required=True, help="the unix socket to serve on")
    parser.add_argument(
        "--python-models-allowed",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        help="repositories whose Python models may run",
    )
    parser.add_argument("--ready-fd", type=int, help="where to write 'ready' once the socket answers")
    parser.add_argument("--threads", type=int, default=0, help="for models that take long; 0: one per core")
    parser.add_argument("--model-memory-bytes", type=int, default=0, help="of all models together; 0: no budget")
    parser.add_argument("--model-idle-s", type=float, default=0.0, help="unload what is not used; 0: never")
    parser.add_argument("--intra-op-threads", type=int, default=1, help="of one ONNX Runtime session")
    parser.add_argument("--python-memory-bytes", type=int, default=DEFAULT_LIMITS.memory_bytes_max)
    parser.add_argument("--python-call-s", type=float, default=DEFAULT_LIMITS.call_s)
    parser.add_argument("--trusted-model-key", action="append", default=[], help="public key; unsigned is refused then")
    parser.add_argument("--approval-required", action="store_true", help="load approved versions only")
    parser.add_argument("--golden-check-s", type=float, default=5.0, help="time for golden answers of a load; 0: none")
    parser.add_argument(
        "--model-store", default="", help="file:///PATH or s3://BUCKET/PREFIX, kept in line in --mirror"
    )
    parser.add_argument(
        "--mirror", type=Path, help="the folder that --model-store is brought to; served like the others"
    )
    parser.add_argument("--model-store-poll-s", type=float, default=30.0, help="how often the store is looked at")
    parser.add_argument("--release-poll-s", type=float, default=2.0, help="how often releases are looked at; 0: never")
    parser.add_argument("--drain-s", type=float, default=Limits().drain_s)
    return parser.parse_args(arguments)


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    threads = options.threads or len(os.sched_getaffinity(0))
    clock = SystemClock()
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="engine") as pool,
        ThreadPoolExecutor(1, thread_name_prefix="store") as store_pool,
        contextlib.closing(BatchThreads(threads)) as batches,
    ):
        bounds = Bounds(nbytes_max=options.model_memory_bytes, idle_ns=round(options.model_idle_s * 1e9))
        residency = Residency(bounds, clock.monotonic_ns) if bounds.is_set else None
        host = Host(
            loop=loop,
            pool=pool,
            batches=batches,
            threads=threads,
            clock=clock,
            python_allowed=tuple(path.resolve() for path in options.python_models_allowed),
            python_limits=PythonLimits(
                memory_bytes_max=options.python_memory_bytes, call_s=options.python_call_s, start_s=60.0
            ),
            intra_op_threads=options.intra_op_threads,
            residency=residency,
            rules=Rules(
                trusted=parse_trusted(options.trusted_model_key),
                is_approval_required=options.approval_required,
                golden_ns_max=round(options.golden_check_s * 1e9),
            ),
        )
        registry = Registry(options.repository, host)
        coder = Coder(pool, loop)
        version = importlib.metadata.version("tollway")
        engine = Engine(
            RestServer(registry, coder, version=version),
            RpcServer(registry, coder, version=version),
            clock.monotonic_ns,
        )
        limits = Limits(
            body_bytes_max=BODY_BYTES_MAX,
            grpc_message_bytes_max=BODY_BYTES_MAX,
            worker_buffer_bytes_max=BUFFERED_BYTES_MAX,
        )
        listener = Listener(engine, limits, loop, ignored_fields=_IGNORED_FIELDS)
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, stop.set)
        await listener.listen_unix(options.socket)
        _tell_ready(options.ready_fd)
        sync = StoreSync(options.model_store, options.mirror, store_pool, host) if options.model_store else None
        sides = [_start_sweeper(residency, loop, pool), await _start_follower(registry, host, options)]
        try:
            await _until(stop, _bring_up(registry, sync), "load models")
            if sync is not None and not stop.is_set():
                sides.append(_start_side(sync.keep(registry, options.model_store_poll_s), "keep the mirror"))
            await stop.wait()
            await listener.drain(options.drain_s)
        finally:
            for side in sides:
                if side is not None:
                    side.cancel()
            listener.cut_all()
            await registry.unload()


def _start_sweeper(
    residency: Residency | None, loop: asyncio.AbstractEventLoop, pool: ThreadPoolExecutor
) -> "asyncio.Task[None] | None":
    if residency is None or not residency.bounds.idle_ns:
        return None
    return _start_side(sweep_forever(residency, loop, pool), "unload idle models")


def _start_side(work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(_stop_on_failure)
    return task


async def _start_follower(registry: Registry, host: Host, options: argparse.Namespace) -> "asyncio.Task[None] | None":
    if not options.release_poll_s:
        return None
    follower = Follower(registry, [path.absolute() for path in options.repository], host)
    # Before the models are loaded: what changes from now on is seen.
    await host.loop.run_in_executor(host.pool, follower.look)
    return _start_side(follower.follow(options.release_poll_s), "follow releases")


def _stop_on_failure(task: "asyncio.Task[None]") -> None:
    """A side task that fails must not end in silence: the supervisor starts another engine."""
    if not task.cancelled() and task.exception() is not None:
        _LOG.critical("task_failed name=%s", task.get_name(), exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)


async def _bring_up(registry: Registry, sync: StoreSync | None) -> None:
    """Load the models. The store is waited for only where its mirror holds none yet; else it is looked at next."""
    if sync is not None and sync.is_empty:
        await sync.pull()
    await registry.load()


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, None], name: str) -> None:
    """Work to its end; a stop asked for meanwhile does not wait for it."""
    loading = asyncio.create_task(work, name=name)
    stopping = asyncio.create_task(stop.wait(), name="wait for stop")
    await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not loading.done():
        loading.cancel()
        await asyncio.wait((loading,))
        return
    loading.result()
    # What models and imports made stays: collections need not look at it again.
    gc.collect()
    gc.freeze()


def _tell_ready(ready_fd: int | None) -> None:
    if ready_fd is not None:
        os.write(ready_fd, b"ready\n")
        os.close(ready_fd)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if options.model_store:
        if options.mirror is None:
            sys.stderr.write("engine: --model-store needs --mirror, the folder that it is brought to\n")
            return 1
        options.mirror.mkdir(mode=0o700, parents=True, exist_ok=True)
        options.repository.append(options.mirror)
    if not options.repository:
        sys.stderr.write("engine: name a --repository, or a --model-store\n")
        return 1
    for repository in options.repository:
        if not repository.is_dir():
            sys.stderr.write(f"engine: model repository {repository} is no folder; build the models or name another\n")
            return 1
    try:
        uvloop.run(_serve(options))
    except RepositoryError as error:
        sys.stderr.write(f"engine: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
