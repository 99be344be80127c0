"""HOT PATH. Owns the header blocks of ordinary gRPC calls, each formatted in one step.

They are, byte for byte, what `BlockEncoder.encode` makes of the same headers: names are literals without indexing,
written out here; what does not change from call to call was encoded once.
"""

from typing import Final, cast

from gateway.call import Headers
from gateway.wire.field_list import FieldList
from gateway.wire.header_blocks import BlockEncoder, encode_integer

#: Lengths of texts as HPACK strings begin with them (RFC 7541 §5.2); longer texts are rare.
_LENGTHS: Final = [bytes((length,)) for length in range(0x7F)]


def _text(value: bytes) -> bytes:
    """An HPACK string."""
    length = len(value)
    return (_LENGTHS[length] if length < 0x7F else encode_integer(length, 7, 0)) + value


def forward_block(
    forward: bytes, request_id: bytes, trace_id: bytes | None, trace_flags: bytes, hex_id: bytes
) -> bytes:
    """What goes to the backend: the caller's headers (encoded before), id and trace.

    `hex_id` and `trace_id` have 32 digits; None for a trace that begins here.
    """
    return b"%b\x00\x0cx-request-id%b\x00\x0btraceparent\x3700-%b-%b-%b" % (
        forward,
        _text(request_id),
        trace_id or hex_id,
        hex_id[16:],
        trace_flags,
    )


def timeout_field(timeout: bytes) -> bytes:
    """`grpc-timeout`."""
    return b"\x00\x0cgrpc-timeout" + _text(timeout)


def tenant_field(tenant: bytes) -> bytes:
    """`tollway-tenant`."""
    return b"\x00\x0etollway-tenant" + _text(tenant)


def reply_block(head: bytes, call_id: bytes, request_id: bytes, charge: bytes, timing: bytes) -> bytes:
    """What an answered call says of itself, behind the encoded `head`."""
    return b"%b\x00\x0ftollway-call-id\x24%b\x00\x0cx-request-id%b\x00\x0etollway-charge%b\x00\x0dserver-timing%b" % (
        head,
        call_id,
        _text(request_id),
        _text(charge),
        _text(timing),
    )


def head_block(encoder: BlockEncoder, status: int, headers: Headers) -> bytes:
    """`:status` and a backend's `headers`; encoded once where the wire shares them between equal replies."""
    if type(headers) is not FieldList:
        return encoder.status(status) + encoder.encode(headers)
    known = headers.memo
    if type(known) is not tuple or known[0] != status:
        known = headers.memo = (status, encoder.status(status) + encoder.encode(headers))
    return cast(bytes, known[1])


def limits_block(policy: bytes, left: bytes) -> bytes:
    """`ratelimit-policy` and `ratelimit`: what the limits are and what is left of them."""
    return b"\x00\x10ratelimit-policy%b\x00\x09ratelimit%b" % (_text(policy), _text(left))


class Trailers:
    """What a backend's trailers say: `kept` is passed on (`block`: encoded), `status` is their `grpc-status`."""

    __slots__ = ("block", "kept", "status")

    def __init__(self, trailers: Headers) -> None:
        self.status: bytes | None = None
        self.kept: Headers = []
        #: Set by who first needs it.
        self.block: bytes | None = None
        for pair in trailers:
            if pair[0] == b"grpc-status" and self.status is None:
                self.status = pair[1]
            if not pair[0].startswith(b"tollway-"):
                self.kept.append(pair)


def trailers_of(trailers: Headers) -> Trailers:
    """Read once where the wire shares them between equal replies."""
    if type(trailers) is not FieldList:
        return Trailers(trailers)
    known = trailers.memo
    if type(known) is not Trailers:
        known = trailers.memo = Trailers(trailers)
    return known
