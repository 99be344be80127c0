"""Owns how control gives money commands to the meter, audited, and reads what came of them in the ledger.

The audit row is committed before the meter is asked: a crash in between leaves a command in the trail that was never
carried out, never the other way round. Repeating it under the same operation id is safe.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from billing.invoices.assemble import InvoiceError
from billing.invoices.schema import has_schema
from billing.ledger.opening import open_ledger_reader
from billing.ledger.port import LedgerError, LedgerUnavailable
from billing.meter_client import SOCKET_NAME, MeterError, ask_meter
from billing.rating import PriceBook
from gateway.control.audit import append_audit
from gateway.control.errors import ControlCode, ControlError
from gateway.control.registry import Registry

T = TypeVar("T")
#: (socket, request) → answer; `billing.meter_client.ask_meter` outside of tests.
Ask = Callable[[Path, dict[str, Any]], dict[str, Any]]

_CODES: Final = {
    "not_found": ControlCode.NOT_FOUND,
    "unknown_verb": ControlCode.NOT_FOUND,
    "field": ControlCode.INVALID_FIELD,
    "amount": ControlCode.INVALID_FIELD,
    "currency": ControlCode.INVALID_FIELD,
    "unreachable": ControlCode.UNAVAILABLE,
    "unavailable": ControlCode.UNAVAILABLE,
    "frame_too_large": ControlCode.BODY_TOO_LARGE,
}


class Money:
    """Commands to the meter of one data directory, and reads of its ledger. Blocking, for worker threads."""

    def __init__(self, data_dir: Path, registry: Registry, ask: Ask = ask_meter) -> None:
        self._data_dir = data_dir
        self._registry = registry
        self._ask = ask

    def run(self, actor: str, verb: str, operation_id: str, body: dict[str, Any]) -> Any:
        """The command's answer. Raises ControlError; `unavailable` may be repeated with the same operation id."""
        with self._registry.database.write() as tx:
            append_audit(
                tx,
                at_ns=self._registry.clock.wall_ns(),
                actor=actor,
                action=f"billing.{verb}",
                subject=f"operation:{operation_id}",
                before=None,
                after=body,
            )
        return self.run_unaudited(verb, operation_id, body)

    def run_unaudited(self, verb: str, operation_id: str, body: dict[str, Any]) -> Any:
        """`run` for what moves no money and nobody ordered: it would only fill the trail. Raises ControlError."""
        request = {"op": "money", "verb": verb, "operation_id": operation_id, "body": body}
        return self._ask_meter(request)["answer"]

    def add_prices(self, book: PriceBook) -> None:
        """Let the ledger know a price book. Raises ControlError: it cannot be asked, or knows the version otherwise."""
        self._ask_meter({"op": "add_prices", "book": msgspec.to_builtins(book)})

    def _ask_meter(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._ask(self._data_dir / SOCKET_NAME, request)
        except MeterError as error:
            code = _CODES.get(error.code, ControlCode.CONFLICT)
            retry_after_s = 1 if code is ControlCode.UNAVAILABLE else None
            raise ControlError(code, str(error), retry_after_s=retry_after_s) from error

    def read(self, question: Callable[[sqlite3.Connection], T], *, tenant: str | None = None) -> T:
        """The answer of one short query on the ledger, with the rights of `tenant` alone where a database knows such.

        Raises ControlError.
        """
        with _translated():
            db = open_ledger_reader(self._data_dir, tenant=tenant)
            try:
                if not has_schema(db):
                    raise LedgerUnavailable("the ledger has no invoices yet: start the meter of this release")
                return question(db)
            finally:
                db.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except InvoiceError as error:
        raise ControlError(_CODES.get(error.code, ControlCode.CONFLICT), str(error)) from error
    except LedgerUnavailable as error:
        raise ControlError(ControlCode.UNAVAILABLE, str(error), retry_after_s=1) from error
    except sqlite3.OperationalError as error:
        raise ControlError(ControlCode.UNAVAILABLE, "the ledger is busy: try again", retry_after_s=1) from error
    except LedgerError as error:
        raise ControlError(ControlCode.INVALID_FIELD, str(error)) from error
