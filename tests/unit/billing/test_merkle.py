"""The RFC 6962 tree: hashing, roots of every size against the RFC's own recursion, proofs that only fit their leaf."""

from hashlib import sha256

import pytest

from billing.ledger.merkle import (
    EMPTY_ROOT,
    LEAF_VERSION,
    inclusion_path,
    leaf_bytes,
    leaf_hash,
    leaf_index,
    leaves_of,
    merkle_root,
    node_hash,
    root_from_path,
    root_of,
)
from billing.packed import Packer
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


def test_leaf_of_version_2_never_changes() -> None:
    blocks = leaves_of(2, [call(n) for n in range(1, 18)])
    assert sha256(b"|".join(blocks)).hexdigest() == "15c00fb811cac360ba983d7a5b5de936d18f47286a649226b51ec28b239732b2"
    assert len(blocks) == 2


def test_every_record_of_every_block_is_under_the_root() -> None:
    calls = [call(n) for n in range(1, 41)]
    blocks = leaves_of(LEAF_VERSION, calls)
    root = merkle_root(blocks)
    assert root == rfc_root([leaf_hash(block) for block in blocks])
    for index, one in enumerate(calls):
        place = leaf_index(LEAF_VERSION, index)
        assert Packer().pack(one).payload in blocks[place]
        path = inclusion_path([leaf_hash(block) for block in blocks], place)
        assert root_from_path(leaf_hash(blocks[place]), place, len(blocks), path) == root
        changed = [*calls[:index], call(index + 1, rows=99), *calls[index + 1 :]]
        assert merkle_root(leaves_of(LEAF_VERSION, changed)) != root
    assert merkle_root(leaves_of(LEAF_VERSION, [calls[1], calls[0], *calls[2:]])) != root
    assert merkle_root(leaves_of(LEAF_VERSION, calls[:-1])) != root


def test_unknown_version_and_impossible_events_have_no_leaves() -> None:
    with pytest.raises(ValueError, match="leaf version 3"):
        leaves_of(3, [call(1)])
    with pytest.raises(ValueError, match="negative or too big"):
        leaves_of(LEAF_VERSION, [call(1, charge_nanos=-1)])
