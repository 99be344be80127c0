"""Loads and unloads while calls are served: what comes up, what stays, and that no call fails for it."""

import asyncio
import base64
import gc
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from gateway.engine.model import ModelVersion
from tests.leaks import assert_none_left, held
from tests.unit.engine.making import (
    EngineUnderTest,
    FakeExchange,
    config_text,
    identity_onnx,
    python_step,
    run_engine,
    write_identity,
    write_model,
    write_python,
)

X: dict[str, Any] = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
SPECS = ([("x", "FP32", [2])], [("y", "FP32", [2])])
CONFIG: dict[str, Any] = {
    "backend": "onnxruntime",
    "max_batch_size": 8,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}],
}


async def load(engine: EngineUnderTest, name: str, **parameters: Any) -> FakeExchange:
    body = json.dumps({"parameters": parameters}).encode() if parameters else b""
    return await engine.call("POST", f"/v2/repository/models/{name}/load", body)


async def unload(engine: EngineUnderTest, name: str, **parameters: Any) -> FakeExchange:
    body = json.dumps({"parameters": parameters}).encode() if parameters else b""
    return await engine.call("POST", f"/v2/repository/models/{name}/unload", body)


async def states(engine: EngineUnderTest) -> dict[tuple[str, str], str]:
    index = (await engine.call("POST", "/v2/repository/index")).json()
    return {(row["name"], row["version"]): row["state"] for row in index}


async def is_ready(engine: EngineUnderTest) -> bool:
    return (await engine.get("/v2/health/ready")).status == 200


def onnx() -> str:
    return base64.b64encode(identity_onnx("FP32", ["batch", 2])).decode()


def add_version(root: Path, name: str, version: int) -> None:
    folder = root / name / str(version)
    folder.mkdir()
    (folder / "model.onnx").write_bytes(identity_onnx("FP32", ["batch", 2]))


def write_ensemble(root: Path, name: str, *steps: str) -> None:
    tensors = ["x", *(f"t{number}" for number in range(1, len(steps))), "y"]
    text = "".join(
        f'step {{ model_name: "{step}" model_version: -1 input_map {{ key: "x" value: "{tensors[number]}" }}'
        f' output_map {{ key: "y" value: "{tensors[number + 1]}" }} }}\n'
        for number, step in enumerate(steps)
    )
    extra = f"ensemble_scheduling {{ {text} }}"
    write_model(root, name, config_text(name, *SPECS, platform="ensemble", rows_max=8, extra=extra), {"1/.keep": ""})


def test_a_model_comes_and_goes(tmp_path: Path) -> None:
    write_identity(tmp_path, "first", "FP32", (2,))

    async def test(engine: EngineUnderTest) -> None:
        assert (await load(engine, "late")).json()["code"] == "model_not_found"
        write_identity(tmp_path, "late", "FP32", (2,))
        reply = await load(engine, "late")
        assert (reply.status, reply.body) == (200, b"")
        assert (await engine.infer("late", X)).status == 200
        assert (await unload(engine, "late")).status == 200
        reply = await engine.infer("late", X)
        assert (reply.status, reply.json()["code"]) == (503, "model_not_ready")
        assert await states(engine) == {("first", "1"): "READY", ("late", "1"): "UNAVAILABLE"}
        assert await is_ready(engine)
        # Again, and back.
        assert (await unload(engine, "late")).status == 200
        assert (await load(engine, "late")).status == 200
        assert (await engine.infer("late", X)).status == 200
        assert (await unload(engine, "nix")).status == 404

    run_engine(tmp_path, test=test)


def test_without_any_model_the_server_is_not_ready(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))

    async def test(engine: EngineUnderTest) -> None:
        assert await is_ready(engine)
        await unload(engine, "m")
        assert not await is_ready(engine)
        assert (await engine.call("POST", "/v2/repository/index", b'{"ready": true}')).json() == []
        await load(engine, "m")
        assert await is_ready(engine)

    run_engine(tmp_path, test=test)


