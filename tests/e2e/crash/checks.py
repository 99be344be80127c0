"""Owns the judgement: the client's truth, the archived usage logs and the ledger are held against each other.

Every function yields the `Violation`s of one promise of MONEY.md §6; an empty list from `find_violations` is what the
suite is for. The system has been stopped in order before, so nothing is in flight.
"""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

from billing.intake import FREE_CAUSES
from billing.ledger.connect import LEDGER_FILE, open_reader
from billing.ledger.schema import APPEND_ONLY
from billing.ledger.verify import verify_ledger
from billing.ledger.views import trial_balance
from tests.e2e.crash.archive import Recorded
from tests.e2e.crash.truth import HTTP, Attempt

_S: Final = 1_000_000_000
Place = tuple[str, int, int]


class Violation(NamedTuple):
    """A broken promise and its evidence."""

    invariant: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectations:
    """What the scenario knows beforehand."""

    #: Lanes of callers that stay for their answers: the most calls in flight at any instant.
    lanes: int
    #: Deaths of workers (the supervisor's included).
    worker_deaths: int
    daily_caps: Mapping[str, int]
    #: tenant → (calls per second, burst).
    rates: Mapping[str, tuple[int, int]]
    #: Tenants of which every call is refused.
    refused: Sequence[str]
    #: Tenants whose callers leave on purpose.
    leaving: Sequence[str]


class Event(NamedTuple):
    """A posted call."""

    tenant: str
    call_id: str
    place: Place
    charge_nanos: int
    currency: str
    protocol: int


class Books(NamedTuple):
    """What the ledger says."""

    posted: list[Event]
    #: (tenant, call id, place).
    voided: list[tuple[str, str, Place]]
    quarantined: int
    duplicates: int


def find_violations(
    attempts: Sequence[Attempt],
    recorded: Mapping[tuple[str, int], Recorded],
    data_dir: Path,
    expected: Expectations,
) -> list[Violation]:
    """Every broken promise; empty when all hold."""
    db = open_reader(data_dir / LEDGER_FILE)
    try:
        books = _read_books(db)
        return [
            *_answered_once(attempts, books),
            *_charged_as_said(attempts, books),
            *_nobody_charged_for_nothing(attempts, books, expected),
            *_records_and_marks(recorded, books),
            *_voids_bounded(recorded, books, expected),
            *_ledger_sound(db, books),
            *_ledger_append_only(data_dir),
            *_caps_kept(attempts, books, expected),
            *_rates_kept(attempts, expected),
            *_refused_leave_nothing(recorded, books, expected),
            *_same_answers(attempts),
        ]
    finally:
        db.close()


def _read_books(db: sqlite3.Connection) -> Books:
    posted = [
        Event(tenant, str(UUID(bytes=call_id)), (instance, epoch, seq), charge, currency, protocol)
        for tenant, call_id, instance, epoch, seq, charge, currency, protocol in db.execute(
            "SELECT t.name, e.call_id, l.instance, l.epoch, e.seq, e.charge_nanos, f.currency, f.protocol"
            " FROM usage_event e JOIN tenant t USING (tenant_id) JOIN log l USING (log_id)"
            " JOIN facet f USING (facet_id)"
        )
    ]
    voided = [
        (tenant, str(UUID(bytes=call_id)), (instance, epoch, seq))
        for tenant, call_id, instance, epoch, seq in db.execute(
            "SELECT v.tenant, v.call_id, l.instance, l.epoch, v.seq FROM voided v JOIN log l USING (log_id)"
        )
    ]
    ((quarantined,),) = db.execute("SELECT COUNT(*) FROM quarantine")
    ((duplicates,),) = db.execute("SELECT COUNT(*) FROM duplicate")
    return Books(posted, voided, int(quarantined), int(duplicates))


def _answered_once(attempts: Sequence[Attempt], books: Books) -> Iterator[Violation]:
    """I1, I3: a complete 2xx has one posted event, or one published void; never both, never two."""
    posted = Counter((event.tenant, event.call_id) for event in books.posted)
    voided = Counter((tenant, call_id) for tenant, call_id, _ in books.voided)
    for attempt in attempts:
        if attempt.is_good:
            key = (attempt.tenant, attempt.call_id)
            if posted[key] + voided[key] != 1:
                yield Violation("I1", f"{key} answered, posted {posted[key]} times, voided {voided[key]} times")
    for key, count in (posted + voided).items():
        if count > 1:
            yield Violation("I3", f"{key} stands {count} times")


