"""The fuzz targets (tests/fuzz/targets.py) under hypothesis: seeds as they are, seeds changed in a few places, rubbish.

Targets whose promises other property suites already hold to (HTTP/2 frames, keys, damaged logs) run their seeds only.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.feeding import joined, pieces
from tests.fuzz.targets import TARGETS

HELD_ELSEWHERE = {"http2_server", "http2_client", "key_text", "frames", "wounded_log"}
EDITS = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 3), st.binary(max_size=6)), max_size=5)
budget = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])


def edited(seed: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """`seed` with, at each place, some bytes taken out and others put in."""
    out = bytearray(seed)
    for place, count, new in edits:
        at = place % (len(out) + 1)
        out[at : at + count] = new
    return bytes(out)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_their_beginnings_hold(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds:
        for end in range(0, len(seed), max(1, len(seed) // 40)):
            target.run(seed[:end])
        target.run(seed)


@pytest.mark.parametrize("name", sorted(set(TARGETS) - HELD_ELSEWHERE))
@budget
@given(data=st.data())
def test_changed_seeds_and_rubbish_hold(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    changed = st.builds(edited, st.sampled_from(target.seeds), EDITS)
    target.run(data.draw(st.one_of(changed, st.binary(max_size=200))))


@given(st.lists(st.binary(max_size=255), max_size=8))
def test_pieces_come_back(parts: list[bytes]) -> None:
    assert pieces(joined(parts)) == parts
