"""Sequence batching: controls, implicit state, places, idle time, refusals, storms."""

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from gateway.engine.sequence import WAITING_MAX, SequenceScheduler
from gateway.wire.grpc import frame
from model_repo.config import parse_config
from model_repo.errors import ConfigError
from model_repo.onnx_builder import Node, Value, encode_model
from tests.unit.engine.making import EngineUnderTest, config_text, run_engine, write_model, write_python
from tests.unit.engine.test_streams import Stream

CONTROLS = """
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 100 ] } }
  control_input { name: "END" control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } }
  control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } }
  control_input { name: "CORRID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
"""
STATE = 'state { input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: 1 %s }'


def write_sum(
    root: Path, *, strategy: str = "direct { }", rows_max: int = 4, idle_us: int = 60_000_000, initial: str = ""
) -> None:
    """y = x + state + START (100 at the first request), state' = y; c = the correlation id."""
    batch: list[int | str] = ["batch", 1] if rows_max else [1]
    names = {"x": "FP32", "s": "FP32", "START": "FP32", "END": "INT32", "READY": "BOOL", "CORRID": "UINT64"}
    model = encode_model(
        [
            Node(op="Add", inputs=("x", "s"), outputs=("a",)),
            Node(op="Add", inputs=("a", "START"), outputs=("y",)),
            Node(op="Identity", inputs=("y",), outputs=("t",)),
            Node(op="Identity", inputs=("CORRID",), outputs=("c",)),
        ],
        [Value(name=name, datatype=datatype, shape=batch) for name, datatype in names.items()],
        [
            Value(name=name, datatype=kind, shape=batch)
            for name, kind in (("y", "FP32"), ("t", "FP32"), ("c", "UINT64"))
        ],
    )
    extra = f"sequence_batching {{ max_sequence_idle_microseconds: {idle_us} {strategy} {CONTROLS} {STATE % initial} }}"
    outputs = [("y", "FP32", (1,)), ("c", "UINT64", (1,))]
    config = config_text("sum", [("x", "FP32", (1,))], outputs, rows_max=rows_max, extra=extra)
    write_model(root, "sum", config, {"1/model.onnx": model})


def body(value: float, id_: int | str, *, start: bool = False, end: bool = False, rows_max: int = 4) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1] if rows_max else [1], "data": [value]}
    parameters = {"sequence_id": id_, "sequence_start": start, "sequence_end": end}
    return {"inputs": [tensor], "parameters": parameters}


async def ask(engine: EngineUnderTest, value: float, id_: int | str, **flags: Any) -> float | tuple[int, str]:
    """y, or (status, code)."""
    reply = await engine.infer("sum", body(value, id_, **flags))
    if reply.status != 200:
        return reply.status, str(reply.json()["code"])
    outputs = {output["name"]: output["data"][0] for output in reply.json()["outputs"]}
    assert set(outputs) == {"y", "c"}, "states are nobody's business"
    assert outputs["c"] == id_
    return float(outputs["y"])


def scheduler(engine: EngineUnderTest, model: str = "sum") -> SequenceScheduler:
    servable = engine.registry.get(model).servable()
    assert isinstance(servable, SequenceScheduler)
    return servable


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("strategy", ["direct { }", "oldest { max_candidate_sequences: 8 }"])
@pytest.mark.parametrize("rows_max", [0, 4])
def test_state_goes_from_request_to_request_of_one_sequence(tmp_path: Path, strategy: str, rows_max: int) -> None:
    write_sum(tmp_path, strategy=strategy, rows_max=rows_max)

    async def test(engine: EngineUnderTest) -> None:
        big = 2**64 - 1

        async def say(value: float, id_: int, **flags: bool) -> Any:
            return await ask(engine, value, id_, rows_max=rows_max, **flags)

        assert await say(1, big, start=True) == 101
        assert await say(2, big) == 103
        if rows_max or "oldest" in strategy:
            assert await say(5, 7, start=True) == 105
            assert await say(5, 7) == 110
        assert await say(3, big) == 106
        # A start begins anew, in the same place.
        assert await say(1, big, start=True) == 101
        assert await say(1, big, end=True) == 102
        assert await say(1, big) == (400, "bad_request")
        assert await say(1, big, start=True, end=True) == 101
        (spec,) = (await engine.get("/v2/models/sum")).json()["inputs"]
        assert spec["name"] == "x"

    run_engine(tmp_path, test=test)


