"""Owns the writing of a batch's calls on SQLite: events in one go, then one sealed journal transaction per tenant.

The common case is that nothing is known yet: `post_fresh` inserts without looking, and the unique key refuses what is.
Then the transaction is rolled back and `post_sorted` looks every event up.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from billing.events import Outcome, Reason
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
from billing.packed import (
    CALL_ID,
    CHARGE_NANOS,
    COMPUTE_NS,
    OUTCOME,
    REASON,
    REPLY_BYTES,
    REQUEST_BYTES,
    ROWS,
    T_NS,
    Facts,
    Packed,
    served_of,
)

_PREPAID: Final = int(Reason.PREPAID)
#: Of each event in turn: log_id, call_id, facet_id, seq, t_ns, rows, compute_ns, request_bytes, reply_bytes,
#: charge_nanos. Flat, as SQLite takes them: a tuple per event would be made only to be taken apart.
Values = list[Any]
_ROW_VALUES: Final = 10
_ROW_TIME: Final = 4
_ROW_FACET: Final = 2
_ROW_CHARGE: Final = 9


def _insert_sql(size: int) -> str:
    """Inserts `size` events. Shared: ?1 tenant, ?2 transaction, ?3 the first event's id, which counts up."""
    rows = []
    for index in range(size):
        log_id, call_id, facet_id, *rest = (f"?{4 + index * _ROW_VALUES + column}" for column in range(_ROW_VALUES))
        key = f"?3+{index},?1,{call_id},{KIND_CALL},0"
        rows.append(f"({key},{facet_id},?2,{log_id},{','.join(rest)})")
    return f"INSERT INTO usage_event VALUES {','.join(rows)}"  # noqa: S608


#: Guarded accounts, whose balance is asked for with every lease: kept beside the entries (whole units and rest).
_WALLETS: Final = "contract_liability:prepaid:"
_UNIT: Final = 1_000_000_000
_MOVE_WALLET: Final = (
    "INSERT INTO wallet_balance VALUES (?, ?, ?) ON CONFLICT (account_id) DO UPDATE SET"
    " units = wallet_balance.units + excluded.units, nanos = wallet_balance.nanos + excluded.nanos"
)
_INSERTS: Final = tuple((size, _insert_sql(size)) for size in (64, 8, 1))

Groups = dict[str, list[Item]]
Conflict = tuple[Item, str]
#: (log_id, tenant, currency) → nanos of prepaid calls that were decided: what leases need not hold any more.
Uses = dict[tuple[int, str, str], int]


class _Sorted(NamedTuple):
    """One tenant's events, told apart from what is already posted."""

    fresh: list[Item]
    exists: int
    conflicts: list[Conflict]
    #: Of those that exist: recorded at a second place, which was not known before.
    again: list[Item]


class _Draft(NamedTuple):
    """One tenant's transaction and the values of its events, before anything is written."""

    transaction: Transaction
    values: Values
    uses: Uses


class _Group:
    """One tenant's part of a batch while it is sorted out."""

    __slots__ = ("records", "tallies", "values")

    def __init__(self) -> None:
        self.values: Values = []
        self.records: list[bytes] = []
        self.tallies: list[_Tally] = []


class _Tally:
    """The calls of one facet in a batch; values and records are those of its tenant's group."""

    __slots__ = ("charges", "facet_id", "facts", "is_prepaid", "outcome", "records", "values")

    def __init__(self, group: _Group, facet_id: int, facts: Facts, outcome: int, *, is_prepaid: bool) -> None:
        self.values = group.values
        self.records = group.records
        self.facet_id = facet_id
        self.facts = facts
        self.outcome = outcome
        self.is_prepaid = is_prepaid
        self.charges: list[int] = []


class Posted(NamedTuple):
    """What became of a batch. `uses`: of what was posted; `again`: records of calls that were posted from elsewhere."""

    groups: tuple[GroupOutcome, ...]
    conflicts: list[Conflict]
    uses: Uses
    again: list[Item]


def post_fresh(db: sqlite3.Connection, names: Names, batch: Batch) -> Posted:
    """Post a batch of which nothing is known yet, inside the caller's transaction.

    Raises sqlite3.IntegrityError when some key is taken; roll the transaction back then and use `post_sorted`.
    """
    drafts = _draft(db, names, batch.posts, batch.now_ns)
    _write(db, names, drafts, batch)
    groups = tuple(
        GroupOutcome(one.transaction.tenant, one.transaction.tx_id, one.transaction.event_count, 0) for one in drafts
    )
    return Posted(groups, [], _all_uses(drafts), [])