def test_a_reload_sees_new_versions_and_drops_old_ones(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))

    async def test(engine: EngineUnderTest) -> None:
        add_version(tmp_path, "m", 2)
        assert (await load(engine, "m")).status == 200
        assert (await engine.infer("m", X)).json()["model_version"] == "2"
        assert (await engine.infer("m/versions/1", X)).status == 404
        both = {**CONFIG, "version_policy": {"specific": {"versions": [1, 2]}}}
        assert (await load(engine, "m", config=json.dumps(both))).status == 200
        for version in ("1", "2"):
            assert (await engine.infer(f"m/versions/{version}", X)).json()["model_version"] == version
            stats = (await engine.get(f"/v2/models/m/versions/{version}/stats")).json()["model_stats"]
            assert [(one["version"], one["inference_count"]) for one in stats] == [(version, 1)]
        missing = {**CONFIG, "version_policy": {"specific": {"versions": [3]}}}
        reply = await load(engine, "m", config=json.dumps(missing))
        assert (reply.status, reply.json()["code"]) == (500, "backend_fault")
        assert "version 3 is not in" in reply.json()["error"]
        assert (await engine.infer("m/versions/1", X)).status == 200

    run_engine(tmp_path, test=test)


def test_a_load_may_bring_its_configuration_and_what_the_engine_shows_may_be_sent_back(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))

    async def test(engine: EngineUnderTest) -> None:
        assert (await load(engine, "m", config=json.dumps({**CONFIG, "max_batch_size": 3}))).status == 200
        shown = (await engine.get("/v2/models/m/config")).json()
        assert shown["max_batch_size"] == 3
        assert (await load(engine, "m", config=json.dumps(shown))).status == 200
        assert (await engine.get("/v2/models/m/config")).json() == shown
        # Without one, the repository's counts again.
        assert (await load(engine, "m")).status == 200
        assert (await engine.get("/v2/models/m/config")).json()["max_batch_size"] == 8

    run_engine(tmp_path, test=test)


def test_a_load_may_bring_files_which_go_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brought = tmp_path / "brought"
    brought.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(brought))
    (tmp_path / "repository").mkdir()

    async def test(engine: EngineUnderTest) -> None:
        config = json.dumps({**CONFIG, "output": [{**CONFIG["output"][0], "label_filename": "labels.txt"}]})
        labels = base64.b64encode(b"zero\none\n").decode()
        files = {"file:7/model.onnx": onnx(), "file:labels.txt": labels}
        assert (await load(engine, "m", config=config, **files)).status == 200
        wanted = {**X, "outputs": [{"name": "y", "parameters": {"classification": 1}}]}
        reply = (await engine.infer("m", wanted)).json()
        assert reply["model_version"] == "7"
        assert reply["outputs"][0]["data"] == ["2.000000:1:one"]
        [folder] = brought.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        await unload(engine, "m")
        assert list(brought.iterdir()) == []
        # What fails leaves nothing either.
        reply = await load(engine, "m", config=config, **{"file:7/model.onnx": labels, "file:labels.txt": labels})
        assert reply.status == 500
        assert list(brought.iterdir()) == []

    run_engine(tmp_path / "repository", test=test)


PYTHON = json.dumps({**CONFIG, "backend": "python"})
BAD: dict[str, tuple[Mapping[str, Any], str]] = {
    "unknown parameter": ({"own": 1}, "'own' of a load is unknown"),
    "config is no text": ({"config": 3}, "must be JSON text"),
    "config is no JSON": ({"config": "{"}, "is not a model configuration"),
    "config of another model": ({"config": '{"name": "other"}'}, "differs from the model's"),
    "files without config": ({"file:1/model.onnx": onnx()}, "need 'config'"),
    "a file that is no base64": ({"config": json.dumps(CONFIG), "file:1/model.onnx": "?"}, "base64"),
    "a file that is no text": ({"config": json.dumps(CONFIG), "file:1/model.onnx": 1}, "base64"),
    "out of the folder": ({"config": json.dumps(CONFIG), "file:../model.onnx": ""}, "leads out"),
    "absolute": ({"config": json.dumps(CONFIG), "file:/model.onnx": ""}, "leads out"),
    "too deep": ({"config": json.dumps(CONFIG), "file:1/a/model.onnx": ""}, "at most one folder"),
    "Python code": ({"config": json.dumps(CONFIG), "file:1/model.py": ""}, "never code"),
    "a shared library": ({"config": json.dumps(CONFIG), "file:1/op.so": ""}, "never code"),
    "a plan": ({"config": json.dumps({**CONFIG, "backend": "tensorrt"}), "file:1/model.plan": ""}, "never code"),
    "files of a Python model": ({"config": PYTHON, "file:1/model.onnx": ""}, "would be code"),
    "too many files": ({"config": "{}", **{f"file:1/{n}.bin": "" for n in range(65)}}, "more than 64"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_load_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))
    parameters, text = BAD[name]

    async def test(engine: EngineUnderTest) -> None:
        reply = await load(engine, "m", **parameters)
        assert (reply.status, reply.json()["code"]) == (400, "bad_request")
        assert text in reply.json()["error"]
        assert (await engine.infer("m", X)).status == 200

    run_engine(tmp_path, test=test)


