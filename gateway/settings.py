"""Owns settings: parsed and validated once into frozen values. Nothing below a composition root sees them.

Source: one TOML file (`tollway.toml`), each field overridable by `--set name=value` and TOLLWAY_<NAME> in
`load_settings` (called by composition roots only). An unknown name, a value of the wrong type or out of bounds is
refused with what, where and what to do. Every limit has a unit in its name and a row in docs/limits.md.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from gateway.errors import SettingsError
from gateway.quota_address import parse_quota_address

KIB = 1024
MIB = 1024 * KIB


#: Settings of the engine, and of what looks after its models, that may be 0 and must be finite.
ENGINE_BOUNDS = (
    "engine_model_memory_bytes",
    "engine_model_idle_s",
    "engine_golden_check_s",
    "engine_release_poll_s",
    "rebuild_poll_s",
)
TRUSTED_KEYS_MAX = 32
_is_public_key = re.compile(r"ed25519:[A-Za-z0-9+/]{43}=").fullmatch


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What can grow, and how far. Times are seconds, sizes bytes."""

    head_bytes_max: int = 32 * KIB
    headers_max: int = 100
    body_bytes_max: int = 512 * MIB
    grpc_message_bytes_max: int = 512 * MIB
    #: Replies up to this size are held whole until their record is durable (MONEY.md R1); larger ones stream.
    held_reply_bytes_max: int = 64 * KIB
    #: A refused request's body is drained up to this size to keep the connection, else the connection closes.
    drain_bytes_max: int = 64 * KIB
    #: Bytes buffered for one direction of one call before the producer is paused.
    stream_buffer_bytes_max: int = 256 * KIB
    #: Bytes buffered in one worker over all calls; beyond it new calls are refused with 503 `overloaded`.
    worker_buffer_bytes_max: int = 256 * MIB
    connections_max: int = 10_000
    calls_in_flight_max: int = 20_000
    #: Requests that may wait on one HTTP/1.1 connection behind the one being answered.
    pipelined_bytes_max: int = 64 * KIB
    h2_streams_max: int = 256
    upstream_connections_max: int = 256
    upstream_idle_s: float = 30.0
    upstream_connect_s: float = 2.0
    #: Time for a request head to arrive, and between bytes of a request body.
    head_s: float = 10.0
    body_idle_s: float = 30.0
    keepalive_idle_s: float = 75.0
    #: Longest a call may take when its caller names no deadline.
    call_s: float = 300.0
    #: Time given to calls in flight when a worker is told to stop.
    drain_s: float = 30.0
    #: Without control's heartbeat: when a worker reports a stale policy, and when it refuses calls.
    policy_stale_s: float = 10.0
    policy_refuse_s: float = 3600.0


