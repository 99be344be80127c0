"""Owns the RFC 6962 tree over a transaction's call events: leaf and node hashing, root, and inclusion proofs. Pure.

Version 2: a leaf is a block of 16 consecutive records (of one tenant, as the transaction is), each in the bytes that
`ServedTemplate` makes of it. Hashing each call alone cost more than its row. A proof of a call is its block and the
block's audit path; records are whole msgpack arrays, so a block falls apart in one way only.
Version 1: a leaf is one record, encoded with the shortest integers. Old roots stay verifiable.
"""

from collections.abc import Sequence
from hashlib import sha256

from billing.events import Served, encode
from billing.packed import Packer

#: Version of new roots' leaves, kept with every root. A changed record layout needs a new one, never a changed old one.
LEAF_VERSION = 2
#: Records in a leaf of version 2; the last one may have fewer.
BLOCK_RECORDS = 16
EMPTY_ROOT = sha256(b"").digest()


#: `leaf_bytes(served)`: the leaf of a call event in version 1: all 17 fields.
leaf_bytes = encode


def blocks_of(records: Sequence[bytes]) -> list[bytes]:
    """The leaves of version 2 over `records` (`Packed.payload` of each event, in order)."""
    return [b"".join(records[at : at + BLOCK_RECORDS]) for at in range(0, len(records), BLOCK_RECORDS)]


def leaf_index(version: int, place: int) -> int:
    """Which leaf holds the event at `place` (from 0) of its transaction."""
    return place if version == 1 else place // BLOCK_RECORDS


def leaves_of(version: int, events: Sequence[Served]) -> list[bytes]:
    """The leaves over a transaction's events. Raises ValueError: unknown version, or an event that has no such leaf."""
    if version == 1:
        return [leaf_bytes(served) for served in events]
    if version != LEAF_VERSION:
        raise ValueError(f"leaf version {version} is not known; known: 1, {LEAF_VERSION}")
    packer = Packer()
    return blocks_of([packer.pack(served).payload for served in events])


def leaf_hash(leaf: bytes) -> bytes:
    """RFC 6962 §2.1: SHA-256(0x00 || leaf)."""
    return sha256(b"\x00" + leaf).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The tree head over `leaves`."""
    return root_of([sha256(b"\x00" + leaf).digest() for leaf in leaves])


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962 §2.1: SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


def root_of(leaf_hashes: Sequence[bytes]) -> bytes:
    """The tree head of `leaf_hashes`.

    Pairing neighbours level by level and carrying an odd last node up gives RFC 6962's split at the largest power of
    two, because every complete subtree left of the split is paired before the remainder is joined.
    """
    if not leaf_hashes:
        return EMPTY_ROOT
    level = list(leaf_hashes)
    while len(level) > 1:
        paired = [sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        if len(level) & 1:
            paired.append(level[-1])
        level = paired
    return level[0]


def inclusion_path(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path of leaf `index` (RFC 6962 §2.1.1), from the leaf's sibling up. Raises IndexError."""
    if not 0 <= index < len(leaf_hashes):
        raise IndexError(f"leaf {index} of {len(leaf_hashes)}")
    path: list[bytes] = []
    level = list(leaf_hashes)
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        paired = [node_hash(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        if len(level) & 1:
            paired.append(level[-1])
        level, index = paired, index // 2
    return path


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that `path` proves for leaf hash `leaf` at `index` of `size`. Raises ValueError for a wrong length."""
    node, last, used = leaf, size - 1, 0
    while last > 0:
        if index & 1 or index < last:
            if used == len(path):
                raise ValueError("the path is too short")
            node = node_hash(path[used], node) if index & 1 else node_hash(node, path[used])
            used += 1
        index, last = index // 2, last // 2
    if used != len(path):
        raise ValueError("the path is too long")
    return node
