"""Whatever the order, repetition and cuts of delivery, the ledger ends the same: I3, I5, I7, I9, I14, I16."""

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given, note, settings
from hypothesis import strategies as st

from billing.events import Closed, Ended, Outcome, Reason, Record, Sent, Served
from billing.intake import Intake
from billing.judge import Verdict, find_fault
from billing.ledger.connect import open_reader
from billing.ledger.memory import MemoryLedger
from billing.ledger.port import Batch, Ledger, Position, Source
from billing.ledger.sqlite import SqliteLedger
from billing.ledger.stored import read_events
from billing.ledger.verify import verify_ledger
from billing.ledger.views import trial_balance
from billing.packed import AnyRecord, Call, Packer
from tests.unit.billing.making import BOOK, RATER, call

Log = tuple[Source, list[Record]]
PACKER = Packer()
SEEDS = st.integers(0, 2**32 - 1)


def packed_at_times(rng: random.Random, record: Record) -> AnyRecord:
    return PACKER.pack(record) if isinstance(record, Served) and rng.random() < 0.5 else record


def judge(served: Call) -> Verdict | None:
    return find_fault(served, {1: RATER})


@contextmanager
def sqlite_ledger() -> Iterator[tuple[SqliteLedger, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        ledger = SqliteLedger(path)
        ledger.prices(BOOK)
        try:
            yield ledger, path
        finally:
            ledger.close()


def make_logs(rng: random.Random) -> tuple[list[Log], dict[str, int]]:
    """Logs of dead workers as a worker writes them, some calls faulty, some unmarked; and how many are of each fate."""
    fates = {"posted": 0, "voided": 0, "quarantined": 0}
    logs: list[Log] = []
    number = 0
    for worker in range(rng.randint(1, 4)):
        records: list[Record] = []
        for _ in range(rng.randint(0, 6)):
            first, size = len(records) + 1, rng.randint(1, 8)
            is_marked = rng.random() < 0.85
            for _ in range(size):
                number += 1
                served = _some_call(rng, number)
                records.append(served)
                fate = "voided" if not is_marked else "quarantined" if judge(served) else "posted"
                fates[fate] += 1
            if is_marked:
                if rng.random() < 0.3:
                    records.append(Ended(served_seq=rng.randint(first, first + size - 1), cause="gone", bytes_sent=1))
                records.append(Sent(first_seq=first, last_seq=first + size - 1))
        if rng.random() < 0.5:
            records.append(Closed(t_ns=1))
        logs.append((Source(f"w{worker}", rng.randint(1, 2**40)), records))
    return logs, fates


def _some_call(rng: random.Random, number: int) -> Served:
    served = call(
        number,
        tenant=rng.choice(["acme", "beta", "gamma"]),
        model=rng.choice(["ocr", "file_type", "unheard_of"]),
        outcome=rng.choice([Outcome.OK, Outcome.OK, Outcome.FAILED]),
        reason=rng.choice([Reason.PRICED, Reason.FREE_PLAN, Reason.INTERNAL_PLAN]),
        rows=rng.randint(0, 9),
        compute_ns=rng.randint(0, 10**8),
    )
    return served if rng.random() < 0.9 else call(number, tenant=served.tenant, charge_nanos=123)


def deliver(ledger: Ledger, logs: list[Log], rng: random.Random, *, is_from_start: bool) -> None:
    """One life of a meter: reads interleaved pieces, and may die (forget everything) between any two posts."""
    positions = {} if is_from_start else ledger.state().positions
    intake = Intake({} if is_from_start else positions)
    places = {source: 0 if is_from_start else positions.get(source, Position(0, 0)).seq for source, _ in logs}
    waiting = list(logs)
    while waiting:
        source, records = rng.choice(waiting)
        place, size = places[source], rng.randint(1, 12)
        piece = list(enumerate(records[place : place + size], place + 1))
        places[source] += len(piece)
        if piece:
            # The meter's reader delivers calls packed, others as they are; what becomes of them must not depend on it.
            intake.feed(source, [(seq, packed_at_times(rng, record)) for seq, record in piece])
        if places[source] >= len(records):
            intake.end(source, len(records))
            waiting.remove((source, records))
        if rng.random() < 0.6 or not waiting:
            for batch in intake.take_batches(judge, 5):
                ledger.post(batch)
        if rng.random() < 0.05:
            return


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_logs_replayed_ten_times_shuffled_and_cut_post_once(seed: int) -> None:
    note(f"seed {seed}")
    rng = random.Random(seed)
    logs, fates = make_logs(rng)
    with sqlite_ledger() as (ledger, path):
        for _ in range(10):
            rng.shuffle(logs)
            deliver(ledger, logs, rng, is_from_start=rng.random() < 0.5)
        while not all(ledger.state().positions.get(source, Position(0, 0)).is_ended for source, _ in logs):
            deliver(ledger, logs, rng, is_from_start=False)
        state = ledger.state()
        assert {"posted": state.posted, "voided": state.voided, "quarantined": state.quarantined} == fates
        assert sum(position.served for position in state.positions.values()) == sum(fates.values())
        check_money(path, state.posted)


def check_money(path: Path, posted: int) -> None:
    """I7, I9, I16 on a finished ledger: sums are zero, recomputed from genesis, re-rated to the same bytes."""
    db = open_reader(path)
    try:
        found = verify_ledger(db)
        assert (found.problems, found.events) == ((), posted)
        balance = trial_balance(db)
        assert balance.is_balanced
        owed = sum(line.balance_nanos for line in balance.lines if line.account.startswith("unbilled_receivable:"))
        rated = [
            RATER.charge(
                one.served.model,
                {0: "priced", 1: "free", 2: "internal", 3: "priced"}[one.served.reason],
                one.served.outcome,
                one.served.rows,
                one.served.compute_ns,
            )
            for one in read_events(db, 1, posted)
        ]
        assert owed == sum(amount for amount, _ in rated)
    finally:
        db.close()


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_both_ledgers_agree_on_any_sequence_of_batches(seed: int) -> None:
    note(f"seed {seed}")
    rng = random.Random(seed)
    with sqlite_ledger() as (ledger, _):
        twin = MemoryLedger()
        twin.prices(BOOK)
        for step in range(rng.randint(1, 8)):
            places = [
                (Source(f"w{rng.randint(0, 1)}", 1), rng.randint(1, 20), _some_call(rng, rng.randint(1, 12)))
                for _ in range(rng.randint(0, 15))
            ]
            batch = Batch(posts=places, voids=places[:2] if rng.random() < 0.3 else (), now_ns=step)
            assert ledger.post(batch) == twin.post(batch)
        assert ledger.state() == twin.state()
        windows = [(tenant, call(number).t_ns) for tenant in ("acme", "beta") for number in (0, 4, 8, 13)]
        assert ledger.counts(windows) == twin.counts(windows)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_one_id_with_other_content_never_posts_twice(seed: int) -> None:
    note(f"seed {seed}")
    rng = random.Random(seed)
    with sqlite_ledger() as (ledger, path):
        versions = [_some_call(rng, 1) for _ in range(6)]
        versions = [call(1, rows=n, model="file_type") for n in range(3)] + [
            one for one in versions if one.tenant == "acme" and judge(one) is None
        ]
        for seq, served in enumerate(versions, 1):
            ledger.post(Batch(posts=[(Source("w0", 1), seq, served)], now_ns=5))
        state = ledger.state()
        assert state.posted == 1
        assert state.quarantined == sum(served != versions[0] for served in versions)
        db = open_reader(path)
        assert verify_ledger(db).charged_nanos == {"USD": versions[0].charge_nanos}
        db.close()
