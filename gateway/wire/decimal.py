"""HOT PATH. Owns whole numbers as text. `b"%d" % n` costs several times as much where this is compiled."""

from typing import Final

_BASE: Final = 10_000
_BASE_SQUARED: Final = _BASE * _BASE
_SMALL: Final = [b"%d" % number for number in range(_BASE)]
_PADDED: Final = [b"%04d" % number for number in range(_BASE)]


def decimal(number: int) -> bytes:
    """The decimal digits of `number`, as `b"%d" % number`."""
    if 0 <= number < _BASE:
        return _SMALL[number]
    if number < 0:
        return b"%d" % number
    if number < _BASE_SQUARED:
        return _SMALL[number // _BASE] + _PADDED[number % _BASE]
    return decimal(number // _BASE_SQUARED) + _PADDED[number // _BASE % _BASE] + _PADDED[number % _BASE]


class SlowNumber:
    """Formats numbers that change little from one to the next, such as instants: remembers the high digits."""

    __slots__ = ("_high", "_text")

    def __init__(self) -> None:
        self._high = -1
        self._text = b""

    def text(self, number: int) -> bytes:
        """As `decimal`."""
        high = number // _BASE_SQUARED
        if high <= 0:
            return decimal(number)
        if high != self._high:
            self._high, self._text = high, decimal(high)
        return self._text + _PADDED[number // _BASE % _BASE] + _PADDED[number % _BASE]
