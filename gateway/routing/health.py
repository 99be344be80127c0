"""Owns the probing of endpoints: up or down, and which models and versions are ready.

One task per endpoint asks `GET /v2/health/ready` and `POST /v2/repository/index` over the endpoint's own HTTP pool
(gRPC-only endpoints: ServerReady). Quick while an endpoint is down, relaxed while it is up. A refusal or a broken
connection takes an endpoint down at once; an answer that does not come in time only when it is the third in a row: a
busy backend is slow to answer and serves all the same, and to refuse its calls would help nobody.
"""

import asyncio
from typing import Any, Final

import msgspec

from gateway.call import Data, Headers
from gateway.net.exchange import UpstreamPool
from gateway.routing.router import Endpoint

_UP_INTERVAL_S: Final = 1.0
_DOWN_INTERVAL_S: Final = 0.1
_ANSWER_S: Final = 2.0
#: So many late answers in a row, and an endpoint that was up is down.
LATE_MAX: Final = 3
_BODY_BYTES_MAX: Final = 4 * 1024 * 1024


class _Listener:
    """Collects one small reply into a future."""

    def __init__(self, future: "asyncio.Future[tuple[int, bytes]]") -> None:
        self._future = future
        self._status = 0
        self._body = bytearray()

    def on_reply_head(self, status: int, headers: Headers, content_length: int) -> None:
        self._status = status

    def on_reply_body(self, data: Data) -> None:
        if len(self._body) + len(data) <= _BODY_BYTES_MAX:
            self._body += data

    def on_reply_end(self, trailers: Headers) -> None:
        if not self._future.done():
            status = dict(trailers).get(b"grpc-status", b"0")
            self._future.set_result((self._status if status == b"0" else 503, bytes(self._body)))

    def on_reply(self, status: int, headers: Headers, body: bytes) -> None:
        self._status = status
        self.on_reply_body(body)
        self.on_reply_end([])

    def on_reply_error(self, *, is_sent: bool, reason: str) -> None:
        if not self._future.done():
            self._future.set_exception(ConnectionError(reason))

    def on_upstream_writable(self) -> None:
        """Requests here are a few bytes."""


async def ask(pool: UpstreamPool, method: bytes, target: bytes, body: bytes, headers: Headers) -> tuple[int, bytes]:
    """One small request. Raises ConnectionError or TimeoutError; cancelling it cancels the request."""
    future: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
    upstream = pool.request(method, target, headers, len(body), _Listener(future))
    if body:
        upstream.send_body(body)
    upstream.send_end()
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await future
    finally:
        if not future.done() or future.cancelled():
            upstream.cancel()


class _IndexEntry(msgspec.Struct):
    name: str
    version: str = ""
    state: str = ""
    aliases: tuple[str, ...] = ()


def parse_index(body: bytes) -> dict[str, dict[str, bool]]:
    """model → version → is ready, from a repository index; aliases, if it tells any, are versions by another name.

    Raises msgspec.DecodeError.
    """
    try:
        entries = msgspec.json.decode(body, type=list[_IndexEntry])
    except (UnicodeDecodeError, RecursionError) as error:
        # msgspec lets both through; a backend's rubbish must not end the probing.
        raise msgspec.DecodeError(f"malformed repository index: {error}") from None
    catalogue: dict[str, dict[str, bool]] = {}
    for entry in entries:
        versions = catalogue.setdefault(entry.name, {})
        if entry.version:
            versions[entry.version] = entry.state == "READY"
            versions.update(dict.fromkeys(entry.aliases, entry.state == "READY"))
    return catalogue


async def probe(endpoint: Endpoint, *, may_be_late: bool = False) -> bool:
    """Ask once and write what was learnt into `endpoint`. Returns whether its answer was late.

    `may_be_late`: an endpoint that is up stays up for this once.
    """
    try:
        if endpoint.http is not None:
            await _probe_http(endpoint, endpoint.probe_http or endpoint.http)
        elif endpoint.grpc is not None:
            await _probe_grpc(endpoint, endpoint.grpc)
    except TimeoutError:
        if not (may_be_late and endpoint.is_up):
            endpoint.is_up, endpoint.reason = False, f"no answer within {_ANSWER_S:g} s"
        return True
    except (ConnectionError, msgspec.DecodeError) as error:
        endpoint.is_up = False
        endpoint.reason = str(error) or type(error).__name__
    finally:
        endpoint.state += 1
    return False


async def _probe_http(endpoint: Endpoint, pool: UpstreamPool) -> None:
    status, _ = await ask(pool, b"GET", b"/v2/health/live", b"", [])
    if status != 200:
        endpoint.is_up, endpoint.reason = False, f"health answered {status}"
        return
    status, body = await ask(pool, b"POST", b"/v2/repository/index", b"{}", [(b"content-type", b"application/json")])
    # A server without the repository extension is asked nothing more: calls for any of its models pass through.
    endpoint.catalogue = parse_index(body) if status == 200 else None
    endpoint.is_up, endpoint.reason, endpoint.failures = True, "", 0


async def _probe_grpc(endpoint: Endpoint, pool: UpstreamPool) -> None:
    headers: Headers = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    target = b"/inference.GRPCInferenceService/ServerLive"
    status, body = await ask(pool, b"POST", target, b"\0\0\0\0\0", headers)
    # ServerLiveResponse{live: true} is 08 01 behind the five bytes of the frame.
    endpoint.is_up = status == 200 and body[5:] == b"\x08\x01"
    endpoint.reason, endpoint.failures = ("", 0) if endpoint.is_up else ("not live", endpoint.failures)


async def watch(endpoint: Endpoint) -> None:
    """Probe for ever; run as a supervised task per endpoint."""
    late = 0
    while True:
        late = late + 1 if await probe(endpoint, may_be_late=late + 1 < LATE_MAX) else 0
        is_calm = endpoint.is_up and not late and _is_settled(endpoint)
        await asyncio.sleep(_UP_INTERVAL_S if is_calm else _DOWN_INTERVAL_S)


def _is_settled(endpoint: Endpoint) -> bool:
    """Every model is ready: nothing is expected to change soon."""
    catalogue: dict[str, Any] | None = endpoint.catalogue
    return catalogue is None or (bool(catalogue) and all(all(v.values()) for v in catalogue.values()))
