"""HOT PATH. Owns the header blocks of ordinary gRPC calls, each formatted in one step.

They are, byte for byte, what `BlockEncoder.encode` makes of the same headers: names are literals without indexing,
written out here; what does not change from call to call was encoded once.
"""

from typing import Final

from gateway.wire.header_blocks import encode_integer

#: Lengths of texts as HPACK strings begin with them (RFC 7541 §5.2); longer texts are rare.
_LENGTHS: Final = tuple(bytes((length,)) for length in range(0x7F))


def _text(value: bytes) -> bytes:
    """An HPACK string."""
    length = len(value)
    return (_LENGTHS[length] if length < 0x7F else encode_integer(length, 7, 0)) + value


def forward_block(
    forward: bytes, request_id: bytes, trace_id: bytes | None, trace_flags: bytes, call_id: bytes, timeout: bytes
) -> bytes:
    """What goes to the backend: the caller's headers, id, trace and (unless empty) the `grpc-timeout` that is left.

    `forward` is encoded; `call_id` has 36 characters, `trace_id` 32, or None for a trace that begins here.
    """
    hex_id = call_id.replace(b"-", b"")
    block = b"%b\x00\x0cx-request-id%b\x00\x0btraceparent\x3700-%b-%b-%b" % (
        forward,
        _text(request_id),
        trace_id or hex_id,
        hex_id[16:],
        trace_flags,
    )
    return b"%b\x00\x0cgrpc-timeout%b" % (block, _text(timeout)) if timeout else block
