"""Owns when a delivery is tried again and when an endpoint is given up: pure functions over what happened."""

from collections.abc import Callable
from typing import Final

NS_PER_S: Final = 1_000_000_000
_MINUTE, _HOUR = 60, 3_600
#: Seconds between the attempts: ten in about three days.
PAUSES_S: Final = (5, 5 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 5 * _HOUR, 10 * _HOUR, 14 * _HOUR, 20 * _HOUR, 24 * _HOUR)
ATTEMPTS_MAX: Final = len(PAUSES_S) + 1
#: A pause is up to this much longer, so that receivers that come back are not met by everyone at once.
JITTER: Final = 0.2
#: An endpoint that took nothing for this long, with failures all along, is switched off.
DISABLE_AFTER_NS: Final = 5 * 24 * _HOUR * NS_PER_S
GONE: Final = 410


def next_attempt_ns(attempts: int, now_ns: int, random: Callable[[], float]) -> int | None:
    """When to try again after `attempts` failures; None: never. `random` gives [0, 1)."""
    if attempts >= ATTEMPTS_MAX:
        return None
    pause_ns = PAUSES_S[attempts - 1] * NS_PER_S
    return now_ns + pause_ns + int(pause_ns * JITTER * random())


def should_disable(status: int, failing_since_ns: int | None, now_ns: int) -> bool:
    """Whether an endpoint is switched off after a failure: it said so (410), or it has failed for five days."""
    return status == GONE or (failing_since_ns is not None and now_ns - failing_since_ns >= DISABLE_AFTER_NS)
