"""Packed calls: always the same record as decoding gives, for whatever bytes; judged as `find_fault` judges."""

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from billing.events import Served, ServedTemplate, decode, encode
from billing.judge import QuickJudge, Verdict, find_fault
from billing.packed import AnyRecord, Call, Facts, Packed, Packer, decode_all, served_of
from billing.unpacker import Unpacker
from billing.usagelog.framing import PAYLOAD_BYTES_MAX
from tests.unit.billing.making import BOOK, RATER, call

TEXTS = st.text(max_size=40)
U64 = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 300), st.just(0xCFCFCFCFCFCFCFCF))
SERVED = st.builds(
    Served,
    call_id=st.binary(min_size=16, max_size=16),
    tenant=TEXTS,
    key_id=TEXTS,
    plan=TEXTS,
    model=st.one_of(TEXTS, st.sampled_from(["ocr", "file_type"])),
    model_version=TEXTS,
    price_version=st.integers(0, 2**31),
    t_ns=U64,
    outcome=st.integers(0, 255),
    reason=st.integers(0, 255),
    rows=U64,
    compute_ns=U64,
    request_bytes=U64,
    reply_bytes=U64,
    charge_nanos=U64,
    currency=st.one_of(st.just("USD"), TEXTS),
    protocol=st.integers(0, 300),
)


def templated(served: Served) -> bytes:
    """As the data plane writes it, whatever the values are."""
    return Facts(served).template.encode(
        served.call_id, served.t_ns, served.outcome, served.reason, served.rows, served.compute_ns,
        served.request_bytes, served.reply_bytes, served.charge_nanos,
    )  # fmt: skip


def outcome_of(payload: bytes, unpacker: Unpacker | None) -> object:
    """The record, or that there is none."""
    try:
        record = decode(payload) if unpacker is None else unpacked(unpacker, payload)
    except msgspec.DecodeError:
        return "no record"
    return served_of(record) if isinstance(record, Served | Packed) else record


def unpacked(unpacker: Unpacker, payload: bytes) -> AnyRecord:
    """The record, or DecodeError. Asked twice: the first time what is unknown is learnt."""
    unpacker.decode_all([(1, payload)])
    records, problem = unpacker.decode_all([(7, payload)])
    if problem:
        raise msgspec.DecodeError(problem)
    ((seq, record),) = records
    assert seq == 7
    return record


def values_of(packed: Packed) -> Served:
    """The record that a call's fields and facts say it is, without decoding it."""
    facts, f = packed.facts, packed.fields
    return Served(
        call_id=packed.call_id, tenant=packed.tenant, key_id=facts.key_id, plan=facts.plan, model=facts.model,
        model_version=facts.model_version, price_version=facts.price_version, t_ns=packed.t_ns, outcome=packed.outcome,
        reason=f[3], rows=f[4], compute_ns=f[5], request_bytes=f[6], reply_bytes=f[7], charge_nanos=f[8],
        currency=facts.currency, protocol=facts.protocol,
    )  # fmt: skip


def test_what_the_data_plane_writes_is_packed_and_shares_its_facts() -> None:
    unpacker = Unpacker()
    first, second = (unpacked(unpacker, templated(call(number))) for number in (1, 2))
    assert isinstance(first, Packed)
    assert isinstance(second, Packed)
    assert first.facts is second.facts
    assert (values_of(first), values_of(second)) == (call(1), call(2))
    other = unpacked(unpacker, templated(call(3, tenant="beta")))
    assert isinstance(other, Packed)
    assert other.facts.tenant == "beta"


@given(st.lists(SERVED, min_size=1, max_size=4), st.booleans())
def test_unpacked_is_what_decoding_gives(records: list[Served], is_short: bool) -> None:
    unpacker = Unpacker()
    # Every record twice: the second meets what was learnt from the others.
    for served in [*records, *records]:
        payload = encode(served) if is_short else templated(served)
        assert outcome_of(payload, unpacker) == outcome_of(payload, None)


@given(SERVED, st.data())
def test_records_that_share_facts_keep_their_own_numbers(served: Served, data: st.DataObject) -> None:
    unpacker = Unpacker()
    for _ in range(3):
        numbers = {name: data.draw(U64) for name in ("t_ns", "rows", "compute_ns", "request_bytes", "charge_nanos")}
        one = msgspec.structs.replace(served, outcome=0, reason=data.draw(st.integers(0, 127)), **numbers)
        record = unpacked(unpacker, templated(one))
        assert (values_of(record) if isinstance(record, Packed) else record) == one


@given(st.integers(0, 130), st.integers(0, 255), st.booleans())
@example(7 + 16 + 40, 0xCE, True)
def test_bytes_that_only_look_alike_are_decoded(place: int, value: int, is_cut: bool) -> None:
    unpacker = Unpacker()
    whole = templated(call(1))
    assert isinstance(unpacked(unpacker, whole), Packed)
    changed = bytearray(whole)
    changed[place % len(whole)] = value
    payload = bytes(changed[: -1 if is_cut else None])
    record = outcome_of(payload, unpacker)
    assert record == outcome_of(payload, None)


