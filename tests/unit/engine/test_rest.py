"""REST of the Open Inference Protocol, without a network: answers, forms, and every refusal with its code and text."""

import gzip
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.call import Headers
from gateway.engine.metadata import EXTENSIONS
from tests.unit.engine.making import (
    EngineUnderTest,
    FakeExchange,
    config_text,
    identity_onnx,
    run_engine,
    write_identity,
    write_model,
)

NUMERIC = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64")


def of(name: str, datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def x(data: Any = None, *, datatype: str = "FP32", shape: list[int] | None = None) -> dict[str, Any]:
    return {"inputs": [of("x", datatype, shape or [1, 2], [1.5, 2.5] if data is None else data)]}


def binary(head: dict[str, Any], *blobs: bytes) -> tuple[bytes, Headers]:
    text = json.dumps(head).encode()
    return text + b"".join(blobs), [(b"inference-header-content-length", b"%d" % len(text))]


def split(reply: FakeExchange) -> tuple[dict[str, Any], bytes]:
    length = int(reply.headers[b"inference-header-content-length"])
    return json.loads(reply.body[:length]), reply.body[length:]


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    write_identity(tmp_path, "m", "FP32", (2,))
    return tmp_path


def test_server_and_model_endpoints(repo: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        assert (await engine.get("/v2/health/live")).json() == {"live": True}
        assert (await engine.get("/v2/health/ready")).json() == {"ready": True}
        assert (await engine.get("/v2")).json() == {
            "name": "tollway",
            "version": "1",
            "extensions": list(EXTENSIONS),
        }
        assert (await engine.get("/v2/models/m/versions/1")).json() == {
            "name": "m",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
        }
        assert (await engine.get("/v2/models/m/ready")).json() == {"name": "m", "ready": True}
        config = (await engine.get("/v2/models/m/config")).json()
        assert (config["name"], config["max_batch_size"]) == ("m", 8)
        assert config["input"][0]["dims"] == [2]
        index = await engine.call("POST", "/v2/repository/index")
        assert index.json() == [{"name": "m", "version": "1", "state": "READY", "reason": ""}]

    run_engine(repo, test=test)


def test_json_in_json_out(repo: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("m", {**x([1.5, 2.5, 3, 4], shape=[2, 2]), "id": 'an "id"'})
        assert reply.status == 200
        assert reply.headers[b"content-type"] == b"application/json"
        assert b"inference-header-content-length" not in reply.headers
        assert reply.json() == {
            "id": 'an "id"',
            "model_name": "m",
            "model_version": "1",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [1.5, 2.5, 3.0, 4.0]}],
        }
        assert reply.headers[b"tollway-rows"] == b"2"
        assert int(reply.headers[b"tollway-compute-ns"]) > 0
        assert int(reply.headers[b"tollway-queue-ns"]) >= 0

    run_engine(repo, test=test)


def test_nested_and_flat_data_are_the_same(repo: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        flat = await engine.infer("m", x([1, 2, 3, 4], shape=[2, 2]))
        nested = await engine.infer("m", x([[1, 2], [3, 4]], shape=[2, 2]))
        assert flat.json() == nested.json()

    run_engine(repo, test=test)


def test_every_numeric_type_survives_json_and_binary(tmp_path: Path) -> None:
    for datatype in NUMERIC:
        write_identity(tmp_path, datatype, datatype, (2,))

    async def test(engine: EngineUnderTest) -> None:
        for datatype in NUMERIC:
            reply = await engine.infer(datatype, x([1, 2], datatype=datatype))
            assert reply.json()["outputs"][0]["data"] == [1, 2], datatype
            array = np.array([[3, 4]], dtype=datatype.lower().replace("fp", "float"))
            head = of("x", datatype, [1, 2], None)
            del head["data"]
            head["parameters"] = {"binary_data_size": array.nbytes}
            body, headers = binary({"inputs": [head], "parameters": {"binary_data_output": True}}, array.tobytes())
            reply = await engine.infer(datatype, body, headers)
            assert split(reply)[1] == array.tobytes(), datatype

    run_engine(tmp_path, test=test)


def test_extreme_integers_are_exact(tmp_path: Path) -> None:
    for datatype in ("INT64", "UINT64"):
        write_identity(tmp_path, datatype, datatype, (2,))

    async def test(engine: EngineUnderTest) -> None:
        for datatype, values in (("INT64", [-(2**63), 2**63 - 1]), ("UINT64", [0, 2**64 - 1])):
            reply = await engine.infer(datatype, x(values, datatype=datatype))
            assert reply.json()["outputs"][0]["data"] == values

    run_engine(tmp_path, test=test)


def test_text_and_bools(tmp_path: Path) -> None:
    write_identity(tmp_path, "text", "BYTES", (2,))
    write_identity(tmp_path, "flag", "BOOL", (2,))

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("text", x(["héllo", ""], datatype="BYTES"))
        assert reply.json()["outputs"][0] == of("y", "BYTES", [1, 2], ["héllo", ""])
        reply = await engine.infer("text", x([["a", "b"], ["c", "d"]], datatype="BYTES", shape=[2, 2]))
        assert reply.json()["outputs"][0]["data"] == ["a", "b", "c", "d"]
        packed = b"".join(struct.pack("<I", len(item)) + item for item in (b"ab", b""))
        tensor = {"name": "x", "datatype": "BYTES", "shape": [1, 2], "parameters": {"binary_data_size": len(packed)}}
        body, headers = binary({"inputs": [tensor], "parameters": {"binary_data_output": True}}, packed)
        assert split(await engine.infer("text", body, headers))[1] == packed
        reply = await engine.infer("flag", x([True, False], datatype="BOOL"))
        assert reply.json()["outputs"][0]["data"] == [True, False]

    run_engine(tmp_path, test=test)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_types_go_binary_and_are_refused_as_json(tmp_path: Path, datatype: str) -> None:
    write_identity(tmp_path, "half", datatype, (2,))

    async def test(engine: EngineUnderTest) -> None:
        tensor = {"name": "x", "datatype": datatype, "shape": [1, 2], "parameters": {"binary_data_size": 4}}
        body, headers = binary({"inputs": [tensor], "parameters": {"binary_data_output": True}}, b"\x00\x3c\x80\x3f")
        reply = await engine.infer("half", body, headers)
        assert split(reply)[1] == b"\x00\x3c\x80\x3f"
        body, headers = binary({"inputs": [tensor]}, b"\x00\x3c\x80\x3f")
        reply = await engine.infer("half", body, headers)
        assert (reply.status, reply.json()["code"]) == (400, "bad_request")
        assert f"{datatype} has no JSON form" in reply.json()["error"]
        reply = await engine.infer("half", x([1, 2], datatype=datatype))
        assert reply.status == 400
        assert f"{datatype} has no JSON form" in reply.json()["error"]

    run_engine(tmp_path, test=test)


def test_binary_and_json_outputs_can_be_asked_for_one_by_one(tmp_path: Path) -> None:
    from model_repo.onnx_builder import Node, Value, encode_model

    model = encode_model(
        [Node(op="Identity", inputs=("x",), outputs=("y",)), Node(op="Neg", inputs=("x",), outputs=("z",))],
        [Value(name="x", datatype="FP32", shape=("b", 2))],
        [Value(name=name, datatype="FP32", shape=("b", 2)) for name in "yz"],
    )
    config = config_text("m", [("x", "FP32", (2,))], [(name, "FP32", (2,)) for name in "yz"], rows_max=8)
    write_model(tmp_path, "m", config, {"1/model.onnx": model})

    async def test(engine: EngineUnderTest) -> None:
        outputs: list[dict[str, Any]] = [{"name": "z", "parameters": {"binary_data": False}}, {"name": "y"}]
        reply = await engine.infer("m", {**x(), "outputs": outputs, "parameters": {"binary_data_output": True}})
        head, blob = split(reply)
        assert head["outputs"] == [
            of("z", "FP32", [1, 2], [-1.5, -2.5]),
            {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        ]
        assert blob == np.array([1.5, 2.5], dtype=np.float32).tobytes()
        reply = await engine.infer("m", {**x(), "outputs": [{"name": "z"}]})
        assert [output["name"] for output in reply.json()["outputs"]] == ["z"]
        reply = await engine.infer("m", {**x(), "outputs": [{"name": "z"}, {"name": "z"}]})
        assert reply.json()["error"] == "an output is requested twice"

    run_engine(tmp_path, test=test)


def test_classification_names_the_best_with_their_labels(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (3,))
    folder = tmp_path / "m"
    config = (
        (folder / "config.pbtxt").read_text().replace('output { name: "y"', 'output { label_filename: "l" name: "y"')
    )
    (folder / "config.pbtxt").write_text(config)
    (folder / "l").write_text("cat\ndog\n")

    async def test(engine: EngineUnderTest) -> None:
        request = {
            **x([0.25, 0.5, 0.75, 3, 2, 1], shape=[2, 3]),
            "outputs": [{"name": "y", "parameters": {"classification": 2}}],
        }
        assert (await engine.infer("m", request)).json()["outputs"] == [
            of("y", "BYTES", [2, 2], ["0.750000:2", "0.500000:1:dog", "3.000000:0:cat", "2.000000:1:dog"])
        ]
        for count in (0, -1, True, "2", 1.5):
            request["outputs"] = [{"name": "y", "parameters": {"classification": count}}]
            assert (await engine.infer("m", request)).status == 400

    run_engine(tmp_path, test=test)


def test_reshape_is_invisible_to_callers(tmp_path: Path) -> None:
    config = config_text("m", [("x", "FP32", (4,))], [("y", "FP32", (2, 2))], rows_max=4)
    config = config.replace("dims: [4] }", "dims: [4] reshape { shape: [ 2, 2 ] } }")
    write_model(tmp_path, "m", config, {"1/model.onnx": identity_onnx("FP32", ("b", 2, 2))})
    config = config_text("v", [("x", "FP32", (-1, 2))], [("y", "FP32", (2, -1))], rows_max=4)
    config = config.replace("dims: [2, -1] }", "dims: [2, -1] reshape { shape: [ -1, 2 ] } }")
    write_model(tmp_path, "v", config, {"1/model.onnx": identity_onnx("FP32", ("b", "n", 2))})

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("m", x([1, 2, 3, 4], shape=[1, 4]))
        assert reply.json()["outputs"] == [of("y", "FP32", [1, 2, 2], [1, 2, 3, 4])]
        reply = await engine.infer("v", x([1, 2, 3, 4, 5, 6], shape=[1, 3, 2]))
        assert reply.json()["outputs"] == [of("y", "FP32", [1, 2, 3], [1, 2, 3, 4, 5, 6])]

    run_engine(tmp_path, test=test)


def test_a_model_without_batch_axis_takes_whole_shapes(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (-1, 2), rows_max=0)

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("m", x([1, 2, 3, 4], shape=[2, 2]))
        assert reply.json()["outputs"][0]["shape"] == [2, 2]
        assert reply.headers[b"tollway-rows"] == b"1"
        assert (await engine.infer("m", x([], shape=[0, 2]))).json()["outputs"][0]["data"] == []

    run_engine(tmp_path, test=test)


def test_a_raw_request_is_the_one_input(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (-1,))
    write_identity(tmp_path, "text", "BYTES", (1,))
    raw: Headers = [(b"inference-header-content-length", b"0")]

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("m", np.arange(5, dtype=np.float32).tobytes(), raw)
        head, blob = split(reply)
        assert head["outputs"][0]["shape"] == [1, 5]
        assert blob == np.arange(5, dtype=np.float32).tobytes()
        assert split(await engine.infer("text", b"hello", raw))[1] == b"\x05\0\0\0hello"
        assert (await engine.infer("m", b"12345", raw)).status == 400

    run_engine(tmp_path, test=test)


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        ({}, "bad_request", "missing required field `inputs`"),
        ({"inputs": []}, "invalid_tensor", "input 'x' of model 'm' is missing"),
        ({"inputs": 3}, "invalid_tensor", "Expected `array`"),
        (b"{", "bad_request", "malformed JSON"),
        (b"", "bad_request", "malformed JSON"),
        (b"\xff\xfe", "bad_request", "malformed JSON"),
        (b"[" * 100_000, "bad_request", "malformed"),
        ({"inputs": [of("z", "FP32", [1, 2], [1, 2])]}, "invalid_tensor", "model 'm' has no input 'z'; it has 'x'"),
        ({"inputs": [of("x", "FP32", [1, 2], [1, 2])] * 2}, "invalid_tensor", "input 'x' is given twice"),
        (x([1, 2], datatype="INT32"), "invalid_tensor", "has datatype INT32, the model expects FP32"),
        (x([1, 2], datatype="FP99"), "invalid_tensor", "Invalid value 'FP99'"),
        (x([1, 2, 3], shape=[1, 3]), "invalid_tensor", "has shape [1, 3], the model expects [-1, 2]"),
        (x([1, 2], shape=[2]), "invalid_tensor", "has shape [2], the model expects [-1, 2]"),
        (x([1, 2], shape=[1, 1, 2]), "invalid_tensor", "has shape [1, 1, 2]"),
        (x([1], shape=[1, 2]), "invalid_tensor", "data of shape [1] does not fit shape [1, 2]"),
        (x([[1], [2]], shape=[1, 2]), "invalid_tensor", "data of shape [2, 1] does not fit shape [1, 2]"),
        (x([[1, 2], [3]], shape=[2, 2]), "invalid_tensor", "different lengths"),
        (x([1, [2]], shape=[1, 2]), "invalid_tensor", "different lengths"),
        (x([1, 2], shape=[-1, 2]), "invalid_tensor", "negative size"),
        (x([1, 2], shape=[2**40, 2**40]), "invalid_tensor", "more than"),
        (x([1, 2], shape=[1] * 17), "invalid_tensor", "17 axes"),
        (x([], shape=[0, 2]), "invalid_tensor", "has 0 rows; model 'm' takes 1 to 8"),
        (x([1] * 18, shape=[9, 2]), "invalid_tensor", "has 9 rows; model 'm' takes 1 to 8 (max_batch_size)"),
        (x([1, True]), "invalid_tensor", "Expected `float | array`, got `bool` - at `$.inputs[0].data[1]`"),
        (x([1, "2"]), "invalid_tensor", "got `str`"),
        (x([1, None]), "invalid_tensor", "got `null`"),
        (x([1, 1e300]), "invalid_tensor", "out of the range of FP32"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2]}]}, "invalid_tensor", "neither data nor"),
        ({**x(), "outputs": [{"name": "q"}]}, "invalid_tensor", "model 'm' has no output 'q'; it has 'y'"),
        ({**x(), "parameters": {"timeout": -1}}, "bad_request", "parameter 'timeout'"),
        ({**x(), "parameters": {"timeout": "1"}}, "bad_request", "parameter 'timeout'"),
        ({**x(), "parameters": {"binary_data_output": 1}}, "bad_request", "'binary_data_output' must be true or false"),
        ({**x(), "id": 7}, "bad_request", "Expected `str`"),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}]},
            "bad_header_length",
            "inference-header-content-length is missing",
        ),
    ],
)
def test_a_bad_request_is_refused_with_its_reason(repo: Path, request_: Any, code: str, text: str) -> None:
    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("m", request_)
        assert reply.status == 400
        assert reply.headers[b"content-type"] == b"application/json"
        assert reply.json()["code"] == code
        assert text in reply.json()["error"]
        assert (await engine.infer("m", x())).status == 200

    run_engine(repo, test=test)