def test_malformed_bodies_are_refused(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))

    async def test(engine: EngineUnderTest) -> None:
        for verb in ("load", "unload"):
            for body in (b"{", b"[]", b'{"parameters": 3}', b'{"parameters": {"nix": 1}}', b"\xff"):
                reply = await engine.call("POST", f"/v2/repository/models/m/{verb}", body)
                assert (reply.status, reply.json()["code"]) == (400, "bad_request"), body
        assert (await unload(engine, "m", unload_dependents="yes")).status == 400
        assert await states(engine) == {("m", "1"): "READY"}

    run_engine(tmp_path, test=test)


def test_a_load_that_fails_changes_nothing_that_serves(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))

    async def test(engine: EngineUnderTest) -> None:
        (tmp_path / "m" / "1" / "model.onnx").write_bytes(b"nonsense")
        reply = await load(engine, "m")
        assert (reply.status, reply.json()["code"]) == (500, "backend_fault")
        assert "failed to load 'm'" in reply.json()["error"]
        assert (await engine.infer("m", X)).status == 200
        assert await states(engine) == {("m", "1"): "READY"}
        # A new one that fails is said to be there and not to serve; the server stays ready.
        write_model(tmp_path, "new", config_text("new", *SPECS, rows_max=8), {"1/model.onnx": b"nonsense"})
        assert (await load(engine, "new")).status == 500
        index = (await engine.call("POST", "/v2/repository/index")).json()
        assert [row["state"] for row in index if row["name"] == "new"] == ["UNAVAILABLE"]
        assert "cannot load it" in next(row["reason"] for row in index if row["name"] == "new")
        assert await is_ready(engine)

    run_engine(tmp_path, test=test)


def test_a_failing_warm_up_never_becomes_ready(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))

    async def test(engine: EngineUnderTest) -> None:
        sample = {
            "name": "s",
            "batch_size": 1,
            "inputs": {"x": {"data_type": "TYPE_FP32", "dims": [3], "zero_data": True}},
        }
        reply = await load(engine, "m", config=json.dumps({**CONFIG, "model_warmup": [sample]}))
        assert reply.status == 500
        assert "model_warmup 's'" in reply.json()["error"]
        assert (await engine.infer("m", X)).status == 200

    run_engine(tmp_path, test=test)


def test_no_call_fails_while_a_model_is_reloaded(tmp_path: Path) -> None:
    """Callers of the model and of an ensemble made of it, ten reloads with another batch size each."""
    write_identity(tmp_path, "m", "FP32", (2,))
    write_ensemble(tmp_path, "e", "m", "m")

    async def test(engine: EngineUnderTest) -> None:
        is_over = False
        answered = dict.fromkeys(("m", "e"), 0)

        async def call_on(name: str) -> None:
            while not is_over:
                reply = await engine.infer(name, X)
                assert (reply.status, reply.json()["outputs"][0]["data"]) == (200, [1.0, 2.0])
                answered[name] += 1
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for name in ("m", "m", "e", "e"):
                group.create_task(call_on(name))
            try:
                for turn in range(10):
                    config = {**CONFIG, "max_batch_size": 4 + turn, "dynamic_batching": {}}
                    reply = await load(engine, "m", config=json.dumps(config))
                    assert reply.status == 200, reply.body
                    assert (await engine.get("/v2/models/m/config")).json()["max_batch_size"] == 4 + turn
            finally:
                is_over = True
        assert min(answered.values()) > 10

    run_engine(tmp_path, test=test)


