"""What all fuzz targets share: how one input becomes several pieces."""

from collections.abc import Iterator


def pieces(data: bytes) -> list[bytes]:
    """`data` cut into parts: each part's length stands in one byte before it (the last takes what is left)."""
    parts = []
    position = 0
    while position < len(data):
        end = position + 1 + data[position]
        parts.append(data[position + 1 : end])
        position = end
    return parts


def joined(parts: list[bytes]) -> bytes:
    """The inverse of `pieces`, for seeds. Every part has at most 255 bytes."""
    return b"".join(bytes((len(part),)) + part for part in parts)


def steps(data: bytes, seed: int) -> Iterator[bytes]:
    """`data` in parts of 1 to 61 bytes whose lengths follow from `seed`: the same input is always cut alike."""
    position = 0
    size = seed
    while position < len(data):
        size = (size * 29 + 7) % 61
        yield data[position : position + size + 1]
        position += size + 1
