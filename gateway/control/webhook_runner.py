"""Owns the sending of webhooks: events of the ledger → deliveries in control.db → signed POSTs, tried until taken.

Crash windows: an endpoint's cursor moves in the transaction that inserts its deliveries, so no event is lost or told
twice by us; a crash between a POST and its row in the log sends that message again under the same id (at least once).
"""

import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa

from billing.invoices import store
from billing.webhooks.schedule import next_attempt_ns, should_disable
from billing.webhooks.sender import BODY_BYTES_MAX, Delivered, post
from billing.webhooks.signing import derive_key, sign
from billing.webhooks.targets import Target, TargetRefused, look_at
from gateway.control.errors import ControlError
from gateway.control.money import Money
from gateway.control.registry import Registry
from gateway.control.schema import webhook_attempt, webhook_delivery, webhook_endpoint
from gateway.control.views import NS_PER_S, instant
from gateway.control.webhook_store import message_id, prune

ROUND_S: Final = 2.0
EVENTS_PAGE: Final = 200
#: Deliveries of one endpoint that may wait: beyond it its events wait in the ledger.
PENDING_MAX: Final = 1_000
SENDS_PER_ROUND: Final = 32
#: Of one endpoint: one that answers slowly must not keep the others waiting.
SENDS_PER_ENDPOINT: Final = 4
_LOOKED_AT: Final = 512
SENDERS: Final = 8
DETAIL_MAX: Final = 500
#: Rounds between two clean-ups of the log.
PRUNE_ROUNDS: Final = 1_800
_log = logging.getLogger("tollway.control")

Look = Callable[[str], Target]
Post = Callable[[Target, Mapping[str, str], bytes], Delivered]


class _Due(NamedTuple):
    delivery_id: int
    endpoint_id: str
    url: str
    event_seq: int
    body: str
    attempts: int
    keys: tuple[bytes, ...]


