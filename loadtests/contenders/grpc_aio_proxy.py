"""A gRPC proxy on grpc.aio that forwards raw bytes and knows no policy: `grpc_aio_proxy.py PORT BACKEND`."""

import asyncio
import signal
import sys
from typing import Any

import grpc

_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0))


class Forwarder(grpc.GenericRpcHandler):  # type: ignore[misc,unused-ignore]
    """Every method of every service goes to the backend as it came."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._calls: dict[str, Any] = {}

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        call = self._calls.get(method)
        if call is None:
            call = self._calls[method] = self._channel.unary_unary(method)

        async def forward(request: bytes, context: Any) -> Any:
            return await call(request)

        return grpc.unary_unary_rpc_method_handler(forward)


async def serve(port: int, backend: str) -> None:
    """Run until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with grpc.aio.insecure_channel(backend, options=_OPTIONS) as channel:
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((Forwarder(channel),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await stopped.wait()
        await server.stop(grace=1)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