def test_what_belongs_to_no_sequence_is_refused(tmp_path: Path) -> None:
    write_sum(tmp_path)

    async def test(engine: EngineUnderTest) -> None:
        assert await ask(engine, 1, 0, start=True) == (400, "bad_request")
        assert await ask(engine, 1, "", start=True) == (400, "bad_request")
        assert await ask(engine, 1, 5) == (400, "bad_request")
        assert await ask(engine, 1, "text", start=True) == (400, "invalid_tensor")
        two = body(1, 5, start=True)
        two["inputs"][0] |= {"shape": [2, 1], "data": [1, 2]}
        assert (await engine.infer("sum", two)).json()["code"] == "invalid_tensor"
        assert scheduler(engine).active == 0

    run_engine(tmp_path, test=test)


def test_more_sequences_than_places_are_refused_not_queued(tmp_path: Path) -> None:
    write_sum(tmp_path, rows_max=4)

    async def test(engine: EngineUnderTest) -> None:
        for id_ in range(1, 5):
            assert await ask(engine, id_, id_, start=True) == 100 + id_
        assert await ask(engine, 1, 5, start=True) == (503, "overloaded")
        # One request of a sequence does not stand in the way of its own end.
        assert await ask(engine, 1, 1, end=True) == 102
        assert await ask(engine, 1, 5, start=True) == 101
        assert scheduler(engine).active == 4

    run_engine(tmp_path, test=test)


def test_an_idle_sequence_loses_its_place_and_a_busy_one_does_not(tmp_path: Path) -> None:
    write_sum(tmp_path, idle_us=1_000_000)

    async def test(engine: EngineUnderTest) -> None:
        assert await ask(engine, 1, 1, start=True) == 101
        assert await ask(engine, 1, 2, start=True) == 101
        expected = 101.0
        own = scheduler(engine)
        async with asyncio.timeout(60):
            while own.active == 2:
                expected += 1
                assert await ask(engine, 1, 2) == expected
                await asyncio.sleep(0.02)
        assert await ask(engine, 1, 2) == expected + 1
        assert await ask(engine, 1, 1) == (400, "bad_request")
        await until(lambda: own.active == 0)

    run_engine(tmp_path, test=test)


def test_requests_of_a_sequence_run_in_order_however_fast_they_come(tmp_path: Path) -> None:
    write_sum(tmp_path)

    async def test(engine: EngineUnderTest) -> None:
        answers = await asyncio.gather(
            *(ask(engine, 1, 9, start=number == 0, end=number == WAITING_MAX - 1) for number in range(WAITING_MAX))
        )
        assert answers == [101 + number for number in range(WAITING_MAX)]
        assert scheduler(engine).active == 0
        answers = await asyncio.gather(*(ask(engine, 1, 9, start=number == 0) for number in range(WAITING_MAX + 5)))
        assert set(answers[-3:]) == {(503, "queue_full")}

    run_engine(tmp_path, test=test)


def test_a_caller_that_leaves_does_not_break_its_sequence(tmp_path: Path) -> None:
    write_sum(tmp_path)

    async def test(engine: EngineUnderTest) -> None:
        assert await ask(engine, 1, 3, start=True) == 101
        running, waiting = (
            engine.begin("POST", "/v2/models/sum/infer", json.dumps(body(10, 3)).encode()) for _ in range(2)
        )
        for exchange in (waiting, running):
            engine.engine.on_abort(exchange)
        # The first was under way: the model has seen it. The second had not begun.
        assert await ask(engine, 1, 3) in {112, 102}
        assert await ask(engine, 1, 3, end=True) in {113, 103}
        assert scheduler(engine).active == 0

    run_engine(tmp_path, test=test)


