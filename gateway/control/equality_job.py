"""Owns the daily alarm: usage, invoices and ledger must say the same for every tenant (I30)."""

import logging
from typing import Final

from billing.equality import Equality, compare_all
from billing.invoices.period import NS_PER_S
from gateway.control.errors import ControlError
from gateway.control.money import Money
from gateway.control.registry import Registry

ROUND_S: Final = 300.0
NS_PER_DAY: Final = 86_400 * NS_PER_S
DIFFERENCES_LOGGED: Final = 20
_log = logging.getLogger("tollway.control")


class EqualityJob:
    """`tick` compares once per UTC day, the first time soon after the start; blocking, for a worker thread."""

    def __init__(self, money: Money, registry: Registry) -> None:
        self._money = money
        self._now_ns = registry.clock.wall_ns
        self._day = -1

    def tick(self) -> Equality | None:
        """The comparison, when one was due. Differences are logged as errors: they are for a person to explain."""
        day = self._now_ns() // NS_PER_DAY
        if day == self._day:
            return None
        try:
            found = self._money.read(compare_all)
        except ControlError as error:
            _log.debug("equality_waits code=%s", error.code)
            return None
        self._day = day
        for one in found.differences[:DIFFERENCES_LOGGED]:
            _log.error(
                "equality_broken tenant=%s what=%s currency=%s expected_nanos=%d found_nanos=%d",
                one.tenant,
                one.what.replace(" ", "_"),
                one.currency,
                one.expected_nanos,
                one.found_nanos,
            )
        return found
