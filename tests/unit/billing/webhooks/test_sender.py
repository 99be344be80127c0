"""One POST over a real socket: the pinned address, no redirects, bounded; and the schedule of attempts."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from billing.webhooks import sender
from billing.webhooks.schedule import (
    ATTEMPTS_MAX,
    DISABLE_AFTER_NS,
    JITTER,
    NS_PER_S,
    PAUSES_S,
    next_attempt_ns,
    should_disable,
)
from billing.webhooks.targets import Target


@contextmanager
def server(reply: bytes) -> Iterator[tuple[Target, list[bytes]]]:
    """Takes one connection, reads a request, answers `reply` and closes."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            data = b""
            while b"\r\n\r\n" not in data or not data.endswith(b"}"):
                piece = connection.recv(65_536)
                if not piece:
                    break
                data += piece
            seen.append(data)
            connection.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    port = listener.getsockname()[1]
    try:
        yield Target("http", "hooks.example.com", port, "/in?x=1", "127.0.0.1"), seen
    finally:
        thread.join(timeout=60)
        listener.close()


def test_the_request_goes_to_the_pinned_address_under_its_own_name() -> None:
    with server(b"HTTP/1.1 204 No Content\r\n\r\n") as (target, seen):
        result = sender.post(target, {"webhook-id": "evt_1"}, b'{"a":1}')
    assert (result.is_ok, result.status) == (True, 204)
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /in?x=1 HTTP/1.1\r\n")
    assert b"Host: hooks.example.com" in head
    assert b"webhook-id: evt_1" in head
    assert b"content-length: 7" in head
    assert body == b'{"a":1}'


def test_a_redirect_is_a_failure_and_is_not_followed() -> None:
    with server(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n") as (target, _):
        result = sender.post(target, {}, b"{}")
    assert (result.is_ok, result.status) == (False, 302)


def test_a_long_reply_is_cut_for_the_log() -> None:
    reply = b"HTTP/1.1 500 Oops\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
    with server(reply) as (target, _):
        result = sender.post(target, {}, b"{}")
    assert result.status == 500
    assert len(result.detail) == sender.REPLY_BYTES_MAX


@pytest.mark.parametrize("reply", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"])
def test_a_broken_answer_is_no_answer(reply: bytes) -> None:
    with server(reply) as (target, _):
        result = sender.post(target, {}, b"{}")
    assert (result.is_ok, result.status) == (False, 0)
    assert result.detail


def test_nobody_there_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = sender.post(Target("http", "h", port, "/", "127.0.0.1"), {}, b"{}")
    assert (result.status, result.detail) == (0, "connection: ConnectionRefusedError")


def test_who_does_not_answer_is_cut_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "TOTAL_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = Target("http", "h", silent.getsockname()[1], "/", "127.0.0.1")
        assert sender.post(target, {}, b"{}").detail == "timed out"


def test_a_server_without_tls_does_not_get_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "CONNECT_S", 0.2)
    with server(b"HTTP/1.1 200 OK\r\n\r\n") as (target, seen):
        result = sender.post(target._replace(scheme="https"), {}, b'{"secret":1}')
    assert result.status == 0
    assert b"secret" not in b"".join(seen)


def test_attempts_are_spaced_with_jitter_and_end() -> None:
    for attempts, pause_s in enumerate(PAUSES_S, 1):
        assert next_attempt_ns(attempts, 0, lambda: 0.0) == pause_s * NS_PER_S
        assert next_attempt_ns(attempts, 0, lambda: 1.0) == int(pause_s * NS_PER_S * (1 + JITTER))
    assert next_attempt_ns(ATTEMPTS_MAX, 0, lambda: 0.0) is None
    assert 70 * 3_600 < sum(PAUSES_S) < 80 * 3_600


def test_an_endpoint_is_switched_off_when_gone_or_failing_for_days() -> None:
    assert should_disable(410, None, 0)
    assert not should_disable(500, 0, DISABLE_AFTER_NS - 1)
    assert should_disable(500, 0, DISABLE_AFTER_NS)
    assert not should_disable(500, None, DISABLE_AFTER_NS)
