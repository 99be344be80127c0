"""What backends hold, asked of real sockets; a backend that misbehaves is reported and harms nobody."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.control.backends import backends_from_settings, list_models, parse_backends
from gateway.control.views import ModelsView
from gateway.errors import SettingsError
from gateway.settings import Backend as SettingsBackend
from gateway.settings import Settings
from gateway.snapshot import Backend

INDEX = b'[{"name":"ocr","version":"1","state":"READY"},{"name":"broken","state":"UNAVAILABLE","reason":"no file"}]'


def answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (status, len(body), body)


def ask(tmp_path: Path, replies: dict[str, bytes], *more: Backend) -> tuple[ModelsView, list[bytes]]:
    """Serve each reply at a unix socket of its own and list the models of all."""
    heads: list[bytes] = []

    def server(reply: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(reply)
            writer.close()

        return serve

    async def main() -> ModelsView:
        servers, backends = [], []
        for name, reply in replies.items():
            path = tmp_path / name
            servers.append(await asyncio.start_unix_server(server(reply), path))
            backends.append(Backend(name=name, http=f"unix://{path}", grpc=None))
        try:
            return await list_models((*backends, *more))
        finally:
            for one in servers:
                one.close()

    return asyncio.run(main()), heads


def test_the_index_of_every_backend_is_listed(tmp_path: Path) -> None:
    listed, heads = ask(tmp_path, {"engine": answer(INDEX)})
    assert [(m.name, m.version, m.state, m.reason, m.backend) for m in listed.models] == [
        ("ocr", "1", "READY", "", "engine"),
        ("broken", "", "UNAVAILABLE", "no file", "engine"),
    ]
    assert listed.backends[0].is_reachable
    assert heads[0].startswith(b"POST /v2/repository/index HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (answer(b"{}"), "not what OIP says"),
        (answer(b"not json"), "not what OIP says"),
        (answer(b"{}", b"404 Not Found"), "answered 404"),
        (b"garbage\r\n\r\n", "does not answer"),
        (b"", "does not answer"),
        (answer(b"[" + b" " * (9 * 1024 * 1024) + b"]"), "larger than"),
    ],
)
def test_a_backend_that_misbehaves_is_reported_beside_the_others(tmp_path: Path, reply: bytes, problem: str) -> None:
    listed, _ = ask(tmp_path, {"good": answer(INDEX), "bad": reply})
    assert {model.backend for model in listed.models} == {"good"}
    assert listed.backends[0].problem is None
    assert problem in (listed.backends[1].problem or "")


def test_a_backend_that_is_not_there_or_speaks_grpc_only_is_reported(tmp_path: Path) -> None:
    gone = Backend(name="gone", http=f"unix://{tmp_path}/none", grpc=None)
    listed, _ = ask(tmp_path, {}, gone, Backend(name="grpc", http=None, grpc="grpc://h:1"))
    assert [backend.is_reachable for backend in listed.backends] == [False, False]


def test_settings_give_their_backends_first_and_the_engine_last() -> None:
    other = SettingsBackend(name="triton", http="http://t:8000")
    both = backends_from_settings(Settings(backends=(other,)))
    assert [backend.name for backend in both] == ["triton", "engine"]
    assert [backend.is_trusted for backend in both] == [False, True]
    assert [b.name for b in backends_from_settings(Settings(backends=(other,), engine=False))] == ["triton"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '[{"name": "a"}]',
        '[{"name": "a", "http": "ftp://x", "grpc": null}]',
        '[{"name": "a", "http": null, "grpc": null}, {"name": "a", "http": null, "grpc": null}]',
    ],
)
def test_wrong_backends_are_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        parse_backends(text)


def test_backends_are_read_from_json() -> None:
    parsed = parse_backends('[{"name": "a", "http": "http://x:1", "grpc": null, "models": ["m"], "is_trusted": true}]')
    assert parsed == (Backend(name="a", http="http://x:1", grpc=None, models=("m",), is_trusted=True),)
