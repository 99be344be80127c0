"""The usage records' codec: what is written is what is read, and the prepared form is the same record."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.events import Closed, Ended, Outcome, Sent, Served, ServedTemplate, decode, encode

U64 = st.integers(0, 2**64 - 1)
TEXT = st.text(max_size=40)


@given(
    st.binary(min_size=16, max_size=16),
    st.lists(TEXT, min_size=6, max_size=6),
    st.integers(0, 2**31),
    st.lists(U64, min_size=6, max_size=6),
    st.integers(0, 3),
    st.sampled_from(Outcome),
    st.integers(0, 1),
)
def test_a_template_writes_the_record_it_stands_for(
    call_id: bytes,
    texts: list[str],
    price_version: int,
    numbers: list[int],
    reason: int,
    outcome: Outcome,
    protocol: int,
) -> None:
    tenant, key_id, plan, model, version, currency = texts
    t_ns, rows, compute_ns, request_bytes, reply_bytes, charge = numbers
    template = ServedTemplate(
        tenant=tenant,
        key_id=key_id,
        plan=plan,
        model=model,
        model_version=version,
        price_version=price_version,
        currency=currency,
        protocol=protocol,
    )
    payload = template.encode(call_id, t_ns, outcome, reason, rows, compute_ns, request_bytes, reply_bytes, charge)
    expected = Served(
        call_id=call_id,
        tenant=tenant,
        key_id=key_id,
        plan=plan,
        model=model,
        model_version=version,
        price_version=price_version,
        t_ns=t_ns,
        outcome=outcome,
        reason=reason,
        rows=rows,
        compute_ns=compute_ns,
        request_bytes=request_bytes,
        reply_bytes=reply_bytes,
        charge_nanos=charge,
        currency=currency,
        protocol=protocol,
    )
    assert decode(payload) == expected
    assert decode(encode(expected)) == expected


def test_marks_round_trip() -> None:
    for record in (
        Sent(first_seq=1, last_seq=9),
        Ended(served_seq=4, cause="client_gone", bytes_sent=7),
        Closed(t_ns=1),
    ):
        assert decode(encode(record)) == record


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_decode_error(data: bytes) -> None:
    try:
        decode(data)
    except msgspec.DecodeError:
        return


def test_a_template_refuses_a_wrong_id() -> None:
    template = ServedTemplate(
        tenant="t", key_id="k", plan="p", model="m", model_version="", price_version=1, currency="USD", protocol=0
    )
    with pytest.raises(ValueError, match="16 bytes"):
        template.encode(b"short", 1, 0, 0, 1, 0, 0, 0, 0)
