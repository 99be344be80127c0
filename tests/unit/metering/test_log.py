"""The usage log as the pipeline sees it, on a simulated disk and loop."""

import pytest

from billing.events import Closed, Ended, Sent, Served, encode
from billing.packed import AnyRecord
from gateway.errors import Code, TollwayError
from gateway.metering.log import LogLimits
from tests.sim.stepped import SteppedLog
from tests.sim.world import served

RECORD = encode(served(1000, 20))


def kinds(records: list[tuple[int, AnyRecord]]) -> list[tuple[int, type[AnyRecord]]]:
    return [(seq, type(record)) for seq, record in records]


def test_callbacks_come_in_order_once_the_sync_is_done() -> None:
    log = SteppedLog()
    assert [log.append(RECORD) for _ in range(3)] == [1, 2, 3]
    assert log.acked == [], "never before append returns"
    log.turn()
    assert log.acked == [], "never before the sync"
    log.flush()
    assert log.acked == [], "never on the flusher's thread"
    log.turn()
    assert log.acked == [1, 2, 3]


def test_one_sync_serves_all_records_that_wait() -> None:
    log = SteppedLog()
    before = log.disk.syncs
    for _ in range(5):
        log.append(RECORD)
        log.append(RECORD)
        log.turn()
    log.flush()
    log.turn()
    assert log.acked == list(range(1, 11))
    assert log.disk.syncs == before + 1
    assert log.log.groups == 1


def test_a_sent_mark_covers_the_group_after_its_callbacks() -> None:
    log = SteppedLog()
    log.append(RECORD)
    log.append(RECORD)
    log.settle()
    assert log.records()[2:] == [(3, Sent(first_seq=1, last_seq=2))]


def test_an_ended_mark_made_by_the_callback_precedes_the_sent_mark() -> None:
    log = SteppedLog()
    log.log.append(RECORD, lambda seq: log.log.mark_ended(seq, "client_gone", 9))
    log.settle()
    assert log.records()[1:] == [
        (2, Ended(served_seq=1, cause="client_gone", bytes_sent=9)),
        (3, Sent(first_seq=1, last_seq=1)),
    ]


def test_an_idle_logs_mark_is_written_after_its_delay_without_a_sync() -> None:
    log = SteppedLog()
    log.append(RECORD)
    log.turn()
    log.flush()
    log.turn()
    syncs = log.disk.syncs
    log.flush()
    assert len(log.records()) == 1, "the mark waits for a group to ride with"
    log.clock.advance(1_000_000)
    log.turn()
    log.flush()
    assert kinds(log.records()) == [(1, Served), (2, Sent)]
    assert log.disk.syncs == syncs


def test_a_mark_rides_with_the_next_group() -> None:
    log = SteppedLog()
    log.append(RECORD)
    log.turn()
    log.flush()
    log.turn()
    log.append(RECORD)
    log.turn()
    log.flush()
    assert kinds(log.records()) == [(1, Served), (2, Sent), (3, Served)]


def test_without_a_delay_the_mark_is_handed_over_in_the_same_turn() -> None:
    log = SteppedLog(LogLimits(segment_bytes=4096, mark_delay_s=0.0))
    log.append(RECORD)
    log.turn()
    log.flush()
    log.turn()
    log.flush()
    assert kinds(log.records()) == [(1, Served), (2, Sent)]


def test_marks_alone_are_never_marked_themselves() -> None:
    log = SteppedLog()
    log.append(RECORD)
    log.settle()
    log.log.mark_ended(1, "client_gone", 0)
    log.settle()
    assert kinds(log.records()) == [(1, Served), (2, Sent), (3, Ended)]


def test_too_many_unsynced_records_stop_new_calls_until_they_are_durable() -> None:
    log = SteppedLog(LogLimits(segment_bytes=4096, unsynced_records_max=3))
    log.append(RECORD)
    log.append(RECORD)
    assert log.log.is_accepting
    log.append(RECORD)
    assert not log.log.is_accepting
    assert log.append(RECORD) == 4, "a call that was let in is recorded all the same"
    log.settle()
    assert log.log.is_accepting
    assert log.acked == [1, 2, 3, 4]


def test_too_many_unsynced_bytes_stop_new_calls_until_they_are_durable() -> None:
    log = SteppedLog(LogLimits(segment_bytes=4096, unsynced_bytes_max=2 * len(RECORD)))
    log.append(RECORD)
    assert log.log.is_accepting
    log.append(RECORD)
    assert not log.log.is_accepting
    log.settle()
    assert log.log.is_accepting


def test_a_full_disk_refuses_new_calls_and_recovers_without_a_restart() -> None:
    log = SteppedLog(LogLimits(segment_bytes=512))
    log.disk.is_full = True
    while log.log.is_accepting:
        log.append(RECORD)
        log.turn()
        log.flush()
        log.prepare()
        log.turn()
    assert log.log.trouble is not None
    appended = [log.append(RECORD) for _ in range(10)]
    log.turn()
    log.flush()
    log.prepare()
    log.turn()
    assert appended[-1] not in log.acked, "what does not fit waits; nothing is served unmetered"
    assert not log.fatal, "a full disk is no fatal error"
    log.disk.is_full = False
    log.settle()
    assert log.log.trouble is None
    assert log.log.is_accepting
    assert log.acked[-1] == appended[-1]
    assert [seq for seq, _ in log.records()] == list(range(1, len(log.records()) + 1))


