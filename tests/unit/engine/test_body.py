"""A request's body while it arrives."""

import numpy as np
import pytest

from gateway.engine.body import Body
from gateway.errors import Code, TollwayError

LARGE = 100_000


@pytest.mark.parametrize("head", [0, 1, 117, 64, LARGE - 1])
def test_tensors_behind_the_head_lie_on_a_boundary(head: int) -> None:
    body = Body(LARGE, LARGE, head)
    body.add(b"h" * head)
    space = body.space()
    assert space is not None
    space[:] = b"t" * len(space)
    body.size += len(space)
    data = body.take()
    assert bytes(data) == b"h" * head + b"t" * (LARGE - head)
    address = np.frombuffer(data[head:], dtype=np.uint8).__array_interface__["data"][0]
    assert address % 64 == 0


def test_space_and_pieces_may_alternate() -> None:
    body = Body(LARGE, LARGE)
    body.add(b"a" * 10)
    space = body.space()
    assert space is not None
    assert len(space) == LARGE - 10
    space[:20] = b"b" * 20
    body.size += 20
    body.add(b"c" * (LARGE - 30))
    assert body.space() is None
    assert bytes(body.take()) == b"a" * 10 + b"b" * 20 + b"c" * (LARGE - 30)


@pytest.mark.parametrize("length", [-1, 0, 10])
def test_small_and_unknown_lengths_have_no_space(length: int) -> None:
    body = Body(length, LARGE)
    assert body.space() is None
    body.add(b"some")
    body.add(b"thing")
    assert bytes(body.take()) == b"something"


def test_a_body_beyond_its_bound_is_refused() -> None:
    body = Body(-1, 8)
    body.add(b"12345678")
    with pytest.raises(TollwayError) as caught:
        body.add(b"9")
    assert caught.value.code is Code.BODY_TOO_LARGE
