"""Call ids: UUIDv7, unique, ordered by time; their three forms."""

import re
import time
import uuid
from itertools import pairwise

from gateway.call import CallIds, RequestHead, format_call_id

NOW_NS = 1_790_000_000_123_456_789


def test_an_id_is_a_uuid_of_version_7_and_of_now() -> None:
    text = CallIds().mint(time.time_ns()).decode()
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", text)
    made = uuid.UUID(text)
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert 1_700_000_000_000 < made.int >> 80 < 4_000_000_000_000


def test_ids_of_one_minter_never_repeat_and_share_a_prefix_only_within_a_millisecond() -> None:
    ids = CallIds()
    minted = [ids.mint(time.time_ns()) for _ in range(20_000)]
    assert len(set(minted)) == len(minted)
    instants = [one[:13] for one in minted]
    assert instants == sorted(instants)
    for one, other in pairwise(minted):
        if one[:23] == other[:23]:
            assert (int(other[24:], 16) - int(one[24:], 16)) % (1 << 48) == 1


def test_two_minters_do_not_meet() -> None:
    one, other = CallIds(), CallIds()
    assert not {one.mint(time.time_ns()) for _ in range(1000)} & {other.mint(time.time_ns()) for _ in range(1000)}


def test_the_counter_wraps_inside_its_48_bits() -> None:
    ids = CallIds()
    ids.mint(time.time_ns())
    ids._counter = (1 << 48) - 2
    lasts = {ids.mint(time.time_ns())[24:] for _ in range(4)}
    assert all(len(last) == 12 for last in lasts)
    assert len(lasts) == 4


def test_the_forms_of_an_id_are_one_value() -> None:
    ids = CallIds()
    for _ in range(600):  # past the point where all but the last byte is formatted anew, twice
        text = ids.mint(NOW_NS)
        assert ids.raw == uuid.UUID(text.decode()).bytes
        assert ids.hex == text.replace(b"-", b"")
        assert format_call_id(ids.raw).encode() == text
        assert ids.raw[:6] == (NOW_NS // 1_000_000).to_bytes(6, "big")


def test_a_clock_that_steps_back_repeats_no_id() -> None:
    ids = CallIds()
    minted = [ids.mint(NOW_NS + step * 1_000_000) for step in (0, 1, 0, 1, 0) for _ in range(300)]
    assert len(set(minted)) == len(minted)


def test_a_head_begins_without_anything_remembered() -> None:
    head = RequestHead(b"GET", b"/", [])
    assert (head.authority, head.content_length, head.is_grpc, head.expects_continue) == (b"", -1, False, False)
    assert head.memo is None
