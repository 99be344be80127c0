"""Owns what revenue is recognised by itself: once a UTC day is over, what fees earned by its end; expired prepaid."""

import hashlib
import logging
import sqlite3
from typing import Final

from billing.invoices.period import NS_PER_S
from billing.recognition.store import due_expiries, recognised_until, tenants_with_contracts
from gateway.control.errors import ControlCode, ControlError
from gateway.control.money import Money
from gateway.control.registry import Registry

ROUND_S: Final = 60.0
ACTOR: Final = "recognition"
NS_PER_DAY: Final = 86_400 * NS_PER_S
_log = logging.getLogger("tollway.control")


class Recognition:
    """`tick` is one round; blocking, for a worker thread. Days missed while we were down are one posting."""

    def __init__(self, money: Money, registry: Registry) -> None:
        self._money = money
        self._now_ns = registry.clock.wall_ns

    def tick(self) -> int:
        """Recognise up to the last midnight for every tenant that is behind it; how many were."""
        now_ns = self._now_ns()
        through_ns = now_ns - now_ns % NS_PER_DAY
        done = 0
        try:
            for tenant in self._money.read(lambda db: _behind(db, through_ns)):
                body = {"tenant": tenant, "through_ns": through_ns}
                try:
                    self._money.run(ACTOR, "recognition.run", f"recognise:{tenant}:{through_ns}", body)
                    done += 1
                except ControlError as error:
                    if error.code is ControlCode.UNAVAILABLE:
                        raise
                    _log.error("recognition_failed tenant=%s code=%s", tenant, error.code)
        except ControlError as error:
            # Without a ledger, or while the meter restarts, there is nothing to do; the next round comes.
            _log.debug("recognition_waits code=%s", error.code)
        return done

    def expire(self) -> int:
        """Let every prepaid grant expire whose time has come; how many did."""
        now_ns, done = self._now_ns(), 0
        try:
            for one in self._money.read(lambda db: due_expiries(db, now_ns)):
                operation_id = f"expire:{hashlib.sha256(repr(tuple(one)).encode()).hexdigest()}"
                try:
                    self._money.run(ACTOR, "prepaid.expire", operation_id, one._asdict())
                    done += 1
                except ControlError as error:
                    if error.code is ControlCode.UNAVAILABLE:
                        raise
                    _log.error("expiry_failed tenant=%s grant=%s code=%s", one.tenant, one.grant, error.code)
        except ControlError as error:
            _log.debug("expiry_waits code=%s", error.code)
        return done


def _behind(db: sqlite3.Connection, through_ns: int) -> list[str]:
    return [tenant for tenant in tenants_with_contracts(db) if recognised_until(db, tenant) < through_ns]
