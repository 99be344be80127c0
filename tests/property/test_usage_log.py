"""The usage log's bytes: they round-trip, and no truncation, flip or rubbish is ever taken for a record."""

from pathlib import Path
from random import Random

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from billing.events import Closed, Ended, Record, Sent, Served, decode, encode
from billing.usagelog.framing import (
    FRAME_BYTES,
    HEADER_BYTES,
    FrameCodec,
    Header,
    HeaderState,
    Stop,
    decode_header,
    encode_header,
)
from billing.usagelog.reader import Damaged, EpochEnded, UsageReader
from tests.sim.disk import SimDisk
from tests.sim.stepped import ends_of, read_all, records_of
from tests.sim.world import served
from tests.sim.writing import Scribe

I64 = st.integers(-(2**63), 2**63 - 1)
U63 = st.integers(0, 2**63 - 1)
TEXT = st.text(max_size=40)
INSTANCE = st.from_regex(r"[a-z0-9_-]{1,32}", fullmatch=True)
SEQ = st.integers(1, 2**63)
PAYLOADS = st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=20)
ROOT = Path("/sim/usage")
#: Examples are never timed: the machine is shared.
relaxed = settings(deadline=None)

RECORDS: st.SearchStrategy[Record] = st.one_of(
    st.builds(
        Served,
        call_id=st.binary(min_size=16, max_size=16),
        tenant=TEXT,
        key_id=TEXT,
        plan=TEXT,
        model=TEXT,
        model_version=TEXT,
        price_version=U63,
        t_ns=I64,
        outcome=st.integers(0, 1),
        reason=st.integers(0, 3),
        rows=U63,
        compute_ns=U63,
        request_bytes=U63,
        reply_bytes=U63,
        charge_nanos=U63,
        currency=TEXT,
        protocol=st.integers(0, 1),
    ),
    st.builds(Sent, first_seq=U63, last_seq=U63),
    st.builds(Ended, served_seq=U63, cause=TEXT, bytes_sent=U63),
    st.builds(Closed, t_ns=I64),
)


def frame(codec: FrameCodec, payloads: list[bytes], seq: int) -> bytes:
    parts, count, length = codec.encode(payloads, 0, seq, seq - 1, 10**9)
    raw = b"".join(parts)
    assert (count, length) == (len(payloads), len(raw))
    return raw


def unframe(codec: FrameCodec, raw: bytes, seq: int) -> tuple[list[bytes], Stop | None]:
    frames, _, stop = codec.decode(memoryview(raw), 0, True, seq, 10**6)
    assert [number for number, _ in frames] == list(range(seq, seq + len(frames)))
    return [bytes(payload) for _, payload in frames], stop


@relaxed
@given(RECORDS)
def test_records_round_trip(record: Record) -> None:
    assert decode(encode(record)) == record


@relaxed
@given(INSTANCE, SEQ, SEQ, PAYLOADS, st.integers(0, 100))
def test_frames_round_trip(instance: str, epoch: int, seq: int, payloads: list[bytes], padding: int) -> None:
    codec = FrameCodec(instance, epoch)
    assert unframe(codec, frame(codec, payloads, seq) + bytes(padding), seq) == (payloads, Stop.END)


@relaxed
@given(PAYLOADS, st.integers(0, 5000))
def test_frames_are_packed_up_to_the_room_there_is(payloads: list[bytes], room: int) -> None:
    codec = FrameCodec("w0", 1)
    parts, count, length = codec.encode(payloads, 0, 1, 0, room)
    assert length == len(b"".join(parts)) == sum(FRAME_BYTES + len(payload) for payload in payloads[:count]) <= room
    assert count == len(payloads) or length + FRAME_BYTES + len(payloads[count]) > room
    rest, more, _ = codec.encode(payloads, count, 1 + count, 0, 10**9)
    assert count + more == len(payloads)
    assert unframe(codec, b"".join(parts + rest), 1)[0] == payloads


@relaxed
@given(PAYLOADS, st.data())
def test_a_truncated_log_yields_a_prefix(payloads: list[bytes], data: st.DataObject) -> None:
    codec = FrameCodec("w0", 1)
    raw = frame(codec, payloads, 1)
    cut = data.draw(st.integers(0, len(raw)))
    found, stop = unframe(codec, raw[:cut] + bytes(len(raw) - cut), 1)
    assert found == payloads[: len(found)]
    assert cut == len(raw) or len(found) < len(payloads) or not any(raw[cut:])
    frames, offset, stop = codec.decode(memoryview(raw[:cut]), 0, False, 1, 10**6)
    assert [bytes(payload) for _, payload in frames] == payloads[: len(frames)]
    assert stop is Stop.SHORT
    assert offset <= cut


@relaxed
@given(PAYLOADS, st.data())
def test_a_flipped_bit_yields_exactly_what_precedes_it(payloads: list[bytes], data: st.DataObject) -> None:
    codec = FrameCodec("w0", 1)
    raw = bytearray(frame(codec, payloads, 1))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))
    found, stop = unframe(codec, bytes(raw), 1)
    intact, end = 0, 0
    while (end := end + FRAME_BYTES + len(payloads[intact])) <= place:
        intact += 1
    assert found == payloads[:intact]
    assert stop is Stop.BAD


