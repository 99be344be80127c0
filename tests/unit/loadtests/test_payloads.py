"""The bodies are what they say: exact sizes, valid in both protocols."""

import json
from pathlib import Path

import pytest
from tritonclient.grpc import service_pb2

from loadtests.payloads import SIZES, grpc_body_of_size, http_body, http_body_of_size, infer_request


@pytest.mark.parametrize("size", SIZES)
def test_http_body_has_exactly_its_size_and_its_tensor(size: str, tmp_path: Path) -> None:
    body = http_body_of_size(tmp_path, size)
    data = body.file.read_bytes()
    head_bytes = int(dict(body.headers)["inference-header-content-length"])
    tensor = json.loads(data[:head_bytes])["inputs"][0]
    assert len(data) == SIZES[size]
    assert tensor["parameters"]["binary_data_size"] == len(data) - head_bytes
    assert 4 * tensor["shape"][0] * tensor["shape"][1] == len(data) - head_bytes


def test_http_body_without_padding_holds_every_item(tmp_path: Path) -> None:
    body = http_body(tmp_path, "conv", (2, 3, 4, 4))
    head_bytes = int(dict(body.headers)["inference-header-content-length"])
    assert len(body.file.read_bytes()) - head_bytes == 4 * 2 * 3 * 4 * 4


@pytest.mark.parametrize("size", SIZES)
def test_grpc_body_is_one_framed_infer_request(size: str, tmp_path: Path) -> None:
    data = grpc_body_of_size(tmp_path, size, "bench").file.read_bytes()
    assert data[0] == 0
    assert int.from_bytes(data[1:5], "big") == len(data) - 5
    assert SIZES[size] - 64 < len(data) <= SIZES[size]
    request = service_pb2.ModelInferRequest.FromString(data[5:])
    assert request.model_name == "bench"
    assert 4 * request.inputs[0].shape[1] == len(request.raw_input_contents[0])


def test_infer_request_equals_what_the_stock_client_would_send() -> None:
    request = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[bytes(24)])
    tensor = request.inputs.add(name="x", datatype="FP32")
    tensor.shape.extend([2, 3])
    assert service_pb2.ModelInferRequest.FromString(infer_request("m", (2, 3))) == request
