"""Owns the policy snapshot: what control publishes and every worker obeys (keys, tenants, plans, routes, prices).

One msgpack file, replaced atomically (write, fsync, rename, fsync of the folder) with a growing `version`. Beside it a
heartbeat file whose mtime control refreshes every second: a worker whose heartbeat is older than the setting
`snapshot_stale_s` says so in /ready and metrics and follows the declared mode. Nothing derived from a key survives a
version.
"""

import os
from pathlib import Path

import msgspec

from billing.rating import PriceBook

SNAPSHOT_FILE = "snapshot"
HEARTBEAT_FILE = "snapshot.heartbeat"


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """One live secret of a key: HMAC-SHA256(pepper[pepper_version], secret) and, during a rotation, its end."""

    digest: bytes
    pepper_version: int
    not_after_ns: int | None = None


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """An API key as workers know it. `kid` is the fixed-length part inside the key's text; `key_id` is stable."""

    kid: str
    key_id: str
    tenant: str
    secrets: tuple[Secret, ...]
    #: "infer", "read" (metadata, ready, config, statistics), "admin" (/me), "operate" (backends).
    scopes: tuple[str, ...]
    #: None: every model; otherwise exact names.
    models: tuple[str, ...] | None = None
    expires_ns: int | None = None
    is_revoked: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan's limits, each its own knob; None means unlimited. They hold per tenant, over all keys and workers."""

    name: str
    version: int
    #: "free" and "internal" calls are recorded and posted at zero price; "priced" calls at the price book's, and
    #: "prepaid" ones as well, out of the tenant's wallet.
    pricing: str
    #: Sustained rate: `rate_calls` per `rate_window_s` (GCRA emission interval = window / calls).
    rate_calls: int | None = None
    rate_window_s: int = 1
    burst: int = 1
    concurrency: int | None = None
    calls_per_day: int | None = None
    calls_per_month: int | None = None
    #: What happens while the quota owner cannot be asked: "closed" refuses (503), "lease" goes on with what is leased.
    store_down: str = "closed"
    #: The share of a model's queue in the embedded engine, beside that of other tenants who wait there.
    queue_weight: int = 1
    #: The best priority level (1 is the first) that its callers get where a model has levels; 0: any.
    priority_best: int = 0


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A customer. `zone` is the IANA time zone in which its days and months begin."""

    tenant: str
    plan: str
    zone: str = "UTC"
    currency: str = "USD"
    is_suspended: bool = False


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """An OIP server at an address. `models` are exact names or "*"; the first backend that matches serves.

    `http`/`grpc`: `unix:///path`, `http://host:port`, `grpc://host:port`; None when that protocol is not spoken.
    `is_trusted`: its reported units (`tollway-rows`, `tollway-compute-ns`) are believed.
    """

    name: str
    http: str | None
    grpc: str | None
    models: tuple[str, ...] = ("*",)
    is_trusted: bool = False


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker needs to decide about a call. `schema` grows when the layout does."""

    schema: int = 1
    version: int
    created_ns: int
    keys: tuple[Key, ...]
    tenants: tuple[Tenant, ...]
    plans: tuple[Plan, ...]
    backends: tuple[Backend, ...]
    prices: PriceBook
    #: Peppers by version, 32 bytes each. The snapshot file is mode 600 for this reason.
    peppers: dict[int, bytes]


_decoder = msgspec.msgpack.Decoder(Snapshot)


def write_snapshot(data_dir: Path, snapshot: Snapshot) -> None:
    """Replace the snapshot atomically and durably; mode 600."""
    path = data_dir / SNAPSHOT_FILE
    temporary = data_dir / f".{SNAPSHOT_FILE}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.msgpack.encode(snapshot))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_snapshot(data_dir: Path) -> Snapshot:
    """The current snapshot. Raises FileNotFoundError, or `msgspec.DecodeError` on a damaged file."""
    raw = (data_dir / SNAPSHOT_FILE).read_bytes()
    try:
        return _decoder.decode(raw)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"the snapshot is damaged: {error}") from None


def touch_heartbeat(data_dir: Path) -> None:
    """Say that control is alive; the file's mtime is the message."""
    path = data_dir / HEARTBEAT_FILE
    path.touch(mode=0o600)
    os.utime(path)
