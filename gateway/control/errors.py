"""Owns the faults of the admin API: stable codes, their HTTP statuses, and the one JSON form of an error.

    {"error": "<one sentence for people>", "code": "<stable name>"}

The data plane's codes (`gateway.errors.Code`) are about calls; these are about administration. Where both know a
fault, the name is the same. Messages are safe to show: no secrets, no paths, nothing of an unknown exception.
"""

from enum import StrEnum
from typing import Final

import msgspec


class ControlCode(StrEnum):
    """Every fault an administrator can meet."""

    BAD_REQUEST = "bad_request"
    INVALID_FIELD = "invalid_field"
    UNAUTHENTICATED = "unauthenticated"
    TOKEN_EXPIRED = "token_expired"  # noqa: S105 - a code, not a secret
    RATE_EXCEEDED = "rate_exceeded"
    EXCEEDS_PARENT = "exceeds_parent"
    SCOPE_FORBIDDEN = "scope_forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    BODY_TOO_LARGE = "body_too_large"
    REQUEST_TIMEOUT = "request_timeout"
    LIMIT_REACHED = "limit_reached"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


HTTP_STATUS: Final[dict[ControlCode, int]] = {
    ControlCode.BAD_REQUEST: 400,
    ControlCode.INVALID_FIELD: 422,
    ControlCode.UNAUTHENTICATED: 401,
    ControlCode.TOKEN_EXPIRED: 401,
    ControlCode.RATE_EXCEEDED: 429,
    ControlCode.EXCEEDS_PARENT: 403,
    ControlCode.SCOPE_FORBIDDEN: 403,
    ControlCode.NOT_FOUND: 404,
    ControlCode.METHOD_NOT_ALLOWED: 405,
    ControlCode.CONFLICT: 409,
    ControlCode.BODY_TOO_LARGE: 413,
    ControlCode.REQUEST_TIMEOUT: 408,
    ControlCode.LIMIT_REACHED: 409,
    ControlCode.UNAVAILABLE: 503,
    ControlCode.INTERNAL: 500,
}

#: For faults that the web framework finds by itself.
CODE_BY_STATUS: Final[dict[int, ControlCode]] = {
    400: ControlCode.BAD_REQUEST,
    404: ControlCode.NOT_FOUND,
    405: ControlCode.METHOD_NOT_ALLOWED,
}


class ControlError(Exception):
    """A request that cannot be carried out; nothing was changed."""

    def __init__(self, code: ControlCode, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


def not_found(kind: str, name: str) -> ControlError:
    return ControlError(ControlCode.NOT_FOUND, f"{kind} {name!r} does not exist")


def conflict(message: str) -> ControlError:
    return ControlError(ControlCode.CONFLICT, message)


def invalid(message: str) -> ControlError:
    return ControlError(ControlCode.INVALID_FIELD, message)


def error_body(code: ControlCode, message: str) -> bytes:
    """The JSON of every answer that is not 2xx."""
    return msgspec.json.encode({"error": message, "code": code.value})
