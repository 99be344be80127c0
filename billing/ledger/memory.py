"""Owns `MemoryLedger`: the in-memory twin of the ledger, same outcomes and chain, for tests and simulations."""

from collections.abc import Sequence

from billing.events import Outcome, Served
from billing.ledger.merkle import LEAF_VERSION, leaves_of, merkle_root
from billing.ledger.port import (
    BATCH_EVENTS_MAX,
    Batch,
    Ending,
    GroupOutcome,
    Item,
    LedgerError,
    LedgerState,
    Position,
    PostReport,
    PriceBookConflict,
    Rejected,
    Source,
)
from billing.ledger.rules import (
    GENESIS,
    TX_USAGE,
    Transaction,
    differing_field,
    totals_of,
    transaction_hash,
    usage_lines,
)
from billing.packed import served_of
from billing.rating import PriceBook, compile_book

Key = tuple[str, bytes]
Place = tuple[Source, int]


class MemoryLedger:
    """The `Ledger` of `memory://`. Its parts are open to tests; nothing here is durable."""

    def __init__(self) -> None:
        self.events: dict[Key, Item] = {}
        self.transactions: list[Transaction] = []
        self.voided: dict[Place, Served] = {}
        self.quarantined: dict[Place, Rejected] = {}
        self.duplicates: dict[Place, Key] = {}
        self.endings: dict[Key, Ending] = {}
        self._positions: dict[Source, Position] = {}
        self._books: dict[int, PriceBook] = {}
        self._head = GENESIS

    def post(self, batch: Batch) -> PostReport:
        if len(batch.posts) > BATCH_EVENTS_MAX:
            raise LedgerError(f"a batch of {len(batch.posts)} events is over the limit of {BATCH_EVENTS_MAX}")
        groups: dict[str, list[Item]] = {}
        for item in batch.posts:
            groups.setdefault(item[2].tenant, []).append(item)
        before = len(self.quarantined)
        outcomes = tuple(self._post_group(tenant, items, batch) for tenant, items in sorted(groups.items()))
        for rejected in batch.rejected:
            self.quarantined.setdefault(rejected.item[:2], rejected)
        voided = sum(self._void(item) for item in batch.voids)
        for source, position in batch.positions.items():
            known = self._positions.get(source, Position(-1, 0))
            if position.seq > known.seq or position.is_ended > known.is_ended:
                self._positions[source] = position
        posted = sum(group.posted for group in outcomes)
        return PostReport(outcomes, posted, voided, len(self.quarantined) - before)

    def state(self) -> LedgerState:
        return LedgerState(
            dict(self._positions),
            len(self.events),
            len(self.voided),
            len(self.quarantined),
            len(self.transactions),
            self._head,
        )

    def prices(self, book: PriceBook | None = None) -> dict[int, PriceBook]:
        if book is not None:
            compile_book(book)
            if self._books.setdefault(book.version, book) != book:
                raise PriceBookConflict(
                    f"price book version {book.version} is already in use with other content; raise `version`"
                )
        return dict(self._books)

    def counts(self, windows: Sequence[tuple[str, int]]) -> list[int]:
        return [
            sum(
                served.tenant == tenant and served.t_ns >= since_ns and served.outcome == Outcome.OK
                for _, _, served in self.events.values()
            )
            for tenant, since_ns in windows
        ]

    def close(self) -> None:
        """Nothing to release."""

    def _post_group(self, tenant: str, items: Sequence[Item], batch: Batch) -> GroupOutcome:
        fresh: list[Item] = []
        conflicts: list[tuple[bytes, str]] = []
        first_event_id = len(self.events) + 1
        for item in items:
            source, seq, served = item
            key = (tenant, served.call_id)
            known = self.events.setdefault(key, item)
            if known is item:
                fresh.append(item)
            elif (field := differing_field(served_of(known[2]), served_of(served))) is not None:
                conflicts.append((served.call_id, field))
                self.quarantined.setdefault((source, seq), Rejected(item, "exists_with_different", field))
            elif known[:2] != (source, seq):
                self.duplicates.setdefault((source, seq), key)
            ending = batch.endings.get((source, seq))
            if ending is not None and known[:2] == (source, seq):
                self.endings.setdefault(key, ending)
        tx_id = self._seal(tenant, fresh, first_event_id, batch.now_ns) if fresh else None
        return GroupOutcome(tenant, tx_id, len(fresh), len(items) - len(fresh) - len(conflicts), tuple(conflicts))

    def _seal(self, tenant: str, fresh: Sequence[Item], first_event_id: int, now_ns: int) -> int:
        records = [served_of(call) for _, _, call in fresh]
        totals, wallet = totals_of(records)
        tx = Transaction(
            tx_id=len(self.transactions) + 1,
            kind=TX_USAGE,
            tenant=tenant,
            posted_ns=now_ns,
            first_event_id=first_event_id,
            event_count=len(records),
            ok_count=sum(served.outcome == Outcome.OK for served in records),
            t_min_ns=min(served.t_ns for served in records),
            t_max_ns=max(served.t_ns for served in records),
            leaf_version=LEAF_VERSION,
            merkle_root=merkle_root(leaves_of(LEAF_VERSION, records)),
            lines=usage_lines(tenant, totals, wallet),
        )
        self.transactions.append(tx)
        self._head = transaction_hash(self._head, tx)
        return tx.tx_id

    def _void(self, item: Item) -> bool:
        source, seq, served = item
        posted = self.events.get((served.tenant, served.call_id))
        if (posted is not None and posted[:2] == (source, seq)) or (source, seq) in self.voided:
            return False
        self.voided[(source, seq)] = served_of(served)
        return True
