"""Owns how money commands run: one ledger transaction each, repeatable by operation id, refused with a stable code.

A command is (verb, operation id, body). The same id with the same content answers what it answered before and changes
nothing; with other content it is a conflict. The answer is stored in the transaction of the change, so a crash between
commit and answer is a repeat, not a second booking.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from billing.invoices.assemble import InvoiceError
from billing.invoices.schema import ensure_schema
from billing.ledger.journal import Journal

OPERATION_ID_MAX: Final = 128
R = TypeVar("R", bound=msgspec.Struct)


class JournalSource(Protocol):
    """The part of a ledger that money commands need."""

    def journal(self) -> AbstractContextManager[Journal]:
        """One transaction. Raises LedgerUnavailable, LedgerError."""


@dataclass(frozen=True, slots=True)
class Verb(Generic[R]):
    """A command: the shape of its body and its work inside the transaction, which gives the answer (JSON values)."""

    body: type[R]
    work: Callable[[Journal, R, int], Any]


class Desk:
    """Runs commands against one ledger. Blocking, on the meter's one thread."""

    def __init__(self, ledger: JournalSource, verbs: Mapping[str, Verb[Any]], now_ns: Callable[[], int]) -> None:
        """Brings the tables up to date. Raises LedgerUnavailable, LedgerError."""
        self._ledger = ledger
        self._verbs = verbs
        self._now_ns = now_ns
        with ledger.journal() as journal:
            ensure_schema(journal.db, now_ns())

    def run(self, verb: str, operation_id: str, body: Any) -> Any:
        """The command's answer. Raises InvoiceError (nothing changed), LedgerUnavailable (may be repeated)."""
        known = self._verbs.get(verb)
        if known is None:
            raise InvoiceError("unknown_verb", f"verb {verb!r} is none of {', '.join(sorted(self._verbs))}")
        if not 1 <= len(operation_id) <= OPERATION_ID_MAX:
            raise InvoiceError("field", f"operation_id: must have 1 to {OPERATION_ID_MAX} characters")
        try:
            request = msgspec.convert(body, known.body)
        except msgspec.ValidationError as error:
            raise InvoiceError("field", f"{verb}: {error}") from error
        digest = hashlib.sha256(verb.encode() + b"\0" + msgspec.json.encode(request, order="deterministic")).hexdigest()
        with self._ledger.journal() as journal:
            before = _find_answer(journal, operation_id, digest)
            if before is not None:
                return msgspec.json.decode(before)
            now_ns = self._now_ns()
            answer = msgspec.json.encode(known.work(journal, request, now_ns))
            journal.execute(
                "INSERT INTO money_operation VALUES (?, ?, ?, ?, ?)",
                (operation_id, verb, digest, answer.decode(), now_ns),
            )
        return msgspec.json.decode(answer)


def _find_answer(journal: Journal, operation_id: str, digest: str) -> str | None:
    row = journal.execute(
        "SELECT digest, answer FROM money_operation WHERE operation_id = ?", (operation_id,)
    ).fetchone()
    if row is None:
        return None
    if row[0] != digest:
        raise InvoiceError("conflict", f"operation_id {operation_id!r} was used for something else")
    return str(row[1])
