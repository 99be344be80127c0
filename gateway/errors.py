"""Owns the error tree: one stable code per fault, whose fault it is, and whether a retry can help.

    TollwayError(code, message, retry_after_ms=None)
      code: Code      the stable, documented name (docs/errors.md); HTTP and gRPC statuses are looked up in
                      `gateway.wire.status`, never stored here
      fault           "caller" | "policy" | "capacity" | "backend" | "tollway"
      is_retryable    whether the same call may succeed later without a change

Messages are safe for clients: no secrets, no paths, no upstream text beyond what the caller may see. Refusals that are
expected on the hot path are `Refusal` values; exceptions are for what the caller did not ask about.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Fault = Literal["caller", "policy", "capacity", "backend", "tollway"]


class Code(StrEnum):
    """Every fault a caller can meet. The value is the stable `code` member of error bodies."""

    # The call itself.
    BAD_REQUEST = "bad_request"
    INVALID_TENSOR = "invalid_tensor"
    BAD_HEADER_LENGTH = "bad_header_length"
    BODY_TOO_LARGE = "body_too_large"
    HEADERS_TOO_LARGE = "headers_too_large"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    VERSION_NOT_FOUND = "version_not_found"
    NOT_IMPLEMENTED = "not_implemented"
    IDEMPOTENCY_UNSUPPORTED = "idempotency_unsupported"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    IDEMPOTENCY_IN_FLIGHT = "idempotency_in_flight"
    ALREADY_SERVED = "already_served"
    LENGTH_REQUIRED = "length_required"
    REQUEST_TIMEOUT = "request_timeout"
    # Credentials and policy.
    UNAUTHENTICATED = "unauthenticated"
    KEY_EXPIRED = "key_expired"
    KEY_REVOKED = "key_revoked"
    SCOPE_FORBIDDEN = "scope_forbidden"
    MODEL_FORBIDDEN = "model_forbidden"
    TENANT_SUSPENDED = "tenant_suspended"
    CONCURRENCY_EXCEEDED = "concurrency_exceeded"
    RATE_EXCEEDED = "rate_exceeded"
    DAILY_CAP_EXCEEDED = "daily_cap_exceeded"
    MONTHLY_CAP_EXCEEDED = "monthly_cap_exceeded"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    MAX_COST_EXCEEDED = "max_cost_exceeded"
    # Capacity.
    MODEL_NOT_READY = "model_not_ready"
    BACKEND_UNAVAILABLE = "backend_unavailable"
    QUEUE_FULL = "queue_full"
    OVERLOADED = "overloaded"
    SHUTTING_DOWN = "shutting_down"
    QUOTA_UNAVAILABLE = "quota_unavailable"
    METERING_UNAVAILABLE = "metering_unavailable"
    POLICY_STALE = "policy_stale"
    # Time.
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    # Backend and ourselves.
    BACKEND_FAULT = "backend_fault"
    BACKEND_PROTOCOL = "backend_protocol"
    INTERNAL = "internal"


_FAULTS: dict[Fault, frozenset[Code]] = {
    "policy": frozenset(
        {
            Code.UNAUTHENTICATED,
            Code.KEY_EXPIRED,
            Code.KEY_REVOKED,
            Code.SCOPE_FORBIDDEN,
            Code.MODEL_FORBIDDEN,
            Code.TENANT_SUSPENDED,
            Code.CONCURRENCY_EXCEEDED,
            Code.RATE_EXCEEDED,
            Code.DAILY_CAP_EXCEEDED,
            Code.MONTHLY_CAP_EXCEEDED,
            Code.INSUFFICIENT_FUNDS,
        }
    ),
    "capacity": frozenset(
        {
            Code.MODEL_NOT_READY,
            Code.BACKEND_UNAVAILABLE,
            Code.QUEUE_FULL,
            Code.OVERLOADED,
            Code.SHUTTING_DOWN,
            Code.QUOTA_UNAVAILABLE,
            Code.METERING_UNAVAILABLE,
            Code.POLICY_STALE,
            Code.DEADLINE_EXCEEDED,
        }
    ),
    "backend": frozenset({Code.BACKEND_FAULT, Code.BACKEND_PROTOCOL}),
    "tollway": frozenset({Code.INTERNAL}),
}

_RETRYABLE = frozenset(
    _FAULTS["capacity"]
    | {
        Code.CONCURRENCY_EXCEEDED,
        Code.RATE_EXCEEDED,
        Code.DAILY_CAP_EXCEEDED,
        Code.MONTHLY_CAP_EXCEEDED,
        Code.REQUEST_TIMEOUT,
        Code.IDEMPOTENCY_IN_FLIGHT,
    }
)


def fault_of(code: Code) -> Fault:
    """Whose fault `code` is; the caller's unless another party is named above."""
    for fault, codes in _FAULTS.items():
        if code in codes:
            return fault
    return "caller"


def is_retryable(code: Code) -> bool:
    """Whether the same call may succeed later without a change by the caller."""
    return code in _RETRYABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An expected 'no', decided before any work was done; nothing is billed and no counter moves.

    `retry_after_ms` is None where waiting does not help. `headers` are extra reply headers (lower-case names),
    for example the RateLimit pair.
    """

    code: Code
    message: str
    retry_after_ms: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()


class TollwayError(Exception):
    """A fault with a stable code; `str(error)` is safe to show to a client."""

    def __init__(self, code: Code, message: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms

    def as_refusal(self) -> Refusal:
        return Refusal(code=self.code, message=self.message, retry_after_ms=self.retry_after_ms)


class SettingsError(Exception):
    """A configuration that cannot be used; the message says what, where and what to do."""
