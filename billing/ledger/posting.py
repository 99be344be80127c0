"""Owns the writing of a batch's calls on SQLite: events in one go, then one sealed journal transaction per tenant.

The common case is that nothing is known yet: `post_fresh` inserts without looking, and the unique key refuses what is.
Then the transaction is rolled back and `post_sorted` looks every event up.
"""

import sqlite3
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final, NamedTuple

from billing.events import Outcome
from billing.ledger.merkle import LEAF_VERSION, blocks_of, merkle_root
from billing.ledger.names import Facet, Names
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
from billing.packed import Facts, Packed, served_of

#: log_id, call_id, facet_id, seq, t_ns, rows, compute_ns, request_bytes, reply_bytes, charge_nanos of one event.
Row = tuple[int, bytes, int, int, int, int, int, int, int, int]
_ROW_VALUES: Final = 10
_ROW_TIME: Final = 4


def _insert_sql(size: int) -> str:
    """Inserts `size` events. Shared: ?1 tenant, ?2 transaction, ?3 the first event's id, which counts up."""
    rows = []
    for index in range(size):
        log_id, call_id, facet_id, *rest = (f"?{4 + index * _ROW_VALUES + column}" for column in range(_ROW_VALUES))
        key = f"?3+{index},?1,{call_id},{KIND_CALL},0"
        rows.append(f"({key},{facet_id},?2,{log_id},{','.join(rest)})")
    return f"INSERT INTO usage_event VALUES {','.join(rows)}"  # noqa: S608


_INSERTS: Final = tuple((size, _insert_sql(size)) for size in (64, 8, 1))

Groups = dict[str, list[Item]]
Conflict = tuple[Item, str]


class _Sorted(NamedTuple):
    """One tenant's events, told apart from what is already posted."""

    fresh: list[Item]
    exists: int
    conflicts: list[Conflict]


class _Draft(NamedTuple):
    """One tenant's transaction and the rows of its events, before anything is written."""

    transaction: Transaction
    rows: list[Row]


class _Tally(NamedTuple):
    """The calls of one facet in a batch; the rows are shared by all of a tenant's tallies."""

    facet_id: int
    facts: Facts
    outcome: int
    charges: list[int]


class _Group(NamedTuple):
    """One tenant's part of a batch while it is sorted out."""

    rows: list[Row]
    records: list[bytes]
    tallies: list[_Tally]


#: facet id, and what appends to a tally's row, record and charge lists.
_Adders = tuple[int, Callable[[Row], None], Callable[[bytes], None], Callable[[int], None]]

Posted = tuple[tuple[GroupOutcome, ...], list[Conflict]]


def post_fresh(db: sqlite3.Connection, names: Names, batch: Batch) -> Posted:
    """Post a batch of which nothing is known yet, inside the caller's transaction.

    Raises sqlite3.IntegrityError when some key is taken; roll the transaction back then and use `post_sorted`.
    """
    drafts = _draft(db, names, batch.posts, batch.now_ns)
    _write(db, names, drafts, batch)
    return tuple(GroupOutcome(tx.tenant, tx.tx_id, tx.event_count, 0) for tx, _ in drafts), []


def post_sorted(db: sqlite3.Connection, names: Names, batch: Batch) -> Posted:
    """Post any batch, the careful way: every event is looked up first and only fresh ones are posted."""
    groups = {tenant: _sort(db, names, items) for tenant, items in sorted(_by_tenant(batch).items())}
    drafts = _draft(db, names, [item for group in groups.values() for item in group.fresh], batch.now_ns)
    _write(db, names, drafts, batch)
    tx_ids = {tx.tenant: tx.tx_id for tx, _ in drafts}
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


def _write(db: sqlite3.Connection, names: Names, drafts: Sequence[_Draft], batch: Batch) -> None:
    for tx, rows in drafts:
        _insert_events(db, tx, names.tenant(tx.tenant), rows)
    seal_all(db, names, [tx for tx, _ in drafts])
    _note_endings(db, batch)


