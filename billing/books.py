"""Owns which price books the meter knows: those in the ledger, the file given at start, and the published snapshot's.

The meter must know a version before it can post a call priced by it. Workers price by the snapshot, so the snapshot is
looked at whenever it changed and whenever an unknown version turns up; what is learnt goes into the ledger for ever.
"""

import logging
from pathlib import Path

import msgspec

from billing.judge import UNKNOWN_PRICE_VERSION, QuickJudge, Verdict, find_fault
from billing.ledger.port import Ledger, PriceBookConflict
from billing.packed import Call
from billing.rating import PriceBook, PriceError, Rater, compile_book

_log = logging.getLogger(__name__)


class _Published(msgspec.Struct):
    """The only member of the policy snapshot that the meter reads (gateway.snapshot.Snapshot.prices)."""

    prices: PriceBook


_decoder = msgspec.msgpack.Decoder(_Published)


class Books:
    """Price books by version, compiled. `judge` is the meter's verdict on a record."""

    def __init__(self, ledger: Ledger, snapshot: Path) -> None:
        """Raises LedgerUnavailable."""
        self._ledger = ledger
        self._snapshot = snapshot
        self._seen: tuple[int, int, int] | None = None
        #: A published book that contradicts the ledger's of the same version; calls priced by it are quarantined.
        self.conflict: str | None = None
        self.raters: dict[int, Rater] = {}
        #: The meter's verdict on a call: None, or why it must not be posted. Raises LedgerUnavailable.
        self.judge = QuickJudge(self.raters, self._judge_carefully).judge
        self._compile(ledger.prices())

    def add(self, book: PriceBook) -> None:
        """Raises PriceBookConflict when its version is known with other content, PriceError, LedgerUnavailable."""
        compile_book(book)
        self._compile(self._ledger.prices(book))

    def _judge_carefully(self, call: Call) -> Verdict | None:
        """`find_fault`, after a second look at the snapshot when the price version is unknown."""
        fault = find_fault(call, self.raters)
        if fault is not None and fault.reason == UNKNOWN_PRICE_VERSION:
            self.refresh()
            return find_fault(call, self.raters)
        return fault

    def refresh(self) -> None:
        """Learn the published book if the snapshot changed. One stat when it did not. Raises LedgerUnavailable."""
        try:
            status = self._snapshot.stat()
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen == self._seen:
                return
            book = _decoder.decode(self._snapshot.read_bytes()).prices
            if book.version not in self.raters or self.raters[book.version].book != book:
                self.add(book)
        except FileNotFoundError:
            return
        except (msgspec.DecodeError, PriceError, PriceBookConflict) as error:
            # Nothing can be done about it here; the calls are kept (quarantine) and status says why. Not remembered as
            # seen, so that it is looked at again.
            if self.conflict != str(error):
                _log.error("price_book_refused: %s", error)
            self.conflict = str(error)
            return
        self.conflict, self._seen = None, seen

    def _compile(self, books: dict[int, PriceBook]) -> None:
        for version, book in books.items():
            if version not in self.raters:
                self.raters[version] = compile_book(book)