def test_a_storm_of_sequences_keeps_each_ones_sum_and_leaves_no_place_taken(tmp_path: Path) -> None:
    write_sum(tmp_path, strategy="oldest { max_candidate_sequences: 32 }", rows_max=16)
    seed = 20261124

    async def test(engine: EngineUnderTest) -> None:
        chance = random.Random(seed)
        refused = 0

        async def one(id_: int) -> None:
            nonlocal refused
            total, length = 100.0, chance.randint(1, 6)
            for number in range(length):
                value = float(chance.randint(0, 9))
                answer = await ask(engine, value, id_, start=number == 0, end=number == length - 1)
                if answer == (503, "overloaded"):
                    assert number == 0
                    refused += 1
                    return
                total += value
                assert answer == total, (seed, id_)

        await asyncio.gather(*(one(id_) for id_ in range(1, 401)))
        assert 0 < refused < 400
        assert scheduler(engine).active == 0
        (stats,) = (await engine.get("/v2/models/sum/stats")).json()["model_stats"]
        assert stats["execution_count"] < stats["inference_count"], "different sequences share batches"

    run_engine(tmp_path, test=test)


def test_state_begins_as_a_file_says(tmp_path: Path) -> None:
    initial = 'initial_state { name: "i" data_type: TYPE_FP32 dims: 1 data_file: "start" }'
    write_sum(tmp_path, initial=initial)
    folder = tmp_path / "sum" / "initial_state"
    folder.mkdir()
    (folder / "start").write_bytes(np.array([1000], np.float32).tobytes())

    async def test(engine: EngineUnderTest) -> None:
        assert await ask(engine, 1, 1, start=True) == 1101

    run_engine(tmp_path, test=test)
    (folder / "start").write_bytes(b"abc")

    async def refused(engine: EngineUnderTest) -> None:
        (row,) = engine.registry.index()
        assert "sequence_batching: tensor 's' of FP32[1, 1] needs 4 bytes" in row["reason"]

    run_engine(tmp_path, test=refused)


def test_a_python_model_with_state_of_its_own_and_text_ids(tmp_path: Path) -> None:
    step = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        out = []
        for request in requests:
            by_name = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            key = request.correlation_id()
            assert by_name["CORRID"][0, 0].decode() == key
            start, end = (bool(request.flags() & bit) for bit in (1, 2))
            assert (by_name["START"][0, 0], by_name["END"][0, 0]) == (start, end)
            total = (0 if start else self.sums[key]) + by_name["x"]
            self.sums[key] = total
            if end:
                del self.sums[key]
            out.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", total.astype(np.float32))]))
        return out