@pytest.mark.parametrize("call", [pytest.param(1, id="pwrite"), pytest.param(2, id="fdatasync")])
def test_an_io_error_is_fatal_once_and_nobody_waiting_is_called(call: int) -> None:
    log = SteppedLog()
    log.append(RECORD)
    log.turn()
    log.disk.eio_in = call
    log.flush()
    log.append(RECORD)
    log.settle()
    assert [type(error) for error in log.fatal] == [OSError]
    assert log.acked == []
    assert not log.log.is_accepting
    with pytest.raises(TollwayError) as refused:
        log.append(RECORD)
    assert refused.value.code is Code.METERING_UNAVAILABLE
    with pytest.raises(TollwayError):
        log.log.mark_ended(1, "client_gone", 0)
    assert not log.disk.is_locked(log.log.epoch.folder / "lock"), "the epoch is given up"


def test_a_failed_log_closes_without_a_closed_record() -> None:
    log = SteppedLog()
    log.append(RECORD)
    log.turn()
    log.disk.eio_in = 2
    log.flush()
    log.settle()
    closed: list[bool] = []
    log.log.start_close(lambda: closed.append(True))
    log.settle()
    assert closed == [True]
    assert Closed not in [kind for _, kind in kinds(log.records())]


def test_one_failing_reply_does_not_hold_back_the_others() -> None:
    log = SteppedLog()

    def fail(_seq: int) -> None:
        raise RuntimeError("a bug in a reply")

    log.append(RECORD)
    log.log.append(RECORD, fail)
    log.append(RECORD)
    log.settle()
    assert log.acked == [1, 3]
    assert [type(problem["exception"]) for problem in log.loop.problems] == [RuntimeError]
    assert log.records()[3] == (4, Ended(served_seq=2, cause="callback_failed", bytes_sent=0))


def test_close_calls_everybody_back_and_ends_with_closed() -> None:
    log = SteppedLog()
    closed: list[bool] = []
    log.append(RECORD)
    log.log.start_close(lambda: closed.append(True))
    assert not log.log.is_accepting
    log.append(RECORD)
    log.settle()
    assert log.acked == [1, 2]
    assert closed == [True]
    assert kinds(log.records()) == [(1, Served), (2, Served), (3, Sent), (4, Closed)]
    log.disk.power_cut()
    assert len(log.records()) == 4, "Closed and the marks before it are durable"
    with pytest.raises(TollwayError):
        log.append(RECORD)
    log.log.start_close(lambda: closed.append(False))
    log.settle()
    assert closed == [True, False], "closing twice is fine"


def test_an_unused_log_closes_cleanly() -> None:
    log = SteppedLog()
    log.log.start_close(lambda: None)
    log.settle()
    assert kinds(log.records()) == [(1, Closed)]


def test_abandon_writes_nothing_more_and_releases_the_epoch() -> None:
    log = SteppedLog()
    log.append(RECORD)
    log.turn()
    log.log.abandon()
    log.settle()
    assert log.acked == []
    assert log.records() == []
    assert not log.disk.is_locked(log.log.epoch.folder / "lock")


@pytest.mark.parametrize("payload", [b"", bytes(4096)])
def test_a_payload_that_no_frame_can_hold_is_refused(payload: bytes) -> None:
    log = SteppedLog()
    with pytest.raises(ValueError, match="a usage record has"):
        log.append(payload)
    assert log.append(bytes(log.log._payload_bytes_max)) == 1, "the longest allowed one fits"
    log.settle()
    assert log.acked == [1]


def test_the_longest_record_is_bounded_by_the_frame() -> None:
    assert LogLimits(segment_bytes=1024).payload_bytes_max < 1024
    assert LogLimits().payload_bytes_max == 64 * 1024


@pytest.mark.parametrize("segment_bytes", [0, 511, 2**40])
def test_segment_sizes_out_of_bounds_are_refused(segment_bytes: int) -> None:
    with pytest.raises(ValueError, match="segment_bytes"):
        LogLimits(segment_bytes=segment_bytes)


def test_many_segments_are_filled_without_a_gap() -> None:
    log = SteppedLog(LogLimits(segment_bytes=512))
    for _ in range(40):
        log.append(RECORD)
        log.settle()
    assert len(log.acked) == 40
    seqs = [seq for seq, _ in log.records()]
    assert seqs == list(range(1, 81))


def test_one_group_may_span_several_segments() -> None:
    log = SteppedLog(LogLimits(segment_bytes=512))
    for _ in range(20):
        log.append(RECORD)
    log.settle()
    assert log.acked == list(range(1, 21))
