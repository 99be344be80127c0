"""Owns who may talk to the admin API: every path but the probes needs an administrator, decided before any routing.

Two listeners, one application. Behind `local_guard` (the unix socket, mode 600) the file system has decided already;
behind `token_guard` (TCP) the admin token decides. The decision reads `scope["path"]` and nothing derived from the
Host header (CVE-2026-48710). An unknown path is refused like a known one, so routes cannot be probed.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from gateway.clock import Clock
from gateway.control.errors import HTTP_STATUS, ControlCode, error_body
from gateway.control.tokens import TOKEN_BYTES_MAX, AdminTokens

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Where the guard leaves the administrator's name for the application; a client cannot reach it.
ACTOR: Final = "tollway.actor"
LOCAL_ACTOR: Final = "local"
TOKEN_ACTOR: Final = "admin-token"  # noqa: S105 - a name, not a secret
#: The provider's messages are believed by their signature (gateway.control.routes_psp).
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/openapi.json", "/psp/stripe"})
BODY_BYTES_MAX: Final = 1024 * 1024
BODY_S: Final = 10
#: Wrong tokens one peer may send at once, and how fast that budget comes back.
FAILURES_MAX: Final = 10
FAILURE_EVERY_NS: Final = 6_000_000_000
PEERS_MAX: Final = 10_000


class Failures:
    """Counts refused attempts and limits them per peer: a bucket of FAILURES_MAX, one back per FAILURE_EVERY_NS.

    Bounded: the peer silent for longest is forgotten first.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: Per peer, the instant (monotonic) at which its bucket is full again.
        self._full_at_ns: OrderedDict[str, int] = OrderedDict()
        self.total = 0

    def wait_s(self, peer: str) -> int:
        """Whole seconds until `peer` may try again; 0: now."""
        now_ns = self._clock.monotonic_ns()
        over_ns = self._full_at_ns.get(peer, now_ns) - now_ns - (FAILURES_MAX - 1) * FAILURE_EVERY_NS
        return 0 if over_ns <= 0 else -(-over_ns // 1_000_000_000)

    def note(self, peer: str) -> None:
        self.total += 1
        now_ns = self._clock.monotonic_ns()
        self._full_at_ns[peer] = max(self._full_at_ns.get(peer, now_ns), now_ns) + FAILURE_EVERY_NS
        self._full_at_ns.move_to_end(peer)
        if len(self._full_at_ns) > PEERS_MAX:
            self._full_at_ns.popitem(last=False)


def local_guard(app: App) -> App:
    """For the unix socket: whoever can open it is the local administrator."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await with_body(app, {**scope, ACTOR: LOCAL_ACTOR}, receive, send)

    return guarded


def token_guard(app: App, *, tokens: AdminTokens, failures: Failures, clock: Clock) -> App:
    """For TCP: the admin token as `Authorization: Bearer`."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] in OPEN_PATHS:
            await with_body(app, scope, receive, send)
            return
        peer = scope["client"][0] if scope.get("client") else ""
        refusal = _refusal(scope, peer, tokens, failures, clock)
        if refusal is None:
            await with_body(app, {**scope, ACTOR: TOKEN_ACTOR}, receive, send)
        else:
            await send_error(send, *refusal)

    return guarded


async def send_error(send: Send, code: ControlCode, message: str, retry_after_s: int | None = None) -> None:
    """Answer with the one JSON form of an error."""
    body = error_body(code, message)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if HTTP_STATUS[code] == 401:
        headers.append((b"www-authenticate", b'Bearer realm="tollway-admin"'))
    if retry_after_s is not None:
        headers.append((b"retry-after", str(retry_after_s).encode()))
    await send({"type": "http.response.start", "status": HTTP_STATUS[code], "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _refusal(
    scope: Scope, peer: str, tokens: AdminTokens, failures: Failures, clock: Clock
) -> tuple[ControlCode, str, int | None] | None:
    """Why this request may not pass; None when it may. The limit is asked first: it also stops right guesses."""
    wait_s = failures.wait_s(peer)
    if wait_s:
        return ControlCode.RATE_EXCEEDED, f"too many wrong tokens from here: try again in {wait_s} s", wait_s
    token = _bearer(scope["headers"])
    check = tokens.check(token, clock.wall_ns()) if token else None
    if check is not None and check.is_valid:
        return None
    failures.note(peer)
    if check is None:
        return ControlCode.UNAUTHENTICATED, "send the admin token as 'Authorization: Bearer <token>'", None
    if check.is_expired:
        return ControlCode.TOKEN_EXPIRED, "the admin token has expired: run `tollway admin rotate-token`", None
    if token.startswith(b"tw_live_"):
        return ControlCode.UNAUTHENTICATED, "an API key opens models, not the admin API: use the admin token", None
    return ControlCode.UNAUTHENTICATED, "the admin token is wrong", None


def _bearer(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The one bearer token of the request; empty when there is none, or more than one to choose from."""
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1 or len(values[0]) > TOKEN_BYTES_MAX:
        return b""
    scheme, _, token = values[0].partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


async def with_body(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Run `app` once the whole body is here; a large one is refused with 413, an endless one with 408."""
    body = b""
    try:
        async with asyncio.timeout(BODY_S):
            is_more = True
            while is_more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message.get("body", b"")
                is_more = message.get("more_body", False)
                if len(body) > BODY_BYTES_MAX:
                    await send_error(send, ControlCode.BODY_TOO_LARGE, f"a body may have {BODY_BYTES_MAX} bytes")
                    return
    except TimeoutError:
        await send_error(send, ControlCode.REQUEST_TIMEOUT, f"the body did not arrive within {BODY_S} s")
        return
    await app(scope, _replayed(body, receive), send)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` that gives the body read before, then what comes after it (a disconnect)."""
    is_given = False

    async def replayed() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