def _insert_events(db: sqlite3.Connection, tx: Transaction, tenant_id: int, rows: Sequence[Row]) -> None:
    """Many rows a statement: a quarter cheaper than one by one, and what they share is bound once."""
    values, at = list(chain.from_iterable(rows)), 0
    for size, statement in _INSERTS:
        while len(rows) - at >= size:
            part = values[at * _ROW_VALUES : (at + size) * _ROW_VALUES]
            db.execute(statement, (tenant_id, tx.tx_id, tx.first_event_id + at, *part))
            at += size


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
        field = differing_field(served_of(first[2]), served_of(served))
        if field is not None:
            conflicts.append((item, field))
            continue
        exists += 1
        if first[:2] != (source, seq):
            _note_duplicate(db, names, item)
    return _Sorted(list(fresh.values()), exists, conflicts)


def _draft(db: sqlite3.Connection, names: Names, items: Sequence[Item], posted_ns: int) -> list[_Draft]:
    """Number, hash and add up the events of `items` by tenant; interns names, writes nothing else."""
    (event_id,) = db.execute("SELECT COALESCE(MAX(event_id), 0) + 1 FROM usage_event").fetchone()
    (tx_id,) = db.execute("SELECT COALESCE(MAX(tx_id), 0) + 1 FROM seal").fetchone()
    drafts: list[_Draft] = []
    for tenant, group in sorted(_sort_out(names, items).items()):
        drafts.append(_Draft(_transaction(tenant, group, tx_id, event_id, posted_ns), group.rows))
        tx_id, event_id = tx_id + 1, event_id + len(group.rows)
    return drafts


def _sort_out(names: Names, items: Sequence[Item]) -> dict[str, _Group]:
    """The rows, records and sums of `items` by tenant.

    This loop is most of what a call costs here, so it does no more than it must: one look-up by outcome, reason and
    facts finds the lists to add to, and sums are taken of whole lists.
    """
    groups: dict[str, _Group] = {}
    adders: dict[int, _Adders] = {}
    log_id, source_before = 0, None
    for source, seq, call in items:
        if source is not source_before:
            log_id, source_before = names.log(source), source
        packed = call if type(call) is Packed else names.pack(served_of(call))
        _, call_id, _, _, t_ns, outcome, reason, _, rows, _, compute_ns, _, asked, _, replied, _, charge, _ = (
            packed.fields
        )
        key = packed.facts.number | outcome << 7 | reason
        found = adders.get(key)
        if found is None:
            found = adders[key] = _open_tally(names, groups, packed.facts, outcome, reason)
        facet_id, add_row, add_record, add_charge = found
        add_row((log_id, call_id, facet_id, seq, t_ns, rows, compute_ns, asked, replied, charge))
        add_record(packed.payload)
        add_charge(charge)
    return groups


def _open_tally(names: Names, groups: dict[str, _Group], facts: Facts, outcome: int, reason: int) -> _Adders:
    group = groups.get(facts.tenant)
    if group is None:
        group = groups[facts.tenant] = _Group([], [], [])
    facet: Facet = (
        facts.key_id,
        facts.plan,
        facts.model,
        facts.model_version,
        facts.price_version,
        outcome,
        reason,
        facts.currency,
        facts.protocol,
    )
    tally = _Tally(names.facet(facet), facts, outcome, [])
    group.tallies.append(tally)
    return tally.facet_id, group.rows.append, group.records.append, tally.charges.append


def _transaction(tenant: str, group: _Group, tx_id: int, first_event_id: int, posted_ns: int) -> Transaction:
    totals: dict[tuple[str, str], tuple[int, int]] = {}
    for _, facts, _, charges in group.tallies:
        amount, calls = totals.get((facts.model, facts.currency), (0, 0))
        totals[facts.model, facts.currency] = (amount + sum(charges), calls + len(charges))
    times = [row[_ROW_TIME] for row in group.rows]
    return Transaction(
        tx_id=tx_id,
        kind=TX_USAGE,
        tenant=tenant,
        posted_ns=posted_ns,
        first_event_id=first_event_id,
        event_count=len(group.rows),
        ok_count=sum(len(tally.charges) for tally in group.tallies if tally.outcome == Outcome.OK),
        t_min_ns=min(times),
        t_max_ns=max(times),
        leaf_version=LEAF_VERSION,
        merkle_root=merkle_root(blocks_of(group.records)),
        lines=usage_lines(tenant, totals),
    )


def seal_all(db: sqlite3.Connection, names: Names, transactions: Sequence[Transaction]) -> None:
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
