"""Owns what the handlers share: where they find the registry, who is asking, and how pages are cut."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request

from gateway.control.errors import ControlCode, ControlError
from gateway.control.guard import ACTOR
from gateway.control.registry import Registry
from gateway.control.views import ErrorView, Page

PAGE_DEFAULT = 100
PAGE_MAX = 1_000
T = TypeVar("T")

#: The answers every admin route can give besides its own.
ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorView, "description": "No admin token, a wrong one or an expired one."},
    404: {"model": ErrorView, "description": "What the path or the body names does not exist."},
    409: {"model": ErrorView, "description": "It exists already, is in another state, or a limit is reached."},
    422: {"model": ErrorView, "description": "A field is unknown, missing or out of bounds; the text names it."},
    429: {"model": ErrorView, "description": "Too many wrong tokens from this address; see Retry-After."},
}


def _registry(request: Request) -> Registry:
    registry: Registry = request.app.state.registry
    return registry


def _actor(request: Request) -> str:
    """The administrator's name. A second lock behind the guard: an unguarded application answers nobody."""
    actor = request.scope.get(ACTOR)
    if not isinstance(actor, str):
        raise ControlError(ControlCode.UNAUTHENTICATED, "send the admin token as 'Authorization: Bearer <token>'")
    return actor


TheRegistry = Annotated[Registry, Depends(_registry)]
Actor = Annotated[str, Depends(_actor)]
REQUIRE_ACTOR = Depends(_actor)
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="Most items to answer.")]
After = Annotated[str, Query(max_length=256, description="`next` of the page before.")]


def page(items: Sequence[T], limit: int, name: str) -> Page[T]:
    """A page of `items`; `name` is the field that the next page starts behind."""
    is_full = len(items) == limit
    return Page(items=list(items), next=str(getattr(items[-1], name)) if is_full else None)
