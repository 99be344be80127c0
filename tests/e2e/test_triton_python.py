"""The same model.py files on the embedded engine and on a real Triton: Python interface, streams, generate, sequences.

What differs is named in `DIFFERENT` and has a row of that name in docs/triton-parity.md.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.e2e.real_triton import RealTriton, is_installed
from tests.integration.engine_process import running_process

PARITY = (Path(__file__).parents[2] / "docs" / "triton-parity.md").read_text(encoding="utf-8")
HEAD: Final = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
def first(request):
    return int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy().ravel()[0])
def answer(i, text):
    y = pb_utils.Tensor("y", np.array([[i]], dtype=np.int32))
    return pb_utils.InferenceResponse([y, pb_utils.Tensor("t", np.array([[text]], dtype=object))])
class TritonPythonModel:
"""
#: n responses; of -n the second is an error.
DECOUPLED: Final = """
    def execute(self, requests):
        for request in requests:
            n, sender = first(request), request.get_response_sender()
            for i in range(abs(n)):
                if n < 0 and i == 1:
                    error = pb_utils.TritonError("bad one", pb_utils.TritonError.INVALID_ARG)
                    sender.send(pb_utils.InferenceResponse(error=error))
                else:
                    sender.send(answer(i, "t%d" % i))
            sender.send(flags=FINAL)
"""
#: y = x + 1, or an error; t: what the request says of itself and what pb_utils says of types and configuration.
PLAIN: Final = """
    def initialize(self, args):
        config = json.loads(args["model_config"])
        output = pb_utils.get_output_config_by_name(config, "y")
        self.facts = [args["model_name"], args["model_version"], output["data_type"], output["dims"],
                      pb_utils.triton_string_to_numpy(output["data_type"]).__name__,
                      pb_utils.using_decoupled_model_transaction_policy(config)]
    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x")
            if first(request) < 0:
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("negative")))
                continue
            said = [request.request_id(), request.correlation_id(), request.flags(), json.loads(request.parameters()),
                    sorted(request.requested_output_names()), x.is_cpu(),
                    request.is_cancelled(), pb_utils.get_input_tensor_by_name(request, "none") is None]
            twice = pb_utils.Tensor.from_dlpack("y", x.to_dlpack()).as_numpy()
            text = np.array([[json.dumps([self.facts, said])]] * len(twice), dtype=object)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", twice + 1), pb_utils.Tensor("t", text)]))
        return responses
"""
#: Calls `plain` and `dec`, and a model that is not there.
CALLER: Final = """
    def execute(self, requests):
        responses = []
        for request in requests:
            def call(model, value):
                x = pb_utils.Tensor("x", np.array([[value]], dtype=np.int32))
                return pb_utils.InferenceRequest(model_name=model, requested_output_names=["y"], inputs=[x])
            one = call("plain", first(request)).exec()
            y = pb_utils.get_output_tensor_by_name(one, "y").as_numpy() if not one.has_error() else None
            names = None if one.has_error() else [tensor.name() for tensor in one.output_tensors()]
            many = [item.has_error() for item in call("dec", 3).exec(decoupled=True) if
                    item.has_error() or item.output_tensors()]
            lost = call("nothing", 1).exec().has_error()
            said = json.dumps([None if y is None else y.tolist(), names, many, lost])
            responses.append(answer(0, said))
        return responses
"""
#: The sum of a sequence; told of START, END and CORRID.
SUMS: Final = """
    def initialize(self, args):
        self.sums = {}
    def execute(self, requests):
        responses = []
        for request in requests:
            start, end, corrid = (int(pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel()[0])
                                  for name in ("START", "END", "CORRID"))
            self.sums[corrid] = (0 if start else self.sums[corrid]) + first(request)
            responses.append(answer(self.sums[corrid], json.dumps([start, end, corrid, request.correlation_id()])))
        return responses
"""
#: y: how many requests came together; t: of what shape this one is. z may be left out.
RAGGED: Final = """
    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            z = pb_utils.get_input_tensor_by_name(request, "z")
            responses.append(answer(len(requests), json.dumps([list(x.shape), z is None])))
        return responses
"""
CONFIG: Final = """
name: "{name}"
backend: "python"
max_batch_size: 4
input {{ name: "x" data_type: TYPE_INT32 dims: [1] }}
output {{ name: "y" data_type: TYPE_INT32 dims: [1] }}
output {{ name: "t" data_type: TYPE_STRING dims: [1] }}
instance_group {{ count: 1 kind: KIND_CPU }}
"""
SEQUENCES: Final = """
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 4 }
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
  control_input { name: "END" control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } }
  control_input { name: "CORRID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
}
"""
#: A batch leaves when two are together; the delay only bounds a failure.
PAIRS: Final = """
input { name: "z" data_type: TYPE_INT32 dims: [1] optional: true }
dynamic_batching { preferred_batch_size: 2 max_queue_delay_microseconds: 20000000 }
"""
MODELS: Final = {
    "dec": (DECOUPLED, "model_transaction_policy { decoupled: true }"),
    "plain": (PLAIN, ""),
    "caller": (CALLER, ""),
    "sums": (SUMS, SEQUENCES),
    "ragged": (RAGGED, PAIRS),
}
#: What is compared → why it differs: the first cell of a row of docs/triton-parity.md.
DIFFERENT: Final = {
    "dec generate 0": "generate of a model that gives not exactly one response",
    "dec generate 3": "generate of a model that gives not exactly one response",
    "plain generate text": "generate: text for numbers",
    "plain generate error": "generate: an error of the model",
    "unknown, closing": "`triton_grpc_error` and a fault before the model runs",
}


