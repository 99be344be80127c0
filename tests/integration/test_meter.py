"""The meter as a process: what it posts, answers and survives (I1-I3, I5, I14 with kill -9 at each failpoint)."""

import signal
import stat
from pathlib import Path

import msgspec
import pytest

from billing.events import Closed, Ended, Outcome, Reason, Record, Sent, Served
from billing.ledger.connect import LEDGER_FILE, open_reader
from billing.ledger.views import quarantined, trial_balance, voided
from billing.meter_client import SOCKET_NAME, MeterError
from billing.pricebook import encode_price_book
from billing.reconcile import reconcile
from tests.unit.billing.making import BOOK, T0_NS, Epoch, MeterProcess, call, marked, write_dead_epoch


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "book.json").write_bytes(encode_price_book(BOOK))
    return tmp_path


def meter(data_dir: Path, failpoint: str = "") -> MeterProcess:
    return MeterProcess(data_dir, "--prices", str(data_dir / "book.json"), failpoint=failpoint)


def test_marked_calls_are_posted_and_reconcile(data_dir: Path) -> None:
    log = Epoch(data_dir / "usage")
    log.append(marked([call(n, tenant=f"t{n % 3}") for n in range(1, 51)]))
    with meter(data_dir) as running:
        assert running.wait_ready()
        assert running.ask("flush") == {"posted": 50}
        report = reconcile(data_dir)
        assert running.stop() == 0
    assert report.is_ok, report.problems
    assert (report.recorded, report.posted, report.answered, report.is_flushed) == (50, 50, 50, True)
    log.die()


def test_socket_and_ledger_are_for_the_owner_only(data_dir: Path) -> None:
    with meter(data_dir) as running:
        assert running.wait_ready()
        for name in (SOCKET_NAME, LEDGER_FILE):
            assert stat.S_IMODE((data_dir / name).stat().st_mode) == 0o600


def test_unmarked_call_waits_while_its_epoch_lives_and_is_voided_when_it_is_dead(data_dir: Path) -> None:
    log = Epoch(data_dir / "usage")
    log.append([call(1), call(2), Sent(first_seq=1, last_seq=1)])
    with meter(data_dir) as running:
        assert running.wait_ready()
        assert running.ask("flush") == {"posted": 1}
        status = running.ask("status")
        assert (status["pending"], status["voided"], status["watermarks"]) == (1, 0, {"w0/1": 1})
        log.die()
        running.ask("flush")
        status = running.ask("status")
        assert (status["pending"], status["voided"], status["posted"]) == (0, 1, 1)
        assert not log.folder.exists()
        report = reconcile(data_dir)
    assert report.is_ok, report.problems
    assert (report.recorded, report.posted, report.voided, report.answered) == (2, 1, 1, 1)


def test_counts_hold_posted_and_waiting_good_calls(data_dir: Path) -> None:
    log = Epoch(data_dir / "usage")
    calls = [call(1), call(2, reason=Reason.FREE_PLAN, plan="free"), call(3, outcome=Outcome.FAILED), call(4)]
    log.append([*calls, Sent(first_seq=1, last_seq=3), call(5, tenant="other"), call(6)])
    since_four = call(4).t_ns
    with meter(data_dir) as running:
        assert running.wait_ready()
        answer = running.ask("counts", windows=[["acme", T0_NS], ["acme", since_four], ["other", T0_NS], ["none", 0]])
    assert answer == {"counts": [4, 2, 1, 0]}
    log.die()


def test_wrong_charge_is_quarantined_and_nothing_of_it_posted(data_dir: Path) -> None:
    wrong = call(2, charge_nanos=1)
    write_dead_epoch(data_dir / "usage", [*marked([call(1), wrong]), Closed(t_ns=T0_NS)])
    with meter(data_dir) as running:
        assert running.wait_ready()
        assert running.ask("flush") == {"posted": 1}
    db = open_reader(data_dir / LEDGER_FILE)
    (found,) = quarantined(db)
    assert (found.reason, found.field, found.served) == ("charge_mismatch", "charge_nanos", wrong)
    assert {line.account: line.balance_nanos for line in trial_balance(db).lines} == {
        "unbilled_receivable:acme": 1_500_000,
        "revenue:model_call:ocr": -1_500_000,
    }
    db.close()


def test_price_book_of_the_published_snapshot_is_learnt(data_dir: Path) -> None:
    with MeterProcess(data_dir) as running:
        assert running.wait_ready()
        assert running.ask("status")["price_versions"] == []
        (data_dir / "new").write_bytes(msgspec.msgpack.encode({"version": 9, "prices": BOOK}))
        (data_dir / "new").rename(data_dir / "snapshot")
        log = Epoch(data_dir / "usage")
        log.append(marked([call(1)]))
        assert running.ask("flush") == {"posted": 1}
        assert running.ask("status")["price_versions"] == [1]
        log.die()


