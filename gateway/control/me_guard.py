"""Owns who may talk to the self-service routes (`/me…`): whoever has an API key, and only about that key's tenant.

The tenant comes from the key and from nowhere else. A suspended tenant may still come in: it has to see what to pay.
Wrong keys count against the peer like wrong admin tokens do; of callers whom workers relay only those with a right key
come here at all.
"""

import asyncio
from pathlib import Path
from typing import Final

import msgspec

from gateway.auth.credential import extract_credential
from gateway.auth.keyring import Keyring, Principal
from gateway.clock import Clock
from gateway.control.errors import ControlCode
from gateway.control.guard import App, Failures, Receive, Scope, Send, send_error, with_body
from gateway.control.policy import Publisher
from gateway.errors import Refusal
from gateway.snapshot import Snapshot, read_snapshot

#: Where the guard leaves the principal for the application; a client cannot reach it.
CALLER: Final = "tollway.caller"
PREFIX: Final = "/me"


class Callers:
    """The keyring of the newest published policy. One event loop uses it."""

    def __init__(self, data_dir: Path, publisher: Publisher) -> None:
        self._data_dir = data_dir
        self._publisher = publisher
        self._keyring: Keyring | None = None
        self._version = -1

    async def check(self, credential: bytes | None, wall_ns: int) -> Principal | Refusal:
        """The principal behind a key, or why there is none. Raises OSError when the policy cannot be read."""
        version = self._publisher.published_version
        if self._keyring is None or version != self._version:
            # Read in a thread: decoding a hundred thousand keys takes a while.
            self._keyring = await asyncio.to_thread(
                lambda: Keyring(_without_suspensions(read_snapshot(self._data_dir)))
            )
            self._version = version
        return self._keyring.authenticate(credential, wall_ns)


def me_guard(app: App, otherwise: App, *, callers: Callers, failures: Failures | None, clock: Clock) -> App:
    """`app` for the paths of self-service, behind a key; `otherwise` for every other path.

    Without `failures` wrong keys are not counted: all callers behind a worker would be one peer, and one of them could
    lock the others out.
    """

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_mine(scope["path"]):
            await otherwise(scope, receive, send)
            return
        peer = scope["client"][0] if scope.get("client") else ""
        wait_s = 0 if failures is None else failures.wait_s(peer)
        if wait_s:
            message = f"too many wrong keys from here: try again in {wait_s} s"
            await send_error(send, ControlCode.RATE_EXCEEDED, message, wait_s)
            return
        credential = extract_credential(scope["headers"])
        if isinstance(credential, Refusal):
            await send_error(send, ControlCode.BAD_REQUEST, credential.message)
            return
        verdict = await callers.check(credential, clock.wall_ns())
        if isinstance(verdict, Refusal):
            if failures is not None:
                failures.note(peer)
            await send_error(send, ControlCode.UNAUTHENTICATED, verdict.message)
            return
        await with_body(app, {**scope, CALLER: verdict}, receive, send)

    return guarded


async def nothing_else(scope: Scope, receive: Receive, send: Send) -> None:
    """What is behind a door to self-service besides it."""
    if scope["type"] == "http":
        await send_error(send, ControlCode.NOT_FOUND, "Not Found")


def _is_mine(path: str) -> bool:
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def _without_suspensions(snapshot: Snapshot) -> Snapshot:
    tenants = tuple(msgspec.structs.replace(tenant, is_suspended=False) for tenant in snapshot.tenants)
    return msgspec.structs.replace(snapshot, tenants=tenants)
