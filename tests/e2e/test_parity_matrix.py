"""One suite over {our engine, a real Triton} × {direct, through the gateway} × {HTTP, gRPC}: docs/triton-parity.md.

A feature is a function of a door that gives what a caller sees. Whatever differs between the two servers is in
`DIFFERENT` and in the page's matrix; what the gateway changes would be a fault.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from gateway.engine.messages import message_json
from tests.e2e.harness import POLL_S, WAIT_S, Tollway
from tests.e2e.real_triton import RealTriton, is_installed
from tests.e2e.rpc import Answer, call

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="no .venvs/triton: `make test` makes it"),
]
PAGE = (Path(__file__).parents[2] / "docs" / "triton-parity.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+?) \| (HTTP, gRPC|HTTP|gRPC) \| ([^|]+?) \| ([^|]+?) \|$", PAGE, re.MULTILINE)
X = np.arange(128, dtype=np.float32).reshape(2, 64) / 64
SERVICE = "/inference.GRPCInferenceService/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A way to a model: its server's address and what a caller of this way sends along."""

    model: str
    http: httpx.Client
    grpc: str
    metadata: tuple[tuple[str, str], ...] = ()

    def get(self, path: str) -> httpx.Response:
        return self.http.get(path.replace("{m}", self.model))

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.http.post(path.replace("{m}", self.model), json=body)

    def rpc(self, method: str, request: Any) -> Answer:
        return call(self.grpc, request.SerializeToString(), *self.metadata, method=SERVICE + method)

    def ask(self, method: str, request: Any, answer: Any) -> Any:
        """The answer as JSON, or the name of the status."""
        reply = self.rpc(method, request)
        return message_json(answer.FromString(reply.message)) if reply.code.name == "OK" else reply.code.name

    def neutral(self, value: Any) -> Any:
        """Without the model's name, which differs between doors."""
        return json.loads(json.dumps(value).replace(f'"{self.model}"', '"M"'))


Feature = Callable[[Door], Any]


def rest_request(**more: Any) -> dict[str, Any]:
    data = [float(value) for value in X.ravel()]
    return {"inputs": [{"name": "x", "shape": list(X.shape), "datatype": "FP32", "data": data}], **more}


def rpc_request(door: Door, version: str = "", **more: Any) -> Any:
    request = service_pb2.ModelInferRequest(model_name=door.model, model_version=version, **more)
    request.inputs.add(name="x", datatype="FP32", shape=X.shape)
    request.raw_input_contents.append(X.tobytes())
    return request


def http_infer(door: Door) -> Any:
    """Binary data: the bytes are compared."""
    reply = door.post("/v2/models/{m}/infer", rest_request(id="7", parameters={"binary_data_output": True, "own": 3}))
    size = int(reply.headers["inference-header-content-length"])
    return door.neutral(json.loads(reply.content[:size])), reply.content[size:].hex()


def grpc_infer(door: Door) -> Any:
    request = rpc_request(door, id="7")
    request.parameters["own"].int64_param = 3
    return door.neutral(door.ask("ModelInfer", request, service_pb2.ModelInferResponse))


def http_classes(door: Door) -> Any:
    outputs = [{"name": "y", "parameters": {"classification": 3}}]
    return door.neutral(door.post("/v2/models/{m}/infer", rest_request(outputs=outputs)).json())


def grpc_classes(door: Door) -> Any:
    request = rpc_request(door)
    request.outputs.add(name="y").parameters["classification"].int64_param = 3
    return door.neutral(door.ask("ModelInfer", request, service_pb2.ModelInferResponse))


def http_versions(door: Door) -> Any:
    found = door.post("/v2/models/{m}/versions/1/infer", rest_request())
    missing = door.post("/v2/models/{m}/versions/9/infer", rest_request())
    return found.status_code, found.json()["model_version"], missing.status_code


def grpc_versions(door: Door) -> Any:
    found = door.ask("ModelInfer", rpc_request(door, "1"), service_pb2.ModelInferResponse)
    return found["model_version"], door.rpc("ModelInfer", rpc_request(door, "9")).code.name


def http_metadata(door: Door) -> Any:
    answer = door.neutral(door.get("/v2/models/{m}").json())
    return {name: value for name, value in answer.items() if name != "platform"}


def grpc_metadata(door: Door) -> Any:
    request = service_pb2.ModelMetadataRequest(name=door.model)
    answer = door.neutral(door.ask("ModelMetadata", request, service_pb2.ModelMetadataResponse))
    return {name: value for name, value in answer.items() if name != "platform"}


def read_config(door: Door, config: Any) -> Any:
    config = door.neutral(config)
    tensors = [(one["name"], one["data_type"], one["dims"]) for one in (*config["input"], *config["output"])]
    return config["name"], config["max_batch_size"], tensors


def http_config(door: Door) -> Any:
    return read_config(door, door.get("/v2/models/{m}/config").json())


def grpc_config(door: Door) -> Any:
    request = service_pb2.ModelConfigRequest(name=door.model)
    return read_config(door, door.ask("ModelConfig", request, service_pb2.ModelConfigResponse)["config"])


