"""Owns the interning of long texts into small ids (tenants, facets, accounts, logs), with bounded caches."""

import sqlite3
from collections.abc import Hashable
from typing import Any, Final

from billing.events import Served
from billing.ledger.port import LedgerError, Source
from billing.packed import Packed, Packer

#: Entries per cache; a fuller one is emptied, which costs look-ups and nothing else.
CACHE_MAX: Final = 50_000

#: The slow-changing facts of a call, in the order of FACET_COLUMNS.
Facet = tuple[str, str, str, str, int, int, int, str, int]


class Names:
    """Find-or-insert by content. Call `forget` when a transaction that may have inserted was rolled back."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._logs: dict[Source, int] = {}
        self._tenants: dict[str, int] = {}
        self._accounts: dict[tuple[str, str], int] = {}
        self.facets: dict[Facet, int] = {}
        self._packer = Packer()

    def forget(self) -> None:
        for cache in (self._logs, self._tenants, self._accounts, self.facets):
            cache.clear()

    def pack(self, served: Served) -> Packed:
        """`served` with its facts interned. Raises LedgerError for one that must not be posted."""
        try:
            return self._packer.pack(served)
        except ValueError as error:
            raise LedgerError(f"post: {error}") from error

    def log(self, source: Source) -> int:
        return self._logs.get(source) or self._intern(self._logs, source, _LOG, tuple(source))

    def tenant(self, name: str) -> int:
        return self._tenants.get(name) or self._intern(self._tenants, name, _TENANT, (name,))

    def account(self, name: str, currency: str) -> int:
        key = (name, currency)
        return self._accounts.get(key) or self._intern(self._accounts, key, _ACCOUNT, key)

    def facet(self, facet: Facet) -> int:
        return self.facets.get(facet) or self._intern(self.facets, facet, _FACET, facet)

    def _intern(
        self, cache: dict[Any, int], key: Hashable, statements: tuple[str, str], values: tuple[str | int, ...]
    ) -> int:
        select, insert = statements
        row = self._db.execute(select, values).fetchone()
        if row is None:
            row = self._db.execute(insert, values).fetchone()
        if len(cache) >= CACHE_MAX:
            cache.clear()
        cache[key] = int(row[0])
        return int(row[0])


def _pair(table: str, id_column: str, columns: tuple[str, ...]) -> tuple[str, str]:
    where = " AND ".join(f"{column} = ?" for column in columns)
    marks = ", ".join("?" * len(columns))
    return (
        f"SELECT {id_column} FROM {table} WHERE {where}",  # noqa: S608
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) RETURNING {id_column}",  # noqa: S608
    )


FACET_COLUMNS: Final = (
    "key_id",
    "plan",
    "model",
    "model_version",
    "price_version",
    "outcome",
    "reason",
    "currency",
    "protocol",
)
_LOG: Final = _pair("log", "log_id", ("instance", "epoch"))
_TENANT: Final = _pair("tenant", "tenant_id", ("name",))
_ACCOUNT: Final = _pair("account", "account_id", ("name", "currency"))
_FACET: Final = _pair("facet", "facet_id", FACET_COLUMNS)
