"""Whatever bytes come, a call ends in one reply that blames the caller, and the next call works."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from gateway.call import Headers
from gateway.engine.tensors import DTYPES, from_raw, pack_bytes, to_raw, unpack_bytes
from gateway.errors import TollwayError
from gateway.wire.grpc import frame
from tests.unit.engine.making import running_engine, write_identity

GOOD = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).encode()
HEAD = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]}
).encode()

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_tensor = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "y", ""]),
        "shape": st.lists(st.integers(-1, 3) | st.integers(), max_size=3) | _json,
        "datatype": st.sampled_from(list(DTYPES)) | _json,
    },
    optional={"data": _json, "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "a"]), _json)},
)
_request = st.fixed_dictionaries(
    {"inputs": st.lists(_tensor, max_size=2) | _json},
    optional={
        "id": _json,
        "parameters": st.dictionaries(st.sampled_from(["timeout", "binary_data_output"]), _json),
        "outputs": st.lists(st.dictionaries(st.sampled_from(["name", "parameters"]), _json), max_size=2),
    },
)


@st.composite
def _mutated(draw: st.DrawFn, good: bytes) -> bytes:
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, len(data)))
        match draw(st.sampled_from("cdi")):
            case "c" if position < len(data):
                data[position] = draw(st.integers(0, 255))
            case "d":
                del data[position : position + draw(st.integers(1, 9))]
            case _:
                data[position:position] = draw(st.binary(min_size=1, max_size=9))
    return bytes(data)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    write_identity(root, "m", "FP32", (2,))
    write_identity(root, "text", "BYTES", (-1,))
    return root


def _grpc_good() -> bytes:
    request = service_pb2.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(np.zeros(2, dtype=np.float32).tobytes())
    return frame(request.SerializeToString())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["m", "text"]),
            st.one_of(
                st.binary(max_size=80),
                _request.map(lambda request: json.dumps(request).encode()),
                _mutated(GOOD),
                _mutated(HEAD + b"\0" * 8),
            ),
            st.none() | st.integers(0, 200) | st.just(len(HEAD)),
        ),
        min_size=1,
        max_size=20,
    ),
    st.lists(st.one_of(st.binary(max_size=60), _mutated(_grpc_good())), max_size=20),
)
@example(rest=[("text", b"\x80", 0)], rpc=[])
def test_no_request_is_answered_with_our_fault(
    repo: Path, rest: list[tuple[str, bytes, int | None]], rpc: list[bytes]
) -> None:
    async def main() -> None:
        async with running_engine(repo) as engine:
            for model, body, length in rest:
                headers: Headers = [] if length is None else [(b"inference-header-content-length", b"%d" % length)]
                reply = await engine.infer(model, body, headers)
                assert reply.status in {200, 400}, reply.body
                if reply.status == 400:
                    assert isinstance(reply.json()["error"], str)
            for body in rpc:
                reply = await engine.call("POST", "/inference.GRPCInferenceService/ModelInfer", body, is_grpc=True)
                # OK, INVALID_ARGUMENT, NOT_FOUND (a mutated model name)
                assert reply.trailers[b"grpc-status"] in {b"0", b"3", b"5"}, reply.trailers
            assert (await engine.infer("m", GOOD)).status == 200
            assert engine.engine.buffered_bytes == 0

    asyncio.run(main())


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_packed_bytes_come_back_as_they_were(items: list[bytes]) -> None:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    assert list(unpack_bytes("x", len(items), pack_bytes(array))) == items


@given(st.integers(0, 20), st.binary(max_size=60))
def test_unpacking_anything_else_is_a_refusal(count: int, data: bytes) -> None:
    try:
        array = unpack_bytes("x", count, data)
    except TollwayError:
        return
    assert pack_bytes(array) == data


@given(
    st.sampled_from([name for name in DTYPES if name not in {"BYTES", "BOOL"}]),
    st.lists(st.integers(0, 4), max_size=4),
    st.integers(0, 7),
)
def test_raw_tensors_round_trip_at_any_alignment(datatype: str, shape: list[int], offset: int) -> None:
    size = int(np.prod(shape)) * DTYPES[datatype].itemsize
    noise = np.random.default_rng(1).bytes(offset + size)
    array = from_raw("x", datatype, shape, memoryview(noise)[offset:])
    assert bytes(to_raw(array)) == noise[offset:]


def test_a_transposed_array_travels_in_row_major_order() -> None:
    array: Any = np.arange(6, dtype=np.int32).reshape(2, 3).T
    assert bytes(to_raw(array)) == np.ascontiguousarray(array).tobytes()