class Backend(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An OIP server at an address; see `gateway.snapshot.Backend`."""

    name: str
    http: str | None = None
    grpc: str | None = None
    models: tuple[str, ...] = ("*",)
    is_trusted: bool = False


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything `tollway up` needs. Paths may be relative to the working directory."""

    data_dir: Path = Path(".tollway")
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    api_port: int = 8080
    workers: int = 1
    #: Serve the embedded engine; its models come from `model_repositories`.
    engine: bool = True
    model_repositories: tuple[Path, ...] = (Path("model_repo/models"),)
    #: Repositories whose Python-backend models may run.
    python_models_allowed: tuple[Path, ...] = (Path("model_repo/models"),)
    #: Threads for models that take long; 0: one per core.
    engine_threads: int = 0
    #: Bytes of memory for all models together; 0: no budget. Beyond it the longest unused one is unloaded until needed.
    engine_model_memory_bytes: int = 0
    #: A model not used for this long is unloaded until needed; 0: never.
    engine_model_idle_s: float = 0.0
    #: Public keys (`ed25519:BASE64`). Where there are any, the engine loads only versions that one of them signed.
    trusted_model_keys: tuple[str, ...] = ()
    #: The engine loads only versions that were approved.
    approval_required: bool = False
    #: Time for a version's golden answers when it is loaded; 0: they are not checked.
    engine_golden_check_s: float = 5.0
    #: How often the engine looks for changed aliases and approvals; 0: never.
    engine_release_poll_s: float = 2.0
    #: `s3://BUCKET/PREFIX` or `file:///PATH`: a store whose models the engine serves too, kept in data_dir/models.
    model_store: str = ""
    #: How often the engine looks whether the store has changed.
    model_store_poll_s: float = 30.0
    #: How often control looks for models that this host cannot run and that can be made anew; 0: never.
    rebuild_poll_s: float = 60.0
    #: Further backends, tried in order before the embedded engine.
    backends: tuple[Backend, ...] = ()
    price_book: Path | None = None
    #: Where limits are decided: this machine's owner process, or a Redis or Valkey that several machines share.
    quota_store: str = "memory://"
    #: Where the money is: `sqlite://` (the data directory's ledger.db) or `postgresql://USER@HOST/DATABASE`.
    ledger: str = "sqlite://"
    usage_segment_bytes: int = 16 * MIB
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    #: "auto": workers and the meter run compiled hot modules where `make compile` has built them from these sources.
    compiled: Literal["auto", "off"] = "auto"
    #: Switched off only by benchmarks that measure the bare proxy; refused outside loopback.
    require_key: bool = True
    metering: bool = True
    #: Whether one log line per call is written to `data_dir/log/`.
    call_log: bool = True
    #: Unknown models answer 400 as Triton does, not 404.
    triton_compat: bool = False
    #: Whether workers describe their gRPC services to whoever has a key (server reflection).
    grpc_reflection: bool = True
    limits: Limits = Limits()

    @property
    def run_dir(self) -> Path:
        return self.data_dir / "run"

    @property
    def usage_root(self) -> Path:
        return self.data_dir / "usage"

    @property
    def engine_socket(self) -> Path:
        return self.run_dir / "engine.sock"

    @property
    def quota_socket(self) -> Path:
        return self.run_dir / "quota.sock"

    @property
    def quota_status_socket(self) -> Path:
        """Where the quota owner says how it stands with the store that hosts share."""
        return self.run_dir / "quota-status.sock"

    @property
    def funds_socket(self) -> Path:
        """The quota owner's door for leases of wallets."""
        return self.run_dir / "funds.sock"

    @property
    def meter_socket(self) -> Path:
        return self.run_dir / "meter.sock"

    @property
    def control_socket(self) -> Path:
        return self.run_dir / "control.sock"

    @property
    def self_service_socket(self) -> Path:
        """Control's door for `/me` alone: workers relay callers to it, never to `control_socket`."""
        return self.run_dir / "me.sock"


def load_settings(
    file: Path | None, environ: Mapping[str, str], overrides: Mapping[str, str] | None = None
) -> Settings:
    """Read `file` (if any), then TOLLWAY_<NAME> of known names, then `overrides`; validate and return.

    Raises SettingsError whose message names the field, the value's place and the remedy.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
            # JSON is how the supervisor hands settings on (`dump_settings`); people write TOML.
            values = msgspec.json.decode(text) if file.suffix == ".json" else tomllib.loads(text)
        except FileNotFoundError:
            raise SettingsError(f"settings file {file} does not exist: create it or leave --settings out") from None
        except (tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file} cannot be read: {error}") from None
    for name in Settings.__struct_fields__:
        override = environ.get(f"TOLLWAY_{name.upper()}")
        if override is not None and name not in ("backends", "limits"):
            values[name] = _parse_text(override)
    for name, text in (overrides or {}).items():
        _set_dotted(values, name, _parse_text(text))
    try:
        settings = msgspec.convert(values, Settings, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{file or 'settings'}: {error}. See docs/settings.md for every name.") from None
    _check(settings)
    return settings


def dump_settings(settings: Settings) -> bytes:
    """JSON that `parse_settings` reads back: how the supervisor hands settings to its children."""
    return msgspec.json.encode(settings, enc_hook=str)


def parse_settings(data: bytes) -> Settings:
    """The inverse of `dump_settings`."""
    return msgspec.json.decode(data, type=Settings, dec_hook=_decode_path)


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"Expected a path (text), got {value!r}")


def _parse_text(text: str) -> Any:
    """A TOML value if `text` is one, else `text` itself."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _set_dotted(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"--set {dotted}: {parent} is a plain value, there is nothing below it")
        values = inner
    values[last] = value


def _check(settings: Settings) -> None:
    """Bounds and combinations that types cannot say."""
    for name in ("http_port", "grpc_port", "metrics_port", "api_port"):
        port = getattr(settings, name)
        if not 0 <= port <= 65535:
            raise SettingsError(f"{name} = {port} is not a port: use 0 to 65535 (0: any free port)")
    for name in ("metrics_port", "api_port"):
        if getattr(settings, name) == 0:
            raise SettingsError(
                f"{name} = 0: name a port, nobody could find it otherwise (only http_port, grpc_port may be 0)"
            )
    if not 1 <= settings.workers <= 256:
        raise SettingsError(f"workers = {settings.workers}: use 1 to 256")
    for name in ENGINE_BOUNDS:
        if not 0 <= getattr(settings, name) < math.inf:
            raise SettingsError(f"{name} must be 0 or greater, and finite")
    if settings.model_store and not settings.model_store.startswith(("s3://", "file:///")):
        raise SettingsError(f"model_store = {settings.model_store!r}: use s3://BUCKET/PREFIX or file:///PATH")
    if not 0 < settings.model_store_poll_s < math.inf:
        raise SettingsError("model_store_poll_s must be greater than 0 and finite")
    if len(settings.trusted_model_keys) > TRUSTED_KEYS_MAX:
        raise SettingsError(f"trusted_model_keys: {len(settings.trusted_model_keys)} keys, at most {TRUSTED_KEYS_MAX}")
    for key in settings.trusted_model_keys:
        if _is_public_key(key) is None:
            raise SettingsError(
                f"trusted_model_keys: {key[:60]!r} is no public key such as `tollway models keygen` prints"
            )
    if parse_quota_address(settings.quota_store) is not None and not settings.require_key:
        raise SettingsError("quota_store: without keys (require_key = false) there are no limits to decide anywhere")
    if settings.ledger != "sqlite://" and not settings.ledger.startswith(("postgresql://", "postgres://")):
        # Without its text: a database's address may hold a password.
        raise SettingsError("ledger: use sqlite:// or postgresql://USER@HOST/DATABASE")
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise SettingsError("tls_certificate and tls_key go together: set both or neither")
    if not settings.engine and not settings.backends:
        raise SettingsError("engine = false and no [[backends]]: nothing could serve a call; add a backend")
    is_loopback = settings.host in ("127.0.0.1", "::1", "localhost")
    if not (settings.require_key and settings.metering) and not is_loopback:
        raise SettingsError('require_key/metering = false is for benchmarks on loopback only: set host = "127.0.0.1"')
    for name in Limits.__struct_fields__:
        if not 0 < getattr(settings.limits, name) < math.inf:  # NaN neither
            raise SettingsError(f"limits.{name} must be greater than 0 and finite")
    for backend in settings.backends:
        _check_backend(backend)


def _check_backend(backend: Backend) -> None:
    if backend.http is None and backend.grpc is None:
        raise SettingsError(f"backend {backend.name!r} has neither http nor grpc: give at least one address")
    for name, url, schemes in (
        ("http", backend.http, ("http://", "unix://")),
        ("grpc", backend.grpc, ("grpc://", "unix://")),
    ):
        if url is not None and not url.startswith(schemes):
            raise SettingsError(f"backend {backend.name!r}: {name} = {url!r} must begin with {' or '.join(schemes)}")