def post_sorted(db: sqlite3.Connection, names: Names, batch: Batch) -> Posted:
    """Post any batch, the careful way: every event is looked up first and only fresh ones are posted."""
    groups = {tenant: _sort(db, names, items) for tenant, items in sorted(_by_tenant(batch).items())}
    drafts = _draft(db, names, [item for group in groups.values() for item in group.fresh], batch.now_ns)
    _write(db, names, drafts, batch)
    tx_ids = {one.transaction.tenant: one.transaction.tx_id for one in drafts}
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
    return Posted(
        outcomes,
        [conflict for group in groups.values() for conflict in group.conflicts],
        _all_uses(drafts),
        [item for group in groups.values() for item in group.again],
    )


def _by_tenant(batch: Batch) -> Groups:
    groups: Groups = {}
    for item in batch.posts:
        groups.setdefault(item[2].tenant, []).append(item)
    return groups


def _write(db: sqlite3.Connection, names: Names, drafts: Sequence[_Draft], batch: Batch) -> None:
    for tx, values, _ in drafts:
        _insert_events(db, tx, names.tenant(tx.tenant), values)
    seal_all(db, names, [one.transaction for one in drafts])
    _note_endings(db, batch)


def _insert_events(db: sqlite3.Connection, tx: Transaction, tenant_id: int, values: Values) -> None:
    """Many rows a statement: a quarter cheaper than one by one, and what they share is bound once."""
    at, count = 0, tx.event_count
    for size, statement in _INSERTS:
        while count - at >= size:
            part = values[at * _ROW_VALUES : (at + size) * _ROW_VALUES]
            db.execute(statement, [tenant_id, tx.tx_id, tx.first_event_id + at, *part])
            at += size


def _sort(db: sqlite3.Connection, names: Names, items: Sequence[Item]) -> _Sorted:
    """Tell `items` of one tenant apart: fresh, known and the same, known and different."""
    fresh: dict[bytes, Item] = {}
    exists, conflicts, again = 0, list[Conflict](), list[Item]()
    for item in items:
        source, seq, served = item
        stored = find_event(db, served)
        first: Item | None
        if stored is not None:
            first = (stored.source, stored.seq, stored.served)
        else:
            first = fresh.get(served.call_id)
        if first is None:
            fresh[served.call_id] = item
            continue
        field = differing_field(served_of(first[2]), served_of(served))
        if field is not None:
            conflicts.append((item, field))
            continue
        exists += 1
        if first[:2] != (source, seq) and _note_duplicate(db, names, item):
            again.append(item)
    return _Sorted(list(fresh.values()), exists, conflicts, again)


def _draft(db: sqlite3.Connection, names: Names, items: Sequence[Item], posted_ns: int) -> list[_Draft]:
    """Number, hash and add up the events of `items` by tenant; interns names, writes nothing else."""
    (event_id,) = db.execute("SELECT COALESCE(MAX(event_id), 0) + 1 FROM usage_event").fetchone()
    (tx_id,) = db.execute("SELECT COALESCE(MAX(tx_id), 0) + 1 FROM seal").fetchone()
    drafts: list[_Draft] = []
    for tenant, group in sorted(_sort_out(names, items).items()):
        tx = _transaction(tenant, group, tx_id, event_id, posted_ns)
        drafts.append(_Draft(tx, group.values, _uses(tenant, group)))
        tx_id, event_id = tx_id + 1, event_id + tx.event_count
    return drafts