def write_models(root: Path) -> None:
    for name, (body, extra) in MODELS.items():
        version = root / name / "1"
        version.mkdir(parents=True, exist_ok=True)
        (version / "model.py").write_text(HEAD + body)
        config = CONFIG.format(name=name) + extra
        if name == "ragged":
            config = config.replace("TYPE_INT32 dims: [1] }", "TYPE_INT32 dims: [-1] allow_ragged_batch: true }", 1)
        (version.parent / "config.pbtxt").write_text(config)


class Side:
    """One server."""

    def __init__(self, client: httpx.Client, grpc_address: str) -> None:
        self.client = client
        self.grpc_address = grpc_address

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        reply = self.client.post(f"/v2/models/{path}", json=body)
        if reply.headers["content-type"].startswith("text/event-stream"):
            return reply.status_code, [json.loads(line[6:]) for line in reply.text.splitlines() if line]
        return reply.status_code, reply.json()

    def stream(self, *requests: Any, closing: bool = False) -> tuple[str, list[Any]]:
        """Status of the stream and (error, id, final, y) of its messages."""
        metadata = (("triton_grpc_error", "true"),) if closing else ()
        messages = []
        with grpc.insecure_channel(self.grpc_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            call = stub.ModelStreamInfer(iter(requests), metadata=metadata, timeout=30)
            try:
                for message in call:
                    messages.append(_brief(message))
            except grpc.RpcError:
                pass  # Its status is compared.
            return call.code().name, messages


def _brief(message: Any) -> tuple[str, str, bool | None, list[int] | None]:
    response = message.infer_response
    raw = list(response.raw_output_contents)
    y = np.frombuffer(raw[0], np.int32).tolist() if raw else None
    is_final = None
    if "triton_final_response" in response.parameters:
        is_final = response.parameters["triton_final_response"].bool_param
    return message.error_message, response.id, is_final, y


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Side, Side]]:
    if not is_installed():
        pytest.skip("the optional environment .venvs/triton is not installed (make setup-triton)")
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    real = RealTriton(list(MODELS))
    write_models(real.folder / "models")
    socket_folder = Path(tempfile.mkdtemp(prefix="tw"))  # Short: a unix socket's address is.
    with running_process(socket_folder, root) as engine, real:
        transport = httpx.HTTPTransport(uds=str(engine.path))
        with (
            httpx.Client(transport=transport, base_url="http://engine", timeout=30) as ours,
            httpx.Client(base_url=real.url, trust_env=False, timeout=30) as theirs,
        ):
            yield Side(ours, f"unix:{engine.path}"), Side(theirs, real.grpc_address)
    shutil.rmtree(socket_folder)


def message(model: str, n: int, id_: str = "", **parameters: bool | int) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model, id=id_)
    request.inputs.add(name="x", datatype="INT32", shape=[1, 1])
    request.raw_input_contents.append(np.array([n], np.int32).tobytes())
    for name, value in parameters.items():
        if isinstance(value, bool):
            request.parameters[name].bool_param = value
        else:
            request.parameters[name].int64_param = value
    return request


def infer(value: int, **parameters: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "INT32", "shape": [1, 1], "data": [value]}
    return {"id": "i", "inputs": [tensor], "parameters": parameters}