def _charged_as_said(attempts: Sequence[Attempt], books: Books) -> Iterator[Violation]:
    """The charge in the reply is the charge in the ledger."""
    events = {event.call_id: event for event in books.posted}
    for attempt in attempts:
        event = events.get(attempt.call_id)
        if event is None or not attempt.is_good:
            continue
        amount, currency = attempt.charge.partition(";")[0].split()
        whole, _, fraction = amount.partition(".")
        said = int(whole) * _S + int(fraction.ljust(9, "0"))
        if (said, currency) != (event.charge_nanos, event.currency):
            yield Violation("charge", f"{event.call_id}: said {attempt.charge!r}, posted {event.charge_nanos}")


def _nobody_charged_for_nothing(
    attempts: Sequence[Attempt], books: Books, expected: Expectations
) -> Iterator[Violation]:
    """R7, R8: who stayed and got no complete answer is not charged.

    Exact over HTTP: what was handed to the socket arrives at a caller on the same machine even if the worker dies.
    gRPC clients may drop a finished answer when the connection breaks, so there only the number is bounded.
    """
    got = {attempt.call_id for attempt in attempts if attempt.is_complete}
    unknown = [event for event in books.posted if event.call_id not in got and event.tenant not in expected.leaving]
    for event in unknown:
        if event.protocol == HTTP:
            yield Violation("charged_without_answer", f"{event.tenant} {event.call_id} at {event.place}")
    over_grpc = sum(event.protocol != HTTP for event in unknown)
    cut = sum(attempt.protocol != HTTP and not attempt.is_complete for attempt in attempts)
    if over_grpc > min(cut, expected.lanes * expected.worker_deaths):
        yield Violation("charged_without_answer", f"{over_grpc} over gRPC, {cut} cut")


def _records_and_marks(recorded: Mapping[tuple[str, int], Recorded], books: Books) -> Iterator[Violation]:
    """I2, I14: posted = recorded with a mark; voided = recorded without, or freed; every record has one fate."""
    fates = Counter([event.place for event in books.posted] + [place for _, _, place in books.voided])
    posted = {event.place: event for event in books.posted}
    for (instance, epoch), log in recorded.items():
        for seq, served in log.served.items():
            place = (instance, epoch, seq)
            if fates.pop(place, 0) != 1:
                yield Violation("I14", f"{place} of {served.tenant} has no fate, or several")
                continue
            is_free = seq in log.ended and log.ended[seq].cause in FREE_CAUSES
            is_due = log.is_marked(seq) and not is_free
            if is_due != (place in posted):
                yield Violation("I2", f"{place}: marked {log.is_marked(seq)}, free {is_free}, posted {place in posted}")
            if place in posted and posted[place].call_id != str(UUID(bytes=served.call_id)):
                yield Violation("I2", f"{place}: recorded as {UUID(bytes=served.call_id)}, posted as another call")
    for place in fates:
        yield Violation("I2", f"{place} is in the ledger and in no usage log")
    if books.quarantined or books.duplicates:
        yield Violation("I5", f"{books.quarantined} quarantined, {books.duplicates} duplicates")


def _voids_bounded(
    recorded: Mapping[tuple[str, int], Recorded], books: Books, expected: Expectations
) -> Iterator[Violation]:
    """I1: per dead epoch at most one void per lane: a lane's next record comes after the mark of its last."""
    voids: defaultdict[tuple[str, int], int] = defaultdict(int)
    for tenant, _, (instance, epoch, _) in books.voided:
        if tenant not in expected.leaving:
            voids[instance, epoch] += 1
    for epoch_key, count in voids.items():
        if count > expected.lanes:
            yield Violation("I1", f"{count} voids in {epoch_key}, at most {expected.lanes} calls were in flight")
    if len(voids) > expected.worker_deaths:
        yield Violation("I1", f"voids in {len(voids)} epochs, only {expected.worker_deaths} workers died")
    if voids.keys() - recorded.keys():
        yield Violation("I1", f"voids in epochs without a log: {voids.keys() - recorded.keys()}")


