"""Requests of a form that was seen before: the same answers as by the whole decoder, and nothing else let through."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.engine.codec_json import JsonCodec
from gateway.engine.interface import Interface
from gateway.engine.request_forms import FORM_BYTES_MAX, FORMS_MAX, NUMBERS_MAX, RequestForms
from model_repo.config import parse_config
from tests.unit.engine.making import EngineUnderTest, run_engine, write_identity


def made(datatype: str = "FP32", dims: str = "3", rows_max: int = 8, extra: str = "") -> RequestForms:
    tensors = f'{{ name: "X" data_type: TYPE_{datatype} dims: [ {dims} ] {extra} }}'
    text = f'name: "m" backend: "python" max_batch_size: {rows_max} input {tensors} output {tensors}'
    return RequestForms(Interface(parse_config(text, name="m")), JsonCodec())


def body_of(data: Any, *, datatype: str = "FP32", shape: list[int] | None = None, **more: Any) -> bytes:
    tensor = {"name": "X", "shape": shape or [1, 3], "datatype": datatype, "data": data}
    return json.dumps({**more, "inputs": [tensor]}).encode()


def slow(forms: RequestForms, body: bytes) -> Any:
    """By the whole decoder, which the forms then hear of."""
    request = forms._codec.decode(forms._interface, body, None)
    accepted = forms._interface.accept(request.tensors)
    forms.learn(body, request)
    return request, accepted


def taught(forms: RequestForms, body: bytes) -> None:
    for _ in range(2):
        slow(forms, body)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_form_is_known_from_its_third_request_on(separators: tuple[str, str]) -> None:
    forms = made()

    def body(*data: float) -> bytes:
        tensor = {"name": "X", "shape": [1, 3], "datatype": "FP32", "data": data}
        return json.dumps({"id": "a", "inputs": [tensor]}, separators=separators).encode()

    for number in (1, 2):
        assert forms.find(body(1, 2, number)) is None
        slow(forms, body(1, 2, number))
    found = forms.find(body(0.25, -1e-7, 3))
    assert found is not None
    request, accepted = found
    assert (request.id, accepted.rows, accepted.nbytes) == ("a", 1, 12)
    assert accepted.feeds["X"].tolist() == [[0.25, np.float32(-1e-7), 3]]


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT32", "INT64"])
@settings(deadline=None)
@given(data=st.data())
def test_what_is_found_is_what_the_whole_decoder_says(datatype: str, data: st.DataObject) -> None:
    forms = made(datatype)
    taught(forms, body_of([1, 2, 3], datatype=datatype))
    anything: st.SearchStrategy[Any] = (
        st.floats(allow_nan=False, allow_infinity=False)
        | st.integers(-(2**65), 2**65)
        | st.sampled_from([None, True, "1", [1], {}, 1e39, 2**31, -(2**31) - 1, 2**63, 0.5, 1.0, -0.0])
    )
    body = body_of(data.draw(st.lists(anything, min_size=2, max_size=4)), datatype=datatype)
    found = forms.find(body)
    if found is None:
        return
    # Never more lenient: what is found here is accepted there, with the same bits.
    _, accepted = slow(made(datatype), body)
    assert found[1].feeds["X"].tobytes() == accepted.feeds["X"].tobytes()
    assert found[1].feeds["X"].dtype == accepted.feeds["X"].dtype
    assert found[1].feeds["X"].shape == accepted.feeds["X"].shape


@pytest.mark.parametrize(
    "data",
    [
        "[1,2]",
        "[1,2,3,4]",
        "[]",
        "[1,2,null]",
        "[1,2,true]",
        '[1,2,"3"]',
        "[[1],[2],[3]]",
        "[1,2,1e39]",
        "[1,2,3",
        "[1,2,3]]",
        '[1,2,3],"data":[4,5,6]',
        '[1,2,3]}],"id":"b","inputs":[{"name":"X","shape":[1,3],"datatype":"FP32","data":[1,2,3]',
        "[1,2,NaN]",
        "1",
        "",
    ],
)
def test_what_is_not_exactly_so_many_plain_numbers_goes_the_long_way(data: str) -> None:
    forms = made()
    text = '{"inputs":[{"name":"X","shape":[1,3],"datatype":"FP32","data":%s}]}'
    taught(forms, (text % "[1,2,3]").encode())
    assert forms.count == 1
    assert forms.find((text % data).encode()) is None


@pytest.mark.parametrize(
    "text",
    [
        # The place that is found is not where the tensor's numbers are.
        '{"else":{"data":[7]},"inputs":[{"name":"X","shape":[1,3],"datatype":"FP32","data" :[1,2,3]}]}',
        '{"else":{"data":[1,2,3]},"inputs":[{"name":"X","shape":[1,3],"datatype":"FP32","data" :[1,2,3]}]}',
        '{"inputs":[{"name":"X","shape":[1,3],"datatype":"FP32","data":[1,2,3],"data" :[1,2,3]}]}',
        '{"parameters":{"data":[1,2,3]},"inputs":[{"name":"X","shape":[1,3],"datatype":"FP32","data" :[1,2,3]}]}',
        '{"inputs":[{"name":"X","shape":[1,3],"datatype":"FP32","data":[[1,2,3]]}]}',
    ],
)
def test_a_place_that_is_not_the_tensors_is_not_learnt(text: str) -> None:
    forms = made()
    for _ in range(4):
        slow(forms, text.encode())
        assert forms.find(text.encode()) is None
    assert forms.count == 0


def test_shapes_rows_and_parameters_are_parts_of_the_form() -> None:
    forms = made(dims="-1", extra="")
    taught(forms, body_of([1, 2, 3], parameters={"k": 1}))
    found = forms.find(body_of([4, 5, 6], parameters={"k": 1}))
    assert found is not None
    assert found[0].parameters == {"k": 1}
    for other in (
        body_of([4, 5, 6], parameters={"k": 2}),
        body_of([4, 5, 6]),
        body_of([4, 5, 6], shape=[3, 1], parameters={"k": 1}),
        body_of([4, 5, 6], datatype="INT32", parameters={"k": 1}),
    ):
        assert forms.find(other) is None


def test_a_reshape_is_done_as_by_the_whole_decoder() -> None:
    forms = made(dims="4", extra="reshape { shape: [ 2, 2 ] }")
    taught(forms, body_of([1, 2, 3, 4], shape=[1, 4]))
    found = forms.find(body_of([5, 6, 7, 8], shape=[1, 4]))
    assert found is not None
    assert found[1].feeds["X"].tolist() == [[[5, 6], [7, 8]]]


@pytest.mark.parametrize(("count", "is_learnt"), [(NUMBERS_MAX, True), (NUMBERS_MAX + 1, False)])
def test_numbers_of_a_form_are_bounded(count: int, is_learnt: bool) -> None:
    forms = made(dims="-1")
    taught(forms, body_of([0] * count, shape=[1, count]))
    assert (forms.count == 1) is is_learnt


@pytest.mark.parametrize(("over", "is_learnt"), [(0, True), (1, False)])
def test_the_text_of_a_form_is_bounded(over: int, is_learnt: bool) -> None:
    forms = made()
    numbers = len(" [1, 2, 3]")
    room = FORM_BYTES_MAX - (len(body_of([1, 2, 3], id="")) - numbers)
    taught(forms, body_of([1, 2, 3], id="i" * (room + over)))
    assert (forms.count == 1) is is_learnt


def test_forms_are_bounded_and_ids_that_change_are_never_learnt() -> None:
    forms = made()
    for number in range(3 * FORMS_MAX):
        slow(forms, body_of([1, 2, 3], id=str(number)))
    assert forms.count == 0
    counts = []
    for number in range(FORMS_MAX + 1):
        taught(forms, body_of([1, 2, 3], id=f"known {number}"))
        counts.append(forms.count)
    assert max(counts) == FORMS_MAX
    assert counts[-1] == 1


def test_calls_of_one_form_are_answered_each_with_its_own_numbers(tmp_path: Path) -> None:
    write_identity(tmp_path, "echo", "FP32", [3])

    def body(*data: Any) -> bytes:
        return body_of(list(data)).replace(b'"X"', b'"x"')

    async def test(engine: EngineUnderTest) -> None:
        for number in range(6):
            reply = await engine.infer("echo", body(number, 0.5, -1))
            assert reply.json()["outputs"][0]["data"] == [number, 0.5, -1]
        forms = engine.registry.get("echo").rest_forms
        assert forms.find(body(1, 2, 3)) is not None
        assert (await engine.infer("echo", body(1, 0.5, "x"))).status == 400

    run_engine(tmp_path, test=test)
