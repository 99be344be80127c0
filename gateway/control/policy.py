"""Owns the way from the database to the snapshot that workers obey, and that no change is answered before it is out.

Order: commit → publish → answer. Crash windows
  after commit, before publish   the change is durable and unanswered; the next start publishes before it serves
  after publish, before answer   workers obey already; the caller asks again
When publishing fails (disk full) the caller gets 503, the heartbeat stops, so workers say that their policy is stale,
and every second the newest policy is tried again.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Final

import msgspec
import sqlalchemy as sa

from billing.rating import PriceBook
from gateway.clock import Clock
from gateway.control.agreements import current_packs, packed_name, packed_plan
from gateway.control.attenuation import effective
from gateway.control.database import Database
from gateway.control.errors import ControlCode, ControlError
from gateway.control.keys import live_secrets, load_grants
from gateway.control.peppers import Peppers
from gateway.control.plans import current_plans
from gateway.control.prices import current_book
from gateway.control.schema import api_key, counter, tenant
from gateway.snapshot import (
    Backend,
    Key,
    Plan,
    Secret,
    Snapshot,
    Tenant,
    read_snapshot,
    touch_heartbeat,
    write_snapshot,
)

VERSION_COUNTER: Final = "snapshot_version"
_log = logging.getLogger("tollway.control")

#: The snapshot's file, or control.db, cannot be written or read right now.
_DISK_ERRORS: Final = (OSError, sa.exc.OperationalError)

Write = Callable[[Path, Snapshot], None]


class Publisher:
    """Publishes committed policy. Blocking, for worker threads; `write` is the snapshot file's writer."""

    def __init__(
        self,
        *,
        data_dir: Path,
        database: Database,
        clock: Clock,
        peppers: Peppers,
        prices: PriceBook,
        backends: tuple[Backend, ...],
        write: Write = write_snapshot,
    ) -> None:
        self._data_dir = data_dir
        self._database = database
        self._clock = clock
        self._peppers = peppers
        self._prices = prices
        self._backends = backends
        self._write = write
        self._lock = Lock()
        self._published_version = 0

    @property
    def published_version(self) -> int:
        """0 until the first snapshot is out."""
        return self._published_version

    def committed_version(self) -> int:
        with self._database.read() as tx:
            return read_version(tx)

    def start(self) -> None:
        """Publish whatever the database holds, newer than any snapshot on disk. Raises OSError."""
        with self._database.write() as tx:
            bump_version(tx, at_least=self._version_on_disk() + 1)
        self._publish_committed()

    def publish(self) -> None:
        """Returns once the newest committed policy is out. Raises ControlError when it cannot be written."""
        try:
            self._publish_committed()
        except _DISK_ERRORS as error:
            _log.error("policy_not_published error=%s", type(error).__name__)
            raise ControlError(
                ControlCode.UNAVAILABLE,
                "the change is stored but not yet published: check the data directory's disk; "
                "it is tried again every second",
            ) from error

    def beat(self) -> None:
        """Once a second: say that control lives, if what workers see is what is committed."""
        try:
            self._publish_committed()
            touch_heartbeat(self._data_dir)
        except _DISK_ERRORS as error:
            # The missing heartbeat is the message to workers; the next beat tries again.
            _log.error("policy_not_published error=%s", type(error).__name__)

    def _publish_committed(self) -> None:
        # One publisher at a time, reading after taking its turn: an older snapshot never replaces a newer one.
        with self._lock:
            with self._database.read() as tx:
                version = read_version(tx)
                if version == self._published_version:
                    return
                snapshot = self._build(tx, version)
            self._write(self._data_dir, snapshot)
            self._published_version = version
        touch_heartbeat(self._data_dir)

    def _build(self, tx: sa.Connection, version: int) -> Snapshot:
        now_ns = self._clock.wall_ns()
        plans = current_plans(tx)
        tenants, packed = _with_packs(tx, _tenants(tx), {plan.name: plan for plan in plans})
        return Snapshot(
            version=version,
            created_ns=now_ns,
            keys=tuple(_keys(tx, now_ns)),
            tenants=tuple(tenants),
            plans=(*plans, *(packed_plan(tx, base, packs) for base, packs in packed)),
            backends=self._backends,
            prices=current_book(tx, self._prices),
            peppers=dict(self._peppers.by_version),
        )

    def _version_on_disk(self) -> int:
        try:
            return read_snapshot(self._data_dir).version
        except (FileNotFoundError, msgspec.DecodeError):
            # A damaged snapshot is replaced at once; workers keep the last good one until then.
            return 0


def read_version(tx: sa.Connection) -> int:
    query = sa.select(counter.c.value).where(counter.c.name == VERSION_COUNTER)
    return tx.execute(query).scalar_one_or_none() or 0


def bump_version(tx: sa.Connection, *, at_least: int = 0) -> int:
    """The next policy version, in the transaction of the change it stands for."""
    version = max(read_version(tx) + 1, at_least)
    updated = tx.execute(counter.update().where(counter.c.name == VERSION_COUNTER).values(value=version))
    if updated.rowcount == 0:
        tx.execute(counter.insert().values(name=VERSION_COUNTER, value=version))
    return version


def _keys(tx: sa.Connection, now_ns: int) -> list[Key]:
    """Every key with the rights its whole chain leaves it (attenuation at use)."""
    grants, parents = load_grants(tx)
    secrets = live_secrets(tx, None, now_ns)
    published = []
    for row in tx.execute(sa.select(api_key.c.key_id, api_key.c.kid).order_by(api_key.c.key_id)):
        grant = effective(row.key_id, grants, parents)
        published.append(
            Key(
                kid=row.kid,
                key_id=row.key_id,
                tenant=grant.tenant,
                secrets=tuple(_secret(secret) for secret in secrets.get(row.key_id, [])),
                scopes=tuple(sorted(grant.scopes)),
                models=None if grant.models is None else tuple(sorted(grant.models)),
                expires_ns=grant.expires_ns,
                is_revoked=grant.is_revoked,
            )
        )
    return published


def _secret(row: sa.RowMapping) -> Secret:
    return Secret(digest=row["digest"], pepper_version=row["pepper_version"], not_after_ns=row["not_after_ns"])


def _tenants(tx: sa.Connection) -> list[Tenant]:
    rows = tx.execute(sa.select(tenant).order_by(tenant.c.tenant)).mappings()
    return [
        Tenant(
            tenant=row["tenant"],
            plan=row["plan"],
            zone=row["zone"],
            currency=row["currency"],
            is_suspended=bool(row["is_suspended"]),
        )
        for row in rows
    ]


def _with_packs(
    tx: sa.Connection, tenants: list[Tenant], plans: dict[str, Plan]
) -> tuple[list[Tenant], list[tuple[Plan, int]]]:
    """Tenants with QPS packs are published under a plan of their own, "name+packs", that holds the raised limits."""
    packs = current_packs(tx)
    published, needed = [], {}
    for one in tenants:
        count = packs.get(one.tenant, 0)
        if count:
            needed[one.plan, count] = (plans[one.plan], count)
            one = msgspec.structs.replace(one, plan=packed_name(one.plan, count))  # noqa: PLW2901 - the published form of it
        published.append(one)
    return published, [needed[key] for key in sorted(needed)]