def _ledger_sound(db: sqlite3.Connection, books: Books) -> Iterator[Violation]:
    """I7, I9: everything sums to zero and can be computed again from genesis."""
    balance = trial_balance(db)
    if not balance.is_balanced:
        yield Violation("I7", str(balance.totals))
    verification = verify_ledger(db)
    for problem in verification.problems:
        yield Violation("I9", str(problem))
    if verification.events != len(books.posted):
        yield Violation("I9", f"{verification.events} events in transactions, {len(books.posted)} posted")
    charged = sum(event.charge_nanos for event in books.posted)
    if sum(verification.charged_nanos.values()) != charged:
        yield Violation("I9", f"entries charge {verification.charged_nanos}, events {charged}")


def _ledger_append_only(data_dir: Path) -> Iterator[Violation]:
    """I8: nothing can be changed or removed, not even by whoever may write."""
    db = sqlite3.connect(data_dir / LEDGER_FILE, isolation_level=None)
    try:
        for table in APPEND_ONLY:
            if not db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():
                continue
            column = db.execute(f"SELECT name FROM pragma_table_info('{table}')").fetchone()[0]
            for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET {column} = {column}"):
                try:
                    db.execute(statement)
                except sqlite3.DatabaseError:
                    continue
                yield Violation("I8", f"{statement} was carried out")
    finally:
        db.close()


def _caps_kept(attempts: Sequence[Attempt], books: Books, expected: Expectations) -> Iterator[Violation]:
    """I12, calendar caps: exact. A void gives its call back, so what was received may exceed the cap by voids only."""
    posted = Counter(event.tenant for event in books.posted)
    voided = Counter(tenant for tenant, _, _ in books.voided)
    received = Counter(attempt.tenant for attempt in attempts if attempt.is_good)
    for tenant, cap in expected.daily_caps.items():
        if posted[tenant] > cap or received[tenant] > cap + voided[tenant]:
            yield Violation("I12", f"{tenant}: {posted[tenant]} posted, {received[tenant]} received, the cap is {cap}")


def _rates_kept(attempts: Sequence[Attempt], expected: Expectations) -> Iterator[Violation]:
    """I12, rates: calls that began and ended within a window were admitted in it: at most burst + rate * window."""
    for tenant, (rate, burst) in expected.rates.items():
        calls = sorted((one.sent_ns, one.done_ns) for one in attempts if one.is_good and one.tenant == tenant)
        for first, (begin_ns, _) in enumerate(calls):
            ends = sorted(done_ns for _, done_ns in calls[first : first + 20 * burst])
            for count, end_ns in enumerate(ends, 1):
                if count > burst + 1 + rate * (end_ns - begin_ns) / _S:
                    yield Violation("I12", f"{tenant}: {count} calls in {(end_ns - begin_ns) / _S:.3f} s")
                    return


def _refused_leave_nothing(
    recorded: Mapping[tuple[str, int], Recorded], books: Books, expected: Expectations
) -> Iterator[Violation]:
    """I13, I6: a refused call leaves no record and no event."""
    for tenant in expected.refused:
        if any(served.tenant == tenant for log in recorded.values() for served in log.served.values()):
            yield Violation("I13", f"{tenant} has records")
        if any(event.tenant == tenant for event in books.posted):
            yield Violation("I13", f"{tenant} has posted events")


def _same_answers(attempts: Sequence[Attempt]) -> Iterator[Violation]:
    """Equal questions got equal answers, whatever died meanwhile."""
    bodies: defaultdict[tuple[int, str], Counter[tuple[int, str]]] = defaultdict(Counter)
    for attempt in attempts:
        if attempt.is_good:
            bodies[attempt.protocol, attempt.kind][attempt.body_bytes, attempt.body_sha256[:8]] += 1
    for asked, answers in bodies.items():
        if len(answers) > 1:
            yield Violation("answers", f"{asked}: (bytes, hash) → count: {dict(answers)}")
