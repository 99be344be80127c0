"""Backends that write down what reaches them: an OIP server over HTTP/1.1 and one over gRPC, in threads of the test."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc

_REPLY = {"model_name": "recorded", "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1.5]}]}
SERVICE = "/inference.GRPCInferenceService/"


class HttpRecorder:
    """Live, without the repository extension; answers every infer with one number. `calls`: (path, headers, body)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str], bytes]] = []
        self.extra: dict[str, str] = {}
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Not to the terminal."""

            def do_GET(self) -> None:
                self._answer(200, b"{}")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if "/infer" not in self.path:
                    self._answer(404, b'{"error": "not here"}')
                    return
                recorder.calls.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                self._answer(200, json.dumps(_REPLY).encode(), recorder.extra)

            def _answer(self, status: int, body: bytes, extra: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {**(extra or {}), "content-type": "application/json"}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HttpRecorder":
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class GrpcRecorder(grpc.GenericRpcHandler):  # type: ignore[misc]
    """ServerLive says yes; every other method answers an empty message. `calls`: (method, metadata, message)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str], bytes]] = []
        self._server = grpc.server(ThreadPoolExecutor(4), handlers=[self])
        self.url = f"grpc://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        metadata = {item[0]: item[1] for item in handler_call_details.invocation_metadata}

        def answer(message: bytes, _context: Any) -> bytes:
            if method == SERVICE + "ServerLive":
                return b"\x08\x01"
            self.calls.append((method, metadata, message))
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)

    def __enter__(self) -> "GrpcRecorder":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()
