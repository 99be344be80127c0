"""Rows of the wire contract that no other test shows: docs/contract-rows.md names the test of each."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from gateway.engine.metadata import EXTENSIONS
from gateway.wire.grpc import MessageReader, frame
from tests.unit.engine.making import (
    EngineUnderTest,
    config_text,
    identity_onnx,
    run_engine,
    write_identity,
    write_model,
    write_python,
)

RPC = "/inference.GRPCInferenceService/"
SAYS = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        texts = [json.dumps(json.loads(request.parameters()), sort_keys=True) for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([[t]], dtype=object))]) for t in texts]
"""


async def rpc(engine: EngineUnderTest, method: str, request: Any, reply_type: Any) -> Any:
    reply = await engine.call("POST", RPC + method, frame(request.SerializeToString()), is_grpc=True)
    assert reply.trailers[b"grpc-status"] == b"0", reply.trailers
    [(_, message)] = MessageReader(1 << 20).feed(reply.body)
    return reply_type.FromString(message)


def test_parameters_of_every_kind_reach_the_model_over_both_protocols(tmp_path: Path) -> None:
    """The five members of InferParameter, at their bounds, and their JSON forms."""
    write_python(tmp_path, "m", SAYS, outputs=[("y", "BYTES", (1,))])
    values: dict[str, Any] = {"a": True, "b": -(1 << 63), "c": "zwei", "d": 0.5, "e": (1 << 64) - 1}

    async def test(engine: EngineUnderTest) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
        reply = await engine.infer("m", {"inputs": [tensor], "parameters": values})
        assert json.loads(reply.json()["outputs"][0]["data"][0]) == values
        request = service_pb2.ModelInferRequest(model_name="m")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        request.raw_input_contents.append(bytes(8))
        members = ("bool_param", "int64_param", "string_param", "double_param", "uint64_param")
        for (name, value), member in zip(values.items(), members, strict=True):
            setattr(request.parameters[name], member, value)
        answer = await rpc(engine, "ModelInfer", request, service_pb2.ModelInferResponse)
        raw = answer.raw_output_contents[0]
        assert json.loads(raw[4 : 4 + struct.unpack("<I", raw[:4])[0]]) == values

    run_engine(tmp_path, test=test)


def test_a_repository_may_be_named_in_the_path(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))

    async def test(engine: EngineUnderTest) -> None:
        for prefix in ("/v2/repository", "/v2/repository/any"):
            [row] = (await engine.call("POST", f"{prefix}/index", b"{}")).json()
            assert row == {"name": "m", "version": "1", "state": "READY", "reason": ""}
            for verb, state in (("unload", "UNAVAILABLE"), ("load", "READY")):
                reply = await engine.call("POST", f"{prefix}/models/m/{verb}", b"{}")
                assert (reply.status, reply.body) == (200, b"")
                [row] = (await engine.call("POST", f"{prefix}/index", b"{}")).json()
                assert row["state"] == state

    run_engine(tmp_path, test=test)


def test_raw_blobs_follow_the_json_in_the_order_of_the_tensors(tmp_path: Path) -> None:
    """Of inputs in the request's order, of outputs in the order asked for; little-endian."""
    write_python(
        tmp_path,
        "m",
        """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            a, b = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in "ab")
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", a * 2), pb_utils.Tensor("z", b + 1)]))
        return answers
""",
        inputs=[("a", "INT32", (2,)), ("b", "INT64", (1,))],
        outputs=[("y", "INT32", (2,)), ("z", "INT64", (1,))],
    )
    a, b = np.array([[1, 258]], dtype="<i4"), np.array([[1 << 40]], dtype="<i8")
    heads = {
        "a": {"name": "a", "datatype": "INT32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        "b": {"name": "b", "datatype": "INT64", "shape": [1, 1], "parameters": {"binary_data_size": 8}},
    }
    blobs = {"a": a.tobytes(), "b": b.tobytes()}

    async def test(engine: EngineUnderTest) -> None:
        for inputs, outputs in (("ab", "yz"), ("ba", "zy")):
            head = {
                "inputs": [heads[name] for name in inputs],
                "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
            }
            text = json.dumps(head).encode()
            body = text + b"".join(blobs[name] for name in inputs)
            reply = await engine.infer("m", body, [(b"inference-header-content-length", b"%d" % len(text))])
            assert reply.status == 200, reply.body
            length = int(reply.headers[b"inference-header-content-length"])
            assert [one["name"] for one in json.loads(reply.body[:length])["outputs"]] == list(outputs)
            expected = {"y": (a * 2).astype("<i4").tobytes(), "z": (b + 1).astype("<i8").tobytes()}
            assert reply.body[length:] == b"".join(expected[name] for name in outputs)

    run_engine(tmp_path, test=test)


#: A path, a body and a status for each extension: what the server says it has, it has.
SHOWN: dict[str, tuple[str, str, Any]] = {
    "binary_tensor_data": ("POST", "/v2/models/m/infer", {"parameters": {"binary_data_output": True}}),
    "classification": ("POST", "/v2/models/m/infer", {"outputs": [{"name": "y", "parameters": {"classification": 1}}]}),
    "model_configuration": ("GET", "/v2/models/m/config", None),
    "model_repository": ("POST", "/v2/repository/index", {}),
    "model_repository(unload_dependents)": (
        "POST",
        "/v2/repository/models/m/unload",
        {"parameters": {"unload_dependents": True}},
    ),
    "schedule_policy": ("POST", "/v2/models/m/infer", {"parameters": {"priority": 1, "timeout": 60_000_000}}),
    "sequence": (
        "POST",
        "/v2/models/s/infer",
        {"parameters": {"sequence_id": 1, "sequence_start": True, "sequence_end": True}},
    ),
    "statistics": ("GET", "/v2/models/m/stats", None),
    "trace": ("GET", "/v2/trace/setting", None),
    "logging": ("GET", "/v2/logging", None),
    "parameters": ("POST", "/v2/models/m/infer", {"parameters": {"own": 1}}),
}


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_extension_that_is_named_is_served(tmp_path: Path, extension: str) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))
    sequence = "sequence_batching { direct { } }"
    text = config_text("s", [("x", "FP32", (2,))], [("y", "FP32", (2,))], rows_max=8, extra=sequence)
    write_model(tmp_path, "s", text, {"1/model.onnx": identity_onnx("FP32", ["batch", 2])})
    method, path, body = SHOWN[extension]
    if path.endswith("/infer"):
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}], **body}

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.call(method, path, b"" if body is None else json.dumps(body).encode())
        assert reply.status == 200, reply.body

    run_engine(tmp_path, test=test)