def test_an_unload_waits_for_the_work_under_way_and_refuses_new_ones(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    wait = f"open({str(gate)!r}).read(); y = x"
    write_python(tmp_path / "repository", "m", python_step(wait))
    write_identity(tmp_path / "repository", "other", "FP32", (2,))

    async def test(engine: EngineUnderTest) -> None:
        first = engine.begin("POST", "/v2/models/m/infer", json.dumps(X).encode())
        leaving = engine.begin("POST", "/v2/repository/models/m/unload")
        await asyncio.sleep(0)
        assert (await states(engine))["m", "1"] == "UNLOADING"
        assert (await engine.infer("m", X)).status == 503
        assert await is_ready(engine)
        assert not leaving.replies
        await asyncio.to_thread(gate.write_text, "go")
        await asyncio.wait_for(leaving.replied.wait(), 60)
        assert first.status == 200
        assert leaving.status == 200
        assert (await states(engine))["m", "1"] == "UNAVAILABLE"

    run_engine(tmp_path / "repository", test=test)


def test_an_ensemble_brings_its_steps_and_takes_with_it_what_nobody_else_needs(tmp_path: Path) -> None:
    for name in ("own", "shared"):
        write_identity(tmp_path, name, "FP32", (2,))
    write_ensemble(tmp_path, "e", "own", "shared")
    write_ensemble(tmp_path, "f", "shared", "shared")

    async def test(engine: EngineUnderTest) -> None:
        assert (await unload(engine, "e", unload_dependents=True)).status == 200
        now = await states(engine)
        assert {name for (name, _), state in now.items() if state == "READY"} == {"f", "shared"}
        assert (await engine.infer("f", X)).status == 200
        assert (await load(engine, "e")).status == 200
        assert set((await states(engine)).values()) == {"READY"}
        assert (await engine.infer("e", X)).status == 200
        # Without its step, the ensemble says that it is not ready; with it again, it is.
        assert (await unload(engine, "own")).status == 200
        assert (await states(engine))["e", "1"] == "UNAVAILABLE"
        assert (await engine.infer("e", X)).status == 503
        assert (await load(engine, "own")).status == 200
        assert (await engine.infer("e", X)).status == 200

    run_engine(tmp_path, test=test)


def test_a_step_that_no_longer_fits_its_ensemble_is_not_loaded(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))
    write_ensemble(tmp_path, "e", "m")

    async def test(engine: EngineUnderTest) -> None:
        write_identity(tmp_path, "m", "INT32", (2,))
        reply = await load(engine, "m")
        assert reply.status == 500
        assert "'e' version 1" in reply.json()["error"]
        assert (await engine.infer("e", X)).status == 200

    run_engine(tmp_path, test=test)


def test_grpc_loads_and_unloads_too(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))

    async def rpc(engine: EngineUnderTest, method: str, request: Any) -> FakeExchange:
        message = request.SerializeToString()
        body = b"\0" + len(message).to_bytes(4, "big") + message
        return await engine.call("POST", f"/inference.GRPCInferenceService/{method}", body, is_grpc=True)

    async def test(engine: EngineUnderTest) -> None:
        request = service_pb2.RepositoryModelLoadRequest(model_name="brought")
        request.parameters["config"].string_param = json.dumps(CONFIG)
        request.parameters["file:1/model.onnx"].bytes_param = identity_onnx("FP32", ["batch", 2])
        assert (await rpc(engine, "RepositoryModelLoad", request)).trailers[b"grpc-status"] == b"0"
        assert (await engine.infer("brought", X)).status == 200
        leave = service_pb2.RepositoryModelUnloadRequest(model_name="brought")
        leave.parameters["unload_dependents"].bool_param = True
        assert (await rpc(engine, "RepositoryModelUnload", leave)).trailers[b"grpc-status"] == b"0"
        assert (await engine.infer("brought", X)).status == 503
        unknown = service_pb2.RepositoryModelLoadRequest(model_name="nix")
        assert (await rpc(engine, "RepositoryModelLoad", unknown)).trailers[b"grpc-status"] == b"5"
        request.parameters["file:1/model.py"].bytes_param = b"pass"
        assert (await rpc(engine, "RepositoryModelLoad", request)).trailers[b"grpc-status"] == b"3"

    run_engine(tmp_path, test=test)


