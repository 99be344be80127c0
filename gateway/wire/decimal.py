"""HOT PATH. Owns whole numbers as text. `b"%d" % n` costs several times as much where this is compiled.

Three digits at a time: tables of a thousand entries stay in the processor's first caches, larger ones do not.
"""

from typing import Final

SMALL: Final = [b"%d" % number for number in range(1000)]
#: With leading zeros.
PADDED: Final = [b"%03d" % number for number in range(1000)]
_MILLION: Final = 1_000_000


def decimal(number: int) -> bytes:
    """The decimal digits of `number`, as `b"%d" % number`."""
    if 0 <= number < 1000:
        return SMALL[number]
    if number < 0:
        return b"%d" % number
    if number < _MILLION:
        return SMALL[number // 1000] + PADDED[number % 1000]
    return b"%b%b%b" % (decimal(number // _MILLION), PADDED[number // 1000 % 1000], PADDED[number % 1000])


class SlowNumber:
    """Formats numbers that change little from one to the next, such as instants: remembers all but six digits."""

    __slots__ = ("_high", "_text")

    def __init__(self) -> None:
        self._high = -1
        self._text = b""

    def text(self, number: int) -> bytes:
        """As `decimal`."""
        high = number // _MILLION
        if high <= 0:
            return decimal(number)
        if high != self._high:
            self._high, self._text = high, decimal(high)
        low = number % _MILLION
        return b"%b%b%b" % (self._text, PADDED[low // 1000], PADDED[low % 1000])
