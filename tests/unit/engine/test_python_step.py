"""Python steps in their processes: answers, every way to fail, restart, isolation. Real child processes."""

import asyncio
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.engine.python_process import PythonLimits
from tests.unit.engine.making import (
    EngineUnderTest,
    FakeExchange,
    python_step,
    run_engine,
    write_identity,
    write_python,
)


def x(*data: float, name: str = "x") -> dict[str, Any]:
    return {"inputs": [{"name": name, "datatype": "FP32", "shape": [len(data) // 2, 2], "data": list(data)}]}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells a test; bounded by the suite's time-out."""
    while not condition():
        await asyncio.sleep(0.005)


def is_ready(engine: EngineUnderTest, model: str) -> bool:
    return engine.registry.get(model).is_ready


def fault(reply: FakeExchange) -> tuple[int, str, str]:
    return reply.status, reply.json()["code"], reply.json()["error"]


def test_a_step_answers_each_request_of_a_batch(tmp_path: Path) -> None:
    write_python(
        tmp_path, "p", python_step("y = x * 2"), extra="dynamic_batching { max_queue_delay_microseconds: 1000 }"
    )

    async def test(engine: EngineUnderTest) -> None:
        replies = await asyncio.gather(*(engine.infer("p", x(n, n + 0.5)) for n in range(6)))
        assert [reply.json()["outputs"][0]["data"] for reply in replies] == [[2 * n, 2 * n + 1] for n in range(6)]
        assert all(int(reply.headers[b"tollway-compute-ns"]) > 0 for reply in replies)
        (stats,) = (await engine.get("/v2/models/p/stats")).json()["model_stats"]
        assert stats["execution_count"] < 6

    run_engine(tmp_path, test=test)


def test_bytes_go_in_and_out_as_bytes(tmp_path: Path) -> None:
    step = python_step(
        "assert all(type(i) is bytes for i in x.ravel())\ny = np.array([i.decode().upper() for i in x.ravel()])"
    )
    write_python(tmp_path, "p", step, inputs=[("x", "BYTES", (-1,))], outputs=[("y", "BYTES", (-1,))], rows_max=0)

    async def test(engine: EngineUnderTest) -> None:
        tensor = {"name": "x", "datatype": "BYTES", "shape": [2], "data": ["héllo", ""]}
        reply = await engine.infer("p", {"inputs": [tensor]})
        assert reply.json()["outputs"][0]["data"] == ["HÉLLO", ""]

    run_engine(tmp_path, test=test)


def test_a_repository_named_by_a_relative_path_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_python(tmp_path / "repo", "p", python_step("y = x"))
    monkeypatch.chdir(tmp_path)

    async def test(engine: EngineUnderTest) -> None:
        assert (await engine.infer("p", x(1, 2))).status == 200

    run_engine(Path("repo"), test=test)


def test_initialize_sees_the_configuration_and_the_step_finds_its_neighbours(tmp_path: Path) -> None:
    initialize = """
import json, neighbour
config = json.loads(args["model_config"])
spec = pb_utils.get_output_config_by_name(config, "y")
self.dtype = pb_utils.triton_string_to_numpy(spec["data_type"])
self.factor = int(config["parameters"]["factor"]["string_value"]) + neighbour.ONE
assert args["model_name"] == "p" and args["model_version"] == "1" and args["model_instance_kind"] == "CPU"
"""
    write_python(
        tmp_path,
        "p",
        python_step("y = (x * self.factor).astype(self.dtype)", initialize),
        extra='parameters { key: "factor" value { string_value: "4" } }',
    )
    (tmp_path / "p" / "1" / "neighbour.py").write_text("ONE = 1\n")

    async def test(engine: EngineUnderTest) -> None:
        assert (await engine.infer("p", x(1, 2))).json()["outputs"][0]["data"] == [5, 10]

    run_engine(tmp_path, test=test)


@pytest.mark.parametrize(
    ("execute", "error"),
    [
        ("raise ValueError('secret')", "model 'p' raised ValueError"),
        ("y = np.zeros((x.shape[0], 3), np.float32)", "output 'y' has shape [1, 3], expected [1, 2]"),
        ("y = np.zeros((x.shape[0] + 1, 2), np.float32)", "output 'y' has shape [2, 2], expected [1, 2]"),
        ("y = x.astype(np.float64)", "returned output 'y' as FP64, configured is FP32"),
        ("y = x.astype(np.complex64)", "model 'p' raised TritonModelException"),
        ("responses.append(pb_utils.InferenceResponse([]))\ny = x", "model 'p' raised TypeError"),
        ("responses.append(pb_utils.InferenceResponse([]))\ncontinue", "returned no output 'y'"),
        ("return None", "model 'p' raised TypeError"),
        ("request.get_response_sender().send(flags=5)", "model 'p' raised TritonModelException"),
    ],
)
def test_a_faulty_answer_fails_its_call_and_the_step_goes_on(tmp_path: Path, execute: str, error: str) -> None:
    write_python(tmp_path, "p", python_step(f"y = x\nif x[0, 0] == 1:\n{_indent(execute)}"))

    async def test(engine: EngineUnderTest) -> None:
        pids = engine.registry.get("p").pids
        status, code, text = fault(await engine.infer("p", x(1, 2)))
        assert (status, code) == (500, "backend_fault")
        assert error in text
        assert "secret" not in text
        assert (await engine.infer("p", x(0, 2))).status == 200
        assert engine.registry.get("p").pids == pids

    run_engine(tmp_path, test=test)


def _indent(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


@pytest.mark.parametrize(
    ("code", "status", "name"),
    [
        ("INVALID_ARG", 400, "invalid_tensor"),
        ("INTERNAL", 500, "backend_fault"),
        ("UNAVAILABLE", 503, "overloaded"),
        ("UNSUPPORTED", 501, "not_implemented"),
    ],
)
def test_an_error_response_reaches_its_caller_and_no_other(tmp_path: Path, code: str, status: int, name: str) -> None:
    execute = f"""
if x[0, 0] == 1:
    error = pb_utils.TritonError("image is no PNG", pb_utils.TritonError.{code})
    responses.append(pb_utils.InferenceResponse(error=error))
    continue
y = x
"""
    write_python(tmp_path, "p", python_step(execute), extra="dynamic_batching { max_queue_delay_microseconds: 100000 }")

    async def test(engine: EngineUnderTest) -> None:
        good, bad = await asyncio.gather(engine.infer("p", x(0, 2)), engine.infer("p", x(1, 2)))
        assert good.status == 200
        assert fault(bad) == (status, name, "image is no PNG")

    run_engine(tmp_path, test=test)


@pytest.mark.parametrize(
    ("execute", "reason"),
    [
        ("os.kill(os.getpid(), 9)", "ended (by SIGKILL)"),
        ("os._exit(3)", "ended (exit status 3)"),
        ("time.sleep(60)", "did not answer within 2 s"),
        ("np.zeros(1 << 36)", "ran out of memory"),
        ("os.write(int(sys.orig_argv[-3]), b'garbage' * 10)", "ended"),
    ],
)
def test_a_step_that_ends_fails_its_call_only_and_is_started_anew(tmp_path: Path, execute: str, reason: str) -> None:
    write_python(tmp_path, "p", python_step(f"y = x\nif x[0, 0] == 1:\n    {execute}"))
    write_identity(tmp_path, "other", "FP32", (2,))

    async def test(engine: EngineUnderTest) -> None:
        pids = engine.registry.get("p").pids
        status, code, text = fault(await engine.infer("p", x(1, 2)))
        assert (status, code) == (500, "backend_fault")
        assert reason in text
        # While it is down: not ready, with a time to come back; the server and other models are.
        assert not is_ready(engine, "p")
        reply = await engine.infer("p", x(0, 2))
        assert (reply.status, reply.json()["code"]) == (503, "model_not_ready")
        assert int(reply.headers[b"retry-after"]) >= 1
        assert (await engine.get("/v2/models/p/ready")).status == 503
        assert (await engine.get("/v2/health/ready")).status == 200
        index = {row["name"]: row["state"] for row in (await engine.call("POST", "/v2/repository/index")).json()}
        assert index == {"p": "UNAVAILABLE", "other": "READY"}
        assert (await engine.infer("other", x(0, 2))).status == 200
        await until(lambda: is_ready(engine, "p"))
        assert (await engine.infer("p", x(0, 2))).status == 200
        assert engine.registry.get("p").pids != pids

    # Short only for the one that never answers; and long enough for the call after it, on a busy machine.
    call_s = 2.0 if "sleep" in execute else 60.0
    run_engine(tmp_path, test=test, limits=PythonLimits(memory_bytes_max=8 << 30, call_s=call_s))


def test_queued_calls_of_a_step_that_ended_are_told_to_come_back(tmp_path: Path) -> None:
    write_python(tmp_path, "p", python_step("time.sleep(0.05)\nos._exit(1)"))

    async def test(engine: EngineUnderTest) -> None:
        replies = await asyncio.gather(*(engine.infer("p", x(n, n)) for n in range(4)))
        assert sorted(reply.status for reply in replies) == [500, 503, 503, 503]

    run_engine(tmp_path, test=test)


def test_one_of_two_instances_keeps_the_model_ready(tmp_path: Path) -> None:
    write_python(
        tmp_path,
        "p",
        python_step("y = x\nif x[0, 0] == 1: os._exit(1)"),
        extra="instance_group { kind: KIND_CPU count: 2 }",
    )

    async def test(engine: EngineUnderTest) -> None:
        version = engine.registry.get("p")
        assert len(version.pids) == 2
        assert (await engine.infer("p", x(1, 2))).status == 500
        assert len(version.pids) == 1
        assert is_ready(engine, "p")
        assert (await engine.infer("p", x(0, 2))).status == 200
        await until(lambda: len(version.pids) == 2)

    run_engine(tmp_path, test=test)


def test_instances_run_side_by_side(tmp_path: Path) -> None:
    """Each waits for the other's file: neither could end alone."""
    execute = f"""
mine, other = str(int(x[0, 0])), str(1 - int(x[0, 0]))
open("{tmp_path}/" + mine, "w").close()
while not os.path.exists("{tmp_path}/" + other):
    time.sleep(0.001)
y = x
"""
    (tmp_path / "repo").mkdir()
    write_python(tmp_path / "repo", "p", python_step(execute), extra="instance_group { count: 2 }")

    async def test(engine: EngineUnderTest) -> None:
        replies = await asyncio.gather(*(engine.infer("p", x(n, n)) for n in range(2)))
        assert [reply.status for reply in replies] == [200, 200]

    run_engine(tmp_path / "repo", test=test)


def test_the_process_sees_no_environment_no_descriptors_and_its_own_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLWAY_ADMIN_TOKEN", "canary")
    monkeypatch.setenv("PYTHONPATH", "/canary")
    secret = (tmp_path / "secret").open("w")  # an inheritable descriptor, as a careless library leaves them
    os.set_inheritable(secret.fileno(), True)
    execute = """
paths = ["/proc/self/fd/" + fd for fd in os.listdir("/proc/self/fd")]
fds = [os.readlink(path) for path in paths if os.path.exists(path)]
y = np.array([repr([sorted(os.environ), fds, os.getcwd(), os.getsid(0) == os.getpid()])])
"""
    (tmp_path / "repo").mkdir()
    write_python(
        tmp_path / "repo",
        "p",
        python_step(execute),
        inputs=[("x", "FP32", (2,))],
        outputs=[("y", "BYTES", (1,))],
        rows_max=0,
    )

    async def test(engine: EngineUnderTest) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [0, 0]}
        (text,) = (await engine.infer("p", {"inputs": [tensor]})).json()["outputs"][0]["data"]
        environment, descriptors, folder, is_own_session = eval(text)
        assert not [name for name in environment if "TOLLWAY" in name or "PYTHON" in name]
        assert not [target for target in descriptors if "secret" in target]
        assert folder == "/"
        assert is_own_session

    run_engine(tmp_path / "repo", test=test)
    secret.close()


def test_finalize_runs_at_the_end_and_no_process_stays(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    write_python(tmp_path / "repo", "p", python_step("y = x", finalize=f'open("{tmp_path}/bye", "w").close()'))
    pids: list[int] = []

    async def test(engine: EngineUnderTest) -> None:
        pids.extend(engine.registry.get("p").pids)
        assert (await engine.infer("p", x(0, 2))).status == 200

    run_engine(tmp_path / "repo", test=test)
    assert (tmp_path / "bye").exists()
    assert pids
    assert not Path(f"/proc/{pids[0]}").exists()


def test_a_busy_step_is_killed_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    write_python(tmp_path / "repo", "p", python_step(f'open("{tmp_path}/busy", "w").close()\ntime.sleep(60)\ny = x'))
    pids: list[int] = []

    async def test(engine: EngineUnderTest) -> None:
        pids.extend(engine.registry.get("p").pids)
        exchange = engine.begin("POST", "/v2/models/p/infer", json.dumps(x(0, 2)).encode())
        await until((tmp_path / "busy").exists)
        engine.engine.on_abort(exchange)

    run_engine(tmp_path / "repo", test=test)
    assert not Path(f"/proc/{pids[0]}").exists()


def test_a_batch_that_meets_the_end_waits_for_nothing(tmp_path: Path) -> None:
    """Unloading takes the processes away while the batch is on its way to one."""
    write_python(tmp_path, "p", python_step("y = x"))
    exchanges: list[FakeExchange] = []

    async def test(engine: EngineUnderTest) -> None:
        exchanges.extend(engine.begin("POST", "/v2/models/p/infer", json.dumps(x(0, 2)).encode()) for _ in range(3))
        await engine.registry.unload()
        for exchange in exchanges:
            await exchange.replied.wait()

    run_engine(tmp_path, test=test)
    assert all(exchange.status in {200, 500, 503} for exchange in exchanges)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("python-p")]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import nothing_like_this", "model.py: raised ModuleNotFoundError while loading"),
        ("def (", "model.py: raised SyntaxError while loading"),
        ("x = 1", "model.py: raised AttributeError while loading"),
        (python_step("y = x", "raise RuntimeError('secret')"), "model.py: raised RuntimeError while loading"),
        (python_step("y = x", "os._exit(4)"), "model.py: ended while starting (exit status 4)"),
        (python_step("y = x", "time.sleep(60)"), "model.py: did not start in time"),
    ],
)
def test_a_step_that_does_not_start_is_unavailable_with_the_reason(tmp_path: Path, body: str, reason: str) -> None:
    write_python(tmp_path, "p", body)

    async def test(engine: EngineUnderTest) -> None:
        (row,) = engine.registry.index()
        assert row["state"] == "UNAVAILABLE"
        assert reason in row["reason"]
        assert "secret" not in row["reason"]
        assert (await engine.get("/v2/health/ready")).status == 503

    run_engine(tmp_path, test=test, limits=PythonLimits(start_s=2.0 if "sleep" in body else 60.0))


def test_python_runs_only_from_allowed_repositories(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    marker = tmp_path / "ran"
    write_python(tmp_path / "repo", "p", f'open("{marker}", "w").close()\n' + python_step("y = x"))

    async def test(engine: EngineUnderTest) -> None:
        (row,) = engine.registry.index()
        assert "not listed in python_models_allowed" in row["reason"]
        assert not marker.exists()

    run_engine(tmp_path / "repo", test=test, python_allowed=False)


def test_a_failed_warmup_is_not_ready(tmp_path: Path) -> None:
    sample = 'model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 zero_data: true } } }'
    write_python(tmp_path, "p", python_step("raise ValueError"), extra=sample)

    async def test(engine: EngineUnderTest) -> None:
        (row,) = engine.registry.index()
        assert (row["state"], row["reason"]) == (
            "UNAVAILABLE",
            "model_warmup 'w' failed: model 'p' raised ValueError",
        )

    run_engine(tmp_path, test=test)


@pytest.mark.parametrize(("name", "value"), [("tollway_call_ms_max", "0"), ("tollway_memory_bytes_max", "much")])
def test_limits_in_parameters_must_be_numbers(tmp_path: Path, name: str, value: str) -> None:
    extra = f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'
    write_python(tmp_path, "p", python_step("y = x"), extra=extra)

    async def test(engine: EngineUnderTest) -> None:
        (row,) = engine.registry.index()
        assert row["reason"] == f"parameters.{name}: '{value}' is no positive whole number"

    run_engine(tmp_path, test=test)


def test_a_models_own_call_limit_holds(tmp_path: Path) -> None:
    extra = 'parameters { key: "tollway_call_ms_max" value { string_value: "100" } }'
    write_python(tmp_path, "p", python_step("time.sleep(60)"), extra=extra)

    async def test(engine: EngineUnderTest) -> None:
        assert "did not answer within 0.1 s" in (await engine.infer("p", x(0, 2))).json()["error"]

    run_engine(tmp_path, test=test)


def test_optional_inputs_may_be_left_out(tmp_path: Path) -> None:
    execute = """
z = pb_utils.get_input_tensor_by_name(request, "z")
y = x if z is None else x + z.as_numpy()
"""
    write_python(tmp_path, "p", python_step(execute), inputs=[("x", "FP32", (2,)), ("z", "FP32", (2,))])
    config = (
        (tmp_path / "p" / "config.pbtxt").read_text().replace('input { name: "z"', 'input { optional: true name: "z"')
    )
    (tmp_path / "p" / "config.pbtxt").write_text(config)

    async def test(engine: EngineUnderTest) -> None:
        without = x(1, 2)
        with_z = {"inputs": without["inputs"] + x(3, 4, name="z")["inputs"]}
        assert (await engine.infer("p", without)).json()["outputs"][0]["data"] == [1, 2]
        assert (await engine.infer("p", with_z)).json()["outputs"][0]["data"] == [4, 6]

    run_engine(tmp_path, test=test)
