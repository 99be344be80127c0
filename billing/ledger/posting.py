"""Owns the writing of a batch's calls on SQLite: events in one go, then one sealed journal transaction per tenant.

The common case is that nothing is known yet: `post_fresh` inserts without looking, and the unique key refuses what is.
Then the transaction is rolled back and `post_sorted` looks every event up.
"""

import sqlite3
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from billing.events import Outcome
from billing.ledger.merkle import LEAF_VERSION, leaf_bytes, root_of
from billing.ledger.names import FACET_CURRENCY, FACET_MODEL, FACET_OUTCOME, Facet, Names
from billing.ledger.port import KIND_CALL, Batch, GroupOutcome, Item
from billing.ledger.rules import (
    GENESIS,
    TX_USAGE,
    Transaction,
    differing_field,
    transaction_hash,
    usage_lines,
)
from billing.ledger.stored import find_event

_INSERT_EVENT = "INSERT INTO usage_event VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

Groups = dict[str, list[Item]]
Conflict = tuple[Item, str]


class _Sorted(NamedTuple):
    """One tenant's events, told apart from what is already posted."""

    fresh: list[Item]
    exists: int
    conflicts: list[Conflict]


class _Drafted(NamedTuple):
    """Rows of all groups and the transactions over them, before anything is written."""

    rows: list[tuple[object, ...]]
    transactions: list[Transaction]


Posted = tuple[tuple[GroupOutcome, ...], list[Conflict]]


def post_fresh(db: sqlite3.Connection, names: Names, batch: Batch) -> Posted:
    """Post a batch of which nothing is known yet, inside the caller's transaction.

    Raises sqlite3.IntegrityError when some key is taken; roll the transaction back then and use `post_sorted`.
    """
    drafted = _draft(db, names, _by_tenant(batch), batch.now_ns)
    _write(db, names, drafted, batch)
    return tuple(GroupOutcome(tx.tenant, tx.tx_id, tx.event_count, 0) for tx in drafted.transactions), []


def post_sorted(db: sqlite3.Connection, names: Names, batch: Batch) -> Posted:
    """Post any batch, the careful way: every event is looked up first and only fresh ones are posted."""
    groups = {tenant: _sort(db, names, items) for tenant, items in sorted(_by_tenant(batch).items())}
    fresh = {tenant: group.fresh for tenant, group in groups.items() if group.fresh}
    drafted = _draft(db, names, fresh, batch.now_ns)
    _write(db, names, drafted, batch)
    tx_ids = {tx.tenant: tx.tx_id for tx in drafted.transactions}
    outcomes = tuple(
        GroupOutcome(
            tenant,
            tx_ids.get(tenant),
            len(group.fresh),
            group.exists,
            tuple((item[2].call_id, field) for item, field in group.conflicts),
        )
        for tenant, group in groups.items()
    )
    return outcomes, [conflict for group in groups.values() for conflict in group.conflicts]


def _by_tenant(batch: Batch) -> Groups:
    groups: Groups = {}
    for item in batch.posts:
        groups.setdefault(item[2].tenant, []).append(item)
    return groups


def _write(db: sqlite3.Connection, names: Names, drafted: _Drafted, batch: Batch) -> None:
    db.executemany(_INSERT_EVENT, drafted.rows)
    _seal_all(db, names, drafted.transactions)
    _note_endings(db, batch)


def _sort(db: sqlite3.Connection, names: Names, items: Sequence[Item]) -> _Sorted:
    """Tell `items` of one tenant apart: fresh, known and the same, known and different."""
    fresh: dict[bytes, Item] = {}
    exists, conflicts = 0, []
    for item in items:
        source, seq, served = item
        stored = find_event(db, served)
        if stored is not None:
            first: Item = (stored.source, stored.seq, stored.served)
        else:
            first = fresh.setdefault(served.call_id, item)
            if first is item:
                continue
        field = differing_field(first[2], served)
        if field is not None:
            conflicts.append((item, field))
            continue
        exists += 1
        if first[:2] != (source, seq):
            _note_duplicate(db, names, item)
    return _Sorted(list(fresh.values()), exists, conflicts)


def _draft(db: sqlite3.Connection, names: Names, groups: Groups, posted_ns: int) -> _Drafted:
    """Number, hash and add up the events of `groups`; interns names, writes nothing else."""
    (event_id,) = db.execute("SELECT COALESCE(MAX(event_id), 0) + 1 FROM usage_event").fetchone()
    (tx_id,) = db.execute("SELECT COALESCE(MAX(tx_id), 0) + 1 FROM seal").fetchone()
    drafted = _Drafted([], [])
    for tenant, items in sorted(groups.items()):
        drafted.transactions.append(_draft_group(names, drafted.rows, tenant, items, (tx_id, event_id, posted_ns)))
        tx_id, event_id = tx_id + 1, event_id + len(items)
    return drafted


