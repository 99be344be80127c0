"""HOT PATH. Owns the one table: error code → HTTP status and gRPC status (CONTRACT.md §5), and error bodies.

Two renderers keyed by path prefix: OIP (`{"error": "<string>", "code": …}`) and, from issue C on, OpenAI's.
"""

from enum import IntEnum
from typing import Final

import msgspec

from gateway.errors import Code


class Grpc(IntEnum):
    """gRPC status codes (grpc/grpc doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


STATUS: Final[dict[Code, tuple[int, Grpc]]] = {
    Code.BAD_REQUEST: (400, Grpc.INVALID_ARGUMENT),
    Code.INVALID_TENSOR: (400, Grpc.INVALID_ARGUMENT),
    Code.BAD_HEADER_LENGTH: (400, Grpc.INVALID_ARGUMENT),
    Code.BODY_TOO_LARGE: (413, Grpc.RESOURCE_EXHAUSTED),
    Code.HEADERS_TOO_LARGE: (431, Grpc.RESOURCE_EXHAUSTED),
    Code.UNSUPPORTED_ENCODING: (415, Grpc.UNIMPLEMENTED),
    Code.UNSUPPORTED_MEDIA_TYPE: (415, Grpc.UNIMPLEMENTED),
    Code.METHOD_NOT_ALLOWED: (405, Grpc.UNIMPLEMENTED),
    Code.NOT_FOUND: (404, Grpc.UNIMPLEMENTED),
    Code.MODEL_NOT_FOUND: (404, Grpc.NOT_FOUND),
    Code.VERSION_NOT_FOUND: (404, Grpc.NOT_FOUND),
    Code.NOT_IMPLEMENTED: (501, Grpc.UNIMPLEMENTED),
    Code.IDEMPOTENCY_UNSUPPORTED: (400, Grpc.INVALID_ARGUMENT),
    Code.IDEMPOTENCY_MISMATCH: (422, Grpc.INVALID_ARGUMENT),
    Code.IDEMPOTENCY_IN_FLIGHT: (409, Grpc.ABORTED),
    Code.ALREADY_SERVED: (409, Grpc.ALREADY_EXISTS),
    Code.LENGTH_REQUIRED: (411, Grpc.INVALID_ARGUMENT),
    Code.REQUEST_TIMEOUT: (408, Grpc.DEADLINE_EXCEEDED),
    Code.UNAUTHENTICATED: (401, Grpc.UNAUTHENTICATED),
    Code.KEY_EXPIRED: (401, Grpc.UNAUTHENTICATED),
    Code.KEY_REVOKED: (401, Grpc.UNAUTHENTICATED),
    Code.SCOPE_FORBIDDEN: (403, Grpc.PERMISSION_DENIED),
    Code.MODEL_FORBIDDEN: (403, Grpc.PERMISSION_DENIED),
    Code.TENANT_SUSPENDED: (403, Grpc.PERMISSION_DENIED),
    Code.CONCURRENCY_EXCEEDED: (429, Grpc.RESOURCE_EXHAUSTED),
    Code.RATE_EXCEEDED: (429, Grpc.RESOURCE_EXHAUSTED),
    Code.DAILY_CAP_EXCEEDED: (429, Grpc.RESOURCE_EXHAUSTED),
    Code.MONTHLY_CAP_EXCEEDED: (429, Grpc.RESOURCE_EXHAUSTED),
    Code.INSUFFICIENT_FUNDS: (402, Grpc.RESOURCE_EXHAUSTED),
    Code.MAX_COST_EXCEEDED: (402, Grpc.FAILED_PRECONDITION),
    Code.MODEL_NOT_READY: (503, Grpc.UNAVAILABLE),
    Code.BACKEND_UNAVAILABLE: (503, Grpc.UNAVAILABLE),
    Code.QUEUE_FULL: (503, Grpc.UNAVAILABLE),
    Code.OVERLOADED: (503, Grpc.UNAVAILABLE),
    Code.SHUTTING_DOWN: (503, Grpc.UNAVAILABLE),
    Code.QUOTA_UNAVAILABLE: (503, Grpc.UNAVAILABLE),
    Code.METERING_UNAVAILABLE: (503, Grpc.UNAVAILABLE),
    Code.POLICY_STALE: (503, Grpc.UNAVAILABLE),
    Code.DEADLINE_EXCEEDED: (504, Grpc.DEADLINE_EXCEEDED),
    Code.CANCELLED: (499, Grpc.CANCELLED),
    Code.BACKEND_FAULT: (500, Grpc.INTERNAL),
    Code.BACKEND_PROTOCOL: (502, Grpc.INTERNAL),
    Code.INTERNAL: (500, Grpc.INTERNAL),
}


def http_status(code: Code) -> int:
    return STATUS[code][0]


def grpc_status(code: Code) -> Grpc:
    return STATUS[code][1]


def oip_error_body(code: Code, message: str, call_id: str | None = None) -> bytes:
    """`{"error": message, "code": code[, "call_id"]}`: `error` is always a string, as tritonclient demands."""
    body = {"error": message, "code": code.value}
    if call_id is not None:
        body["call_id"] = call_id
    return msgspec.json.encode(body)