def test_short_and_long_payloads_are_no_calls() -> None:
    for payload in (b"", b"\xdc", b"\xdc\x00\x12\xa1S\xc4\x10" + bytes(78), bytes(PAYLOAD_BYTES_MAX)):
        assert outcome_of(payload, Unpacker()) == "no record"


@given(SERVED)
def test_packed_and_back_is_the_same_record(served: Served) -> None:
    if served.outcome | served.reason < 128:
        packed = Packer().pack(served)
        assert packed.served() == values_of(packed) == served
    else:
        with pytest.raises(ValueError, match="no usage record"):
            Packer().pack(served)


@pytest.mark.parametrize("changes", [{"rows": -1}, {"charge_nanos": 2**64}, {"call_id": b"short"}, {"outcome": -1}])
def test_what_no_template_can_write_is_not_packed(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no usage record"):
        Packer().pack(msgspec.structs.replace(call(1), **changes))


FAULTS: list[dict[str, object]] = [
    {},
    {"reason": 1, "charge_nanos": 0},
    {"reason": 2, "charge_nanos": 0},
    {"reason": 3, "outcome": 1, "charge_nanos": 0},
    {"reason": 1, "charge_nanos": 1},
    {"reason": 3, "charge_nanos": 0},
    {"reason": 0, "outcome": 1, "charge_nanos": 0},
    {"reason": 4, "charge_nanos": 0},
    {"outcome": 2, "charge_nanos": 0},
    {"charge_nanos": 0},
    {"charge_nanos": 1_500_001},
    {"charge_nanos": 10**15 + 1},
    {"model": "file_type", "rows": 3, "compute_ns": 2_500_001},
    {"model": "file_type", "rows": 3, "compute_ns": 2_500_001, "charge_nanos": 170_020},
    {"model": "file_type", "rows": 10**12},
    {"rows": 2**48},
    {"rows": 2**48 - 1},
    {"compute_ns": 2**48},
    {"request_bytes": 2**48},
    {"reply_bytes": 2**63},
    {"t_ns": 7_258_118_400 * 10**9},
    {"t_ns": 7_258_118_400 * 10**9 - 1},
    {"price_version": 2, "charge_nanos": 1_500_000},
    {"currency": "EUR"},
    {"tenant": ""},
    {"model": "m" * 257, "charge_nanos": 100_000},
    {"key_id": "k" * 257},
    {"protocol": 256},
]


class Careful:
    """Notes who is asked."""

    def __init__(self) -> None:
        self.raters = {BOOK.version: RATER}
        self.asked = 0
        self.quick = QuickJudge(self.raters, self.judge)

    def judge(self, asked: Call) -> Verdict | None:
        self.asked += 1
        return find_fault(asked, self.raters)

    def is_quick(self, packed: Packed) -> bool:
        """Whether it was found right without asking; the verdict must be the careful one either way."""
        before = self.asked
        assert self.quick.judge(packed) == find_fault(packed, self.raters)
        return self.asked == before


@pytest.mark.parametrize("changes", FAULTS)
def test_quick_verdict_is_the_careful_one(changes: dict[str, object]) -> None:
    judge, right, packer = Careful(), call(1), Packer()
    packed = packer.pack(call(2, **changes))
    assert judge.is_quick(packed) is (find_fault(packed, judge.raters) is None)
    # What is kept of a wrong call must neither hide nor condemn a right one, nor the other way round.
    assert judge.is_quick(packer.pack(right))
    assert judge.is_quick(packed) is (find_fault(packed, judge.raters) is None)
    assert judge.quick.judge(call(2, **changes)) == find_fault(packed, judge.raters)


@given(SERVED)
def test_quick_verdict_is_the_careful_one_for_any_numbers(served: Served) -> None:
    small = msgspec.structs.replace(
        served, outcome=served.outcome % 3, reason=served.reason % 5, price_version=1, tenant="acme", currency="USD"
    )
    judge, packed = Careful(), Packer().pack(small)
    assert judge.is_quick(packed) is (find_fault(packed, judge.raters) is None)


def test_a_price_version_learnt_later_counts() -> None:
    judge, packed = Careful(), Packer().pack(call(1))
    rater = judge.raters.pop(BOOK.version)
    assert not judge.is_quick(packed)
    judge.raters[BOOK.version] = rater
    assert judge.is_quick(packed)


def test_frames_up_to_one_that_is_no_record_are_delivered() -> None:
    frames = [(1, templated(call(1))), (2, templated(call(2))), (3, b"\x01"), (4, templated(call(4)))]
    for decoder in (Unpacker().decode_all, decode_all):
        records, problem = decoder(frames)
        assert [seq for seq, _ in records] == [1, 2]
        assert problem


def test_template_with_another_tail_is_left_to_the_decoder() -> None:
    template = ServedTemplate(
        tenant="acme",
        key_id="k",
        plan="p",
        model="ocr",
        model_version="1",
        price_version=1,
        currency="EURO",
        protocol=0,
    )
    payload = template.encode(bytes(16), 1, 0, 0, 1, 1, 1, 1, 1)
    assert isinstance(unpacked(Unpacker(), payload), Served)
