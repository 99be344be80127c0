"""Owns the list of backends and asks them which models they hold (`POST /v2/repository/index`)."""

import asyncio
from pathlib import Path
from typing import Final

import httpx
import msgspec

from gateway.control.views import BackendView, ModelsView, ModelView
from gateway.errors import SettingsError
from gateway.net.address import parse_address
from gateway.settings import Settings
from gateway.snapshot import Backend

ENGINE_NAME: Final = "engine"
INDEX_S: Final = 5.0
INDEX_BYTES_MAX: Final = 8 * 1024 * 1024
MODELS_MAX: Final = 10_000


class IndexEntry(msgspec.Struct, frozen=True):
    """One line of a repository index (Triton's model repository extension)."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


def engine_backend(engine_socket: Path) -> Backend:
    """The embedded engine: on a unix socket only we can open, so its reported units are believed."""
    url = f"unix://{engine_socket.absolute()}"
    return Backend(name=ENGINE_NAME, http=url, grpc=url, is_trusted=True)


def backends_from_settings(settings: Settings) -> tuple[Backend, ...]:
    """The backends of the settings in their order, then the embedded engine."""
    configured = tuple(Backend(**msgspec.structs.asdict(backend)) for backend in settings.backends)
    return (*configured, engine_backend(settings.engine_socket)) if settings.engine else configured


def parse_backends(text: str) -> tuple[Backend, ...]:
    """`--backends`: a JSON list of `gateway.snapshot.Backend`. Raises SettingsError naming what is wrong."""
    try:
        backends = msgspec.json.decode(text, type=tuple[Backend, ...])
    except (msgspec.DecodeError, RecursionError) as error:
        raise SettingsError(f"--backends: {error}; want a JSON list of backends") from error
    if len({backend.name for backend in backends}) != len(backends):
        raise SettingsError("--backends: two backends have the same name")
    for backend in backends:
        for url in (backend.http, backend.grpc):
            if url is not None:
                parse_address(url)
    return backends


async def list_models(backends: tuple[Backend, ...]) -> ModelsView:
    """Ask every backend at once; one that does not answer is reported, not an error."""
    answers = await asyncio.gather(*(_ask(backend) for backend in backends))
    models = [
        ModelView(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason, backend=backend.name)
        for backend, (entries, _) in zip(backends, answers, strict=True)
        for entry in entries
    ]
    states = [
        BackendView(
            name=backend.name,
            http=backend.http,
            grpc=backend.grpc,
            is_reachable=problem is None,
            problem=problem,
        )
        for backend, (_, problem) in zip(backends, answers, strict=True)
    ]
    return ModelsView(models=models[:MODELS_MAX], backends=states)


async def _ask(backend: Backend) -> tuple[list[IndexEntry], str | None]:
    """The index of one backend, or why there is none."""
    if backend.http is None:
        return [], "speaks gRPC only: its index is not asked for"
    address = parse_address(backend.http)
    transport = httpx.AsyncHTTPTransport(uds=address.path) if address.path else httpx.AsyncHTTPTransport()
    base_url = "http://localhost" if address.path else backend.http
    try:
        async with (
            httpx.AsyncClient(transport=transport, base_url=base_url, timeout=INDEX_S, trust_env=False) as client,
            asyncio.timeout(INDEX_S),
        ):
            return await _read_index(client)
    except (httpx.HTTPError, TimeoutError) as error:
        return [], f"does not answer: {type(error).__name__}"


async def _read_index(client: httpx.AsyncClient) -> tuple[list[IndexEntry], str | None]:
    async with client.stream("POST", "/v2/repository/index", json={}) as response:
        if response.status_code != 200:
            return [], f"answered {response.status_code} to the repository index"
        body = b""
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > INDEX_BYTES_MAX:
                return [], f"its index is larger than {INDEX_BYTES_MAX} bytes"
    try:
        return msgspec.json.decode(body, type=list[IndexEntry]), None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [], "its index is not what OIP says"
