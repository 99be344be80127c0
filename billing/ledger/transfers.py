"""Owns two-phase transfers between accounts: single, or pending and then posted or voided; and linked groups.

A pending transfer holds an amount of its debit account and books nothing; `post` books up to that amount and gives back
the rest, `void` gives all of it back. Each pending transfer ends exactly once (I11; a unique key says so). Ids make
retries safe: the same id with the same content exists, with other content the first differing field is named.
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, Final, Literal, NamedTuple

from billing.ledger.accounts import find_kind
from billing.ledger.balances import available_nanos
from billing.ledger.journal import Journal
from billing.ledger.rules import Line

TX_TRANSFER: Final = "transfer"
TRANSFERS_MAX: Final = 1_000
ID_MAX: Final = 200
AMOUNT_NANOS_MAX: Final = 2**62

Phase = Literal["single", "pending", "post", "void"]


class Transfer(NamedTuple):
    """One order. `is_linked` ties it to the next one: a group of linked transfers happens whole or not at all.

    For "post" and "void" `pending_id` names the pending transfer; accounts and currency are that one's and may be left
    empty; others are refused as "account". `amount_nanos` of a "post" is what is booked; of a "void" it is 0.
    """

    transfer_id: str
    tenant: str
    phase: Phase
    amount_nanos: int
    debit: str = ""
    credit: str = ""
    currency: str = ""
    pending_id: str = ""
    #: UTC instant from which a pending transfer may be voided by anybody; 0: never.
    expires_ns: int = 0
    is_linked: bool = False


class TransferOutcome(IntEnum):
    """What became of a transfer. Causes are looked at in this order; the first that applies is the outcome."""

    POSTED = 0
    #: Another of its group failed, or the last transfer of a call was linked to nothing.
    LINKED_FAILED = 1
    LINK_OPEN = 2
    FIELD_INVALID = 3
    EXISTS_WITH_DIFFERENT = 4
    EXISTS = 5
    ACCOUNT_UNKNOWN = 6
    SAME_ACCOUNT = 7
    PENDING_NOT_FOUND = 8
    PENDING_ENDED = 9
    EXCEEDS_PENDING = 10
    WOULD_OVERDRAW = 11


class TransferResult(NamedTuple):
    """`field` names what differs or is wrong; `tx_id` is the journal transaction, 0 where nothing was booked."""

    outcome: TransferOutcome
    field: str = ""
    tx_id: int = 0


_FINE: Final = frozenset({TransferOutcome.POSTED, TransferOutcome.EXISTS})


def transfer(journal: Journal, orders: Sequence[Transfer], now_ns: int) -> list[TransferResult]:
    """Carry out `orders` in turn inside `journal`'s transaction; the result of each. Refusals change nothing.

    Raises ValueError for more than TRANSFERS_MAX orders.
    """
    if len(orders) > TRANSFERS_MAX:
        raise ValueError(f"{len(orders)} transfers are more than {TRANSFERS_MAX}")
    results: list[TransferResult] = []
    for group in _groups(orders):
        results += _run_group(journal, group, now_ns)
    return results


def find_transfer(journal: Journal, transfer_id: str) -> Transfer | None:
    """A recorded transfer."""
    row = journal.execute(_SELECT + " WHERE transfer_id = ?", (transfer_id,)).fetchone()
    return None if row is None else Transfer(*row)


def expired(journal: Journal, now_ns: int, limit: int = 100) -> list[Transfer]:
    """Pending transfers whose time is over and that nothing has ended."""
    rows = journal.execute(
        f"{_SELECT} WHERE transfer_id IN (SELECT transfer_id FROM transfer_open) AND expires_ns > 0"  # noqa: S608
        " AND expires_ns <= ? ORDER BY expires_ns, transfer_id LIMIT ?",
        (now_ns, limit),
    )
    return [Transfer(*row) for row in rows]


def _groups(orders: Sequence[Transfer]) -> Iterator[list[Transfer]]:
    group: list[Transfer] = []
    for order in orders:
        group.append(order)
        if not order.is_linked:
            yield group
            group = []
    if group:
        yield group


def _run_group(journal: Journal, group: list[Transfer], now_ns: int) -> list[TransferResult]:
    if group[-1].is_linked:
        ending = [TransferResult(TransferOutcome.LINK_OPEN)]
        return [TransferResult(TransferOutcome.LINKED_FAILED)] * (len(group) - 1) + ending
    if len(group) == 1:
        return [_run(journal, group[0], now_ns)]
    journal.execute("SAVEPOINT linked")
    results = []
    for order in group:
        results.append(_run(journal, order, now_ns))
        if results[-1].outcome not in _FINE:
            journal.execute("ROLLBACK TO SAVEPOINT linked")
            journal.forget_names()
            failed = TransferResult(TransferOutcome.LINKED_FAILED)
            results = [*[failed] * (len(results) - 1), results[-1], *[failed] * (len(group) - len(results))]
            break
    journal.execute("RELEASE SAVEPOINT linked")
    return results


def _run(journal: Journal, order: Transfer, now_ns: int) -> TransferResult:
    field = _invalid_field(order)
    if field:
        return TransferResult(TransferOutcome.FIELD_INVALID, field)
    if order.phase in {"post", "void"}:
        pending = find_transfer(journal, order.pending_id)
        if pending is None or pending.phase != "pending":
            return TransferResult(TransferOutcome.PENDING_NOT_FOUND)
        given = (order.debit, order.credit, order.currency)
        if any(mine not in {"", its} for mine, its in zip(given, pending[4:7], strict=True)):
            return TransferResult(TransferOutcome.FIELD_INVALID, "account")
        order = order._replace(debit=pending.debit, credit=pending.credit, currency=pending.currency)
        return _existing(journal, order) or _end(journal, order, pending, now_ns)
    return _existing(journal, order) or _begin(journal, order, now_ns)


def _invalid_field(order: Transfer) -> str:
    """The first field out of range; "" for none."""
    is_ending = order.phase in {"post", "void"}
    checks = (
        ("transfer_id", 0 < len(order.transfer_id) <= ID_MAX),
        ("phase", order.phase in {"single", "pending", "post", "void"}),
        ("amount_nanos", 0 <= order.amount_nanos <= AMOUNT_NANOS_MAX),
        ("amount_nanos", order.amount_nanos > 0 or is_ending),
        ("amount_nanos", order.amount_nanos == 0 or order.phase != "void"),
        ("pending_id", bool(order.pending_id) == is_ending),
        ("currency", bool(order.currency) or is_ending),
        ("expires_ns", order.expires_ns >= 0 and (not order.expires_ns or order.phase == "pending")),
    )
    return next((field for field, is_good in checks if not is_good), "")


def _existing(journal: Journal, order: Transfer) -> TransferResult | None:
    known = find_transfer(journal, order.transfer_id)
    if known is None:
        return None
    for field in _COMPARED:
        if getattr(known, field) != getattr(order, field):
            return TransferResult(TransferOutcome.EXISTS_WITH_DIFFERENT, field)
    (tx_id,) = journal.execute("SELECT tx_id FROM transfer WHERE transfer_id = ?", (order.transfer_id,)).fetchone()
    return TransferResult(TransferOutcome.EXISTS, tx_id=int(tx_id))


def _begin(journal: Journal, order: Transfer, now_ns: int) -> TransferResult:
    debit = find_kind(order.debit)
    for field, kind in (("debit", debit), ("credit", find_kind(order.credit))):
        if kind is None:
            return TransferResult(TransferOutcome.ACCOUNT_UNKNOWN, field)
    if order.debit == order.credit:
        return TransferResult(TransferOutcome.SAME_ACCOUNT)
    assert debit is not None
    if debit.is_guarded and available_nanos(journal.db, order.debit, order.currency) < order.amount_nanos:
        return TransferResult(TransferOutcome.WOULD_OVERDRAW)
    tx_id = 0
    if order.phase == "single":
        tx_id = _book(journal, order, now_ns)
    _insert(journal, order, now_ns, tx_id)
    if order.phase == "pending":
        journal.execute(
            "INSERT INTO transfer_open VALUES (?, ?, ?, ?)",
            (order.transfer_id, order.debit, order.currency, order.amount_nanos),
        )
    return TransferResult(TransferOutcome.POSTED, tx_id=tx_id)


def _end(journal: Journal, order: Transfer, pending: Transfer, now_ns: int) -> TransferResult:
    if journal.execute("SELECT 1 FROM transfer WHERE pending_id = ?", (order.pending_id,)).fetchone():
        return TransferResult(TransferOutcome.PENDING_ENDED)
    if order.amount_nanos > pending.amount_nanos:
        return TransferResult(TransferOutcome.EXCEEDS_PENDING)
    tx_id = _book(journal, order, now_ns) if order.amount_nanos else 0
    _insert(journal, order, now_ns, tx_id)
    journal.execute("DELETE FROM transfer_open WHERE transfer_id = ?", (order.pending_id,))
    return TransferResult(TransferOutcome.POSTED, tx_id=tx_id)


def _book(journal: Journal, order: Transfer, now_ns: int) -> int:
    lines = (
        Line(order.debit, order.currency, order.amount_nanos, 0),
        Line(order.credit, order.currency, -order.amount_nanos, 0),
    )
    return journal.post(TX_TRANSFER, order.tenant, now_ns, lines)


def _insert(journal: Journal, order: Transfer, now_ns: int, tx_id: int) -> None:
    values: tuple[Any, ...] = (
        order.transfer_id,
        order.tenant,
        order.phase,
        order.pending_id,
        order.debit,
        order.credit,
        order.currency,
        order.amount_nanos,
        order.expires_ns,
        now_ns,
        tx_id,
    )
    journal.execute(f"INSERT INTO transfer VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608


_COMPARED: Final = ("phase", "amount_nanos", "debit", "credit", "currency", "tenant", "pending_id", "expires_ns")
_SELECT: Final = (
    "SELECT transfer_id, tenant, phase, amount_nanos, debit, credit, currency, pending_id, expires_ns FROM transfer"
)
