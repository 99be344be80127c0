"""Owns how control comes up: one process per data directory, its files, its first policy, its first token."""

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from billing.rating import PriceBook
from gateway.clock import Clock
from gateway.control.audit import append_audit
from gateway.control.database import Database, open_database
from gateway.control.guard import Failures
from gateway.control.peppers import Peppers, load_peppers, write_private
from gateway.control.plans import seed_plans
from gateway.control.policy import Publisher
from gateway.control.prices import adopt_prices, current_book
from gateway.control.registry import Registry
from gateway.control.tokens import BOOTSTRAP_FILE, AdminTokens, bootstrap, has_secrets, load_tokens
from gateway.errors import SettingsError
from gateway.snapshot import Backend

LOCK_FILE: Final = "control.lock"
START_ACTOR: Final = "start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A control plane ready to be served. `close` gives up the database and the lock."""

    registry: Registry
    publisher: Publisher
    failures: Failures
    tokens: AdminTokens
    close: Callable[[], None]


def open_control(data_dir: Path, *, prices: PriceBook, backends: tuple[Backend, ...], clock: Clock) -> Control:
    """Open DATA and publish its policy. Raises SettingsError (what, where, what to do) or OSError (disk)."""
    for folder in (data_dir, data_dir / "run"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock_fd = lock_data(data_dir)
    try:
        database = open_database(data_dir, clock.wall_ns())
    except BaseException:
        os.close(lock_fd)
        raise

    def close() -> None:
        database.close()
        os.close(lock_fd)

    try:
        return _build(data_dir, database, prices=prices, backends=backends, clock=clock, close=close)
    except BaseException:
        close()
        raise


def lock_data(data_dir: Path) -> int:
    """Hold DATA/run/control.lock until the fd is closed: two controls would publish over each other."""
    fd = os.open(data_dir / "run" / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise SettingsError(f"control is already running on {data_dir}: stop it, or use another --data-dir") from None
    return fd


def _build(
    data_dir: Path,
    database: Database,
    *,
    prices: PriceBook,
    backends: tuple[Backend, ...],
    clock: Clock,
    close: Callable[[], None],
) -> Control:
    with database.read() as tx:
        peppers = load_peppers(data_dir, has_secrets=has_secrets(tx))
    tokens = AdminTokens(peppers)
    _prepare(data_dir, database, peppers, prices=prices, backends=backends, now_ns=clock.wall_ns())
    with database.read() as tx:
        tokens.replace(load_tokens(tx))
        prices = current_book(tx, prices)
    publisher = Publisher(
        data_dir=data_dir, database=database, clock=clock, peppers=peppers, prices=prices, backends=backends
    )
    failures = Failures(clock)
    registry = Registry(
        database=database,
        publisher=publisher,
        clock=clock,
        peppers=peppers,
        tokens=tokens,
        failures=failures,
        prices=prices,
        backends=backends,
    )
    publisher.start()
    return Control(registry=registry, publisher=publisher, failures=failures, tokens=tokens, close=close)


def _prepare(
    data_dir: Path,
    database: Database,
    peppers: Peppers,
    *,
    prices: PriceBook,
    backends: tuple[Backend, ...],
    now_ns: int,
) -> None:
    """What every start makes sure of: seeded plans, prices that can bill, an admin token."""
    with database.write() as tx:
        seed_plans(tx, now_ns)
        adopt_prices(tx, prices, backends, now_ns)
        token = bootstrap(tx, peppers, now_ns)
        if token is not None:
            # Written before the commit: a crash in between leaves a token that opens nothing, and the next start
            # writes another one. The other order could leave a token in force that nobody has ever seen.
            write_private(data_dir / "run" / BOOTSTRAP_FILE, token.encode() + b"\n")
            append_audit(
                tx,
                at_ns=now_ns,
                actor=START_ACTOR,
                action="token.bootstrap",
                subject="admin-token",
                before=None,
                after=None,
            )
