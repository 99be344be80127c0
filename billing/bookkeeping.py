"""Owns the money commands of the books themselves: closing a period, and transfers between accounts of the chart."""

from typing import Any, Final

import msgspec

from billing.invoices.assemble import InvoiceError
from billing.invoices.desk import Verb
from billing.ledger.journal import Journal
from billing.ledger.periods import close_period
from billing.ledger.port import LedgerError
from billing.ledger.transfers import TRANSFERS_MAX, Phase, Transfer, transfer


class ClosePeriod(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Close everything posted before `end_ns` (UTC nanoseconds)."""

    end_ns: int


class TransferOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One transfer; see `billing.ledger.transfers.Transfer`."""

    transfer_id: str
    tenant: str
    phase: Phase
    amount_nanos: int = 0
    debit: str = ""
    credit: str = ""
    currency: str = ""
    pending_id: str = ""
    expires_ns: int = 0
    is_linked: bool = False


class Transfers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Transfers to carry out in turn; linked ones happen together or not at all."""

    transfers: tuple[TransferOrder, ...]


def close(journal: Journal, body: ClosePeriod, now_ns: int) -> Any:
    """Close and seal a period. Raises InvoiceError: the bounds are wrong, or the books do not balance."""
    try:
        period = close_period(journal, body.end_ns, now_ns)
    except LedgerError as error:
        raise InvoiceError("field", str(error)) from error
    return {**period._asdict(), "hash": period.hash.hex()}


def run_transfers(journal: Journal, body: Transfers, now_ns: int) -> Any:
    """The outcome of each transfer; a refusal is an answer, not an error."""
    if not 0 < len(body.transfers) <= TRANSFERS_MAX:
        raise InvoiceError("field", f"transfers: give 1 to {TRANSFERS_MAX}")
    orders = [Transfer(**msgspec.structs.asdict(one)) for one in body.transfers]
    return [
        {"outcome": one.outcome.name.lower(), "field": one.field, "tx_id": one.tx_id}
        for one in transfer(journal, orders, now_ns)
    ]


VERBS: Final[dict[str, Verb[Any]]] = {
    "period.close": Verb(ClosePeriod, close),
    "ledger.transfer": Verb(Transfers, run_transfers),
}
