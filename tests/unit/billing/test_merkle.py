"""The RFC 6962 tree: hashing, roots of every size against the RFC's own recursion, proofs that only fit their leaf."""

from hashlib import sha256

import pytest

from billing.ledger.merkle import (
    EMPTY_ROOT,
    inclusion_path,
    leaf_bytes,
    leaf_hash,
    node_hash,
    root_from_path,
    root_of,
)
from tests.unit.billing.making import call

LEAVES = [leaf_hash(bytes([n])) for n in range(20)]


def rfc_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 §2.1 word for word: split at the largest power of two below n."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(rfc_root(leaves[:split]), rfc_root(leaves[split:]))


def test_leaf_and_node_are_told_apart_by_their_prefix() -> None:
    assert leaf_hash(b"x") == sha256(b"\0x").digest()
    assert node_hash(b"a", b"b") == sha256(b"\1ab").digest()
    assert root_of([]) == EMPTY_ROOT == sha256(b"").digest()


@pytest.mark.parametrize("size", range(1, 21))
def test_root_and_every_proof_agree_with_the_rfc(size: int) -> None:
    leaves = LEAVES[:size]
    root = root_of(leaves)
    assert root == rfc_root(leaves)
    for index in range(size):
        path = inclusion_path(leaves, index)
        assert root_from_path(leaves[index], index, size, path) == root
        assert root_from_path(leaf_hash(b"forged"), index, size, path) != root


def test_path_of_wrong_length_is_refused() -> None:
    path = inclusion_path(LEAVES, 3)
    with pytest.raises(ValueError, match="too short"):
        root_from_path(LEAVES[3], 3, len(LEAVES), path[:-1])
    with pytest.raises(ValueError, match="too long"):
        root_from_path(LEAVES[3], 3, len(LEAVES), [*path, path[0]])
    with pytest.raises(IndexError, match="leaf 20 of 20"):
        inclusion_path(LEAVES, 20)


def test_leaf_of_version_1_never_changes() -> None:
    # A new field of Served changes these bytes: then write a leaf version 2 and keep this one for old roots.
    assert sha256(leaf_bytes(call(7))).hexdigest() == "2638b220fbe0946c77bf06a44864299ba07729a024ee680424579c10f9a2acae"
