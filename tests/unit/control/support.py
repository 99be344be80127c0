"""Owns what the control tests share: a control plane on a temporary folder, and clients at both of its doors."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import httpx
from fastapi import FastAPI

from billing.pricebook import default_price_book
from billing.rating import PriceBook
from gateway.clock import FakeClock
from gateway.control.app import build_app
from gateway.control.backends import engine_backend
from gateway.control.guard import App, local_guard, token_guard
from gateway.control.me_guard import Callers, me_guard
from gateway.control.registry import Registry
from gateway.control.start import Control, open_control
from gateway.snapshot import Backend, Key, Snapshot, Tenant, read_snapshot

NS_PER_S = 1_000_000_000


class Desk:
    """A control plane and its application, asked without a network."""

    def __init__(self, data_dir: Path, control: Control, clock: FakeClock) -> None:
        self.data_dir = data_dir
        self.control = control
        self.clock = clock
        self.app = _shared_app()
        # Building the routes takes longer than most tests: one application, pointed at the desk that is open.
        self.app.state.registry = control.registry
        self.app.state.data_dir = data_dir
        app = cast(App, self.app)
        callers = Callers(data_dir, control.publisher)
        mine: Any = {"callers": callers, "failures": control.failures, "clock": clock}
        self.local: App = me_guard(app, local_guard(app), **mine)
        door = token_guard(app, tokens=control.tokens, failures=control.failures, clock=clock)
        self.tcp: App = me_guard(app, door, **mine)

    @property
    def bootstrap_token(self) -> str:
        return (self.data_dir / "run" / "bootstrap-token").read_text().strip()

    @property
    def snapshot(self) -> Snapshot:
        return read_snapshot(self.data_dir)

    def key(self, key_id: str) -> Key:
        return next(key for key in self.snapshot.keys if key.key_id == key_id)

    def tenant(self, name: str) -> Tenant:
        return next(tenant for tenant in self.snapshot.tenants if tenant.tenant == name)

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """One request at the local door."""
        return self.at(self.local, method, path, body, **more)

    def ask_tcp(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, peer: str = "10.0.0.1", **more: Any
    ) -> httpx.Response:
        """One request at the TCP door, with `token` as bearer."""
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return self.at(self.tcp, method, path, body, headers=headers | more.pop("headers", {}), peer=peer, **more)

    def at(self, app: App, method: str, path: str, body: Any = None, *, peer: str = "", **more: Any) -> httpx.Response:
        if body is not None:
            more["json"] = body

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(cast(Any, app), raise_app_exceptions=False, client=(peer, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
                return await client.request(method, path, **more)

        return asyncio.run(send())

    def must(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The JSON of a request at the local door that has to succeed."""
        answer = self.ask(method, path, body, **more)
        assert answer.is_success, (answer.status_code, answer.text)
        return answer.json()

    def new_tenant(self, tenant: str = "acme", **fields: Any) -> Any:
        return self.must("POST", "/admin/tenants", {"tenant": tenant, **fields})

    def new_key(self, tenant: str = "acme", **fields: Any) -> Any:
        return self.must("POST", "/admin/keys", {"tenant": tenant, **fields})


@cache
def _shared_app() -> FastAPI:
    return build_app(cast(Registry, None), Path())


@contextmanager
def open_desk(
    data_dir: Path,
    *,
    clock: FakeClock | None = None,
    prices: PriceBook | None = None,
    backends: tuple[Backend, ...] | None = None,
) -> Iterator[Desk]:
    used = clock or FakeClock()
    control = open_control(
        data_dir,
        prices=prices or default_price_book(),
        backends=backends or (engine_backend(data_dir / "run" / "engine.sock"),),
        clock=used,
    )
    try:
        yield Desk(data_dir, control, used)
    finally:
        control.close()