def _sort_out(names: Names, items: Sequence[Item]) -> dict[str, _Group]:
    """The values, records and sums of `items` by tenant.

    This loop is most of what a call costs here, so it does no more than it must: one look-up by outcome, reason and
    facts finds the lists to add to, and sums are taken of whole lists.
    """
    groups: dict[str, _Group] = {}
    tallies: dict[int, _Tally] = {}
    log_id = 0
    source_before: object = None
    for item in items:
        source, call = item[0], item[2]
        if source is not source_before:
            log_id, source_before = names.log(source), source
        packed = call if type(call) is Packed else names.pack(served_of(call))
        fields, facts = packed.fields, packed.facts
        outcome: int = fields[OUTCOME]
        reason: int = fields[REASON]
        key = facts.number | outcome << 7 | reason
        tally = tallies.get(key)
        if tally is None:
            tally = tallies[key] = _open_tally(names, groups, facts, outcome, reason)
        tally.values.extend(
            (
                log_id,
                fields[CALL_ID],
                tally.facet_id,
                item[1],
                fields[T_NS],
                fields[ROWS],
                fields[COMPUTE_NS],
                fields[REQUEST_BYTES],
                fields[REPLY_BYTES],
                fields[CHARGE_NANOS],
            )
        )
        tally.records.append(packed.payload)
        tally.charges.append(fields[CHARGE_NANOS])
    return groups


def _open_tally(names: Names, groups: dict[str, _Group], facts: Facts, outcome: int, reason: int) -> _Tally:
    group = groups.get(facts.tenant)
    if group is None:
        group = groups[facts.tenant] = _Group()
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
    tally = _Tally(group, names.facet(facet), facts, outcome, is_prepaid=reason == _PREPAID)
    group.tallies.append(tally)
    return tally


def _transaction(tenant: str, group: _Group, tx_id: int, first_event_id: int, posted_ns: int) -> Transaction:
    totals: dict[tuple[str, str], tuple[int, int]] = {}
    wallet: dict[str, tuple[int, int]] = {}
    for tally in group.tallies:
        facts, charges = tally.facts, tally.charges
        amount, calls = totals.get((facts.model, facts.currency), (0, 0))
        totals[facts.model, facts.currency] = (amount + sum(charges), calls + len(charges))
        if tally.is_prepaid:
            amount, calls = wallet.get(facts.currency, (0, 0))
            wallet[facts.currency] = (amount + sum(charges), calls + len(charges))
    times = group.values[_ROW_TIME::_ROW_VALUES]
    return Transaction(
        tx_id=tx_id,
        kind=TX_USAGE,
        tenant=tenant,
        posted_ns=posted_ns,
        first_event_id=first_event_id,
        event_count=len(times),
        ok_count=sum(len(tally.charges) for tally in group.tallies if tally.outcome == Outcome.OK),
        t_min_ns=min(times),
        t_max_ns=max(times),
        leaf_version=LEAF_VERSION,
        merkle_root=merkle_root(blocks_of(group.records)),
        lines=usage_lines(tenant, totals, wallet),
    )


def _uses(tenant: str, group: _Group) -> Uses:
    """What prepaid calls of a group cost, by the log that recorded them. Nothing to walk without such calls."""
    uses: Uses = {}
    for tally in group.tallies:
        if not tally.is_prepaid:
            continue
        values, facet_id, currency = group.values, tally.facet_id, tally.facts.currency
        for at in range(0, len(values), _ROW_VALUES):
            if values[at + _ROW_FACET] == facet_id:
                key = (values[at], tenant, currency)
                uses[key] = uses.get(key, 0) + values[at + _ROW_CHARGE]
    return uses


def _all_uses(drafts: Sequence[_Draft]) -> Uses:
    return {key: nanos for one in drafts for key, nanos in one.uses.items()}


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
        for line in tx.lines:
            if line.account.startswith(_WALLETS):
                account_id = names.account(line.account, line.currency)
                db.execute(_MOVE_WALLET, (account_id, *divmod(line.amount_nanos, _UNIT)))


def _note_duplicate(db: sqlite3.Connection, names: Names, item: Item) -> bool:
    """The same event was recorded at a second place: nothing is posted, but the count of records must still add up.

    True: the place is new.
    """
    source, seq, served = item
    noted = db.execute(
        "INSERT INTO duplicate VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (names.log(source), seq, names.tenant(served.tenant), served.call_id),
    )
    return bool(noted.rowcount)


def _note_endings(db: sqlite3.Connection, batch: Batch) -> None:
    if not batch.endings:
        return
    for source, seq, served in batch.posts:
        ending = batch.endings.get((source, seq))
        stored = find_event(db, served) if ending is not None else None
        if ending is not None and stored is not None and (stored.source, stored.seq) == (source, seq):
            db.execute("INSERT INTO ended VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (stored.event_id, *ending))
