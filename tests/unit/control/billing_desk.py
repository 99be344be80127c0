"""Owns a control plane with a money desk behind it: the meter's answers, without its process or socket."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from billing.invoices.assemble import InvoiceError
from billing.ledger.port import PriceBookConflict
from billing.meter_client import MeterError, ask_meter, decode_body, encode_frame
from billing.pricebook import book_from_raw
from tests.unit.billing.invoices.office import Office
from tests.unit.control.support import Desk

_ids = count(1)


@contextmanager
def meter_of(desk: Desk, office: Office | None = None) -> Iterator[Office]:
    """An office over the desk's own ledger (or `office`), asked by its application instead of the meter."""
    office = office or Office(desk.data_dir / "ledger.db")

    def ask(_socket: Path, request: dict[str, Any]) -> dict[str, Any]:
        # Through the frames' codec, so that what cannot travel fails here too.
        asked = decode_body(encode_frame(request)[4:])
        if asked["op"] == "add_prices":
            try:
                office.ledger.prices(book_from_raw(asked["book"]))
            except PriceBookConflict as error:
                raise MeterError("conflict", str(error)) from error
            return {"version": asked["book"]["version"]}
        if asked["op"] == "counts":
            return {"counts": office.ledger.counts([(tenant, since) for tenant, since in asked["windows"]])}
        try:
            return {"answer": office.desk.run(asked["verb"], asked["operation_id"], asked["body"])}
        except InvoiceError as error:
            raise MeterError(error.code, str(error)) from error

    desk.app.state.ask_meter = ask
    try:
        yield office
    finally:
        desk.app.state.ask_meter = ask_meter
        office.close()


def command(verb: str, body: dict[str, Any], operation_id: str | None = None) -> tuple[str, str, dict[str, Any]]:
    """Arguments of `Desk.ask` for one money command."""
    name = operation_id or f"operation-{next(_ids)}"
    return "POST", f"/admin/billing/commands/{verb}", {"operation_id": name, "body": body}
