"""Owns the way back from stored rows to the `Served` records they were made of: look-ups by key and range reads."""

import sqlite3
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from billing.events import Served
from billing.ledger.port import KIND_CALL, Source
from billing.packed import Call

EVENT_SELECT: Final = (
    "SELECT e.event_id, e.tx_id, l.instance, l.epoch, e.seq, e.call_id, t.name, f.key_id, f.plan, f.model,"
    " f.model_version, f.price_version, e.t_ns, f.outcome, f.reason, e.rows, e.compute_ns, e.request_bytes,"
    " e.reply_bytes, e.charge_nanos, f.currency, f.protocol FROM usage_event e JOIN tenant t USING (tenant_id)"
    " JOIN facet f USING (facet_id) JOIN log l USING (log_id)"
)
_WITH_KEY = (
    " WHERE e.tenant_id = (SELECT tenant_id FROM tenant WHERE name = ?) AND e.call_id = ? AND e.kind = ? AND e.n = 0"
)
_BY_KEY: Final = EVENT_SELECT + _WITH_KEY
_BY_RANGE: Final = f"{EVENT_SELECT} WHERE e.event_id >= ? AND e.event_id < ? ORDER BY e.event_id"


class StoredEvent(NamedTuple):
    """A posted event: its row, its transaction, where it was recorded, and the record itself."""

    event_id: int
    tx_id: int
    source: Source
    seq: int
    served: Served


def event_from_row(row: tuple[Any, ...]) -> StoredEvent:
    """The event in a row of EVENT_SELECT."""
    event_id, tx_id, instance, epoch, seq, call_id, tenant, key_id, plan, model, model_version, price_version = row[:12]
    t_ns, outcome, reason, rows, compute_ns, request_bytes, reply_bytes, charge_nanos, currency, protocol = row[12:]
    served = Served(
        call_id=call_id,
        tenant=tenant,
        key_id=key_id,
        plan=plan,
        model=model,
        model_version=model_version,
        price_version=price_version,
        t_ns=t_ns,
        outcome=outcome,
        reason=reason,
        rows=rows,
        compute_ns=compute_ns,
        request_bytes=request_bytes,
        reply_bytes=reply_bytes,
        charge_nanos=charge_nanos,
        currency=currency,
        protocol=protocol,
    )
    return StoredEvent(event_id, tx_id, Source(instance, epoch), seq, served)


def find_event(db: sqlite3.Connection, call: Call) -> StoredEvent | None:
    """The posted event that has the key of `call` (tenant, call_id, kind "call", n 0)."""
    row = db.execute(
        _BY_KEY,
        (call.tenant, call.call_id, KIND_CALL),
    ).fetchone()
    return None if row is None else event_from_row(row)


def read_events(db: sqlite3.Connection, first_event_id: int, count: int) -> Iterator[StoredEvent]:
    """The events [first, first + count) in id order."""
    rows = db.execute(
        _BY_RANGE,
        (first_event_id, first_event_id + count),
    )
    return map(event_from_row, rows)