def test_known_version_with_other_content_is_refused_at_start(data_dir: Path) -> None:
    with meter(data_dir) as running:
        assert running.wait_ready()
        assert running.stop() == 0
    other = msgspec.structs.replace(BOOK, models={})
    (data_dir / "book.json").write_bytes(encode_price_book(other))
    with meter(data_dir) as running:
        assert not running.wait_ready()
        assert running.process.wait(60) == 1
        assert "price book version 1 is already in use with other content" in running.stderr()


def test_second_meter_on_one_ledger_is_refused(data_dir: Path) -> None:
    with meter(data_dir) as first, meter(data_dir) as second:
        assert sorted([first.wait_ready(), second.wait_ready()]) == [False, True]


def test_foolish_questions_are_refused_and_the_connection_of_others_lives(data_dir: Path) -> None:
    with meter(data_dir) as running:
        assert running.wait_ready()
        for op, arguments, code in (
            ("nonsense", {}, "unknown_op"),
            ("counts", {"windows": [["acme"]]}, "bad_request"),
            ("counts", {}, "bad_request"),
            ("add_prices", {"book": {"version": 0}}, "price_book"),
        ):
            with pytest.raises(MeterError) as refused:
                running.ask(op, **arguments)
            assert refused.value.code == code
        assert running.ask("status")["trouble"] is None


def _logs(data_dir: Path) -> tuple[list[Served], list[Served]]:
    """Three dead logs over several segments. Returns the calls that must be posted, and those that must be voided."""
    posted: list[Served] = []
    for worker in range(3):
        calls = [call(worker * 10_000 + n, tenant=f"t{n % 2}") for n in range(1, 1001)]
        cut = Ended(served_seq=2001, cause="client_gone", bytes_sent=5)
        records: list[Record] = [*calls, Sent(first_seq=1, last_seq=999)]
        records += [call(worker * 10_000 + n) for n in range(1001, 2001)]
        records += [Sent(first_seq=1000, last_seq=2000), cut, Closed(t_ns=T0_NS)]
        write_dead_epoch(data_dir / "usage", records, f"w{worker}")
        posted += [record for record in records if isinstance(record, Served)]
    lost = [call(90_000), call(90_001)]
    write_dead_epoch(data_dir / "usage", [call(80_000), Sent(first_seq=1, last_seq=1), *lost], "w9", 7)
    return [*posted, call(80_000)], lost


@pytest.mark.parametrize(
    "failpoint",
    [
        "before_commit:1",
        "before_commit:2",
        "after_commit_before_ack:1",
        "after_commit_before_ack:2",
        "before_segment_delete:1",
        "before_segment_delete:3",
        "before_segment_delete:9",
    ],
)
def test_meter_killed_at_a_failpoint_posts_everything_once_after_restart(data_dir: Path, failpoint: str) -> None:
    posted, lost = _logs(data_dir)
    with meter(data_dir, failpoint) as doomed:
        assert doomed.process.wait(60) == -signal.SIGKILL
    with meter(data_dir) as running:
        assert running.wait_ready()
        assert running.ask("flush") == {"posted": len(posted)}
        report = reconcile(data_dir)
        status = running.ask("status")
        assert running.stop() == 0
    assert report.is_ok, report.problems
    assert (report.recorded, report.posted, report.voided) == (len(posted) + len(lost), len(posted), len(lost))
    assert report.charged_nanos == {"USD": sum(served.charge_nanos for served in posted)}
    assert status["quarantined"] == 0
    db = open_reader(data_dir / LEDGER_FILE)
    assert [view.served for view in voided(db)] == lost
    db.close()
    assert not list((data_dir / "usage").rglob("*.seg"))


def test_killed_ten_times_in_a_row_still_posts_once(data_dir: Path) -> None:
    posted, lost = _logs(data_dir)
    for nth in range(1, 11):
        point = ("before_commit", "after_commit_before_ack", "before_segment_delete")[nth % 3]
        with meter(data_dir, f"{point}:1") as doomed:
            doomed.wait_ready()
            doomed.process.kill() if doomed.process.poll() is None and nth == 10 else doomed.process.wait(60)
    with meter(data_dir) as running:
        assert running.wait_ready()
        assert running.ask("flush") == {"posted": len(posted)}
    report = reconcile(data_dir)
    assert report.is_ok, report.problems
    assert report.voided == len(lost)