def read_statistics(before: Any, after: Any) -> Any:
    """Which fields there are, of which kind, and what one inference of two rows has added."""
    [old], [new] = before["model_stats"], after["model_stats"]
    counts = [new[name] - old[name] for name in ("inference_count", "execution_count")]
    parts = {name: new["inference_stats"][name]["count"] - one["count"] for name, one in old["inference_stats"].items()}
    sizes = [one["batch_size"] for one in new["batch_stats"] if one["batch_size"] == X.shape[0]]
    return shape_of(new), counts, parts, sizes


def shape_of(value: Any) -> Any:
    if isinstance(value, dict):
        # Triton 2.51 has these two beside; of unary models they are empty.
        return {
            name: shape_of(own) for name, own in sorted(value.items()) if name not in ("memory_usage", "response_stats")
        }
    if isinstance(value, list):
        return [shape_of(value[0])] if value else []
    return type(value).__name__


def http_statistics(door: Door) -> Any:
    path = "/v2/models/{m}/versions/1/stats"

    def infer() -> None:
        door.post("/v2/models/{m}/infer", rest_request())

    return read_statistics(*around(infer, lambda: door.get(path).json()))


def grpc_statistics(door: Door) -> Any:
    def ask() -> Any:
        request = service_pb2.ModelStatisticsRequest(name=door.model, version="1")
        return door.ask("ModelStatistics", request, service_pb2.ModelStatisticsResponse)

    return read_statistics(*around(lambda: door.rpc("ModelInfer", rpc_request(door)), ask))


def around(infer: Callable[[], object], ask: Callable[[], Any]) -> tuple[Any, Any]:
    """Statistics before and after the second of two inferences. Triton counts a call when it has answered it."""

    def count(statistics: Any) -> int:
        return int(statistics["model_stats"][0]["inference_count"])

    infer()
    seen = [ask()]

    def is_still() -> bool:
        seen.append(ask())
        return len(seen) > 10 and len({count(one) for one in seen[-10:]}) == 1

    wait_for(is_still)
    before = seen[-1]
    infer()
    while count(after := ask()) == count(before):
        pass
    return before, after


def http_faults(door: Door) -> Any:
    short = {**rest_request()["inputs"][0], "shape": [1, 3], "data": [1, 2, 3]}
    bodies = [{"inputs": [short]}, {"inputs": []}, rest_request(outputs=[{"name": "z"}])]
    replies = [door.post("/v2/models/{m}/infer", body) for body in bodies]
    replies.append(door.http.post("/v2/models/nix/infer", json=rest_request()))
    assert all(isinstance(reply.json()["error"], str) for reply in replies)
    return [reply.status_code for reply in replies]


def grpc_faults(door: Door) -> Any:
    wrong = rpc_request(door)
    wrong.inputs[0].shape[1] = 63
    unknown = rpc_request(door)
    unknown.model_name = "nix"
    other = rpc_request(door)
    other.outputs.add(name="z")
    return [door.rpc("ModelInfer", request).code.name for request in (wrong, other, unknown)]


def http_trace(door: Door) -> Any:
    path = "/v2/models/{m}/trace/setting"
    changed = door.post(path, {"trace_rate": "500000", "trace_count": "9"}).json()
    restored = door.post(path, {"trace_rate": None, "trace_count": None}).json()
    return [{name: value for name, value in answer.items() if name != "trace_file"} for answer in (changed, restored)]


def grpc_trace(door: Door) -> Any:
    answers = []
    for values in (["500000"], []):
        request = service_pb2.TraceSettingRequest(model_name=door.model)
        request.settings["trace_rate"].value.extend(values)
        request.settings["trace_rate"].SetInParent()
        settings = door.ask("TraceSetting", request, service_pb2.TraceSettingResponse)["settings"]
        answers.append({name: one["value"] for name, one in settings.items() if name != "trace_file"})
    return answers


def http_logging(door: Door) -> Any:
    changed = door.post("/v2/logging", {"log_info": False, "log_verbose_level": 1}).json()
    restored = door.post("/v2/logging", {"log_info": True, "log_verbose_level": 0}).json()
    return changed, restored


def grpc_logging(door: Door) -> Any:
    answers = []
    for is_on in (False, True):
        request = service_pb2.LogSettingsRequest()
        request.settings["log_warning"].bool_param = is_on
        answers.append(door.ask("LogSettings", request, service_pb2.LogSettingsResponse)["settings"])
    return answers


def states(index: list[dict[str, Any]], door: Door) -> Any:
    return [(row["version"], row["state"], row.get("reason", "")) for row in index if row["name"] == door.model]


def http_repository(door: Door) -> Any:
    path = "/v2/repository/models/{m}/"
    gone = door.post(path + "unload", {})
    wait_for(lambda: "UNLOADING" not in str(states(door.post("/v2/repository/index", {}).json(), door)))
    between = states(door.post("/v2/repository/index", {}).json(), door)
    back = door.post(path + "load", {})
    after = states(door.post("/v2/repository/index", {}).json(), door)
    return gone.status_code, gone.content, between, back.status_code, back.content, after


