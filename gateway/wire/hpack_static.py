"""Owns the static table of HPACK (RFC 7541 Appendix A) and what is derived from it."""

from typing import Final

from hpack.table import HeaderTable

#: Entry i is index i + 1.
STATIC_TABLE: Final[tuple[tuple[bytes, bytes], ...]] = tuple(HeaderTable.STATIC_TABLE)
STATIC_TABLE_LENGTH: Final = len(STATIC_TABLE)

STATIC_PAIR_INDEX: Final[dict[tuple[bytes, bytes], int]] = {
    pair: index for index, pair in enumerate(STATIC_TABLE, 1) if pair[1]
}
#: The first index of each name.
STATIC_NAME_INDEX: Final[dict[bytes, int]] = {
    pair[0]: index for index, pair in reversed(tuple(enumerate(STATIC_TABLE, 1)))
}
