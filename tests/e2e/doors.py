"""The four doors of tritonclient behind one small face, so that a test can ask each of them the same."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio

from tests.e2e.stage import Stage


def tensor(module: Any, name: str, array: Any, datatype: str, **how: Any) -> Any:
    """An InferInput of `module` that holds `array`."""
    own = module.InferInput(name, list(array.shape), datatype)
    own.set_data_from_numpy(array, **how)
    return own


class Door:
    """One stock client. asyncio ones run on a loop of their own; every answer is plain."""

    def __init__(self, name: str, stage: Stage, loop: asyncio.AbstractEventLoop, client: Any, module: Any) -> None:
        self.name = name
        self.module = module
        self.is_grpc = "grpc" in name
        self._stage = stage
        self._loop = loop
        self._client = client

    def ask(self, method: str, *arguments: Any, headers: dict[str, str] | None = None, **options: Any) -> Any:
        """Call a method of the client, with the stage's key unless `headers` says otherwise."""
        own = self._stage.auth if headers is None else dict(headers)
        answer = getattr(self._client, method)(*arguments, headers=own, **options)
        return self._loop.run_until_complete(answer) if asyncio.iscoroutine(answer) else answer

    def ask_json(self, method: str, *arguments: Any, **options: Any) -> Any:
        """The answer as plain JSON values on both protocols."""
        if self.is_grpc:
            options["as_json"] = True
        return self.ask(method, *arguments, **options)

    def infer(
        self,
        model: str,
        datatype: str,
        array: Any,
        *,
        name: str = "x",
        binary_data: bool | None = None,
        headers: dict[str, str] | None = None,
        extra_headers: dict[str, str] | None = None,
        **options: Any,
    ) -> Any:
        """One inference with one input."""
        how = {} if binary_data is None else {"binary_data": binary_data}
        inputs = [tensor(self.module, name, array, datatype, **how)]
        own = {**(self._stage.auth if headers is None else headers), **(extra_headers or {})}
        return self.ask("infer", model, inputs, headers=own, **options)


@contextmanager
def open_doors(stage: Stage) -> Iterator[dict[str, Door]]:
    """http, http.aio, grpc, grpc.aio: each with a client that stays open."""
    loop = asyncio.new_event_loop()

    async def make(kind: Any, address: str) -> Any:
        return kind(address)

    http_address, grpc_address = stage.http_address, stage.tollway.grpc_address
    http = triton_http.InferenceServerClient(http_address, network_timeout=60)
    rpc = triton_grpc.InferenceServerClient(grpc_address)
    http_aio = loop.run_until_complete(make(triton_http_aio.InferenceServerClient, http_address))
    rpc_aio = loop.run_until_complete(make(triton_grpc_aio.InferenceServerClient, grpc_address))
    doors = [
        Door("http", stage, loop, http, triton_http),
        Door("http.aio", stage, loop, http_aio, triton_http_aio),
        Door("grpc", stage, loop, rpc, triton_grpc),
        Door("grpc.aio", stage, loop, rpc_aio, triton_grpc_aio),
    ]
    try:
        yield {door.name: door for door in doors}
    finally:
        http.close()
        rpc.close()
        loop.run_until_complete(http_aio.close())
        loop.run_until_complete(rpc_aio.close())
        loop.close()