def test_integers_out_of_range_and_fractions_are_refused(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "UINT8", (2,))

    async def test(engine: EngineUnderTest) -> None:
        for data, text in (
            ([1, 256], "out of the range of UINT8"),
            ([-1, 1], "out of the range of UINT8"),
            ([1, 2**70], "out of the range of UINT8"),
            ([1, 1.5], "got `float`"),
            ([1, True], "got `bool`"),
        ):
            reply = await engine.infer("m", x(data, datatype="UINT8"))
            assert reply.status == 400
            assert text in reply.json()["error"]

    run_engine(tmp_path, test=test)


def _tensor(size: Any, **more: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": size}}
    return {"inputs": [{**tensor, **more}]}


@pytest.mark.parametrize(
    ("head", "blob", "code", "text"),
    [
        (_tensor(4), b"\0" * 4, "invalid_tensor", "tensor 'x' of FP32[1, 2] needs 8 bytes, got 4"),
        (_tensor(8), b"\0" * 4, "invalid_tensor", "binary_data_size is 8, only 4 bytes follow"),
        (_tensor(8), b"\0" * 9, "bad_header_length", "1 bytes of binary data belong to no input"),
        (_tensor(-8), b"\0" * 8, "invalid_tensor", "binary_data_size must be"),
        (_tensor(True), b"\0", "invalid_tensor", "binary_data_size must be"),
        (_tensor("8"), b"\0" * 8, "invalid_tensor", "binary_data_size must be"),
        (_tensor(8, data=[1, 2]), b"\0" * 8, "invalid_tensor", "both data and binary_data_size"),
        (_tensor(8, shape=[2**62, 4]), b"\0" * 8, "invalid_tensor", "more than"),
        (_tensor(8, datatype="BYTES"), b"\x05\0\0\0ab\0\0", "invalid_tensor", "ends inside element 0"),
        (_tensor(8, datatype="BYTES", shape=[1, 1]), b"\x02\0\0\0abcd", "invalid_tensor", "2 bytes after its last"),
        (_tensor(5, datatype="BYTES", shape=[1, 2]), b"\x01\0\0\0a", "invalid_tensor", "needs at least 8 bytes"),
        (_tensor(9, datatype="BYTES", shape=[1, 2]), b"\x03\0\0\0abc\0\0", "invalid_tensor", "length of element 1"),
        (_tensor(2, datatype="BOOL"), b"\1\2", "invalid_tensor", "byte other than 0 and 1"),
    ],
)
def test_a_bad_binary_request_is_refused_with_its_reason(
    repo: Path, head: dict[str, Any], blob: bytes, code: str, text: str
) -> None:
    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("m", *binary(head, blob))
        assert (reply.status, reply.json()["code"]) == (400, code)
        assert text in reply.json()["error"]

    run_engine(repo, test=test)


@pytest.mark.parametrize("value", [b"-1", b"x", b"", b"1.0", b"99999999999999", b"100000"])
def test_a_bad_header_length_is_refused(repo: Path, value: bytes) -> None:
    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("m", b"{}", [(b"inference-header-content-length", value)])
        assert (reply.status, reply.json()["code"]) == (400, "bad_header_length")

    run_engine(repo, test=test)


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("POST", "/v2/models/nope/infer", 404, "model_not_found"),
        ("POST", "/v2/models/m/versions/7/infer", 404, "version_not_found"),
        ("GET", "/v2/models/nope", 404, "model_not_found"),
        ("GET", "/v2/models/nope/ready", 404, "model_not_found"),
        ("GET", "/v2/models/nope/stats", 404, "model_not_found"),
        ("GET", "/v2/models/m/versions/x", 404, "version_not_found"),
        ("GET", "/v2/models/m/infer", 405, "method_not_allowed"),
        ("DELETE", "/v2", 405, "method_not_allowed"),
        ("GET", "/v3", 404, "not_found"),
        ("GET", "/metrics", 404, "not_found"),
        ("POST", "/v2/models/m/generate", 400, "invalid_tensor"),
        ("POST", "/v2/repository/models/nope/load", 404, "model_not_found"),
        ("GET", "/v2/systemsharedmemory/status", 501, "not_implemented"),
    ],
)
def test_what_is_not_there_is_refused_by_the_table(
    repo: Path, method: str, target: str, status: int, code: str
) -> None:
    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.call(method, target, b"{}" if method == "POST" else b"")
        assert (reply.status, reply.json()["code"]) == (status, code)
        assert isinstance(reply.json()["error"], str)
        if status == 405:
            assert b"allow" in reply.headers

    run_engine(repo, test=test)


