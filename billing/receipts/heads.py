"""Owns published heads: stored by the meter, append-only, before anybody is given one, so that they can be compared.

A tenant's heads only grow. A second head of one size must have the same root: anything else would be two histories, and
is refused. Whoever holds an older head asks for the path from it to a newer one (`Consistency`).
"""

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from billing.invoices.assemble import InvoiceError
from billing.invoices.desk import Verb
from billing.ledger.journal import Journal
from billing.receipts.keys import Signer, key_id_of
from billing.receipts.receipt import BYTES_MAX, Head, ReceiptError, head_message, verify_head
from billing.receipts.tree import is_consistent

#: Heads in one command.
PUBLISH_MAX: Final = 500
_COLUMNS: Final = "tenant, size, root, at_ns, key_id, signature"


class Publish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Store `heads`, all signed by the owner of `public_key` (hex)."""

    public_key: str
    heads: tuple[Head, ...]


class Consistency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Two heads of a tenant, and the path (hex) that shows the first tree to be the beginning of the second."""

    version: int = 1
    first: Head
    second: Head
    path: tuple[str, ...]


def sign_head(tenant: str, size: int, root: bytes, signer: Signer, now_ns: int) -> Head:
    """The head of a tree of `size` transactions."""
    head = Head(tenant=tenant, size=size, root=root.hex(), at_ns=now_ns, key_id=signer.key_id)
    return msgspec.structs.replace(head, signature=signer.sign(head_message(head)).hex())


def publish(journal: Journal, body: Publish, now_ns: int) -> Any:
    """Store what is new; the stored head of each tenant in turn: a head of that size that was there before wins.

    Raises InvoiceError: `field` (not signed so, too many), `conflict` (another root at a size that is published).
    """
    if len(body.heads) > PUBLISH_MAX:
        raise InvoiceError("field", f"heads: at most {PUBLISH_MAX} at once")
    try:
        public = bytes.fromhex(body.public_key)
    except ValueError as error:
        raise InvoiceError("field", "public_key: is not hex") from error
    return {"heads": [msgspec.to_builtins(_store(journal, head, public)) for head in body.heads]}


def _store(journal: Journal, head: Head, public: bytes) -> Head:
    try:
        verify_head(head, {key_id_of(public): public})
    except ReceiptError as error:
        raise InvoiceError("field", f"heads: {head.tenant!r} of size {head.size}: {error}") from error
    if head.size < 1:
        raise InvoiceError("field", f"heads: {head.tenant!r} has no calls, hence no head to publish")
    same, last = find_head(journal.db, head.tenant, head.size), find_head(journal.db, head.tenant)
    if same is not None:
        if same.root != head.root:
            raise InvoiceError("conflict", f"{head.tenant!r} has another root at size {head.size}: published before")
        return same
    if last is not None and last.size > head.size:
        return last
    journal.execute(
        "INSERT INTO tree_head VALUES (?, ?, ?, ?, ?, ?)",
        (head.tenant, head.size, head.root, head.at_ns, head.key_id, head.signature),
    )
    return head


def find_head(db: sqlite3.Connection, tenant: str, size: int | None = None) -> Head | None:
    """The tenant's published head of `size`, or its newest; None when there is none."""
    where, values = ("", (tenant,)) if size is None else (" AND size = ?", (tenant, size))
    row = db.execute(
        f"SELECT {_COLUMNS} FROM tree_head WHERE tenant = ?{where} ORDER BY size DESC LIMIT 1",  # noqa: S608 - names of ours
        values,
    ).fetchone()
    return None if row is None else _head(row)


def list_heads(db: sqlite3.Connection, tenant: str, *, after: int, limit: int) -> list[Head]:
    """The tenant's published heads of more than `after` transactions, smallest first."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM tree_head WHERE tenant = ? AND size > ? ORDER BY size LIMIT ?",  # noqa: S608 - names of ours
        (tenant, after, limit),
    )
    return [_head(row) for row in rows]


def newest_heads(db: sqlite3.Connection) -> dict[str, tuple[int, str]]:
    """(size, root) of every tenant's newest published head."""
    rows = db.execute(
        "SELECT tenant, size, root FROM tree_head h"
        " WHERE size = (SELECT MAX(size) FROM tree_head m WHERE m.tenant = h.tenant)"
    )
    return {tenant: (size, root) for tenant, size, root in rows}


def decode_head(data: bytes) -> Head:
    """Raises ReceiptError for anything that is not a head, or holds one as `head` (a receipt, a proof)."""
    try:
        if len(data) > BYTES_MAX:
            raise ReceiptError(f"a file of {len(data)} bytes is over {BYTES_MAX}")
        raw: Any = msgspec.json.decode(data)
        return msgspec.convert(raw.get("head", raw) if isinstance(raw, dict) else raw, Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReceiptError(f"not a tree head: {error}") from error


def decode_consistency(data: bytes) -> Consistency:
    """Raises ReceiptError for anything that is not one."""
    try:
        return msgspec.json.decode(data, type=Consistency)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReceiptError(f"not a consistency proof: {error}") from error


def verify_consistency(proof: Consistency, held: Head, keys: Mapping[str, bytes]) -> int:
    """How many transactions came after the head that the caller holds. Raises ReceiptError naming what is wrong."""
    verify_head(held, keys)
    verify_head(proof.first, keys)
    verify_head(proof.second, keys)
    if proof.version != 1:
        raise ReceiptError(f"version: {proof.version} is not known here")
    if (proof.first.tenant, proof.first.size, proof.first.root) != (held.tenant, held.size, held.root):
        raise ReceiptError("first: is not the head that is held: two histories were signed, or another was asked for")
    if proof.second.tenant != held.tenant:
        raise ReceiptError("second: is a head of another tenant")
    try:
        path = [bytes.fromhex(node) for node in proof.path]
        roots = bytes.fromhex(proof.first.root), bytes.fromhex(proof.second.root)
    except ValueError as error:
        raise ReceiptError("path: is not hex") from error
    if not is_consistent(proof.first.size, roots[0], proof.second.size, roots[1], path):
        raise ReceiptError("path: the newer tree does not begin with the older one")
    return proof.second.size - proof.first.size


def _head(row: tuple[Any, ...]) -> Head:
    tenant, size, root, at_ns, key_id, signature = row
    return Head(tenant=tenant, size=size, root=root, at_ns=at_ns, key_id=key_id, signature=signature)


VERBS: Final[dict[str, Verb[Any]]] = {"receipts.publish": Verb(Publish, publish)}
