import msgspec
import pytest

from gateway.quota.protocol import (
    FRAME_BYTES_MAX,
    Ask,
    FrameSplitter,
    FromWorker,
    Hello,
    Holding,
    ProtocolError,
    Recall,
    Return,
    decode_from_owner,
    decode_from_worker,
    encode_frame,
)

MESSAGES: list[FromWorker] = [
    Hello(1, "w0", [Holding("acme", 1, 2, 3, 4)], is_last=True),
    Ask("acme", "free", 1, 3, 2, 64, 8),
    Return("acme", 5, 1, 2, 3, is_all=True),
]


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_frames_survive_any_cut(step: int) -> None:
    stream = encode_frame(MESSAGES) * 3
    splitter = FrameSplitter()
    payloads = [one for at in range(0, len(stream), step) for one in splitter.feed(stream[at : at + step])]
    assert [decode_from_worker(payload) for payload in payloads] == [MESSAGES] * 3


def test_a_frame_beyond_the_limit_is_refused_before_it_is_buffered() -> None:
    with pytest.raises(ProtocolError):
        FrameSplitter().feed((FRAME_BYTES_MAX + 1).to_bytes(4, "little"))


@pytest.mark.parametrize("payload", [b"", b"\xc1", msgspec.msgpack.encode([["Z"]]), msgspec.msgpack.encode([["A", 1]])])
def test_what_no_peer_sends_is_an_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_from_worker(payload)
    with pytest.raises(ProtocolError):
        decode_from_owner(payload)


def test_the_directions_do_not_mix() -> None:
    with pytest.raises(ProtocolError):
        decode_from_worker(encode_frame([Recall("acme")])[4:])
