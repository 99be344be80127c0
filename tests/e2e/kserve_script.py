"""Run by .venvs/kserve/bin/python: the KServe SDK's two clients against the addresses given; prints what they saw.

kserve_script.py HTTP_URL GRPC_ADDRESS KEY
"""

import asyncio
import json
import logging
import sys
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferOutput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput

X = (np.arange(128, dtype=np.float32) / 128).reshape(2, 64)


def request(model: str, array: Any = X, *, binary: bool = False, output_binary: bool | None = None) -> InferRequest:
    """One FP32 input, in JSON or binary; on request a binary output."""
    tensor = InferInput(name="x", shape=list(array.shape), datatype="FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    outputs = [] if output_binary is None else [RequestedOutput("y", parameters={"binary_data": output_binary})]
    return InferRequest(model_name=model, infer_inputs=[tensor], request_id="own-id", request_outputs=outputs)


def plain(output: InferOutput) -> list[float]:
    return [float(one) for one in output.as_numpy().ravel()]


async def over_rest(url: str, headers: dict[str, str]) -> dict[str, Any]:
    config = RESTConfig(protocol="v2", timeout=60, retries=0)
    async with InferenceRESTClient(config) as client:
        seen: dict[str, Any] = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model_ready": await client.is_model_ready(url, "mlp", headers=headers),
            "unknown_ready": await client.is_model_ready(url, "nix", headers=headers),
        }
        for name, how in {
            "json": {},
            "binary": {"binary": True},
            "binary_both": {"binary": True, "output_binary": True},
        }.items():
            reply_headers: dict[str, str] = {}
            asked = request("mlp", **how)
            reply = await client.infer(
                url, asked, model_name="mlp", headers=dict(headers), response_headers=reply_headers
            )
            seen[name] = plain(reply.outputs[0])
            seen[f"{name}_id"] = reply.id
            seen[f"{name}_call"] = reply_headers["tollway-call-id"]
        for name, model, array, own in (
            ("unknown", "nix", X, headers),
            ("shape", "mlp", X[:, :3], headers),
            ("no_key", "mlp", X, {}),
        ):
            try:
                await client.infer(url, request(model, array), model_name=model, headers=dict(own))
            except httpx.HTTPStatusError as error:
                seen[name] = [error.response.status_code, str(error)]
    return seen


async def over_grpc(address: str, headers: dict[str, str]) -> dict[str, Any]:
    metadata = tuple(headers.items())
    async with InferenceGRPCClient(address) as client:
        seen: dict[str, Any] = {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready("mlp", headers=metadata),
        }
        for name, how in {"json": {}, "binary": {"binary": True}}.items():
            reply = await client.infer(request("mlp", **how), headers=metadata)
            seen[name], seen[f"{name}_id"] = plain(reply.outputs[0]), reply.id
        for name, model, array, own in (
            ("unknown", "nix", X, metadata),
            ("shape", "mlp", X[:, :3], metadata),
            ("no_key", "mlp", X, ()),
        ):
            try:
                await client.infer(request(model, array), headers=own)
            except grpc.RpcError as error:
                seen[name] = [error.code().name, error.details()]
    return seen


async def main(url: str, address: str, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    seen = {"rest": await over_rest(url, headers), "grpc": await over_grpc(address, headers)}
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    logging.disable()
    asyncio.run(main(*sys.argv[1:]))
