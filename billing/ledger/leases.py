"""Owns leases of wallets to usage logs: how much the prepaid calls that one log records may still cost.

A lease is a ceiling on what all prepaid calls of a log (one life of a worker) may cost together. What of it is not yet
decided is held in the wallet by one pending transfer, so `sum of holds + posted <= funded` is the ledger's own guard
(I10). Ceilings are raised by asking and lowered by returning; each change ends the pending transfer and begins another
in one linked group, so every one ends exactly once (I11).

    funded = available + held + posted        held = sum over logs of (ceiling - used)

Crash windows
* a worker dies: what it had recorded may still be on its way here, so its lease is freed in the very transaction that
  says "this log's epoch is over and everything of it is decided" (`end_log`). Freed any earlier, the same money could
  be leased again and the late records overdraw the wallet.
* an answer is lost: the ledger holds more than the worker knows of, until its next order.
* an order comes twice, or late (its carrier died meanwhile): `seq` counts up, an old one changes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from billing.ledger.accounts import prepaid
from billing.ledger.balances import available_nanos
from billing.ledger.journal import Journal
from billing.ledger.port import LedgerError, Source
from billing.ledger.transfers import Transfer, TransferOutcome, transfer

CLEARING: Final = "usage_clearing"
#: After so long a worker asks again before it spends; what an unreachable one holds is freed with its log.
LEASE_TTL_NS: Final = 60 * 1_000_000_000
#: Beyond what calls need at once, a lease takes at most this much (100 major units) …
SPARE_NANOS_MAX: Final = 100 * 1_000_000_000
#: … and at most one part in so many of what is available, divided by the number of workers.
SPARE_SHARE: Final = 2
ORDERS_MAX: Final = 1_000
CURRENCY_CHARS: Final = 3
#: What the calls of one log may cost in all: four billion major units.
CEILING_NANOS_MAX: Final = 4 * 10**18

#: (log_id, tenant, currency) → nanos.
Uses = Mapping[tuple[int, str, str], int]


class LeaseOrder(NamedTuple):
    """A worker's order about one wallet. All amounts are nanos; `committed` and the ceiling count from the log's start.

    `committed`: what the log's calls cost so far, those in flight at their maximum. `need`: what calls that wait need
    together, `least` the cheapest of them, `spare` what would be good to have beyond. A return (`is_return`) lowers the
    ceiling to `committed`, which its sender already obeys.
    """

    source: Source
    tenant: str
    currency: str
    seq: int
    committed: int
    least: int = 0
    need: int = 0
    spare: int = 0
    is_return: bool = False


class LeaseAnswer(NamedTuple):
    """The ceiling that holds now, what the wallet has left beside all leases, and whether some need is not met."""

    ceiling: int
    available: int
    is_short: bool


class OverLease(Exception):
    """Prepaid calls cost more than their log was leased: `room` is what it had left, by (log, tenant, currency)."""

    def __init__(self, room: dict[tuple[int, str, str], int]) -> None:
        super().__init__("prepaid calls cost more than was leased to their log")
        self.room = room


class _Row(NamedTuple):
    seq: int
    issued: int
    ceiling: int
    used: int
    held_from: int
    lease_id: str


def order_leases(journal: Journal, orders: Sequence[LeaseOrder], workers: int, now_ns: int) -> list[LeaseAnswer]:
    """Carry out `orders` in turn; `workers` share the wallets. Raises LedgerError for orders nothing of ours sends."""
    if len(orders) > ORDERS_MAX:
        raise LedgerError(f"{len(orders)} lease orders are more than {ORDERS_MAX}")
    return [_order(journal, order, max(1, workers), now_ns) for order in orders]


def use_leases(journal: Journal, posted: Uses, otherwise: Uses, now_ns: int) -> None:
    """Prepaid calls were decided: `posted` ones are in the wallet's balance now, `otherwise` ones cost nothing.

    Neither needs to be held any more. Raises OverLease when posted calls cost more than their log was leased.
    """
    room = {key: row.ceiling - row.used for key in posted if (row := _find(journal, key)) is not None}
    over = {key: room.get(key, 0) for key, nanos in posted.items() if nanos > room.get(key, 0)}
    if over:
        raise OverLease(over)
    for key, nanos in posted.items():
        _use(journal, key, nanos, now_ns)
    for key, nanos in otherwise.items():
        row = _find(journal, key)
        if row is not None:
            _use(journal, key, min(nanos, row.ceiling - row.used), now_ns)


def end_log(journal: Journal, log_id: int, now_ns: int) -> None:
    """Everything that `log_id` will ever hold is decided: free what is left of its leases."""
    wallets = journal.execute("SELECT tenant, currency FROM fund_lease WHERE log_id = ?", (log_id,)).fetchall()
    for tenant, currency in wallets:
        row = _find(journal, (log_id, tenant, currency))
        assert row is not None
        _carry_out(journal, _void(row, tenant), now_ns)
        journal.execute(
            "DELETE FROM fund_lease WHERE log_id = ? AND tenant = ? AND currency = ?", (log_id, tenant, currency)
        )


def _order(journal: Journal, order: LeaseOrder, workers: int, now_ns: int) -> LeaseAnswer:
    if not is_possible(order):
        raise LedgerError(f"a lease order of {order.source.instance}/{order.source.epoch} is not possible")
    log_id, is_over = _log(journal, order.source)
    key = (log_id, order.tenant, order.currency)
    row = _find(journal, key)
    if is_over:  # sent by a worker that is dead by now, and whose records are all decided: nobody would return it
        return LeaseAnswer(0, _available(journal, order), is_short=order.need > 0)
    if row is not None and order.seq <= row.seq:
        return LeaseAnswer(row.ceiling, _available(journal, order), is_short=_is_short(order, row.ceiling))
    before = row or _Row(0, 0, 0, 0, 0, "")
    if order.is_return:
        ceiling = min(before.ceiling, max(order.committed, before.used))
    else:
        ceiling = before.ceiling + _raise_by(order, before.ceiling, _available(journal, order), workers)
    after = before._replace(seq=order.seq, ceiling=ceiling)
    if ceiling != before.ceiling or (before.lease_id and not order.need):
        _issue(journal, key, before, after, now_ns)
    elif row is not None:  # a refused need must not cost rows that stay
        _write(journal, key, after)
    return LeaseAnswer(ceiling, _available(journal, order), is_short=_is_short(order, ceiling))


def is_possible(order: LeaseOrder) -> bool:
    """Whether the numbers of `order` are such as workers send."""
    amounts = (order.committed, order.least, order.need, order.spare)
    is_in_range = min(order.seq, *amounts) >= 0 and max(amounts) <= CEILING_NANOS_MAX and order.least <= order.need
    return is_in_range and bool(order.tenant) and len(order.currency) == CURRENCY_CHARS


def _is_short(order: LeaseOrder, ceiling: int) -> bool:
    return order.committed + order.need > ceiling


def _raise_by(order: LeaseOrder, ceiling: int, available: int, workers: int) -> int:
    """What calls need comes first, and only if it serves at least one; spare money is a share of what is left."""
    least = max(0, order.committed + order.least - ceiling)
    need = max(0, order.committed + order.need - ceiling)
    if least > available or available <= 0:
        return 0
    if need > available:
        return available
    wish = max(0, order.committed + order.need + order.spare - ceiling) - need
    left = available - need
    return min(need + min(wish, SPARE_NANOS_MAX, left // (SPARE_SHARE * workers)), CEILING_NANOS_MAX - ceiling)


def _use(journal: Journal, key: tuple[int, str, str], nanos: int, now_ns: int) -> None:
    row = _find(journal, key)
    assert row is not None
    used = row._replace(used=row.used + nanos)
    if used.used == used.ceiling and row.lease_id:
        _issue(journal, key, used, used, now_ns)
    else:
        _write(journal, key, used)


def _issue(journal: Journal, key: tuple[int, str, str], before: _Row, after: _Row, now_ns: int) -> None:
    """End the pending transfer of `before` and hold what `after` still has open by a new one."""
    log_id, tenant, currency = key
    held = after.ceiling - after.used
    orders = _void(before, tenant)
    issued, lease_id = after.issued, ""
    if held:
        issued += 1
        lease_id = f"lease:{log_id}:{_tenant_id(journal, tenant)}:{currency}:{issued}"
        wallet = prepaid(tenant)
        orders.append(
            Transfer(lease_id, tenant, "pending", held, wallet, CLEARING, currency, expires_ns=now_ns + LEASE_TTL_NS)
        )
    _write(journal, key, after._replace(issued=issued, lease_id="", held_from=after.used))
    _carry_out(journal, orders, now_ns)
    if lease_id:
        _write(journal, key, after._replace(issued=issued, lease_id=lease_id, held_from=after.used))


def _void(row: _Row, tenant: str) -> list[Transfer]:
    if not row.lease_id:
        return []
    return [Transfer(f"{row.lease_id}:void", tenant, "void", 0, pending_id=row.lease_id)]


def _carry_out(journal: Journal, orders: Sequence[Transfer], now_ns: int) -> None:
    for order in orders:
        (result,) = transfer(journal, [order], now_ns)
        if result.outcome is not TransferOutcome.POSTED:
            raise LedgerError(f"lease {order.transfer_id}: {result.outcome.name.lower()} {result.field}")


def _available(journal: Journal, order: LeaseOrder) -> int:
    return available_nanos(journal.db, prepaid(order.tenant), order.currency)


def _log(journal: Journal, source: Source) -> tuple[int, bool]:
    """The log's id, given now if it is new, and whether its epoch is over."""
    row = journal.execute(
        "SELECT log_id, COALESCE(is_ended, 0) FROM log LEFT JOIN watermark USING (log_id)"
        " WHERE instance = ? AND epoch = ?",
        source,
    ).fetchone()
    return (journal.names.log(source), False) if row is None else (int(row[0]), bool(row[1]))


def _tenant_id(journal: Journal, tenant: str) -> int:
    return journal.names.tenant(tenant)


def _find(journal: Journal, key: tuple[int, str, str]) -> _Row | None:
    row = journal.execute(
        "SELECT seq, issued, ceiling_nanos, used_nanos, held_from_nanos, lease_id FROM fund_lease"
        " WHERE log_id = ? AND tenant = ? AND currency = ?",
        key,
    ).fetchone()
    return None if row is None else _Row(*row)


def _write(journal: Journal, key: tuple[int, str, str], row: _Row) -> None:
    journal.execute(
        "INSERT INTO fund_lease VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (log_id, tenant, currency) DO UPDATE SET"
        " seq = excluded.seq, issued = excluded.issued, ceiling_nanos = excluded.ceiling_nanos,"
        " used_nanos = excluded.used_nanos, held_from_nanos = excluded.held_from_nanos, lease_id = excluded.lease_id",
        (*key, row.seq, row.issued, row.ceiling, row.used, row.held_from, row.lease_id),
    )