def grpc_repository(door: Door) -> Any:
    def index() -> Any:
        answer = door.ask("RepositoryIndex", service_pb2.RepositoryIndexRequest(), service_pb2.RepositoryIndexResponse)
        return states(answer["models"], door)

    gone = door.rpc("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=door.model))
    wait_for(lambda: "UNLOADING" not in str(index()))
    between = index()
    back = door.rpc("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name=door.model))
    return gone.code.name, between, back.code.name, index()


def http_shared_memory(door: Door) -> Any:
    return door.get("/v2/systemsharedmemory/status").status_code


def grpc_shared_memory(door: Door) -> Any:
    return door.rpc("SystemSharedMemoryStatus", service_pb2.SystemSharedMemoryStatusRequest()).code.name


def wait_for(is_so: Callable[[], bool]) -> None:
    """Triton answers an unload before it has unloaded; each look is a call."""
    end_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < end_s, "it does not come to rest"
        time.sleep(POLL_S)


#: Feature of the page → what each protocol shows of it. `repository` comes last: it takes the model away for a moment.
FEATURES: dict[str, dict[str, Feature]] = {
    "inference, raw bytes, id, parameters": {"HTTP": http_infer, "gRPC": grpc_infer},
    "classification": {"HTTP": http_classes, "gRPC": grpc_classes},
    "versions": {"HTTP": http_versions, "gRPC": grpc_versions},
    "metadata": {"HTTP": http_metadata, "gRPC": grpc_metadata},
    "model configuration": {"HTTP": http_config, "gRPC": grpc_config},
    "statistics, also per batch size": {"HTTP": http_statistics, "gRPC": grpc_statistics},
    "faults of the caller": {"HTTP": http_faults, "gRPC": grpc_faults},
    "trace settings": {"HTTP": http_trace, "gRPC": grpc_trace},
    "log settings": {"HTTP": http_logging, "gRPC": grpc_logging},
    "shared memory": {"HTTP": http_shared_memory, "gRPC": grpc_shared_memory},
    "model repository": {"HTTP": http_repository, "gRPC": grpc_repository},
}
#: Feature → protocol → (ours, Triton's), where they differ by intent.
DIFFERENT: dict[str, dict[str, tuple[Any, Any]]] = {
    "shared memory": {"HTTP": (501, 200), "gRPC": ("UNIMPLEMENTED", "OK")},
}
#: The gateway answers itself.
REFUSED_BY_GATEWAY = {"shared memory"}


def open_gateway(stack: ExitStack, tollway: Tollway, model: str) -> Door:
    """By a key that may do everything."""
    stack.enter_context(tollway)
    tollway.create_tenant("parity")
    key = tollway.create_key("parity", scopes=["infer", "read", "operate"])
    tollway.wait_for_key(key)
    auth = (("authorization", f"Bearer {key}"),)
    client = httpx.Client(base_url=tollway.http_url, headers=dict(auth), trust_env=False, timeout=60)
    return Door(model=model, http=stack.enter_context(client), grpc=tollway.grpc_address, metadata=auth)


@pytest.fixture(scope="module")
def doors() -> Iterator[dict[str, Door]]:
    """Two gateways, for questions about the server go to the first backend: an engine's alone, and Triton's first."""
    with ExitStack() as stack:
        triton = stack.enter_context(RealTriton(["mlp", "remote"]))
        near = Tollway()
        far = Tollway(settings={"backends": f"[{triton.backend('remote')}]"})
        socket = near.data_dir / "run" / "engine.sock"
        own = httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://engine", timeout=60)
        real = httpx.Client(base_url=triton.url, trust_env=False, timeout=60)
        yield {
            "engine, gateway": open_gateway(stack, near, "mlp"),
            "engine, direct": Door(model="mlp", http=stack.enter_context(own), grpc=f"unix:{socket}"),
            "Triton, gateway": open_gateway(stack, far, "remote"),
            "Triton, direct": Door(model="mlp", http=stack.enter_context(real), grpc=triton.grpc_address),
        }


@pytest.mark.parametrize("protocol", ["HTTP", "gRPC"])
@pytest.mark.parametrize("feature", FEATURES)
def test_every_door_shows_the_same(doors: dict[str, Door], feature: str, protocol: str) -> None:
    show = FEATURES[feature][protocol]
    seen = {name: show(door) for name, door in doors.items()}
    ours, theirs = DIFFERENT.get(feature, {}).get(protocol, (seen["engine, direct"], seen["engine, direct"]))
    expected = {name: ours if name.startswith("engine") else theirs for name in seen}
    if feature in REFUSED_BY_GATEWAY:
        expected["Triton, gateway"] = ours
    assert seen == expected


def test_the_page_has_the_matrix() -> None:
    """Row by row: the feature, its protocols, and "same" or what differs."""
    rows = {feature: (protocols, ours, theirs) for feature, protocols, ours, theirs in ROWS}
    assert list(rows) == list(FEATURES)
    for feature, (protocols, ours, theirs) in rows.items():
        assert protocols == ", ".join(FEATURES[feature])
        assert (ours == theirs == "same") == (feature not in DIFFERENT), feature
