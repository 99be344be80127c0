"""Shapes that no array can have are the caller's fault, by name, before anything is allocated."""

import pytest
from tritonclient.grpc import service_pb2

from gateway.engine.codec_grpc import decode_infer, parse_infer
from gateway.engine.interface import Interface
from gateway.engine.tensors import ELEMENTS_MAX, RANK_MAX, count_elements, from_raw
from gateway.errors import Code, TollwayError
from model_repo.config import parse_config
from tests.unit.engine.making import config_text


@pytest.mark.parametrize(
    ("shape", "count"),
    [((), 1), ((0,), 0), ((3, 0, 2), 0), ((2, 3), 6), ((ELEMENTS_MAX,), ELEMENTS_MAX), ((0, ELEMENTS_MAX), 0)],
)
def test_elements_are_counted(shape: tuple[int, ...], count: int) -> None:
    assert count_elements("x", shape) == count


#: The last ones have no element; found by fuzzing: their sizes together are more than an array can have.
IMPOSSIBLE = [
    ((-1,), "negative size"),
    ((1,) * (RANK_MAX + 1), "axes"),
    ((ELEMENTS_MAX + 1,), "more than"),
    ((1 << 16, 1 << 16), "more than"),
    ((0, ELEMENTS_MAX + 1), "more than"),
    ((0, *(1 << 20,) * 4), "more than"),
    ((*(1 << 20,) * 4, 0), "more than"),
]


@pytest.mark.parametrize(("shape", "text"), IMPOSSIBLE)
def test_a_shape_that_no_array_can_have_is_refused(shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(TollwayError, match=text) as refused:
        from_raw("x", "FP32", shape, b"")
    assert refused.value.code is Code.INVALID_TENSOR


@pytest.mark.parametrize(("shape", "text"), IMPOSSIBLE)
@pytest.mark.parametrize("is_raw", [True, False])
def test_so_it_is_over_grpc(shape: tuple[int, ...], text: str, *, is_raw: bool) -> None:
    config = config_text("m", [("x", "FP32", (-1,))], [("y", "FP32", (-1,))], rows_max=0)
    request = service_pb2.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=shape)
    if is_raw:
        request.raw_input_contents.append(b"")
    with pytest.raises(TollwayError, match=text) as refused:
        decode_infer(Interface(parse_config(config, name="m")), *parse_infer(request.SerializeToString()))
    assert refused.value.code is Code.INVALID_TENSOR