def test_compressed_requests_count_the_plain_json(repo: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        array = np.array([[1, 2]], dtype=np.float32)
        body, headers = binary(_tensor(8), array.tobytes())
        for coding, packed in ((b"gzip", gzip.compress(body)), (b"deflate", zlib.compress(body))):
            reply = await engine.infer("m", packed, [*headers, (b"content-encoding", coding)])
            assert reply.json()["outputs"][0]["data"] == [1, 2]

    run_engine(repo, test=test)


def test_large_compressed_bodies_are_inflated_and_deflated_off_the_loop(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (-1,))
    array = np.random.default_rng(1).random((1, 200_000)).astype(np.float32)

    async def test(engine: EngineUnderTest) -> None:
        body, headers = binary(
            {**_tensor(array.nbytes, shape=[1, 200_000]), "parameters": {"binary_data_output": True}}, array.tobytes()
        )
        headers += [(b"content-encoding", b"gzip"), (b"accept-encoding", b"deflate")]
        reply = await engine.infer("m", gzip.compress(body, 1), headers)
        assert reply.headers[b"content-encoding"] == b"deflate"
        plain = zlib.decompress(reply.body)
        assert plain[int(reply.headers[b"inference-header-content-length"]) :] == array.tobytes()

    run_engine(tmp_path, test=test)


def test_a_bomb_is_cut_at_the_bodys_limit(repo: Path) -> None:
    bomb = zlib.compress(b"\0" * 4_000_000)

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("m", bomb, [(b"content-encoding", b"deflate")])
        assert (reply.status, reply.json()["code"]) == (413, "body_too_large")

    run_engine(repo, test=test, body_bytes_max=2_000_000)


@pytest.mark.parametrize(
    ("body", "coding", "status", "code"),
    [
        (b"no gzip", b"gzip", 400, "bad_request"),
        (zlib.compress(b"{}")[:-2], b"deflate", 400, "bad_request"),
        (zlib.compress(b"{}") + b"more", b"deflate", 400, "bad_request"),
        (b"{}", b"br", 415, "unsupported_encoding"),
        (b"{}", b"gzip, gzip", 415, "unsupported_encoding"),
    ],
)
def test_damaged_and_unknown_codings_are_refused(
    repo: Path, body: bytes, coding: bytes, status: int, code: str
) -> None:
    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("m", body, [(b"content-encoding", coding)])
        assert (reply.status, reply.json()["code"]) == (status, code)
        if status == 415:
            assert reply.headers[b"accept-encoding"] == b"gzip, deflate"

    run_engine(repo, test=test)


def test_small_replies_are_not_compressed_and_large_ones_are(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "INT32", (-1,))

    async def test(engine: EngineUnderTest) -> None:
        accept: Headers = [(b"accept-encoding", b"gzip;q=0.5, deflate;q=0.1, br")]
        small = await engine.infer("m", x([1], datatype="INT32", shape=[1, 1]), accept)
        assert b"content-encoding" not in small.headers
        large = await engine.infer("m", x([1] * 2000, datatype="INT32", shape=[1, 2000]), accept)
        assert large.headers[b"content-encoding"] == b"gzip"
        assert json.loads(gzip.decompress(large.body))["outputs"][0]["data"] == [1] * 2000
        none = await engine.infer(
            "m", x([1] * 2000, datatype="INT32", shape=[1, 2000]), [(b"accept-encoding", b"gzip;q=0, identity")]
        )
        assert b"content-encoding" not in none.headers

    run_engine(tmp_path, test=test)


def test_values_that_json_cannot_carry_are_refused_not_changed(tmp_path: Path) -> None:
    from model_repo.onnx_builder import Node, Value, encode_model

    model = encode_model(
        [Node(op="Log", inputs=("x",), outputs=("y",))],
        [Value(name="x", datatype="FP32", shape=("b", 2))],
        [Value(name="y", datatype="FP32", shape=("b", 2))],
    )
    config = config_text("log", [("x", "FP32", (2,))], [("y", "FP32", (2,))], rows_max=8)
    write_model(tmp_path, "log", config, {"1/model.onnx": model})

    async def test(engine: EngineUnderTest) -> None:
        for value in (0.0, -1.0):
            reply = await engine.infer("log", x([value, 1]))
            assert reply.status == 400
            assert "holds NaN or infinity" in reply.json()["error"]
        reply = await engine.infer("log", {**x([0.0, 1]), "parameters": {"binary_data_output": True}})
        assert split(reply)[1] == np.array([-np.inf, 0], dtype=np.float32).tobytes()

    run_engine(tmp_path, test=test)


def test_bodies_are_bounded_by_length_and_by_count(repo: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        reply = engine.begin("POST", "/v2/models/m/infer", b" " * 2001)
        assert (reply.status, reply.json()["code"]) == (413, "body_too_large")
        from gateway.call import RequestHead

        exchange = FakeExchange(RequestHead(b"POST", b"/v2/models/m/infer", []))  # chunked: no length
        engine.engine.on_head(exchange)
        engine.engine.on_body(exchange, b" " * 1500)
        assert not exchange.replies
        engine.engine.on_body(exchange, b" " * 501)
        assert exchange.status == 413
        assert engine.engine.buffered_bytes == 0

    run_engine(repo, test=test, body_bytes_max=2000)


def test_too_many_held_bytes_refuse_new_calls(repo: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        from gateway.call import RequestHead

        holder = FakeExchange(RequestHead(b"POST", b"/v2/models/m/infer", []))
        engine.engine.on_head(holder)
        engine.engine.on_body(holder, b" " * 1500)
        refused = await engine.get("/v2")
        assert (refused.status, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers[b"retry-after"] == b"1"
        engine.engine.on_abort(holder)
        assert (await engine.get("/v2")).status == 200

    run_engine(repo, test=test, buffered_bytes_max=1000)


def test_expect_continue_is_answered_and_a_refusal_comes_without_it(repo: Path) -> None:
    from gateway.call import RequestHead

    async def test(engine: EngineUnderTest) -> None:
        good = FakeExchange(RequestHead(b"POST", b"/v2/models/m/infer", [], content_length=9, expects_continue=True))
        engine.engine.on_head(good)
        assert (good.continues, good.replies) == (1, 0)
        engine.engine.on_abort(good)
        bad = FakeExchange(RequestHead(b"POST", b"/nothing", [], content_length=9, expects_continue=True))
        engine.engine.on_head(bad)
        assert (bad.continues, bad.status) == (0, 404)

    run_engine(repo, test=test)


def test_a_past_deadline_is_504(repo: Path) -> None:
    write_identity(repo, "slow", "FP32", (-1,))  # a variable size: never on the loop

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("slow", x(), [(b"tollway-deadline-ns", b"1")])
        assert (reply.status, reply.json()["code"]) == (504, "deadline_exceeded")
        reply = await engine.infer("slow", {**x(), "parameters": {"timeout": 60_000_000}})
        assert reply.status == 200
        reply = await engine.infer("slow", x(), [(b"tollway-deadline-ns", b"soon")])
        assert reply.status == 400

    run_engine(repo, test=test)


def test_statistics_are_true(repo: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        for rows in (1, 1, 3):
            await engine.infer("m", x([1, 2] * rows, shape=[rows, 2]))
        await engine.infer("m", x([1, 2, 3], shape=[1, 3]))  # never reached the model
        (stats,) = (await engine.get("/v2/models/m/stats")).json()["model_stats"]
        assert (stats["inference_count"], stats["execution_count"]) == (5, 3)
        assert stats["inference_stats"]["success"]["count"] == 3
        assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in stats["batch_stats"]] == [
            (1, 2),
            (3, 1),
        ]
        assert stats["last_inference"] > 0
        assert (await engine.get("/v2/models/stats")).json()["model_stats"] == [stats]
        assert (await engine.get("/v2/models/m/versions/1/stats")).json()["model_stats"] == [stats]

    run_engine(repo, test=test)


def test_the_index_lists_only_ready_models_when_asked(repo: Path) -> None:
    write_model(repo, "broken", "nonsense", {})

    async def test(engine: EngineUnderTest) -> None:
        names = [row["name"] for row in (await engine.call("POST", "/v2/repository/index", b"{}")).json()]
        assert names == ["m", "broken"]
        ready = await engine.call("POST", "/v2/repository/index", b'{"ready": true}')
        assert [row["name"] for row in ready.json()] == ["m"]
        assert (await engine.call("POST", "/v2/repository/index", b"[]")).status == 400

    run_engine(repo, test=test)


def test_a_caller_that_leaves_is_not_answered(repo: Path) -> None:
    write_identity(repo, "slow", "FP32", (-1,))

    async def test(engine: EngineUnderTest) -> None:
        exchange = engine.begin("POST", "/v2/models/slow/infer", json.dumps(x()).encode())
        engine.engine.on_abort(exchange)
        assert (await engine.infer("slow", x())).status == 200
        assert exchange.replies == 0

    run_engine(repo, test=test)


MEDIA = [f"application/vnd.{cloud}-triton.binary+json" for cloud in ("sagemaker", "vertex-ai")]


@pytest.mark.parametrize("media", MEDIA)
def test_a_clouds_media_type_says_where_the_json_ends(repo: Path, media: str) -> None:
    """In place of Inference-Header-Content-Length, or beside an equal one; a binary reply has the same type."""
    array = np.arange(2, dtype=np.float32)
    head = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}

    async def test(engine: EngineUnderTest) -> None:
        for is_binary in (True, False):
            body, headers = binary({"inputs": [head], "parameters": {"binary_data_output": is_binary}}, array.tobytes())
            size = dict(headers)[b"inference-header-content-length"].decode()
            typed = (b"content-type", f"{media};json-header-size={size}".encode())
            for sent in ([typed], [typed, (b"inference-header-content-length", size.encode())]):
                reply = await engine.infer("m", body, sent)
                assert reply.status == 200, reply.body
                if is_binary:
                    length = int(reply.headers[b"inference-header-content-length"])
                    assert reply.headers[b"content-type"].decode() == f"{media};json-header-size={length}"
                    assert len(reply.body) == length + 8
                else:
                    assert reply.headers[b"content-type"] == b"application/json"
            for wrong in ("x", "", "-1", str(len(body) + 1)):
                bad = await engine.infer("m", body, [(b"content-type", f"{media};json-header-size={wrong}".encode())])
                assert (bad.status, bad.json()["code"]) == (400, "bad_header_length")
            other = await engine.infer("m", body, [typed, (b"inference-header-content-length", b"3")])
            assert (other.status, other.json()["code"]) == (400, "bad_header_length")

    run_engine(repo, test=test)
