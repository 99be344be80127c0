"""HOT PATH. Owns what a backend is told of a call: the caller's headers without credentials, id, trace, the time left.

What does not change from call to call was encoded once, with the head's facts. `hex_id` are the 32 digits of the call's
id: the trace of a caller who has none, and the parent of the backend's spans. `left_ns` is 0 for a call without a
deadline. `tenant` goes to backends that are trusted, for fairness among tenants (b"": it does not). Callers cannot
forge it: `tollway-*` of theirs is dropped (`gateway.heads`).
"""

from gateway.call import Headers
from gateway.heads import HeadFacts
from gateway.wire.grpc import format_timeout
from gateway.wire.grpc_blocks import forward_block, tenant_field, timeout_field
from gateway.wire.header_blocks import BlockEncoder


def forwarded_headers(
    facts: HeadFacts, call_id: bytes, hex_id: bytes, left_ns: int, tenant: bytes, *, is_grpc: bool
) -> Headers:
    """As pairs, for a call that is forwarded step by step."""
    headers = [
        *facts.forward,
        (b"x-request-id", facts.request_id or call_id),
        (b"traceparent", b"00-%b-%b-%b" % (facts.trace_id or hex_id, hex_id[16:], facts.trace_flags)),
    ]
    if tenant:
        headers.append((b"tollway-tenant", tenant))
    if left_ns and is_grpc:
        headers.append((b"grpc-timeout", format_timeout(left_ns)))
    elif left_ns:
        headers.append((b"tollway-deadline-ns", b"%d" % left_ns))
    return headers


def forwarded_lines(facts: HeadFacts, call_id: bytes, hex_id: bytes, left_ns: int, tenant: bytes) -> bytes:
    """As HTTP/1.1 lines."""
    lines = b"%bx-request-id: %b\r\ntraceparent: 00-%b-%b-%b\r\n" % (
        facts.forward_lines,
        facts.request_id or call_id,
        facts.trace_id or hex_id,
        hex_id[16:],
        facts.trace_flags,
    )
    if tenant:
        lines += b"tollway-tenant: %b\r\n" % tenant
    if left_ns:
        lines += b"tollway-deadline-ns: %d\r\n" % left_ns
    return lines


def forwarded_block(  # noqa: PLR0917 - by position: this runs once per call
    encoder: BlockEncoder, facts: HeadFacts, call_id: bytes, hex_id: bytes, left_ns: int, tenant: bytes
) -> bytes:
    """As an HTTP/2 header block, for gRPC."""
    forward = facts.forward_block
    if forward is None:
        forward = facts.forward_block = encoder.encode(facts.forward)
    block = forward_block(forward, facts.request_id or call_id, facts.trace_id, facts.trace_flags, hex_id)
    if tenant:
        # Behind what changes with every call: one template of a receiver's memo then fits all tenants.
        block += tenant_field(tenant)
    return block + timeout_field(format_timeout(left_ns)) if left_ns else block