def pair(side: Side, *sizes: int, **more: Any) -> list[Any]:
    """Answers to two requests of these sizes that run together."""
    bodies = [
        {
            "inputs": [
                {"name": "x", "datatype": "INT32", "shape": [1, size], "data": [5] * size},
                *more.get("inputs", []),
            ]
        }
        for size in sizes
    ]
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: side.post("ragged/infer", body), bodies))


Z: Final = {"name": "z", "datatype": "INT32", "shape": [1, 1], "data": [1]}
EMPTY: Final = {"triton_enable_empty_final_response": True}
CASES: Final[dict[str, Callable[[Side], Any]]] = {
    "plain infer": lambda side: side.post("plain/infer", infer(3, a=1, b="zwei", c=True)),
    "plain error": lambda side: side.post("plain/infer", infer(-3))[0],
    "caller infer": lambda side: side.post("caller/infer", infer(3)),
    "caller of an error": lambda side: side.post("caller/infer", infer(-3)),
    "dec infer": lambda side: side.post("dec/infer", infer(3))[0],
    "plain generate": lambda side: side.post("plain/generate", {"x": 3}),
    "plain generate rows": lambda side: side.post("plain/generate", {"x": [3, 4]})[1]["y"],
    "plain generate nested": lambda side: side.post("plain/generate", {"x": [[3], [4]]})[1]["y"],
    "plain generate error": lambda side: side.post("plain/generate", {"x": -3})[0],
    "plain generate text": lambda side: side.post("plain/generate", {"x": "s"})[0],
    "plain generate list": lambda side: side.post("plain/generate", {"x": 3, "a": [1]})[0],
    "plain generate half": lambda side: side.post("plain/generate", {"x": 3, "a": 0.5})[0],
    "plain generate_stream": lambda side: side.post("plain/generate_stream", {"x": 3}),
    "dec generate": lambda side: side.post("dec/generate", {"x": 1, "id": "q"}),
    "dec generate 0": lambda side: side.post("dec/generate", {"x": 0})[0],
    "dec generate 3": lambda side: side.post("dec/generate", {"x": 3})[0],
    "dec generate_stream": lambda side: side.post("dec/generate_stream", {"x": 3, "id": "q"}),
    "dec generate_stream 0": lambda side: side.post("dec/generate_stream", {"x": 0}),
    "dec generate_stream error": lambda side: [
        event.get("error", event.get("y")) for event in side.post("dec/generate_stream", {"x": -3})[1]
    ],
    "ragged batch": lambda side: pair(side, 1, 3),
    "ragged batch of one size": lambda side: pair(side, 2, 2),
    "optional input": lambda side: pair(side, 1, 2, inputs=[Z]),
    "no model": lambda side: side.post("none/generate_stream", {"x": 3})[0],
    "dec": lambda side: side.stream(message("dec", 3, "a")),
    "dec, end": lambda side: side.stream(message("dec", 2, "a", **EMPTY)),
    "dec 0, end": lambda side: side.stream(message("dec", 0, "a", **EMPTY)),
    "dec error, end": lambda side: side.stream(message("dec", -3, "a", **EMPTY)),
    "dec error, closing": lambda side: side.stream(message("dec", -2, "a"), closing=True),
    "plain": lambda side: side.stream(message("plain", 3, "a", **EMPTY)),
    "plain error by stream": lambda side: side.stream(message("plain", -3, "a")),
    "nothing asked": lambda side: side.stream(),
    "unknown": lambda side: [m[1:] for m in side.stream(message("none", 3, "a"), message("plain", 3, "b"))[1]],
    "unknown, closing": lambda side: side.stream(message("none", 3, "a"), closing=True)[0],
    "sequence": lambda side: [
        side.post("sums/infer", infer(n, sequence_id=7, sequence_start=n == 1, sequence_end=n == 3)) for n in (1, 2, 3)
    ],
    "sequence without start": lambda side: side.post("sums/infer", infer(1, sequence_id=8))[0],
    "sequence without id": lambda side: side.post("sums/infer", infer(1))[0],
    "sequence by stream": lambda side: side.stream(
        *(message("sums", n, sequence_id=9, sequence_start=n == 1, sequence_end=n == 3) for n in (1, 2, 3))
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_both_answer_alike(sides: tuple[Side, Side], name: str) -> None:
    ours, theirs = (CASES[name](side) for side in sides)
    if name in DIFFERENT:
        assert ours != theirs
        assert f"| {DIFFERENT[name]} |" in PARITY
    else:
        assert ours == theirs
