"""Owns the FastAPI application: its routes, its OpenAPI page, and the one JSON form of every error.

It has no lock of its own but a second one: `gateway.control.guard` decides who may enter, and a request that did not
come through a guard is refused by every admin route.
"""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from traceback import extract_tb
from typing import Final, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from billing.meter_client import ask_meter
from gateway.control import (
    routes_billing,
    routes_conversions,
    routes_me,
    routes_policy,
    routes_pricing,
    routes_psp,
    routes_receipts,
    routes_reports,
    routes_system,
    routes_wallets,
    routes_webhooks,
)
from gateway.control.errors import CODE_BY_STATUS, HTTP_STATUS, ControlCode, ControlError, error_body
from gateway.control.registry import Registry

API_VERSION: Final = "1"
DESCRIPTION: Final = """
Administration of a Tollway gateway: tenants, plans, keys, prices, usage and the ledger.

* **Who may call.** On TCP, the admin token as `Authorization: Bearer <token>`; on the unix socket
  `run/control.sock` whoever may open the file. `/healthz`, `/readyz` and this document are open.
* **Effect.** A change is answered after it is stored and published: workers obey it within a second.
* **Errors.** Every answer that is not 2xx is `{"error": "<text for people>", "code": "<stable name>"}`.
* **Lists** come in pages: `limit`, and `after` = the `next` of the page before.
* **Money** is integer nanos (1e-9 of the major unit), beside decimal text.
"""
PROBLEMS_SHOWN: Final = 5
PLACES_LOGGED: Final = 6
_log = logging.getLogger("tollway.control")

Handler = Callable[[Request, Exception], Awaitable[Response]]


def build_app(registry: Registry, data_dir: Path) -> FastAPI:
    """The application over `registry`, reading the ledger in `data_dir`. It must be wrapped by a guard."""
    app = FastAPI(
        title="Tollway admin API",
        version=API_VERSION,
        description=DESCRIPTION,
        # The interactive pages load scripts from elsewhere; the document itself is enough for tools.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.registry = registry
    app.state.data_dir = data_dir
    app.state.ask_meter = ask_meter
    app.state.providers = {}
    for router in (
        routes_system.probes,
        routes_system.router,
        routes_policy.router,
        routes_pricing.router,
        routes_reports.router,
        routes_billing.router,
        routes_psp.router,
        routes_conversions.router,
        routes_webhooks.router,
        routes_wallets.router,
        routes_wallets.mine,
        routes_me.router,
        routes_receipts.router,
        routes_receipts.mine,
    ):
        app.include_router(router)
    for kind, handler in (
        (ControlError, _on_control_error),
        (RequestValidationError, _on_invalid),
        (HTTPException, _on_http_error),
        (OperationalError, _on_database_error),
        (Exception, _on_unknown),
    ):
        app.add_exception_handler(kind, cast(Handler, handler))
    return app


async def _on_control_error(_request: Request, error: ControlError) -> Response:
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    return _answer(HTTP_STATUS[error.code], error.code, error.message, headers)


async def _on_invalid(_request: Request, error: RequestValidationError) -> Response:
    """Names every wrong field. Pydantic's copy of the input is left out: it may be a secret in the wrong place."""
    problems = [_problem(dict(one)) for one in error.errors()[:PROBLEMS_SHOWN]]
    return _answer(422, ControlCode.INVALID_FIELD, "; ".join(problems))


async def _on_http_error(_request: Request, error: HTTPException) -> Response:
    code = CODE_BY_STATUS.get(error.status_code, ControlCode.BAD_REQUEST)
    return _answer(error.status_code, code, str(error.detail), dict(error.headers or {}))


async def _on_database_error(_request: Request, error: OperationalError) -> Response:
    """Locked, full or failing right now; the change, if it was one, was rolled back or is retried by the heartbeat."""
    _log.error("database_unavailable error=%s", type(error.orig).__name__)
    message = "control.db cannot be read or written right now: check the data directory's disk, then try again"
    return _answer(503, ControlCode.UNAVAILABLE, message, {"retry-after": "1"})


async def _on_unknown(request: Request, error: Exception) -> Response:
    # The type, the route and the place: an exception's text may hold what must not be logged.
    place = " < ".join(
        f"{frame.name}:{frame.lineno}" for frame in reversed(extract_tb(error.__traceback__)[-PLACES_LOGGED:])
    )
    path = request.scope["path"]
    _log.error("internal_error type=%s method=%s path=%s at=%s", type(error).__name__, request.method, path, place)
    return _answer(500, ControlCode.INTERNAL, "something failed inside; control's log says what")


def _problem(one: dict[str, object]) -> str:
    place = [str(part) for part in cast(tuple[object, ...], one["loc"])]
    where = ".".join(place[1:]) or place[0]
    if one["type"] == "extra_forbidden":
        return f"{where}: unknown field"
    message = str(one["msg"]).removeprefix("Value error, ")
    return f"{where}: {message[:1].lower()}{message[1:]}"


def _answer(status: int, code: ControlCode, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(error_body(code, message), status, headers, media_type="application/json")
