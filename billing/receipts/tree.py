"""Owns trees that grow: a frontier that takes leaves one by one, and proofs that one tree is the beginning of another.

RFC 6962 §2.1.2; verified as in RFC 9162 §2.1.4.2. Pure.
"""

from collections.abc import Sequence

from billing.ledger.merkle import EMPTY_ROOT, node_hash, root_of


class Frontier:
    """What must be kept of a tree to go on with it: the roots of its complete subtrees, largest first."""

    def __init__(self) -> None:
        self.size = 0
        self._roots: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash; subtrees of equal size are joined."""
        self._roots.append(leaf)
        joined = self.size
        while joined & 1:
            right = self._roots.pop()
            self._roots.append(node_hash(self._roots.pop(), right))
            joined >>= 1
        self.size += 1

    @property
    def root(self) -> bytes:
        """The tree head over all leaves so far."""
        if not self._roots:
            return EMPTY_ROOT
        root = self._roots[-1]
        for left in reversed(self._roots[:-1]):
            root = node_hash(left, root)
        return root


def consistency_path(leaves: Sequence[bytes], first: int) -> list[bytes]:
    """What shows that the tree of the first `first` leaves is the beginning of the whole one. Raises IndexError."""
    if not 0 < first <= len(leaves):
        raise IndexError(f"the first {first} of {len(leaves)} leaves")
    path: list[bytes] = []
    low, high, is_known = 0, len(leaves), True
    while first != high - low:
        split = low + (1 << (high - low - 1).bit_length() - 1)
        if first <= split - low:
            path.append(root_of(leaves[split:high]))
            high = split
        else:
            path.append(root_of(leaves[low:split]))
            first, low, is_known = first - (split - low), split, False
    if not is_known:
        path.append(root_of(leaves[low:high]))
    return path[::-1]


def is_consistent(first: int, first_root: bytes, second: int, second_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether `path` shows that the tree of `second` leaves begins with that of `first`."""
    if not 0 < first <= second:
        return False
    if first == second:
        return first_root == second_root and not path
    nodes = [first_root, *path] if first & (first - 1) == 0 else list(path)
    if not nodes:
        return False
    at, last = first - 1, second - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            old, new = node_hash(node, old), node_hash(node, new)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            new = node_hash(new, node)
        at, last = at >> 1, last >> 1
    return last == 0 and (old, new) == (first_root, second_root)
