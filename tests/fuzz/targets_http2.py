"""Fuzz targets over HTTP/2: connections of both roles, header blocks against the `hpack` package."""

from typing import Any

import hpack

from gateway.call import Headers
from gateway.wire import http2_frames as frames
from gateway.wire.header_blocks import BlockDecoder
from gateway.wire.header_memo import HeaderMemo
from gateway.wire.http2_frames import Http2Error, Http2Limits
from tests.fuzz.feeding import joined, pieces, steps
from tests.unit.wire.h2_tools import GRPC, PLAIN_SETTINGS, REQUEST, Peer, block, data, frame, head

#: Small, so that short inputs reach them.
_LIMITS: dict[str, Any] = {"streams_max": 4, "header_list_bytes_max": 1024, "headers_max": 16}


def frames_of(raw: bytes) -> bytes:
    """Bytes as frames: kind, flags and stream of each in three bytes, so that mutation keeps frames whole."""
    out = b""
    for part in pieces(raw):
        kind, flags, stream_id = (*part[:3], 0, 0, 0)[:3]
        out += frame(kind % 12, flags, stream_id % 16, part[3:])
    return out


def _run(raw: bytes, parts: list[bytes], *, is_client: bool) -> Peer:
    peer = Peer(is_client=is_client, **_LIMITS)
    if is_client:
        peer.connection.open(block(REQUEST), None, is_end=False)
        peer.connection.open(block(REQUEST), None, is_end=True)
        peer.sent()
    for part in parts:
        peer.feed(part)
    return peer


def _log(peer: Peer) -> list[tuple[object, ...]]:
    """What was heard, with a stream's data in one piece: cuts may split it differently."""
    log: list[tuple[object, ...]] = []
    bodies: dict[object, bytes] = {}
    for entry in peer.recorder.log:
        if entry[0] == "data":
            bodies[entry[1]] = bodies.get(entry[1], b"") + entry[2]
        else:
            log.append(entry)
    return [*log, *sorted(bodies.items(), key=str)]


def _connection(raw: bytes, *, is_client: bool) -> None:
    if not raw:
        return
    body = frames_of(raw[1:]) if raw[0] & 1 else raw[1:]
    whole = _run(body, [body], is_client=is_client)
    cut = _run(body, list(steps(body, raw[0])), is_client=is_client)
    assert _log(cut) == _log(whole)
    assert cut.error_code == whole.error_code
    assert set(cut.connection.streams) == set(whole.connection.streams)
    for peer in (whole, cut):
        kinds = [kind for kind, *_ in peer.sent()]
        assert (frames.GOAWAY in kinds) == (peer.connection.error is not None)
        assert len(peer.connection.streams) <= 8
        for one in peer.recorder.heads:
            assert b"\r" not in one.target + one.authority
            assert all(name == name.lower() and not name.startswith(b":") for name, _ in one.headers)


def http2_server(raw: bytes) -> None:
    """Any bytes, cut in any way: nothing escapes, the same is heard, GOAWAY says every connection error."""
    _connection(raw, is_client=False)


def http2_client(raw: bytes) -> None:
    """The same for the side that opens streams."""
    _connection(raw, is_client=True)


def _fields(decoder: BlockDecoder, raw: bytes) -> Headers | None:
    try:
        return [pair for pair, _ in decoder.decode(raw).fields]
    except Http2Error:
        return None


def _stateless(memo: HeaderMemo) -> BlockDecoder:
    decoder = BlockDecoder(Http2Limits(), memo)
    decoder.on_acknowledged()
    decoder.decode(b"\x20")
    return decoder


def _reference(raw: bytes) -> Headers | None:
    """What `hpack` reads from a block, with a table of size 0."""
    decoder = hpack.Decoder(1 << 20)
    decoder.max_allowed_table_size = 0
    try:
        return [(bytes(pair[0]), bytes(pair[1])) for pair in decoder.decode(b"\x20" + raw, raw=True)]
    except (hpack.HPACKError, IndexError):
        return None


def header_blocks(raw: bytes) -> None:
    """What earlier blocks left in the memo never changes a later one, and the reference reads the same fields."""
    memo = HeaderMemo(blocks_max=3, fields_max=5)
    warm = _stateless(memo)
    for part in pieces(raw):
        expected = _fields(_stateless(HeaderMemo()), part)
        assert _fields(warm, part) == expected
        assert _fields(warm, part) == expected
        if expected is not None:
            assert _reference(part) == expected, "more lenient than the reference, or another meaning"
    stateful = BlockDecoder(Http2Limits(), HeaderMemo())
    for part in pieces(raw):
        if _fields(stateful, part) is None:
            return


def _seed(*parts: bytes) -> bytes:
    """Whole frames as `frames_of` reads them."""
    return b"\x01" + joined([part[3:5] + part[8:9] + part[9:] for part in parts])


def _block(path: bytes, timeout: bytes) -> bytes:
    return block([*GRPC[:2], (b":path", path), *GRPC[3:], (b"grpc-timeout", timeout)])


SERVER_SEEDS = [
    _seed(head(1, GRPC), frame(frames.WINDOW_UPDATE, 0, 1, b"\0\0\0\x05"), data(1, b"abc", is_end=True), head(3, GRPC)),
    _seed(head(1, GRPC), data(1, b"\0\0\0\0\x03abc", is_end=True), head(3, is_end=True)),
    _seed(frame(frames.PING, 0, 0, b"12345678"), frame(frames.RST_STREAM, 0, 1, b"\0\0\0\x08")),
    _seed(
        head(1), frame(frames.WINDOW_UPDATE, 0, 1, b"\0\0\0\x01"), data(1, b"x"), frame(frames.GOAWAY, 0, 0, b"\0" * 8)
    ),
    b"\x02" + PLAIN_SETTINGS + head(1, GRPC) + data(1, b"abc", is_end=True),
    _seed(frame(frames.HEADERS, 0, 1, block(GRPC)[:9]), frame(frames.CONTINUATION, 4, 1, block(GRPC)[9:])),
]
_OK = block([(b":status", b"200"), (b"content-type", b"application/grpc")])
CLIENT_SEEDS = [
    _seed(
        frame(frames.HEADERS, 4, 1, _OK), data(1, b"abc"), frame(frames.HEADERS, 5, 1, block([(b"grpc-status", b"0")]))
    ),
    _seed(frame(frames.HEADERS, 5, 3, _OK), frame(frames.GOAWAY, 0, 0, b"\0\0\0\x01\0\0\0\0")),
    _seed(frame(frames.HEADERS, 4, 1, block([(b":status", b"100")])), frame(frames.HEADERS, 4, 1, _OK)),
]
BLOCK_SEEDS = [
    joined([_block(b"/a", b"10m"), _block(b"/a", b"9999m"), _block(b"/b", b"10m"), b"\x82\x86\x84"]),
    joined([hpack.Encoder().encode(GRPC), hpack.Encoder().encode([(b":path", b"/x"), (b"a", b"b" * 90)])]),
]
