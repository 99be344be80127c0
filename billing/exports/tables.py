"""Owns the table forms of the ledger: CSV, and Parquet where pyarrow is installed. One row per entry."""

import csv
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TextIO

from billing.exports.rows import ExportRow
from billing.ledger.port import LedgerError
from billing.money import format_nanos

COLUMNS: Final = (
    "tx_id", "line", "kind", "tenant", "posted_ns", "posted_at", "account", "currency", "amount_nanos", "amount",
    "calls", "seal",
)  # fmt: skip
_GROUP_ROWS: Final = 50_000
_UNIT: Final = Decimal(1_000_000_000)


def write_csv(rows: Iterable[ExportRow], out: TextIO) -> int:
    """Header and rows (RFC 4180); how many rows."""
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    count = 0
    for row in rows:
        writer.writerow(_cells(row, format_nanos(row.entry.amount_nanos)))
        count += 1
    return count


def write_parquet(rows: Iterable[ExportRow], path: Path) -> int:
    """A Parquet file; `amount` is decimal128(38, 9). How many rows. Raises LedgerError without pyarrow."""
    try:
        import pyarrow as arrow  # an extra: only who uses it needs it
        from pyarrow import parquet
    except ImportError as error:
        raise LedgerError("parquet needs pyarrow: pip install 'tollway[parquet]'") from error
    text, whole = arrow.string(), arrow.int64()
    types = [whole, whole, text, text, whole, text, text, text, whole, arrow.decimal128(38, 9), whole, text]
    schema = arrow.schema(list(zip(COLUMNS, types, strict=True)))
    count = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for group in _groups(rows):
            cells = [_cells(row, Decimal(row.entry.amount_nanos) / _UNIT) for row in group]
            columns = [
                arrow.array(list(column), kind) for column, kind in zip(zip(*cells, strict=True), types, strict=True)
            ]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))
            count += len(group)
    return count


def _cells(row: ExportRow, amount: Any) -> tuple[Any, ...]:
    entry = row.entry
    posted_at = datetime.fromtimestamp(entry.posted_ns // 1_000_000_000, UTC).isoformat()
    return (*entry[:5], posted_at, *entry[5:8], amount, *entry[8:], row.seal)


def _groups(rows: Iterable[ExportRow]) -> Iterable[list[ExportRow]]:
    group: list[ExportRow] = []
    for row in rows:
        group.append(row)
        if len(group) == _GROUP_ROWS:
            yield group
            group = []
    if group:
        yield group