"""
    controls = CONTROLS.replace("TYPE_UINT64", "TYPE_STRING").replace("[ 0, 100 ]", "[ 0, 1 ]")
    extra = f"sequence_batching {{ oldest {{ max_candidate_sequences: 4 }} {controls} }}"
    tensors = [("x", "FP32", (1,))]
    write_python(tmp_path, "p", step, inputs=tensors, outputs=[("y", "FP32", (1,))], extra=extra)

    async def test(engine: EngineUnderTest) -> None:
        async def say(value: float, id_: int | str, **flags: bool) -> Any:
            reply = await engine.infer("p", body(value, id_, **flags))
            return reply.json()["outputs"][0]["data"][0] if reply.status == 200 else reply.json()["code"]

        assert await say(1, "a", start=True) == 1
        assert await say(5, "b", start=True) == 5
        assert await say(2, "a") == 3
        assert await say(2, "b", end=True) == 7
        assert await say(1, 5, start=True) == "invalid_tensor"
        assert scheduler(engine, "p").active == 1

    run_engine(tmp_path, test=test)


def test_a_sequence_over_a_stream(tmp_path: Path) -> None:
    write_sum(tmp_path)

    def message(value: float, *, start: bool, end: bool) -> bytes:
        request = service_pb2.ModelInferRequest(model_name="sum")
        request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
        request.raw_input_contents.append(np.array([value], np.float32).tobytes())
        request.parameters["sequence_id"].uint64_param = 2**63
        request.parameters["sequence_start"].bool_param = start
        request.parameters["sequence_end"].bool_param = end
        return frame(request.SerializeToString())

    async def test(engine: EngineUnderTest) -> None:
        stream = Stream(engine)
        for number in range(10):
            stream.send(message(1, start=number == 0, end=number == 9))
        got = [np.frombuffer(m.infer_response.raw_output_contents[0], np.float32)[0] for m in await stream.end()]
        assert got == [101 + number for number in range(10)]

    run_engine(tmp_path, test=test)


BASE = 'backend: "onnxruntime" max_batch_size: 4 input { name: "x" data_type: TYPE_FP32 dims: 1 }\n'
BASE += 'output { name: "y" data_type: TYPE_FP32 dims: 1 }\n'


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        (
            'control_input { name: "x" control { kind: CONTROL_SEQUENCE_READY fp32_false_true: [0, 1] } }',
            "another tensor",
        ),
        ('control_input { name: "c" control { kind: CONTROL_SEQUENCE_READY fp32_false_true: [0] } }', "two values"),
        ('control_input { name: "c" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32 } }', "data_type of"),
        ('control_input { name: "c" }', "exactly one control"),
        ("oldest { max_candidate_sequences: -1 }", "outside 0"),
        ("oldest { preferred_batch_size: 9 }", "outside 1..4"),
        ('state { input_name: "s" output_name: "t" data_type: TYPE_STRING dims: 1 }', "data_type of numbers"),
        ('state { input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: -1 }', "variable dims"),
        ('state { input_name: "s" output_name: "y" data_type: TYPE_FP32 dims: 1 }', "another tensor"),
        (
            'state { input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: 1 '
            'initial_state { name: "i" data_type: TYPE_FP32 dims: 2 zero_data: true } }',
            "another type or shape",
        ),
        (
            'state { input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: 1 '
            'initial_state { name: "i" data_type: TYPE_FP32 dims: 1 data_file: "../x" } }',
            "plain file name",
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(inside: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_config(BASE + f"sequence_batching {{ {inside} }}", name="m")


def test_places_and_idle_time_have_tritons_defaults() -> None:
    def slots(inside: str, rows: int = 4) -> tuple[int, int]:
        config = parse_config(BASE.replace("size: 4", f"size: {rows}") + f"sequence_batching {{ {inside} }}", name="m")
        assert config.sequences is not None
        return config.sequences.slots, config.sequences.idle_ns_max

    assert slots("") == (4, 10**9)
    assert slots("direct { }", 0) == (1, 10**9)
    assert slots("oldest { max_candidate_sequences: 9 } max_sequence_idle_microseconds: 5") == (9, 5000)
    warmup = 'model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 dims: 1 zero_data: true } } }'
    with pytest.raises(ConfigError, match="model_warmup: has no effect"):
        parse_config(BASE + warmup + "sequence_batching { }", name="m")
    with pytest.raises(ConfigError, match="one instance"):
        python = BASE.replace("onnxruntime", "python") + "instance_group { count: 2 }"
        parse_config(python + "sequence_batching { }", name="m")


# -- tenants ----------------------------------------------------------------------------------------------------------


def write_blind_sum(root: Path) -> None:
    """y = x + state, state' = y; the model is not told the id."""
    values = [Value(name=name, datatype="FP32", shape=["batch", 1]) for name in ("x", "s", "y", "t")]
    nodes = [
        Node(op="Add", inputs=("x", "s"), outputs=("y",)),
        Node(op="Identity", inputs=("y",), outputs=("t",)),
    ]
    extra = f"sequence_batching {{ direct {{ }} {STATE % ''} }}"
    config = config_text("sum", [("x", "FP32", (1,))], [("y", "FP32", (1,))], rows_max=4, extra=extra)
    write_model(root, "sum", config, {"1/model.onnx": encode_model(nodes, values[:2], values[2:])})


