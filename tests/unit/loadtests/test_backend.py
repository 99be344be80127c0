"""The C backend answers stock clients correctly on both protocols: bodies whole, windows kept, headers decoded."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import grpc
import h2.config
import h2.connection
import h2.events
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2

from loadtests.contenders import Contender
from loadtests.contenders.direct import start_backend
from loadtests.measure import backend_counters
from loadtests.payloads import GRPC_PATH, infer_request
from loadtests.processes import stop

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or shutil.which("taskset") is None,
    reason="needs gcc and taskset: sh loadtests/tools.sh",
)
_KEPT = "HTTP/1.1 200 OK"


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contender]:
    folder = tmp_path_factory.mktemp("backend")
    contender = start_backend(folder, folder, core=0)
    assert contender.process is not None
    yield contender
    stop(contender.process)


def _address(backend: Contender) -> str:
    return backend.extras["address"]


def _connect(backend: Contender) -> socket.socket:
    host, _, port = _address(backend).partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def _exchange(backend: Contender, request: bytes) -> str:
    """Everything the backend says to a request that asks for the connection's end."""
    with _connect(backend) as sock:
        sock.sendall(request)
        data = b""
        while piece := sock.recv(65536):
            data += piece
    return data.decode("latin-1")


def test_tritonclient_http_in_json_and_binary(backend: Contender) -> None:
    with triton_http.InferenceServerClient(_address(backend)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("bench")
        assert client.get_model_metadata("bench")["name"] == "bench"
        assert client.get_model_repository_index()[0]["state"] == "READY"
        for is_binary in (True, False):
            tensor = triton_http.InferInput("x", [1, 4], "FP32")
            tensor.set_data_from_numpy(np.zeros((1, 4), np.float32), binary_data=is_binary)
            result = client.infer("bench", [tensor])
            assert result.as_numpy("y")[0, 219] == 219.0


def test_tritonclient_grpc(backend: Contender) -> None:
    with triton_grpc.InferenceServerClient(_address(backend)) as client:
        assert client.is_server_live()
        assert client.is_model_ready("bench")
        assert client.get_server_metadata().name == "bench"
        assert client.get_model_metadata("bench").inputs[0].shape == [-1, -1]
        assert client.get_model_repository_index().models[0].name == "bench"
        tensor = triton_grpc.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
        assert client.infer("bench", [tensor]).as_numpy("y").shape == (1, 240)
        with pytest.raises(triton_grpc.InferenceServerException) as refused:
            client.get_inference_statistics()
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


def test_twenty_megabytes_pass_both_windows(backend: Contender) -> None:
    options = [("grpc.max_send_message_length", -1)]
    before = backend_counters(backend)["body_bytes"]
    message = infer_request("bench", (1, 5_000_000))
    with grpc.insecure_channel(_address(backend), options=options) as channel:
        reply = channel.unary_unary(GRPC_PATH)(message, timeout=60)
    assert len(service_pb2.ModelInferResponse.FromString(reply).raw_output_contents[0]) == 960
    assert backend_counters(backend)["body_bytes"] - before == len(message) + 5


def test_replies_wait_for_the_clients_connection_window(backend: Contender) -> None:
    """300 replies of 1 KB do not fit 64 KiB: the backend must stop, and go on when the window opens."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    streams = 300
    for number in range(streams):
        client.send_headers(2 * number + 1, _grpc_headers(), end_stream=True)
    ended, received = 0, 0
    with _connect(backend) as sock:
        sock.sendall(client.data_to_send())
        unacknowledged: list[h2.events.DataReceived] = []
        while ended < streams:
            for event in client.receive_data(sock.recv(65536)):
                if isinstance(event, h2.events.DataReceived):
                    received += event.flow_controlled_length or 0
                    unacknowledged.append(event)
                ended += isinstance(event, h2.events.StreamEnded)
            # Only when the backend has run into the window is it opened again.
            if received > 60_000:
                for event in unacknowledged:
                    client.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
                unacknowledged.clear()
            sock.sendall(client.data_to_send())
    assert ended == streams


def _grpc_headers(*extra: tuple[str, str], path: str = GRPC_PATH) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "bench"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *extra,
    ]


def test_routes_survive_evictions_from_the_header_table(backend: Contender) -> None:
    """The client's encoder fills its table of 4 KiB again and again; infer and readiness are still told apart."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    paths = [GRPC_PATH, GRPC_PATH.replace("ModelInfer", "ServerReady")]
    sizes: dict[int, int] = {}
    ended = 0
    calls = 120
    with _connect(backend) as sock:
        for number in range(calls):
            filler = (f"x-filler-{number}", "v" * (37 * number % 900))
            client.send_headers(2 * number + 1, _grpc_headers(filler, path=paths[number % 2]), end_stream=True)
        sock.sendall(client.data_to_send())
        while ended < calls:
            for event in client.receive_data(sock.recv(65536)):
                if isinstance(event, h2.events.DataReceived):
                    length = event.flow_controlled_length or 0
                    sizes[event.stream_id or 0] = length
                    client.acknowledge_received_data(length, event.stream_id or 0)
                ended += isinstance(event, h2.events.StreamEnded)
            sock.sendall(client.data_to_send())
    replies = [sizes[2 * number + 1] for number in range(calls)]
    assert all(size > 900 for size in replies[0::2])
    assert all(size == 7 for size in replies[1::2])


def test_traceparent_is_counted_on_both_protocols(backend: Contender) -> None:
    before = backend_counters(backend)["traced"]
    _exchange(
        backend,
        b"POST /v2/models/bench/infer HTTP/1.1\r\nTraceParent: 00-1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    )
    with grpc.insecure_channel(_address(backend)) as channel:
        channel.unary_unary(GRPC_PATH)(b"", metadata=(("traceparent", "00-1"),), timeout=60)
        channel.unary_unary(GRPC_PATH)(b"", timeout=60)
    assert backend_counters(backend)["traced"] - before == 2


def test_chunked_body_pipelined_request_and_continue(backend: Contender) -> None:
    before = backend_counters(backend)
    text = _exchange(
        backend,
        b"POST /v2/models/bench/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
        b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: t\r\n\r\n"
        b"GET /v2/health/ready HTTP/1.1\r\nConnection: close\r\n\r\n",
    )
    after = backend_counters(backend)
    assert text.startswith("HTTP/1.1 100 Continue\r\n\r\n" + _KEPT)
    assert text.count(_KEPT) == 2
    assert after["http_calls"] - before["http_calls"] == 1
    assert after["body_bytes"] - before["body_bytes"] == 11


def test_unknown_path_is_404_and_garbage_closes(backend: Contender) -> None:
    assert _exchange(backend, b"GET /nope HTTP/1.1\r\nConnection: close\r\n\r\n").startswith("HTTP/1.1 404")
    assert _exchange(backend, b"garbage\r\n\r\n") == ""


def test_oversized_frame_ends_the_connection_with_goaway(backend: Contender) -> None:
    frame = (20_000).to_bytes(3, "big") + b"\x00\x00\x00\x00\x00\x01"
    text = _exchange(backend, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame)
    assert text.encode("latin-1")[-17:-8] == b"\x00\x00\x08\x07\x00\x00\x00\x00\x00"
    assert text.encode("latin-1")[-4:] == b"\x00\x00\x00\x06"


def test_ping_is_answered_with_its_own_bytes(backend: Contender) -> None:
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.ping(b"12345678")
    with _connect(backend) as sock:
        sock.sendall(client.data_to_send())
        acknowledged: list[bytes] = []
        while not acknowledged:
            events = client.receive_data(sock.recv(65536))
            acknowledged += [event.ping_data for event in events if isinstance(event, h2.events.PingAckReceived)]
    assert acknowledged == [b"12345678"]


def test_unix_socket_serves_the_same(backend: Contender) -> None:
    path = Path(backend.extras["socket"])
    assert path.stat().st_mode & 0o077 == 0
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(b"POST /v2/repository/index HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        data = b""
        while piece := sock.recv(65536):
            data += piece
    assert json.loads(data.partition(b"\r\n\r\n")[2])[0]["name"] == "bench"


def test_health_is_open_to_urllib(backend: Contender) -> None:
    with urlopen(f"{backend.http}/v2/health/ready", timeout=60) as reply:
        assert json.load(reply)["ready"] is True
