"""Intake: which records post, wait, are voided or quarantined, and how far the watermark may go."""

import pytest

from billing.events import Closed, Ended, Progress, Record, Sent, Served, decode, encode, progress_of
from billing.intake import FREE_CAUSES, Intake, LogPairing
from billing.judge import Verdict, find_fault
from billing.ledger.port import BATCH_EVENTS_MAX, Batch, Ending, Position
from billing.packed import Call
from tests.unit.billing.making import RATER, T0_NS, W0, call


def numbered(records: list[Record], first: int = 1) -> list[tuple[int, Record]]:
    return list(enumerate(records, first))


def judge(call: Call) -> Verdict | None:
    return find_fault(call, {1: RATER})


def decided(records: list[Record], *, is_dead: bool = False) -> Batch | None:
    """The one batch that an intake makes of a whole log."""
    intake = Intake({})
    intake.feed(W0, numbered(records))
    if is_dead:
        intake.end(W0, len(records))
    batches = intake.take_batches(judge, 5)
    assert len(batches) <= 1
    return batches[0] if batches else None


def posted(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [seq for _, seq, _ in batch.posts]


def test_sent_mark_posts_its_range_and_no_more() -> None:
    batch = decided([call(1), call(2), call(3), Sent(first_seq=1, last_seq=2)])
    assert posted(batch) == [1, 2]
    assert batch is not None
    assert batch.positions == {W0: Position(2, 2)}


def test_watermark_stays_below_the_oldest_waiting_call() -> None:
    batch = decided([call(1), call(2), call(3), Sent(first_seq=2, last_seq=3)])
    assert posted(batch) == [2, 3]
    assert batch is not None
    assert batch.positions == {W0: Position(0, 0)}


def test_watermark_passes_marks_and_counts_calls_only() -> None:
    batch = decided([call(1), Sent(first_seq=1, last_seq=1), call(3), Sent(first_seq=3, last_seq=3)])
    assert batch is not None
    assert batch.positions == {W0: Position(4, 2)}


def test_ended_charges_and_tells_why_before_or_after_sent() -> None:
    before = decided([call(1), call(2), Ended(served_seq=1, cause="gone", bytes_sent=9), Sent(first_seq=1, last_seq=2)])
    after = decided([call(1), call(2), Sent(first_seq=1, last_seq=2), Ended(served_seq=1, cause="gone", bytes_sent=9)])
    assert sorted(posted(before)) == sorted(posted(after)) == [1, 2]
    assert before is not None
    assert after is not None
    assert before.endings == after.endings == {(W0, 1): Ending("gone", 9)}


@pytest.mark.parametrize("cause", sorted(FREE_CAUSES))
def test_caller_gone_before_durable_and_replies_we_failed_to_send_are_void(cause: str) -> None:
    batch = decided([call(1), call(2), Ended(served_seq=1, cause=cause, bytes_sent=0), Sent(first_seq=1, last_seq=2)])
    assert batch is not None
    assert posted(batch) == [2]
    assert batch.voids == [(W0, 1, call(1))]
    assert batch.endings == {}
    assert batch.positions == {W0: Position(4, 2)}


def test_a_void_of_a_living_worker_is_decided_at_once() -> None:
    batch = decided([call(1), Ended(served_seq=1, cause="gone_before_durable", bytes_sent=0)])
    assert batch is not None
    assert (batch.posts, batch.voids) == ([], [(W0, 1, call(1))])


def test_marks_of_calls_already_decided_are_harmless() -> None:
    pairing = LogPairing(Position(10, 4))
    records: list[Record] = [Sent(first_seq=3, last_seq=9), Ended(served_seq=4, cause="gone", bytes_sent=0)]
    ready, freed, endings = pairing.feed(numbered(records, 11))
    assert ready == freed == []
    assert list(endings) == [4]
    assert pairing.position() == Position(12, 4)


def test_dead_epoch_voids_what_has_no_mark_even_if_it_says_closed() -> None:
    batch = decided([call(1), call(2), Sent(first_seq=1, last_seq=1), Closed(t_ns=T0_NS)], is_dead=True)
    assert posted(batch) == [1]
    assert batch is not None
    assert [seq for _, seq, _ in batch.voids] == [2]
    assert batch.positions == {W0: Position(4, 2, True)}


def test_waiting_calls_alone_make_no_batch_and_stay_visible() -> None:
    intake = Intake({})
    intake.feed(W0, numbered([call(1)]))
    assert intake.take_batches(judge, 5) == []
    assert intake.pending() == [call(1)]
    intake.feed(W0, numbered([Sent(first_seq=1, last_seq=1)], 2))
    (batch,) = intake.take_batches(judge, 5)
    assert batch.positions == {W0: Position(2, 1)}
    assert intake.pending() == []
    assert intake.take_batches(judge, 5) == []


def test_empty_dead_epoch_still_ends() -> None:
    intake = Intake({})
    intake.end(W0, 0)
    (batch,) = intake.take_batches(judge, 5)
    assert batch.positions == {W0: Position(0, 0, True)}


def test_known_position_goes_on_counting_from_the_ledger() -> None:
    intake = Intake({W0: Position(10, 7)})
    intake.feed(W0, numbered([call(1), Sent(first_seq=11, last_seq=11)], 11))
    (batch,) = intake.take_batches(judge, 5)
    assert batch.positions == {W0: Position(12, 8)}


def test_faulty_record_is_rejected_and_the_watermark_passes_it() -> None:
    batch = decided([call(1, charge_nanos=3), call(2), Sent(first_seq=1, last_seq=2)])
    assert posted(batch) == [2]
    assert batch is not None
    assert [(one.item[1], one.reason, one.field) for one in batch.rejected] == [(1, "charge_mismatch", "charge_nanos")]
    assert batch.positions == {W0: Position(3, 2)}


def test_one_mark_over_very_many_calls_is_split_and_only_the_last_part_moves_the_watermark() -> None:
    intake, total = Intake({}), 2 * BATCH_EVENTS_MAX + 1
    calls: list[Record] = [call(n) for n in range(1, total + 1)]
    intake.feed(W0, numbered([*calls, Sent(first_seq=1, last_seq=total)]))
    batches = intake.take_batches(judge, 5)
    assert [len(batch.posts) for batch in batches] == [BATCH_EVENTS_MAX, BATCH_EVENTS_MAX, 1]
    assert [dict(batch.positions) for batch in batches] == [{}, {}, {W0: Position(total + 1, total)}]


def test_judge_that_fails_loses_nothing() -> None:
    intake = Intake({})
    intake.feed(W0, numbered([call(1), Sent(first_seq=1, last_seq=1)]))

    def broken(_: Call) -> Verdict | None:
        raise OSError("no ledger to learn a price book from")

    try:
        intake.take_batches(broken, 5)
    except OSError:
        (batch,) = intake.take_batches(judge, 6)
        assert posted(batch) == [1]
    else:
        raise AssertionError("the failure was swallowed")


def stream(number: int, rows: int) -> Progress:
    """A stream's Progress with `rows` delivered."""
    return Progress(served=call(number, rows=rows))


def test_progress_reads_back_as_it_was_written() -> None:
    served = call(1, rows=3)
    payload = progress_of(encode(served))
    assert payload == encode(Progress(served=served))
    assert decode(payload) == Progress(served=served)


def test_a_stream_that_ended_is_billed_by_its_served_alone() -> None:
    records: list[Record] = [stream(1, 0), stream(1, 64), call(1, rows=70), Sent(first_seq=3, last_seq=3)]
    for is_dead in (False, True):
        batch = decided(records, is_dead=is_dead)
        assert posted(batch) == [3]
        assert batch is not None
        assert not batch.voids
        assert batch.positions == {W0: Position(4, 1, is_dead)}


def test_a_stream_under_way_holds_the_watermark_below_its_beginning() -> None:
    batch = decided(
        [call(9), stream(1, 0), Sent(first_seq=1, last_seq=1), stream(1, 64), call(3), Sent(first_seq=5, last_seq=5)]
    )
    assert posted(batch) == [1, 5]
    assert batch is not None
    assert batch.positions == {W0: Position(1, 1)}


@pytest.mark.parametrize("last", [[], [call(1, rows=70)]], ids=["no final record", "final record without a mark"])
def test_a_crash_bills_the_last_durable_progress(last: list[Served]) -> None:
    batch = decided([stream(1, 0), stream(2, 0), stream(1, 64), *last], is_dead=True)
    assert batch is not None
    assert {(seq, item.rows) for _, seq, item in batch.posts if isinstance(item, Served)} == {(3, 64), (2, 0)}
    assert not batch.voids
    assert batch.positions == {W0: Position(3 + len(last), 2, True)}


def test_a_stream_that_was_freed_is_not_billed() -> None:
    batch = decided([stream(1, 0), call(1), Ended(served_seq=2, cause="callback_failed", bytes_sent=0)], is_dead=True)
    assert batch is not None
    assert not batch.posts
    assert len(batch.voids) == 1