def _draft_group(
    names: Names, rows: list[tuple[object, ...]], tenant: str, items: Sequence[Item], start: tuple[int, int, int]
) -> Transaction:
    """Append the rows of one tenant's events to `rows` and return the transaction over them.

    This loop is most of what a call costs here; look-ups are bound outside it.
    """
    tx_id, first_event_id, posted_ns = start
    tenant_id, facets, log_id, source_before = names.tenant(tenant), names.facets, 0, None
    leaves: list[bytes] = []
    times: list[int] = []
    sums: dict[Facet, list[int]] = {}
    event_id = first_event_id
    for source, seq, s in items:
        if source is not source_before:
            log_id, source_before = names.log(source), source
        # Written out (see names.facet_of): a call per call is what this loop can do without.
        facet = (
            s.key_id,
            s.plan,
            s.model,
            s.model_version,
            s.price_version,
            s.outcome,
            s.reason,
            s.currency,
            s.protocol,
        )
        facet_id = facets.get(facet) or names.facet(facet)
        t_ns, charge_nanos = s.t_ns, s.charge_nanos
        rows.append(
            (
                event_id,
                tenant_id,
                s.call_id,
                KIND_CALL,
                0,
                facet_id,
                tx_id,
                log_id,
                seq,
                t_ns,
                s.rows,
                s.compute_ns,
                s.request_bytes,
                s.reply_bytes,
                charge_nanos,
            )
        )
        leaves.append(sha256(b"\x00" + leaf_bytes(s)).digest())
        times.append(t_ns)
        total = sums.get(facet)
        if total is None:
            sums[facet] = [charge_nanos, 1]
        else:
            total[0] += charge_nanos
            total[1] += 1
        event_id += 1
    return Transaction(
        tx_id=tx_id,
        kind=TX_USAGE,
        tenant=tenant,
        posted_ns=posted_ns,
        first_event_id=first_event_id,
        event_count=len(items),
        ok_count=sum(calls for facet, (_, calls) in sums.items() if facet[FACET_OUTCOME] == Outcome.OK),
        t_min_ns=min(times),
        t_max_ns=max(times),
        leaf_version=LEAF_VERSION,
        merkle_root=root_of(leaves),
        lines=usage_lines(tenant, _by_model(sums)),
    )


def _by_model(sums: dict[Facet, list[int]]) -> dict[tuple[str, str], tuple[int, int]]:
    totals: dict[tuple[str, str], tuple[int, int]] = {}
    for facet, (amount, calls) in sums.items():
        key = (str(facet[FACET_MODEL]), str(facet[FACET_CURRENCY]))
        before = totals.get(key, (0, 0))
        totals[key] = (before[0] + amount, before[1] + calls)
    return totals


def _seal_all(db: sqlite3.Connection, names: Names, transactions: Sequence[Transaction]) -> None:
    """Write transactions, their entries, and the seals that check and chain them."""
    row = db.execute("SELECT hash FROM seal ORDER BY tx_id DESC LIMIT 1").fetchone()
    head = row[0] if row else GENESIS
    for tx in transactions:
        db.execute(
            "INSERT INTO journal_tx VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                tx.tx_id,
                tx.kind,
                names.tenant(tx.tenant),
                tx.posted_ns,
                tx.first_event_id,
                tx.event_count,
                tx.ok_count,
                tx.t_min_ns,
                tx.t_max_ns,
                tx.leaf_version,
                tx.merkle_root,
            ),
        )
        db.executemany(
            "INSERT INTO entry VALUES (?, ?, ?, ?, ?)",
            [
                (tx.tx_id, index, names.account(line.account, line.currency), line.amount_nanos, line.calls)
                for index, line in enumerate(tx.lines)
            ],
        )
        head = transaction_hash(head, tx)
        db.execute("INSERT INTO seal VALUES (?, ?)", (tx.tx_id, head))


def _note_duplicate(db: sqlite3.Connection, names: Names, item: Item) -> None:
    """The same event was recorded at a second place: nothing is posted, but the count of records must still add up."""
    source, seq, served = item
    db.execute(
        "INSERT INTO duplicate VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (names.log(source), seq, names.tenant(served.tenant), served.call_id),
    )


def _note_endings(db: sqlite3.Connection, batch: Batch) -> None:
    if not batch.endings:
        return
    for source, seq, served in batch.posts:
        ending = batch.endings.get((source, seq))
        stored = find_event(db, served) if ending is not None else None
        if ending is not None and stored is not None and (stored.source, stored.seq) == (source, seq):
            db.execute("INSERT INTO ended VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (stored.event_id, *ending))
