"""Owns where limits are decided: the setting `quota_store`, parsed and validated. Pure; connects to nothing.

`memory://` is this machine's own owner process. The others name a Redis or Valkey that several machines share:
`redis://[user[:password]@]host[:port][/database]`, `rediss://…` (TLS) and `redis+unix:///path[?db=N]`. `?space=NAME`
keeps deployments on one server apart.
"""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from gateway.errors import SettingsError

MEMORY: Final = "memory://"
DEFAULT_SPACE: Final = "tollway"
_DEFAULT_PORT: Final = 6379
_DATABASE_MAX: Final = 65_535
_SPACE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FORMS: Final = (
    "use memory://, redis://[user:password@]host[:port][/database], rediss://… (TLS) or redis+unix:///path; "
    "?space=NAME keeps deployments on one server apart"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaAddress:
    """A Redis or Valkey. `path` is a unix socket, else `host` and `port` say where."""

    host: str = ""
    port: int = _DEFAULT_PORT
    path: str | None = None
    database: int = 0
    username: str | None = None
    password: str | None = None
    is_tls: bool = False
    space: str = DEFAULT_SPACE

    @property
    def prefix(self) -> str:
        """What every key begins with; one hash slot, so that a script may touch several of them."""
        return f"{{{self.space}}}:"

    def __str__(self) -> str:
        """For logs and findings: without name and password."""
        if self.path is not None:
            return f"redis+unix://{self.path}"
        return f"{'rediss' if self.is_tls else 'redis'}://{self.host}:{self.port}/{self.database}"


def parse_quota_address(url: str) -> QuotaAddress | None:
    """None for `memory://`. Raises SettingsError, which never repeats the address: it may hold a password."""
    if url == MEMORY:
        return None
    if "#" in url:
        raise _refused("it has a #fragment (write # in a password as %23)")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refused(f"it is not an address ({_reason(error)})") from None
    options = _options(parts.query)
    space = _space(options.pop("space", DEFAULT_SPACE))
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    if parts.scheme == "redis+unix":
        if parts.hostname or not parts.path.startswith("/") or parts.path == "/":
            raise _refused("redis+unix:// needs an absolute path: redis+unix:///path")
        database = _database(options.pop("db", "0"))
        _check_no_more(options)
        path = unquote(parts.path)
        return QuotaAddress(path=path, database=database, username=username, password=password, space=space)
    if parts.scheme not in ("redis", "rediss"):
        raise _refused("its scheme is none of ours")
    if not parts.hostname:
        raise _refused("it names no host")
    if port == 0:
        raise _refused("0 is not a port")
    database = _database(parts.path.removeprefix("/") or "0")
    _check_no_more(options)
    return QuotaAddress(
        host=parts.hostname,
        port=port or _DEFAULT_PORT,
        database=database,
        username=username,
        password=password,
        is_tls=parts.scheme == "rediss",
        space=space,
    )


def check_quota_library(url: str) -> None:
    """Raises SettingsError where `url` needs a package that is not installed."""
    if url != MEMORY and find_spec("redis") is None:
        raise SettingsError("quota_store names a Redis or Valkey, and the package redis is not installed")


def _options(query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) != len(pairs):
        raise _refused("an option is given twice")
    return options


def _space(text: str) -> str:
    if not _SPACE.fullmatch(text):
        raise _refused("space must be 1 to 64 letters, digits, '.', '_' or '-'")
    return text


def _database(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= _DATABASE_MAX):
        raise _refused(f"the database must be a number from 0 to {_DATABASE_MAX}")
    return int(text)


def _check_no_more(options: dict[str, str]) -> None:
    if options:
        raise _refused(f"it has options that mean nothing here: {', '.join(sorted(options))}")


def _reason(error: ValueError) -> str:
    return "its port is not a number up to 65535" if "ort" in str(error) else "its host cannot be read"


def _refused(why: str) -> SettingsError:
    return SettingsError(f"quota_store: {why}; {_FORMS}")
