"""Owns one change of policy from request to answer: store with its audit row, publish, then answer.

`Registry.change` is the only way to alter control.db, so nothing can be changed unaudited or unpublished.
"""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from pydantic import BaseModel

from billing.rating import PriceBook
from gateway.clock import Clock
from gateway.control.audit import append_audit
from gateway.control.database import Database
from gateway.control.guard import Failures
from gateway.control.minting import Minter
from gateway.control.peppers import Peppers
from gateway.control.policy import Publisher, bump_version
from gateway.control.tokens import AdminTokens, load_tokens
from gateway.snapshot import Backend

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(Generic[T]):
    """What a change did: the answer, and the audit trail's view before and after (no secrets in either)."""

    answer: T
    subject: str
    before: BaseModel | None
    after: BaseModel | None
    #: False when everything was as asked already: nothing to audit, no new policy version.
    is_needed: bool = True


class Registry:
    """control.db and what follows from it. Blocking: called from worker threads."""

    def __init__(
        self,
        *,
        database: Database,
        publisher: Publisher,
        clock: Clock,
        peppers: Peppers,
        tokens: AdminTokens,
        failures: Failures,
        prices: PriceBook,
        backends: tuple[Backend, ...],
    ) -> None:
        self.database = database
        self.publisher = publisher
        self.clock = clock
        self.peppers = peppers
        self.tokens = tokens
        self.failures = failures
        self.minter = Minter(peppers)
        self.prices = prices
        self.backends = backends
        self._turn = Lock()

    def read(self, query: Callable[[sa.Connection, int], T]) -> T:
        """The answer of `query(transaction, now_ns)`."""
        with self.database.read() as tx:
            return query(tx, self.clock.wall_ns())

    def change(self, actor: str, action: str, work: Callable[[sa.Connection, int], Change[T]]) -> T:
        """Run `work(transaction, now_ns)` and return its answer once workers can see it.

        Whatever `work` raises undoes the whole. A repeated change that was stored but not published is published here.
        """
        # One change at a time up to here, so that the tokens in memory follow the order of the commits.
        with self._turn:
            with self.database.write() as tx:
                change = self._carry_out(tx, actor, action, work)
                tokens = load_tokens(tx)
            self.tokens.replace(tokens)
        self.publisher.publish()
        return change.answer

    def _carry_out(
        self, tx: sa.Connection, actor: str, action: str, work: Callable[[sa.Connection, int], Change[T]]
    ) -> Change[T]:
        now_ns = self.clock.wall_ns()
        change = work(tx, now_ns)
        if change.is_needed:
            append_audit(
                tx,
                at_ns=now_ns,
                actor=actor,
                action=action,
                subject=change.subject,
                before=_dump(change.before),
                after=_dump(change.after),
            )
            bump_version(tx)
        return change


def _dump(view: BaseModel | None) -> dict[str, Any] | None:
    return None if view is None else view.model_dump(mode="json")
