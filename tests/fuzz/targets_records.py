"""Fuzz targets over usage records: their codec, and logs read back from damaged disks."""

import struct
from pathlib import Path
from random import Random

import msgspec

from billing.events import Closed, Ended, Sent, Served, ServedTemplate, decode, encode
from billing.packed import Packed
from billing.unpacker import Unpacker
from billing.usagelog.framing import PAYLOAD_BYTES_MAX, FrameCodec, HeaderState, Stop, decode_header
from billing.usagelog.reader import Damaged, EpochEnded, UsageReader
from tests.fuzz.feeding import joined, pieces
from tests.sim.disk import SimDisk
from tests.sim.stepped import read_all, records_of
from tests.sim.world import served
from tests.sim.writing import Scribe

ROOT = Path("/sim/usage")
_SEGMENT_BYTES = 512
_PLACE = struct.Struct("<BH")


def event(data: bytes) -> None:
    """Any payload is a record that encodes to an equal one, or a DecodeError."""
    try:
        record = decode(data)
    except msgspec.DecodeError:
        return
    assert isinstance(record, Served | Sent | Ended | Closed)
    assert decode(encode(record)) == record


def packed_calls(data: bytes) -> None:
    """A meter that slices calls instead of decoding them reads what decoding reads, whatever it read before."""
    unpacker = Unpacker()
    for part in pieces(data):
        try:
            expected = decode(part)
        except msgspec.DecodeError:
            expected = None
        try:
            found = unpacker.decode(part)
        except msgspec.DecodeError:
            assert expected is None
            continue
        if isinstance(found, Packed):
            assert found.payload == part
            served = found.served()
            call_id, t_ns, outcome, reason, rows, compute, asked, replied, charge = found.fields
            facts = found.facts
            assert served == Served(
                call_id=call_id,
                tenant=facts.tenant,
                key_id=facts.key_id,
                plan=facts.plan,
                model=facts.model,
                model_version=facts.model_version,
                price_version=facts.price_version,
                t_ns=t_ns,
                outcome=outcome,
                reason=reason,
                rows=rows,
                compute_ns=compute,
                request_bytes=asked,
                reply_bytes=replied,
                charge_nanos=charge,
                currency=facts.currency,
                protocol=facts.protocol,
            )
            assert served == expected
        else:
            assert found == expected


def frames(data: bytes) -> None:
    """Frames out of any bytes are numbered without a gap, inside the bytes, and stop for a reason."""
    header = decode_header(data)
    assert isinstance(header, HeaderState) or header.segment_index >= 0
    codec = FrameCodec("w0", 1)
    for is_whole in (True, False):
        found, offset, stop = codec.decode(memoryview(data), 0, is_whole, 1, 100)
        assert [seq for seq, _ in found] == list(range(1, len(found) + 1))
        assert all(0 < len(payload) <= PAYLOAD_BYTES_MAX for _, payload in found)
        assert offset <= len(data)
        assert stop is not Stop.SHORT or not is_whole
    place = codec.find_proof(data, 0, 0)
    assert place is None or 0 <= place < len(data)


def _log() -> tuple[SimDisk, Scribe]:
    disk = SimDisk(Random(0))
    return disk, Scribe(disk, ROOT, segment_bytes=_SEGMENT_BYTES)


def wounded_log(data: bytes) -> None:
    """Of a log with any bytes overwritten a prefix is delivered, then one end or damage: never a wrong record."""
    disk, scribe = _log()
    records = [served(1000 + number, number * 7) for number in range(8)]
    for record in records:
        scribe.write(record)
    scribe.die()
    for part in pieces(data):
        if len(part) <= _PLACE.size:
            continue
        index, offset = _PLACE.unpack_from(part)
        file = disk.files.get(scribe.segment(index % 6 + 1))
        if file is not None:
            offset %= len(file.content)
            rubbish = part[_PLACE.size :][: len(file.content) - offset]
            file.content[offset : offset + len(rubbish)] = rubbish
    results = read_all(UsageReader(ROOT, disk=disk), 3)
    found = [record for _, record in records_of(results)]
    assert found == records[: len(found)]
    assert [type(result) for result in results if isinstance(result, Damaged | EpochEnded)] == [type(results[-1])]


def strange_payloads(data: bytes) -> None:
    """Frames that are whole but hold anything: read up to the first that is no record, which is named as damage."""
    disk, scribe = _log()
    payloads = [part for part in pieces(data) if part][:20]
    for payload in payloads:
        scribe.write_raw([payload])
        scribe.writer.sync()
    scribe.die()
    expected = []
    for payload in payloads:
        try:
            expected.append(decode(payload))
        except msgspec.DecodeError:
            break
    results = read_all(UsageReader(ROOT, disk=disk), 3)
    found = [record for _, record in records_of(results)]
    assert found == expected[: len(found)]
    if len(expected) < len(payloads):
        assert isinstance(results[-1], Damaged)


_RECORDS = [
    encode(served(1, 2)),
    encode(Sent(first_seq=1, last_seq=2)),
    encode(Ended(served_seq=1, cause="reset", bytes_sent=3)),
    encode(Closed(t_ns=4)),
]


def _framed() -> bytes:
    parts, _, _ = FrameCodec("w0", 1).encode(_RECORDS, 0, 1, 0, 10**6)
    return b"".join(parts)


def _templated(tenant: str, rows: int, charge_nanos: int) -> bytes:
    template = ServedTemplate(
        tenant=tenant,
        key_id="k",
        plan="p",
        model="m",
        model_version="1",
        price_version=1,
        currency="USD",
        protocol=0,
    )
    return template.encode(bytes(range(16)), 2**60, 0, 0, rows, 5, 6, 7, charge_nanos)


PACKED_SEEDS = [
    joined([_templated("t", 1, 2), _templated("t", 3, 2**63), _templated("u", 3, 4), encode(served(1, 2))]),
    joined([_templated("t", 1, 2), _templated("t", 1, 2)[:-1] + b"\x01", _templated("t", 1, 2)[1:]]),
]
EVENT_SEEDS = [*_RECORDS, b"\x93\xa1C\x00" + b"\x91" * 1500]
FRAME_SEEDS = [_framed() + bytes(40), _framed()[3:]]
WOUND_SEEDS = [
    joined([_PLACE.pack(0, 80) + b"\0" * 30, _PLACE.pack(1, 100) + b"\xff"]),
    joined([_PLACE.pack(2, 0) + b"T"]),
]
PAYLOAD_SEEDS = [joined(_RECORDS), joined([_RECORDS[0], b"\x93\xa1M\x01"])]