class WebhookRunner:
    """`tick` is one round; blocking, for a worker thread. `look` and `send` are the network, replaced in tests."""

    def __init__(
        self,
        money: Money,
        registry: Registry,
        *,
        look: Look = look_at,
        send: Post = post,
        random: Callable[[], float] = lambda: secrets.randbelow(1_000) / 1_000,
    ) -> None:
        self._money = money
        self._registry = registry
        self._look = look
        self._send = send
        self._random = random
        self._rounds = 0

    def tick(self) -> int:
        """Take new events over, send what is due, write down what came of it; how many were sent."""
        now_ns = self._registry.clock.wall_ns()
        self._rounds += 1
        if self._rounds % PRUNE_ROUNDS == 0:
            with self._registry.database.write() as tx:
                prune(tx, now_ns)
        try:
            self._take_over(now_ns)
        except ControlError as error:
            # The ledger cannot be read now; what is already here is sent all the same.
            _log.debug("webhook_events_wait code=%s", error.code)
        with self._registry.database.read() as tx:
            due = self._due(tx, now_ns)
        if due:
            with ThreadPoolExecutor(SENDERS, thread_name_prefix="webhook") as senders:
                results = list(senders.map(lambda one: self._attempt(one, now_ns), due))
            for one, result in zip(due, results, strict=True):
                self._note(one, result)
        return len(due)

    def _take_over(self, now_ns: int) -> None:
        with self._registry.database.read() as tx:
            query = sa.select(webhook_endpoint).where(webhook_endpoint.c.is_enabled)
            endpoints = tx.execute(query.order_by(webhook_endpoint.c.endpoint_id)).mappings().all()
        for endpoint in endpoints:
            self._take_over_for(endpoint, now_ns)

    def _take_over_for(self, endpoint: sa.RowMapping, now_ns: int) -> None:
        after = endpoint["cursor_seq"]
        events = self._money.read(lambda db: store.list_events(db, after=after, limit=EVENTS_PAGE))
        if not events:
            return
        wanted = None if endpoint["events"] is None else set(msgspec.json.decode(endpoint["events"], type=list[str]))
        with self._registry.database.write() as tx:
            if _pending(tx, endpoint["endpoint_id"]) >= PENDING_MAX:
                return
            moved = tx.execute(
                webhook_endpoint.update()
                .where(
                    webhook_endpoint.c.endpoint_id == endpoint["endpoint_id"], webhook_endpoint.c.cursor_seq == after
                )
                .values(cursor_seq=events[-1].seq)
            )
            if not moved.rowcount:
                return
            for event in events:
                if event.tenant == endpoint["tenant"] and (wanted is None or event.type in wanted):
                    tx.execute(webhook_delivery.insert().values(_values(endpoint["endpoint_id"], event, now_ns)))

    def _due(self, tx: sa.Connection, now_ns: int) -> list[_Due]:
        table = webhook_delivery
        query = (
            sa.select(table, webhook_endpoint)
            .join(webhook_endpoint, webhook_endpoint.c.endpoint_id == table.c.endpoint_id)
            .where(table.c.state == "pending", table.c.next_ns <= now_ns, webhook_endpoint.c.is_enabled)
            .order_by(table.c.next_ns, table.c.delivery_id)
            .limit(_LOOKED_AT)
        )
        found = [
            _Due(
                row["delivery_id"],
                row["endpoint_id"],
                row["url"],
                row["event_seq"],
                row["body"],
                row["attempts"],
                self._keys(row, now_ns),
            )
            for row in tx.execute(query).mappings()
        ]
        return _fair(found)

    def _keys(self, row: sa.RowMapping, now_ns: int) -> tuple[bytes, ...]:
        pepper = self._registry.peppers.by_version[row["pepper_version"]]
        generations = [row["generation"]]
        if row["old_until_ns"] is not None and now_ns < row["old_until_ns"]:
            generations.append(row["generation"] - 1)
        return tuple(derive_key(pepper, row["endpoint_id"], generation) for generation in generations)

    def _attempt(self, due: _Due, now_ns: int) -> Delivered:
        body = due.body.encode()
        headers = {
            "content-type": "application/json",
            "user-agent": "tollway-webhooks/1",
            **sign(due.keys, message_id(due.event_seq), now_ns // NS_PER_S, body),
        }
        try:
            return self._send(self._look(due.url), headers, body)
        except TargetRefused as error:
            return Delivered(0, str(error), 0)

    def _note(self, due: _Due, result: Delivered) -> None:
        now_ns = self._registry.clock.wall_ns()
        attempts = due.attempts + 1
        next_ns = None if result.is_ok else next_attempt_ns(attempts, now_ns, self._random)
        state = "delivered" if result.is_ok else "failed" if next_ns is None else "pending"
        with self._registry.database.write() as tx:
            changed = tx.execute(
                webhook_delivery.update()
                .where(webhook_delivery.c.delivery_id == due.delivery_id)
                .values(state=state, attempts=attempts, next_ns=next_ns or 0)
            )
            if not changed.rowcount:
                return  # The endpoint was taken away meanwhile.
            tx.execute(
                webhook_attempt.insert().values(
                    delivery_id=due.delivery_id,
                    n=attempts,
                    at_ns=now_ns,
                    status=result.status,
                    detail=result.detail[:DETAIL_MAX],
                    took_ms=result.took_ms,
                )
            )
            _judge_endpoint(tx, due.endpoint_id, result, now_ns)


def _fair(found: list[_Due]) -> list[_Due]:
    """The first of each endpoint, SENDS_PER_ROUND in all."""
    taken: Counter[str] = Counter()
    chosen = []
    for one in found:
        taken[one.endpoint_id] += 1
        if taken[one.endpoint_id] <= SENDS_PER_ENDPOINT:
            chosen.append(one)
    return chosen[:SENDS_PER_ROUND]


def _judge_endpoint(tx: sa.Connection, endpoint_id: str, result: Delivered, now_ns: int) -> None:
    """Keep since when an endpoint fails; switch it off when that is too long, or when it is gone."""
    table = webhook_endpoint
    mine = table.c.endpoint_id == endpoint_id
    if result.is_ok:
        tx.execute(table.update().where(mine).values(failing_since_ns=None))
        return
    tx.execute(table.update().where(mine, table.c.failing_since_ns.is_(None)).values(failing_since_ns=now_ns))
    since_ns = tx.execute(sa.select(table.c.failing_since_ns).where(mine)).scalar_one()
    if should_disable(result.status, since_ns, now_ns):
        reason = "it answered 410 Gone" if result.status == 410 else f"it has failed since {instant(since_ns)}"
        tx.execute(table.update().where(mine).values(is_enabled=False, disabled_reason=reason))
        _log.warning("webhook_disabled endpoint=%s reason=%s", endpoint_id, reason)


def _pending(tx: sa.Connection, endpoint_id: str) -> int:
    table = webhook_delivery
    query = sa.select(sa.func.count()).select_from(table)
    return tx.execute(query.where(table.c.endpoint_id == endpoint_id, table.c.state == "pending")).scalar_one()


def _values(endpoint_id: str, event: store.Event, now_ns: int) -> dict[str, Any]:
    body = msgspec.json.encode({"type": event.type, "timestamp": instant(event.at_ns), "data": event.body})
    if len(body) > BODY_BYTES_MAX:
        # Its data can be read from the API; the message says that it happened.
        body = msgspec.json.encode({"type": event.type, "timestamp": instant(event.at_ns), "data": None})
    return {
        "endpoint_id": endpoint_id,
        "event_seq": event.seq,
        "type": event.type,
        "body": body.decode(),
        "state": "pending",
        "attempts": 0,
        "next_ns": now_ns,
        "created_ns": now_ns,
    }