async def told_by(engine: EngineUnderTest, tenant: str, value: float, **flags: Any) -> float | tuple[int, str]:
    """Sequence 7 of a tenant, as the gateway names it: y, or (status, code)."""
    reply = await engine.infer("sum", body(value, 7, **flags), [(b"tollway-tenant", tenant.encode())])
    if reply.status != 200:
        return reply.status, str(reply.json()["code"])
    return float({output["name"]: output["data"][0] for output in reply.json()["outputs"]}["y"])


def test_tenants_with_the_same_id_have_sequences_of_their_own(tmp_path: Path) -> None:
    """Ids are the callers' choice: by one of them nobody meets, ends or learns of another tenant's sequence."""
    write_blind_sum(tmp_path)

    async def test(engine: EngineUnderTest) -> None:
        assert await told_by(engine, "acme", 1, start=True) == 1
        assert await told_by(engine, "rival", 5) == (400, "bad_request")
        assert await told_by(engine, "rival", 10, start=True) == 10
        assert await told_by(engine, "acme", 1) == 2
        assert await told_by(engine, "rival", 10, end=True) == 20
        assert await told_by(engine, "acme", 1, end=True) == 3
        assert scheduler(engine).active == 0

    run_engine(tmp_path, test=test)


def test_a_model_that_is_told_ids_has_each_only_once(tmp_path: Path) -> None:
    """It may keep a state of its own by the id, which two tenants would share."""
    write_sum(tmp_path)

    async def test(engine: EngineUnderTest) -> None:
        assert await told_by(engine, "acme", 1, start=True) == 101
        assert await told_by(engine, "rival", 5, start=True) == (400, "bad_request")
        assert await told_by(engine, "acme", 1, end=True) == 102
        assert await told_by(engine, "rival", 5, start=True, end=True) == 105

    run_engine(tmp_path, test=test)


async def by_rpc(engine: EngineUnderTest, tenant: str, *, start: bool) -> bool:
    request = frame(sequence_message(start=start).SerializeToString())
    target = "/inference.GRPCInferenceService/ModelInfer"
    reply = await engine.call("POST", target, request, [(b"tollway-tenant", tenant.encode())], is_grpc=True)
    return reply.trailers[b"grpc-status"] == b"0"


async def by_stream(engine: EngineUnderTest, tenant: str, *, start: bool) -> bool:
    stream = Stream(engine, [(b"tollway-tenant", tenant.encode())])
    [message] = await stream.send(frame(sequence_message(start=start).SerializeToString())).end()
    return not message.error_message


async def by_generate(engine: EngineUnderTest, tenant: str, *, start: bool) -> bool:
    request = json.dumps({"x": 1, "sequence_id": 7, "sequence_start": start}).encode()
    reply = await engine.call("POST", "/v2/models/sum/generate", request, [(b"tollway-tenant", tenant.encode())])
    return reply.status == 200


async def by_rest(engine: EngineUnderTest, tenant: str, *, start: bool) -> bool:
    return isinstance(await told_by(engine, tenant, 1, start=start), float)


def sequence_message(*, start: bool) -> Any:
    request = service_pb2.ModelInferRequest(model_name="sum")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(np.array([1], np.float32).tobytes())
    request.parameters["sequence_id"].int64_param = 7
    request.parameters["sequence_start"].bool_param = start
    return request


@pytest.mark.parametrize("ask_by", [by_rest, by_rpc, by_stream, by_generate])
def test_every_door_knows_whose_call_it_is(tmp_path: Path, ask_by: Callable[..., Any]) -> None:
    """A tenant goes on with its own sequence and not with another's, by whichever door both come."""
    write_blind_sum(tmp_path)

    async def test(engine: EngineUnderTest) -> None:
        assert await ask_by(engine, "acme", start=True)
        assert not await ask_by(engine, "rival", start=False)
        assert await ask_by(engine, "acme", start=False)
        assert scheduler(engine).active == 1

    run_engine(tmp_path, test=test)
