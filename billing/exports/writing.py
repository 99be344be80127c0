"""Owns the writing of an export file: whole or not at all, under its name only when it is complete."""

import os
import sqlite3
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Literal

from billing.exports.beancount import beancount_lines
from billing.exports.rows import Selection, export_rows
from billing.exports.tables import write_csv, write_parquet

Format = Literal["beancount", "csv", "parquet"]


def write_export(db: sqlite3.Connection, selection: Selection, form: Format, path: Path) -> int:
    """Write the ledger's `selection` to `path` (mode 600), replacing what was there; how many entries.

    Raises LedgerError (an account outside the chart, pyarrow missing), OSError, sqlite3.Error.
    """
    made = path.with_name(f".{path.name}.{os.getpid()}.new")
    os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
    try:
        written = _write(db, selection, form, made)
        made.rename(path)
    except BaseException:
        with suppress(FileNotFoundError):
            made.unlink()
        raise
    return written


def _write(db: sqlite3.Connection, selection: Selection, form: Format, path: Path) -> int:
    rows = export_rows(db, selection)
    if form == "parquet":
        return write_parquet(rows, path)
    with path.open("w", encoding="utf-8", newline="") as out:
        if form == "csv":
            return write_csv(rows, out)
        counter = count(0)
        # zip takes a row first and then a number: at the end no number is taken too many.
        out.writelines(f"{line}\n" for line in beancount_lines(row for row, _ in zip(rows, counter, strict=False)))
        return next(counter)
