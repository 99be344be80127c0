"""HOT PATH. Owns the count of bytes that one worker buffers for its calls."""


class BufferBudget:
    """Plain counter with a ceiling. Holders add what they buffer and subtract what they let go.

    `is_over` is a signal, not a wall: past it new calls are refused (503 `overloaded`) and bodies stop being read.
    """

    __slots__ = ("bytes_max", "bytes_used")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_used = 0

    def add(self, count: int) -> None:
        self.bytes_used += count

    def sub(self, count: int) -> None:
        self.bytes_used -= count

    @property
    def is_over(self) -> bool:
        return self.bytes_used > self.bytes_max
