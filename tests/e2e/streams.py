"""A backend of large bodies: `sink` swallows them, `source` makes them, `hold` never answers; all of it counted.

HTTP/1.1 by hand in threads: a body is never held. gRPC by grpcio: it holds messages, in the process of the test.
"""

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc

SIZE: Final = 256 * 1024 * 1024
_PIECE: Final = bytes(1 << 18)
_SERVICE: Final = "/inference.GRPCInferenceService/"
_UNBOUNDED: Final = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class StreamBackend:
    """`with StreamBackend() as backend`. Counters are of the newest call."""

    def __init__(self) -> None:
        self.received_bytes = 0
        self.sent_bytes = 0
        #: Set when a call's connection, or its stream, ended before the call did.
        self.was_cut = threading.Event()
        self.is_in_call = threading.Event()
        #: `sink` reads only while this is set.
        self.may_read = threading.Event()
        self.may_read.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._rpc = grpc.server(ThreadPoolExecutor(4), handlers=[_Rpcs(self)], options=_UNBOUNDED)
        self._rpc_port = self._rpc.add_insecure_port("127.0.0.1:0")

    @property
    def setting(self) -> str:
        port = self._listener.getsockname()[1]
        return (
            f'[{{name="streams", http="http://127.0.0.1:{port}", grpc="grpc://127.0.0.1:{self._rpc_port}", '
            'models=["sink", "source", "hold"]}]'
        )

    def reset(self) -> None:
        self.received_bytes = self.sent_bytes = 0
        self.was_cut.clear()
        self.is_in_call.clear()

    def __enter__(self) -> "StreamBackend":
        self._rpc.start()
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.may_read.set()
        self.was_cut.set()
        self._rpc.stop(0).wait()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _start(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # closed: the block ends
            self._sockets.append(sock)
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(ConnectionError):
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    chunk = sock.recv(1 << 16)
                    if not chunk:
                        return
                    data += chunk
                head, _, data = data.partition(b"\r\n\r\n")
                self._answer(sock, head.lower(), data)
                data = b""

    def _answer(self, sock: socket.socket, head: bytes, data: bytes) -> None:
        path = head.split(b" ")[1]
        lines = dict(line.partition(b": ")[::2] for line in head.split(b"\r\n")[1:])
        length = int(lines.get(b"content-length", b"0"))
        is_infer = path.endswith(b"/infer")
        if is_infer:
            self.received_bytes += len(data)
            self.is_in_call.set()
        self._swallow(sock, length - len(data), is_infer=is_infer)
        if not is_infer:
            status = b"404 Not Found" if b"repository" in path else b"200 OK"
            sock.sendall(b"HTTP/1.1 %b\r\ncontent-length: 2\r\n\r\n{}" % status)
        elif b"/hold/" in path:
            if not sock.recv(1):
                self.was_cut.set()
            raise ConnectionError("the caller left")
        elif b"/source/" in path:
            self._pour(sock)
        else:
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")

    def _swallow(self, sock: socket.socket, left: int, *, is_infer: bool) -> None:
        buffer = bytearray(1 << 18)
        while left > 0:
            if is_infer:
                self.may_read.wait()
            size = sock.recv_into(buffer, min(left, len(buffer)))
            if not size:
                self.was_cut.set()
                raise ConnectionError("cut inside a body")
            left -= size
            if is_infer:
                self.received_bytes += size

    def _pour(self, sock: socket.socket) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n\r\n"
        try:
            sock.sendall(head % SIZE)
            for _ in range(SIZE // len(_PIECE)):
                sock.sendall(_PIECE)
                self.sent_bytes += len(_PIECE)
        except ConnectionError:
            self.was_cut.set()
            raise


class _Rpcs(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, backend: StreamBackend) -> None:
        self._backend = backend

    def service(self, handler_call_details: Any) -> Any:
        name = handler_call_details.method.removeprefix(_SERVICE)
        return grpc.unary_unary_rpc_method_handler(self._live if name == "ServerLive" else self._infer)

    def _live(self, _message: bytes, _context: Any) -> bytes:
        return b"\x08\x01"

    def _infer(self, message: bytes, context: Any) -> bytes:
        backend = self._backend
        backend.received_bytes = len(message)
        backend.is_in_call.set()
        if message.startswith(b"\x0a\x04hold"):
            context.add_callback(backend.was_cut.set)
            backend.was_cut.wait()
        # ModelInferResponse.raw_output_contents is field 6.
        return large_message(b"", 0x32, SIZE) if message.startswith(b"\x0a\x06source") else b"\x0a\x04sink"


def large_message(prefix: bytes, tag: int, size: int) -> bytes:
    """A protobuf message: `prefix`, then a field of `size` zero bytes. 4 bytes of varint: up to 256 MiB."""
    assert 1 << 21 <= size <= 1 << 28
    size = min(size, (1 << 28) - 1)
    varint = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21])
    return b"".join((prefix, bytes([tag]), varint, bytes(size)))
