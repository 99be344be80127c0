"""Trace and log settings while the engine serves: what they change, what is refused, and how both protocols say it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from tests.unit.engine.making import EngineUnderTest, run_engine, write_identity

X = {"id": "7", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
TRACE = "/v2/trace/setting"
OWN = "/v2/models/m/trace/setting"
LOGGING = "/v2/logging"
DEFAULT_TRACE = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
DEFAULT_LOG = {
    "log_file": "",
    "log_format": "default",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
}


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    for name in ("m", "other"):
        write_identity(tmp_path, name, "FP32", (2,))
    return tmp_path


async def change(engine: EngineUnderTest, path: str, **settings: Any) -> dict[str, Any]:
    reply = await engine.call("POST", path, json.dumps(settings).encode())
    assert reply.status == 200, reply.body
    value: dict[str, Any] = reply.json()
    return value


def traces(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    texts = [record.getMessage() for record in caplog.records]
    return [json.loads(text.removeprefix("trace ")) for text in texts if text.startswith("trace ")]


def test_a_trace_says_when_what_began(repo: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tollway.engine")

    async def test(engine: EngineUnderTest) -> None:
        assert (await engine.get(TRACE)).json() == DEFAULT_TRACE
        await engine.infer("m", X)
        assert traces(caplog) == []
        settings = await change(engine, TRACE, trace_level=["TIMESTAMPS"], trace_rate="1")
        assert settings == {**DEFAULT_TRACE, "trace_level": ["TIMESTAMPS"], "trace_rate": "1"}
        await engine.infer("m", X)
        [trace] = traces(caplog)
        assert (trace["model_name"], trace["model_version"], trace["request_id"], trace["rows"]) == ("m", 1, "7", 1)
        times = [one["ns"] for one in trace["timestamps"]]
        assert [one["name"] for one in trace["timestamps"]] == ["QUEUE_START", "COMPUTE_START", "REQUEST_END"]
        assert times == sorted(times)
        assert "data" not in json.dumps(trace)
        assert await change(engine, TRACE, trace_level=None, trace_rate=None) == DEFAULT_TRACE
        await engine.infer("m", X)
        assert len(traces(caplog)) == 1

    run_engine(repo, test=test)


def test_rate_and_count_bound_the_traces(repo: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tollway.engine")

    async def test(engine: EngineUnderTest) -> None:
        await change(engine, TRACE, trace_level="TIMESTAMPS", trace_rate="3", trace_count="2")
        seen = []
        for _ in range(12):
            await engine.infer("m", X)
            seen.append(len(traces(caplog)))
        assert seen == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2]
        assert (await engine.get(TRACE)).json()["trace_count"] == "0"

    run_engine(repo, test=test)


def test_a_model_may_have_its_own(repo: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tollway.engine")

    async def test(engine: EngineUnderTest) -> None:
        await change(engine, OWN, trace_level=["TIMESTAMPS"], trace_rate="1")
        assert (await engine.get(TRACE)).json() == DEFAULT_TRACE
        await engine.infer("m", X)
        await engine.infer("other", X)
        assert [trace["model_name"] for trace in traces(caplog)] == ["m"]
        assert await change(engine, OWN, trace_level=None, trace_rate=None) == DEFAULT_TRACE
        assert (await engine.get("/v2/models/nix/trace/setting")).status == 404

    run_engine(repo, test=test)


@pytest.mark.parametrize(
    ("path", "settings", "text"),
    [
        (TRACE, {"trace_level": ["TENSORS"]}, "tensors are never written down"),
        (TRACE, {"trace_level": []}, "must be one text"),
        (TRACE, {"trace_rate": "0"}, "at least 1"),
        (TRACE, {"trace_rate": "x"}, "whole number"),
        (TRACE, {"trace_rate": 5}, "must be one text"),
        (TRACE, {"trace_count": "-2"}, "at least -1"),
        (TRACE, {"trace_file": "/tmp/x"}, "the engine's own log"),
        (TRACE, {"trace_mode": "opentelemetry"}, "no effect here"),
        (TRACE, {"log_frequency": "5"}, "no effect here"),
        (TRACE, {"own": "1"}, "is unknown"),
        (OWN, {"trace_rate": "1", "own": "1"}, "is unknown"),
        (LOGGING, {"log_info": "yes"}, "true or false"),
        (LOGGING, {"log_verbose_level": -1}, "0 to 1000"),
        (LOGGING, {"log_verbose_level": True}, "0 to 1000"),
        (LOGGING, {"log_file": "/tmp/x"}, "no effect here"),
        (LOGGING, {"log_format": "ISO8601"}, "no effect here"),
        (LOGGING, {"log_info": False, "own": 1}, "is unknown"),
    ],
)
def test_what_has_no_effect_is_refused_and_changes_nothing(
    repo: Path, path: str, settings: dict[str, Any], text: str
) -> None:
    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.call("POST", path, json.dumps(settings).encode())
        assert (reply.status, reply.json()["code"]) == (400, "bad_request")
        assert text in reply.json()["error"]
        assert (await engine.get(TRACE)).json() == DEFAULT_TRACE
        assert (await engine.get(OWN)).json() == DEFAULT_TRACE
        assert (await engine.get(LOGGING)).json() == DEFAULT_LOG
        for body in (b"{", b"[]", b"\xff"):
            assert (await engine.call("POST", path, body)).status == 400

    run_engine(repo, test=test)


def test_kinds_of_log_lines_are_switched(repo: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("tollway.engine")
    caplog.set_level(logging.INFO, "tollway.engine")

    async def test(engine: EngineUnderTest) -> None:
        def shown() -> list[str]:
            caplog.clear()
            log.info("an info")
            log.warning("a warning")
            log.error("an error")
            return [record.getMessage() for record in caplog.records]

        assert await change(engine, LOGGING, log_info=False) == {**DEFAULT_LOG, "log_info": False}
        assert shown() == ["a warning", "an error"]
        await change(engine, LOGGING, log_info=True, log_warning=False, log_error=False)
        assert shown() == ["an info"]
        await change(engine, LOGGING, log_warning=True, log_error=True, log_verbose_level=1)
        caplog.handler.setLevel(logging.DEBUG)
        caplog.clear()
        await engine.infer("m", X)
        [line] = [record.getMessage() for record in caplog.records]
        assert line.startswith("call model=m version=1 id=7 rows=1 ")

    run_engine(repo, test=test)
    assert log.filters == []


def test_grpc_says_the_same(repo: Path) -> None:
    async def rpc(engine: EngineUnderTest, method: str, request: Any, answer: Any) -> Any:
        message = request.SerializeToString()
        body = b"\0" + len(message).to_bytes(4, "big") + message
        reply = await engine.call("POST", f"/inference.GRPCInferenceService/{method}", body, is_grpc=True)
        if reply.trailers[b"grpc-status"] != b"0":
            return reply.trailers[b"grpc-status"]
        return answer.FromString(reply.body[5:])

    async def test(engine: EngineUnderTest) -> None:
        request = service_pb2.TraceSettingRequest(model_name="m")
        request.settings["trace_rate"].value.append("5")
        answer = await rpc(engine, "TraceSetting", request, service_pb2.TraceSettingResponse)
        expected = {**DEFAULT_TRACE, "trace_rate": "5"}
        assert {name: list(one.value) for name, one in answer.settings.items()} == {
            name: value if isinstance(value, list) else [value] for name, value in expected.items()
        }
        assert (await engine.get(OWN)).json() == expected
        cleared = service_pb2.TraceSettingRequest(model_name="m")
        cleared.settings["trace_rate"].SetInParent()
        await rpc(engine, "TraceSetting", cleared, service_pb2.TraceSettingResponse)
        assert (await engine.get(OWN)).json() == DEFAULT_TRACE
        assert await rpc(engine, "TraceSetting", service_pb2.TraceSettingRequest(model_name="nix"), None) == b"5"
        log = service_pb2.LogSettingsRequest()
        log.settings["log_warning"].bool_param = False
        log.settings["log_verbose_level"].uint32_param = 2
        answer = await rpc(engine, "LogSettings", log, service_pb2.LogSettingsResponse)
        values = {name: getattr(one, one.WhichOneof("parameter_choice")) for name, one in answer.settings.items()}
        assert values == {**DEFAULT_LOG, "log_warning": False, "log_verbose_level": 2}
        log.settings["log_verbose_level"].string_param = "x"
        assert await rpc(engine, "LogSettings", log, None) == b"3"

    run_engine(repo, test=test)