@relaxed
@given(PAYLOADS, st.tuples(INSTANCE, SEQ, SEQ), st.tuples(INSTANCE, SEQ, SEQ))
def test_frames_of_another_place_or_time_never_parse(
    payloads: list[bytes], here: tuple[str, int, int], there: tuple[str, int, int]
) -> None:
    assume(here != there)
    raw = frame(FrameCodec(*here[:2]), payloads, here[2])
    assert unframe(FrameCodec(*there[:2]), raw, there[2]) == ([], Stop.BAD)


@relaxed
@given(st.binary(max_size=500), SEQ)
def test_rubbish_is_no_frame(raw: bytes, seq: int) -> None:
    found, stop = unframe(FrameCodec("w0", 1), raw, seq)
    assert found == []
    assert stop is (Stop.BAD if any(raw[:FRAME_BYTES]) else Stop.END)


@relaxed
@given(INSTANCE, SEQ, SEQ, st.integers(1, 2**32 - 1), st.data())
def test_headers_round_trip_and_no_flip_makes_another(
    instance: str, epoch: int, seq: int, index: int, data: st.DataObject
) -> None:
    raw = bytearray(encode_header(instance, epoch, index, seq, 4096))
    assert decode_header(bytes(raw) + b"rest") == Header(1, index, epoch, seq, 4096, instance)
    raw[data.draw(st.integers(0, HEADER_BYTES - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert decode_header(bytes(raw)) is HeaderState.BAD


@relaxed
@given(st.binary(max_size=2 * HEADER_BYTES))
def test_rubbish_is_no_header(raw: bytes) -> None:
    state = decode_header(raw)
    assert state is (HeaderState.BAD if any(raw[:HEADER_BYTES]) else HeaderState.NOT_BEGUN)


@relaxed
@given(PAYLOADS, PAYLOADS, st.integers(0, 30))
def test_only_a_later_group_proves_that_a_record_was_durable(
    first: list[bytes], second: list[bytes], garbage: int
) -> None:
    codec = FrameCodec("w0", 1)
    parts, _, _ = codec.encode(first, 0, 1, 0, 10**9)
    in_flight = b"".join(parts)
    assert codec.find_proof(in_flight, 1, 1) is None, "frames of one group prove nothing about each other"
    parts, _, _ = codec.encode(second, 0, len(first) + 1, len(first), 10**9)
    later = b"".join(parts)
    raw = b"\xff" * garbage + later
    assert codec.find_proof(raw, 0, len(first)) == garbage
    assert codec.find_proof(raw, 0, len(first) + 1) is None


def written_log() -> tuple[SimDisk, Scribe, list[Record]]:
    """A dead epoch of several segments, every record synced; the second half in groups of their own."""
    disk = SimDisk(Random(0))
    scribe = Scribe(disk, ROOT)
    records: list[Record] = [served(1000 + number, number * 7) for number in range(12)]
    for record in records:
        scribe.write(record)
    scribe.die()
    return disk, scribe, records


@settings(relaxed, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 511), st.binary(min_size=1, max_size=80)), max_size=3))
def test_a_reader_of_overwritten_segments_delivers_a_prefix_and_reports_the_rest(
    wounds: list[tuple[int, int, bytes]],
) -> None:
    disk, scribe, records = written_log()
    for index, offset, rubbish in wounds:
        file = disk.files.get(scribe.segment(index + 1))
        if file is not None:
            end = min(offset + len(rubbish), len(file.content))
            file.content[offset:end] = rubbish[: end - offset]
    results = read_all(UsageReader(ROOT, disk=disk), 5)
    found = [record for _, record in records_of(results)]
    assert found == records[: len(found)]
    last = results[-1]
    assert isinstance(last, Damaged | EpochEnded)
    if isinstance(last, EpochEnded):
        # Only the very last group can be damaged without a later witness.
        assert len(found) >= len(records) - 1


@settings(relaxed, max_examples=200)
@given(st.lists(st.binary(max_size=512), min_size=1, max_size=4), st.booleans())
def test_a_reader_of_rubbish_ends_without_a_record(files: list[bytes], is_begun: bool) -> None:
    disk = SimDisk(Random(0))
    scribe = Scribe(disk, ROOT)
    scribe.die()
    for index, rubbish in enumerate(files, 1):
        if index > 1:
            disk.preallocate(scribe.segment(index), 512)
        start = HEADER_BYTES if index == 1 and is_begun else 0
        content = disk.files[scribe.segment(index)].content
        content[start:] = rubbish
    results = read_all(UsageReader(ROOT, disk=disk))
    assert records_of(results) == []
    assert len(results) == 1
    assert (len(ends_of(results)) == 1) is (is_begun or isinstance(results[0], EpochEnded))


@settings(relaxed, max_examples=100)
@given(st.integers(0, 511), st.integers(0, 5))
def test_a_reader_of_a_cut_file_never_ends_quietly_before_a_durable_record(size: int, index: int) -> None:
    disk, scribe, records = written_log()
    file = disk.files.get(scribe.segment(index + 1))
    assume(file is not None)
    assert file is not None
    lost = any(file.content[size:])
    del file.content[size:]
    results = read_all(UsageReader(ROOT, disk=disk))
    found = [record for _, record in records_of(results)]
    assert found == records[: len(found)]
    if len(found) < len(records) - 1:
        assert lost
        assert isinstance(results[-1], Damaged)