@pytest.mark.parametrize("kind", ["System", "Cuda"])
def test_shared_memory_is_refused_with_the_reason(tmp_path: Path, kind: str) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.get(f"/v2/{kind.lower()}sharedmemory/status")
        assert (reply.status, reply.json()["code"]) == (501, "not_implemented")
        assert "send tensors as binary data" in reply.json()["error"]
        for verb in ("Status", "Register", "Unregister"):
            method = f"/inference.GRPCInferenceService/{kind}SharedMemory{verb}"
            reply = await engine.call("POST", method, b"\0\0\0\0\0", is_grpc=True)
            assert reply.trailers[b"grpc-status"] == b"12"
            assert b"send tensors" in reply.trailers[b"grpc-message"]

    run_engine(tmp_path, test=test)


def known_versions() -> int:
    gc.collect()
    return sum(isinstance(one, ModelVersion) for one in gc.get_objects())


def test_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))

    async def test(engine: EngineUnderTest) -> None:
        async def cycle(count: int) -> None:
            for _ in range(count):
                await load(engine, "m")
                assert (await engine.infer("m", X)).status == 200

        await cycle(3)
        before, versions = held(), known_versions()
        await cycle(20)
        assert_none_left(before, 20)
        # What serves, and perhaps one that is on its way out; what other tests hold was there before.
        assert known_versions() < versions + 10

    run_engine(tmp_path, test=test)


def test_a_model_without_configuration_is_completed_from_its_file(tmp_path: Path) -> None:
    shapes: dict[str, list[int | str]] = {"batched": ["batch", 2], "whole": [1, 2], "open": ["batch", "width"]}
    for name, shape in shapes.items():
        folder = tmp_path / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(identity_onnx("FP32", shape))
    bare = 'platform: "onnxruntime_onnx" max_batch_size: 16'
    write_model(tmp_path, "bare", bare, {"1/model.onnx": identity_onnx("FP32", ["batch", 2])})
    (tmp_path / "empty" / "1").mkdir(parents=True)

    async def test(engine: EngineUnderTest) -> None:
        for name, rows, dims, is_batched in (
            ("batched", 4, [2], True),
            ("whole", 0, [1, 2], False),
            ("open", 4, [-1], True),
            ("bare", 16, [2], False),
        ):
            config = (await engine.get(f"/v2/models/{name}/config")).json()
            assert (config["name"], config["max_batch_size"]) == (name, rows)
            assert [tensor["dims"] for tensor in (*config["input"], *config["output"])] == [dims, dims]
            assert ("dynamic_batching" in config) == is_batched
            assert (await engine.infer(name, X)).status == 200
        [row] = [row for row in (await engine.call("POST", "/v2/repository/index")).json() if row["name"] == "empty"]
        assert row["state"] == "UNAVAILABLE"
        assert "config.pbtxt" in row["reason"]

    run_engine(tmp_path, test=test)


def test_a_stop_ends_a_load_that_is_under_way(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    repository = tmp_path / "repository"
    write_identity(repository, "m", "FP32", (2,))
    begun: list[FakeExchange] = []

    async def test(engine: EngineUnderTest) -> None:
        write_python(repository, "stuck", python_step("y = x", f"open({str(gate)!r}).read()"))
        begun.append(engine.begin("POST", "/v2/repository/models/stuck/load"))
        # Its process waits at the other end.
        writer = await asyncio.to_thread(open, gate, "w")
        assert not begun[0].replies
        assert ("stuck", "1") not in await states(engine)
        await engine.registry.unload()
        await asyncio.wait_for(begun[0].replied.wait(), 60)
        writer.close()

    run_engine(repository, test=test)
    assert (begun[0].status, begun[0].json()["code"]) == (503, "shutting_down")


def test_a_caller_that_leaves_does_not_stop_a_load(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))

    async def test(engine: EngineUnderTest) -> None:
        write_identity(tmp_path, "late", "FP32", (2,))
        exchange = engine.begin("POST", "/v2/repository/models/late/load")
        engine.engine.on_abort(exchange)
        # The next change waits for it.
        assert (await load(engine, "m")).status == 200
        assert (await engine.infer("late", X)).status == 200
        assert not exchange.replies

    run_engine(tmp_path, test=test)
