"""Owns the audit trail: who changed what and when, append-only and chained by hashes.

Row n's hash covers its fields and row n-1's hash, so a removed, altered or inserted row breaks every later one. The
rows hold views (`gateway.control.views`), which never contain a secret or a digest.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from gateway.control.schema import audit

GENESIS: Final = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """`broken_seq` is the first row whose hash does not fit; None when the chain holds."""

    rows: int
    head: str
    broken_seq: int | None

    @property
    def is_ok(self) -> bool:
        return self.broken_seq is None


def append_audit(
    tx: sa.Connection, *, at_ns: int, actor: str, action: str, subject: str, before: object, after: object
) -> None:
    """Add one row within the transaction of the change it tells about."""
    last = tx.execute(sa.select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)).one_or_none()
    seq, previous = (last.seq + 1, last.hash) if last else (1, GENESIS)
    values = {
        "seq": seq,
        "at_ns": at_ns,
        "actor": actor,
        "action": action,
        "subject": subject,
        "before": _text(before),
        "after": _text(after),
    }
    tx.execute(audit.insert().values(**values, previous_hash=previous, hash=row_hash(previous, values)))


def row_hash(previous: bytes, values: dict[str, Any]) -> bytes:
    """SHA-256 over the hash before and the row's fields as canonical JSON."""
    return hashlib.sha256(previous + msgspec.json.encode(values, order="sorted")).digest()


def list_audit(tx: sa.Connection, *, after_seq: int, limit: int) -> list[dict[str, Any]]:
    """Rows after `after_seq` in their order; `before` and `after` decoded."""
    rows = tx.execute(sa.select(audit).where(audit.c.seq > after_seq).order_by(audit.c.seq).limit(limit)).mappings()
    return [
        {
            **{name: row[name] for name in ("seq", "at_ns", "actor", "action", "subject")},
            "before": _value(row["before"]),
            "after": _value(row["after"]),
            "hash": row["hash"].hex(),
        }
        for row in rows
    ]


def verify_audit(tx: sa.Connection) -> AuditReport:
    """Recompute the whole chain. The head is what an outside witness should keep: only it shows a cut tail."""
    previous, expected_seq = GENESIS, 1
    for row in tx.execute(sa.select(audit).order_by(audit.c.seq)).mappings():
        values = {name: row[name] for name in ("seq", "at_ns", "actor", "action", "subject", "before", "after")}
        fits = row["previous_hash"] == previous and row["hash"] == row_hash(previous, values)
        if row["seq"] != expected_seq or not fits:
            return AuditReport(rows=expected_seq - 1, head=previous.hex(), broken_seq=row["seq"])
        previous, expected_seq = row["hash"], expected_seq + 1
    return AuditReport(rows=expected_seq - 1, head=previous.hex(), broken_seq=None)


def _text(value: object) -> str | None:
    return None if value is None else msgspec.json.encode(value, order="sorted").decode()


def _value(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)
