"""Owns the meter's work: read the usage logs, decide, post, and only then acknowledge. One thread uses it.

Crash windows (store → acknowledge → forget):
* before the commit: nothing is posted; the logs are read again from the watermarks.
* after the commit, before the acknowledgement: everything is posted; what is read again is found to exist, and segments
  whose deletion was missed are deleted by the next acknowledgement.
While the ledger cannot be written (locked, disk full) the decided batch is kept and nothing more is read: the logs stay
on disk, memory stays bounded, and the same batch is tried again with growing pauses.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from billing import failpoint
from billing.books import Books
from billing.clock_watch import ClockWatch
from billing.events import Outcome
from billing.intake import Intake, Judge
from billing.ledger.port import Batch, Ledger, LedgerUnavailable, PostReport, Source
from billing.usagelog.reader import Damaged, EpochEnded, UsageReader

READ_RECORDS: Final = 1000
#: Records read before they are posted together: more logs share one commit, and memory stays bounded.
PASS_RECORDS_MAX: Final = 4000
DRAIN_PASSES_MAX: Final = 10_000
BACKOFF_FIRST_NS: Final = 50_000_000
BACKOFF_MAX_NS: Final = 5_000_000_000
WINDOWS_MAX: Final = 10_000

_log = logging.getLogger(__name__)


class Pump:
    """Moves records from the logs to the ledger. Every method blocks on disk; none is thread-safe."""

    def __init__(
        self,
        ledger: Ledger,
        reader: UsageReader,
        books: Books,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        on_posted: Callable[[PostReport], None] | None = None,
        clock: ClockWatch | None = None,
    ) -> None:
        """`reader` must start at the ledger's positions; `on_posted` follows each batch. Raises LedgerUnavailable.

        `clock`: where the ledger has a clock of its own.
        """
        self._clock = clock
        self._on_posted = on_posted
        self._ledger = ledger
        self._reader = reader
        self._books = books
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._intake = Intake(ledger.state().positions)
        self._batches: deque[Batch] = deque()
        self._retry_ns = 0
        self._backoff_ns = BACKOFF_FIRST_NS
        self._error: str | None = None
        self._failures = 0
        self._damages: list[Damaged] = []
        #: Records that the last pass read: what the pauses between passes go by.
        self.pass_records = 0

    def run_once(self) -> bool:
        """One pass: post what is left over, read on, post, acknowledge. True when there may be more to do at once.

        Trouble that passes (ledger unavailable, a failing read) is kept for `status` and tried again later; a broken
        invariant raises LedgerError.
        """
        if self._error is not None and self._monotonic_ns() < self._retry_ns:
            return False
        try:
            self._post_all()
            self._books.refresh()
            if self._clock is not None:
                self._clock.beat()  # first: while the ledger's server is away nothing more is read
            is_full = self._read()
            judge: Judge = self._books.judge
            if self._clock is not None:
                self._clock.beat()  # and a step between what was stamped and now is known before it is judged
                judge = self._clock.guard(judge)
            self._batches.extend(self._intake.take_batches(judge, self._wall_ns()))
            self._post_all()
        except (LedgerUnavailable, OSError) as error:
            self._back_off(error)
            return False
        if self._error is not None:
            _log.warning("meter_recovered: after %d failures", self._failures)
        self._error, self._backoff_ns, self._failures = None, BACKOFF_FIRST_NS, 0
        return is_full

    def drain(self) -> None:
        """Post everything readable now, without waiting out a pause. Raises LedgerUnavailable when it cannot."""
        self._retry_ns = 0
        for _ in range(DRAIN_PASSES_MAX):
            is_full = self.run_once()
            if self._error is not None:
                raise LedgerUnavailable(self._error)
            if not is_full:
                return

    def counts(self, windows: Sequence[tuple[str, int]]) -> list[int]:
        """For each (tenant, since_ns): OK calls posted, or served and waiting for their mark, after a fresh pass.

        Raises LedgerUnavailable when the pass cannot be completed: a number that misses calls would break a cap.
        """
        self.drain()
        counts = self._ledger.counts(windows)
        waiting = [(served.tenant, served.t_ns) for served in self._intake.pending() if served.outcome == Outcome.OK]
        return [
            count + sum(tenant == name and t_ns >= since_ns for name, t_ns in waiting)
            for count, (tenant, since_ns) in zip(counts, windows, strict=True)
        ]

    def status(self) -> dict[str, Any]:
        """Figures for operators and metrics. Raises LedgerUnavailable."""
        state = self._ledger.state()
        pending = self._intake.pending()
        return {
            "posted": state.posted,
            "voided": state.voided,
            "quarantined": state.quarantined,
            "transactions": state.transactions,
            "pending": len(pending),
            "unposted": sum(len(batch.posts) + len(batch.voids) for batch in self._batches),
            "lag_records": sum(self._lag(source, position.seq) for source, position in state.positions.items()),
            "oldest_pending_age_ns": max(0, self._wall_ns() - min(one.t_ns for one in pending)) if pending else 0,
            "watermarks": {f"{source.instance}/{source.epoch}": at.seq for source, at in state.positions.items()},
            "price_versions": sorted(self._books.raters),
            "price_conflict": self._books.conflict,
            "damaged": [f"{one.instance}/{one.epoch}:{one.seq} {one.reason}" for one in self._damages],
            "clock_skew_ns": None if self._clock is None else self._clock.skew_ns,
            "trouble": self._error,
            "failures": self._failures,
            "head": state.head.hex(),
        }

    def close(self) -> None:
        self._reader.close()
        self._ledger.close()

    def _lag(self, source: Source, seq: int) -> int:
        """Records read from a log above its watermark."""
        return max(0, self._reader.delivered().get((source.instance, source.epoch), seq) - seq)

    def _read(self) -> bool:
        """Feed the intake with up to PASS_RECORDS_MAX records. True when the limit was met."""
        self.pass_records = 0
        while self.pass_records < PASS_RECORDS_MAX:
            result = self._reader.read_batch(READ_RECORDS)
            if result is None:
                return False
            source = Source(result.instance, result.epoch)
            if isinstance(result, Damaged):
                self._damages.append(result)
                _log.error("usage_log_damaged: %s/%d at %d: %s", *source, result.seq, result.reason)
            elif isinstance(result, EpochEnded):
                self._intake.end(source, result.last_seq)
            else:
                self._intake.feed(source, result.records)
                self.pass_records += len(result.records)
        return True

    def _post_all(self) -> None:
        while self._batches:
            batch = self._batches[0]
            report = self._ledger.post(batch)
            if failpoint.armed:
                failpoint.hit("after_commit_before_ack")
            self._batches.popleft()
            self._announce(batch, report)
            for source, position in batch.positions.items():
                self._reader.ack(source.instance, source.epoch, position.seq)
            if self._on_posted is not None:
                self._on_posted(report)

    def _announce(self, batch: Batch, report: PostReport) -> None:
        if report.voided:
            # Without the end of an epoch these are callers who had gone: an everyday thing.
            is_death = any(position.is_ended for position in batch.positions.values())
            _log.log(
                logging.WARNING if is_death else logging.DEBUG,
                "calls_voided: %d that are not known to have reached their callers",
                report.voided,
            )
        if report.quarantined:
            # Of those that the ledger itself put there the reason stands with the record.
            reasons = {one.reason for one in batch.rejected} or {"exists_with_different or over_lease"}
            _log.error("records_quarantined: %d (%s)", report.quarantined, ", ".join(sorted(reasons)))

    def _back_off(self, error: Exception) -> None:
        self._error, self._failures = str(error), self._failures + 1
        self._retry_ns = self._monotonic_ns() + self._backoff_ns
        self._backoff_ns = min(2 * self._backoff_ns, BACKOFF_MAX_NS)
        _log.warning("meter_waits: %s (failure %d)", error, self._failures)
