"""Owns the making of heads and receipts from the ledger. Reads only; short queries.

The tree is computed from the stored transactions each time: a head of a million transactions takes a few seconds, and
nothing has to be kept that could come to differ from the books.
"""

import sqlite3
from collections.abc import Sequence
from typing import Final, NamedTuple

from billing.ledger.merkle import BLOCK_RECORDS, LEAF_VERSION, blocks_of, inclusion_path, leaf_hash, root_of
from billing.ledger.port import LedgerError
from billing.ledger.rules import TX_USAGE
from billing.ledger.stored import read_events
from billing.ledger.views import find_events
from billing.packed import Packer
from billing.receipts.heads import sign_head
from billing.receipts.keys import Signer
from billing.receipts.receipt import Head, Receipt, transaction_leaf


class UsageTransaction(NamedTuple):
    """A usage transaction as its tenant's tree sees it."""

    tx_id: int
    first_event_id: int
    event_count: int
    leaf_version: int
    merkle_root: bytes


def make_head(db: sqlite3.Connection, tenant: str, signer: Signer, now_ns: int) -> Head:
    """A head over all of the tenant's usage transactions posted now; of size 0 for a tenant without any."""
    return _head(tenant, tenant_leaves(db, tenant), signer, now_ns)


def make_receipt(db: sqlite3.Connection, tenant: str, call_id: bytes, signer: Signer, now_ns: int) -> Receipt | None:
    """The receipt of a posted call of `tenant` under a head made for it; None when there is no such call.

    Raises LedgerError for a call posted by a release whose leaves are single records.
    """
    return receipt_under(db, make_head(db, tenant, signer, now_ns), call_id)


def receipt_under(db: sqlite3.Connection, head: Head, call_id: bytes) -> Receipt | None:
    """The receipt of a call that lies under `head`; None when there is no such call. Raises LedgerError, as above."""
    tenant = head.tenant
    event = next((one for one in find_events(db, call_id) if one.served.tenant == tenant), None)
    if event is None:
        return None
    transactions = tenant_transactions(db, tenant)[: head.size]
    tx_index = next((index for index, one in enumerate(transactions) if one.tx_id == event.tx_id), None)
    if tx_index is None:
        return None
    tx = transactions[tx_index]
    if tx.leaf_version != LEAF_VERSION:
        raise LedgerError(f"tx {tx.tx_id}: has leaves of version {tx.leaf_version}, for which there are no receipts")
    packer = Packer()
    records = [packer.pack(one.served).payload for one in read_events(db, tx.first_event_id, tx.event_count)]
    blocks = [leaf_hash(block) for block in blocks_of(records)]
    block_index, place = divmod(event.event_id - tx.first_event_id, BLOCK_RECORDS)
    leaves = _leaves(transactions)
    return Receipt(
        call_id=call_id.hex(),
        head=head,
        tx_id=tx.tx_id,
        event_count=tx.event_count,
        tx_index=tx_index,
        tx_path=_hex(inclusion_path(leaves, tx_index)),
        leaf_version=tx.leaf_version,
        records=_hex(records[block_index * BLOCK_RECORDS : (block_index + 1) * BLOCK_RECORDS]),
        block_index=block_index,
        block_count=len(blocks),
        block_path=_hex(inclusion_path(blocks, block_index)),
        place=place,
    )


def head_of(tenant: str, transactions: Sequence[UsageTransaction], signer: Signer, now_ns: int) -> Head:
    """A signed head over `transactions`."""
    return _head(tenant, _leaves(transactions), signer, now_ns)


def tenant_leaves(db: sqlite3.Connection, tenant: str) -> list[bytes]:
    """The leaf hashes of the tenant's tree, oldest first: a head of size n is over the first n of them."""
    return _leaves(tenant_transactions(db, tenant))


def _head(tenant: str, leaves: Sequence[bytes], signer: Signer, now_ns: int) -> Head:
    return sign_head(tenant, len(leaves), root_of(leaves), signer, now_ns)


def tenant_transactions(db: sqlite3.Connection, tenant: str) -> list[UsageTransaction]:
    """The tenant's usage transactions, oldest first."""
    rows = db.execute(_SELECT, (tenant, TX_USAGE))
    return [UsageTransaction._make((*row[:4], bytes(row[4]))) for row in rows]


def tree_size(db: sqlite3.Connection, tenant: str) -> int:
    """Leaves of the tenant's tree now."""
    (size,) = db.execute(_COUNT, (tenant, TX_USAGE)).fetchone()
    return int(size)


def new_leaves(db: sqlite3.Connection, after_tx_id: int, limit: int) -> list[tuple[int, str, bytes]]:
    """(tx_id, tenant, leaf hash) of up to `limit` usage transactions after one, of every tenant, in posting order."""
    rows = db.execute(_SELECT_NEW, (after_tx_id, TX_USAGE, limit))
    return [
        (tx_id, tenant, transaction_leaf(tx_id, event_count, leaf_version, bytes(root)))
        for tx_id, tenant, event_count, leaf_version, root in rows
    ]


def _leaves(transactions: Sequence[UsageTransaction]) -> list[bytes]:
    return [transaction_leaf(one.tx_id, one.event_count, one.leaf_version, one.merkle_root) for one in transactions]


def _hex(parts: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(part.hex() for part in parts)


_SELECT: Final = """
SELECT j.tx_id, j.first_event_id, j.event_count, j.leaf_version, j.merkle_root
FROM journal_tx j JOIN tenant t ON t.tenant_id = j.tenant_id JOIN seal s ON s.tx_id = j.tx_id
WHERE t.name = ? AND j.kind = ? ORDER BY j.tx_id
"""
_COUNT: Final = """
SELECT COUNT(*) FROM journal_tx j JOIN tenant t ON t.tenant_id = j.tenant_id JOIN seal s ON s.tx_id = j.tx_id
WHERE t.name = ? AND j.kind = ?
"""
_SELECT_NEW: Final = """
SELECT j.tx_id, t.name, j.event_count, j.leaf_version, j.merkle_root
FROM journal_tx j JOIN tenant t ON t.tenant_id = j.tenant_id JOIN seal s ON s.tx_id = j.tx_id
WHERE j.tx_id > ? AND j.kind = ? ORDER BY j.tx_id LIMIT ?
"""
