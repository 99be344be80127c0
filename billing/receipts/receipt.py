"""Owns what a receipt is and how it is verified: from the bytes of the call to a signed head, with nothing else. Pure.

A tenant's tree is RFC 6962's. A leaf is one usage transaction of the tenant, in posting order: its number in the
ledger, how many calls it has, and the Merkle root over them, which the ledger's hash chain holds as well. So a call's
proof has two steps: its block of records to the transaction's root, and the transaction to the signed root.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from billing.events import Served, decode
from billing.ledger.merkle import BLOCK_RECORDS, LEAF_VERSION, leaf_hash, root_from_path
from billing.receipts.keys import is_signed, key_id_of

RECEIPT_VERSION: Final = 1
BYTES_MAX: Final = 1024 * 1024
_HEAD_CONTEXT: Final = b"tollway tree head v1\n"


class ReceiptError(ValueError):
    """A receipt that proves nothing; the message names the first thing that is wrong."""


class Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A signed tree head: `size` transactions of `tenant` have `root` (hex) at `at_ns` (UTC)."""

    tenant: str
    size: int
    root: str
    at_ns: int
    key_id: str
    signature: str = ""


class Receipt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One call's proof. Byte strings are hex. `records` make the leaf, up to 16 of them; `place` is the call's."""

    version: int = RECEIPT_VERSION
    call_id: str
    head: Head
    tx_id: int
    event_count: int
    tx_index: int
    tx_path: tuple[str, ...]
    leaf_version: int
    records: tuple[str, ...]
    block_index: int
    block_count: int
    block_path: tuple[str, ...]
    place: int


def head_message(head: Head) -> bytes:
    """The bytes that a head's signature is over."""
    return _HEAD_CONTEXT + msgspec.msgpack.encode([head.tenant, head.size, head.root, head.at_ns, head.key_id])


def transaction_leaf(tx_id: int, event_count: int, leaf_version: int, merkle_root: bytes) -> bytes:
    """The hash of a transaction's leaf in its tenant's tree."""
    return leaf_hash(msgspec.msgpack.encode([tx_id, event_count, leaf_version, merkle_root]))


def encode_receipt(receipt: Receipt) -> bytes:
    """JSON, the same bytes for the same receipt."""
    return msgspec.json.encode(receipt, order="deterministic")


def decode_receipt(data: bytes) -> Receipt:
    """Raises ReceiptError for anything that is not a receipt."""
    if len(data) > BYTES_MAX:
        raise ReceiptError(f"a receipt of {len(data)} bytes is over {BYTES_MAX}")
    try:
        return msgspec.json.decode(data, type=Receipt)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReceiptError(f"not a receipt: {error}") from error


def verify_head(head: Head, keys: Mapping[str, bytes]) -> None:
    """Raises ReceiptError unless one of `keys` (public, by id) signed `head`."""
    public = keys.get(head.key_id)
    if public is None or key_id_of(public) != head.key_id:
        raise ReceiptError(f"head.key_id: {head.key_id!r} is none of the known keys")
    if not is_signed(public, _bytes("head.signature", head.signature), head_message(head)):
        raise ReceiptError("head.signature: the head is not signed by that key")


def verify_receipt(receipt: Receipt, keys: Mapping[str, bytes]) -> Served:
    """The call that `receipt` proves to be in the books of its head's tenant. Raises ReceiptError."""
    if receipt.version != RECEIPT_VERSION or receipt.leaf_version != LEAF_VERSION:
        raise ReceiptError(f"version: {receipt.version}, leaf_version: {receipt.leaf_version} are not known here")
    verify_head(receipt.head, keys)
    block = [_bytes("records", one) for one in receipt.records]
    calls = [_served("records", one) for one in block]
    # A root does not say how many leaves it is over; the transaction's leaf says how many calls, hence blocks.
    whole, rest = divmod(receipt.event_count, BLOCK_RECORDS)
    if receipt.block_count != whole + bool(rest):
        raise ReceiptError(f"block_count: {receipt.block_count} blocks do not hold {receipt.event_count} calls")
    if len(block) != (BLOCK_RECORDS if receipt.block_index < whole else rest):
        raise ReceiptError(f"records: {len(block)} are not what block {receipt.block_index} holds")
    root = _root("block", leaf_hash(b"".join(block)), receipt.block_index, receipt.block_count, receipt.block_path)
    leaf = transaction_leaf(receipt.tx_id, receipt.event_count, receipt.leaf_version, root)
    if _root("tx", leaf, receipt.tx_index, receipt.head.size, receipt.tx_path).hex() != receipt.head.root:
        raise ReceiptError("tx_path: does not lead to the signed root: the call, its place or the path was changed")
    if not 0 <= receipt.place < len(calls):
        raise ReceiptError(f"place: {receipt.place} is not among {len(calls)} records")
    served = calls[receipt.place]
    if served.call_id.hex() != receipt.call_id:
        raise ReceiptError("call_id: is not the one of the record")
    if any(one.tenant != receipt.head.tenant for one in calls):
        raise ReceiptError("head.tenant: is not the one of the records")
    return served


def _served(name: str, record: bytes) -> Served:
    try:
        served: Any = decode(record)
    except msgspec.DecodeError as error:
        raise ReceiptError(f"{name}: is no record: {error}") from error
    if not isinstance(served, Served):
        raise ReceiptError(f"{name}: is not a served call")
    return served


def _root(name: str, leaf: bytes, index: int, size: int, path: tuple[str, ...]) -> bytes:
    if not 0 <= index < size:
        raise ReceiptError(f"{name}_index: {index} is not below {size}")
    try:
        return root_from_path(leaf, index, size, [_bytes(f"{name}_path", one) for one in path])
    except ValueError as error:
        raise ReceiptError(f"{name}_path: {error}") from error


def _bytes(name: str, text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise ReceiptError(f"{name}: is not hex") from error
