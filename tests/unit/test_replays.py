"""I4: N sends of one Idempotency-Key are one execution, billed once, with the same bytes back, over workers."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import replays
from gateway.call import RequestHead
from gateway.errors import Refusal
from gateway.replays import (
    ALREADY_SERVED,
    BROKEN,
    CLAIMS_MAX,
    FULL,
    IN_FLIGHT,
    KEPT_S,
    MISMATCH,
    REPLY_BYTES_MAX,
    REQUEST_BYTES_MAX,
    Claim,
    ReplayStore,
    Stored,
)
from tests.leaks import assert_none_left, held
from tests.unit.test_pipeline import KEY_TEXT, FakeExchange, World, refused_with

NOW_S = 1_770_000_000
HEAD = RequestHead(b"POST", b"/v2/models/flat/infer", [(b"content-type", b"application/json")], b"h", 3)


def begin(store: ReplayStore, key: bytes = b"k1", body: bytes = b"abc", **more: Any) -> Claim | Stored | Refusal:
    fields: dict[str, Any] = {"tenant": "acme", "key_id": "key-1", "head": HEAD, "now_s": NOW_S} | more
    return store.begin(fields["tenant"], fields["key_id"], key, fields["head"], body, now_s=fields["now_s"])


def claimed(store: ReplayStore, key: bytes = b"k1", **more: Any) -> Claim:
    found = begin(store, key, **more)
    assert isinstance(found, Claim), found
    return found


def served(store: ReplayStore, body: bytes = b"reply", key: bytes = b"k1", **more: Any) -> None:
    claim = claimed(store, key, **more)
    claim.keep(200, [(b"x", b"1"), (b"ratelimit", b"r=1")], body, None)
    claim.end()


@pytest.fixture
def store(tmp_path: Path) -> ReplayStore:
    return ReplayStore(tmp_path / "replay")


def test_the_first_reply_comes_back_byte_for_byte_and_from_any_worker(store: ReplayStore, tmp_path: Path) -> None:
    served(store)
    for one in (store, ReplayStore(tmp_path / "replay")):
        found = begin(one)
        assert isinstance(found, Stored)
        assert (found.status, found.headers, found.body, found.trailers) == (200, [(b"x", b"1")], b"reply", None)


def test_a_key_is_in_flight_for_every_worker_until_it_ends(store: ReplayStore, tmp_path: Path) -> None:
    other = ReplayStore(tmp_path / "replay")
    claim = claimed(store)
    assert begin(store) is IN_FLIGHT
    assert begin(other) is IN_FLIGHT
    assert begin(other, body=b"else") is MISMATCH
    claim.end()
    claim.end()
    claimed(other).end()


@pytest.mark.parametrize(
    "change",
    [
        {"body": b"else"},
        {"key_id": "key-2"},
        {"head": RequestHead(b"POST", b"/v2/models/other/infer", HEAD.headers, b"h", 3)},
        {"head": RequestHead(b"POST", HEAD.target, [(b"content-encoding", b"gzip")], b"h", 3)},
    ],
)
def test_another_request_under_the_same_key_is_refused(store: ReplayStore, change: dict[str, Any]) -> None:
    served(store)
    assert begin(store, **change) is MISMATCH


def test_another_tenant_has_keys_of_its_own(store: ReplayStore) -> None:
    served(store)
    claimed(store, tenant="beta").end()


def test_headers_that_do_not_matter_make_no_other_request(store: ReplayStore) -> None:
    served(store)
    head = RequestHead(b"POST", HEAD.target, [*HEAD.headers, (b"x-request-id", b"9"), (b"traceparent", b"t")], b"h", 3)
    assert isinstance(begin(store, head=head), Stored)


@pytest.mark.parametrize(("size", "expected"), [(REPLY_BYTES_MAX, Stored), (REPLY_BYTES_MAX + 1, Refusal)])
def test_a_reply_is_kept_up_to_one_mebibyte(store: ReplayStore, size: int, expected: type) -> None:
    claim = claimed(store)
    claim.add(b"x" * (size - 10))
    claim.keep(200, [], b"y" * 10, None)
    claim.end()
    found = begin(store)
    assert isinstance(found, expected)
    assert found is ALREADY_SERVED or isinstance(found, Stored)


def test_a_key_is_new_again_after_24_hours_and_swept(store: ReplayStore, tmp_path: Path) -> None:
    served(store)
    assert isinstance(begin(store, now_s=NOW_S + KEPT_S - 1), Stored)
    claimed(store, now_s=NOW_S + KEPT_S).end()
    assert isinstance(begin(store, now_s=NOW_S - 999), Stored)
    (kept,) = [path for path in (tmp_path / "replay").rglob("*") if path.is_file()]
    os.utime(kept, (NOW_S, NOW_S))
    assert store.sweep(NOW_S + KEPT_S - 1) + store.sweep(NOW_S + KEPT_S - 1) == 0
    assert store.sweep(NOW_S + KEPT_S) + store.sweep(NOW_S + KEPT_S) == 1
    assert not kept.exists()


def test_a_lock_is_swept_only_when_nobody_holds_it(store: ReplayStore, tmp_path: Path) -> None:
    claim = claimed(store)
    (lock,) = (tmp_path / "replay").rglob("*.lock")
    os.utime(lock, (NOW_S, NOW_S))
    later = NOW_S + KEPT_S
    assert store.sweep(later) + store.sweep(later) == 0
    fd = claim._fd
    assert fd is not None
    os.close(fd)
    assert store.sweep(later) + store.sweep(later) == 1


def test_a_damaged_reply_is_as_good_as_none(store: ReplayStore, tmp_path: Path) -> None:
    served(store)
    (kept,) = [path for path in (tmp_path / "replay").rglob("*") if path.is_file()]
    kept.write_bytes(kept.read_bytes()[:7])
    claimed(store).end()


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"with blank", b"\xff", b"tab\t"])
def test_a_malformed_key_is_refused(store: ReplayStore, key: bytes) -> None:
    found = begin(store, key)
    assert isinstance(found, Refusal)
    assert found.code == "bad_request"


def test_the_longest_key_is_taken(store: ReplayStore) -> None:
    claimed(store, b"x" * 255).end()


def test_so_many_run_at_a_time_and_no_more(store: ReplayStore) -> None:
    claims = [claimed(store, b"k%d" % number) for number in range(CLAIMS_MAX)]
    assert begin(store, b"one-more") is FULL
    claims.pop().end()
    claimed(store, b"one-more").end()
    for claim in claims:
        claim.end()


def test_a_tenant_keeps_so_many_and_another_is_not_touched(store: ReplayStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "ENTRIES_MAX", 3)
    for number in range(3):
        served(store, key=b"k%d" % number)
    assert begin(store, b"k3") is FULL
    assert isinstance(begin(store, b"k1"), Stored)
    claimed(store, b"k3", tenant="beta").end()


def test_a_disk_that_cannot_be_written_refuses_the_call(tmp_path: Path) -> None:
    (tmp_path / "replay").write_text("a file where the folder should be")
    found = begin(ReplayStore(tmp_path / "replay"))
    assert isinstance(found, Refusal)
    assert found.code == "metering_unavailable"


@pytest.mark.parametrize("fault", ["pwrite", "fstat"])
def test_claims_that_a_full_disk_stopped_leave_nothing_behind_when_it_recovers(
    store: ReplayStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    before = held()
    with monkeypatch.context() as broken:
        broken.setattr(os, fault, full)
        for number in range(CLAIMS_MAX + 1):
            assert begin(store, b"k%d" % number) is BROKEN
    assert_none_left(before, CLAIMS_MAX)
    claimed(store, b"k0").end()
    served(store, key=b"k1")
    assert isinstance(begin(ReplayStore(tmp_path / "replay"), b"k1"), Stored)


HOLDER = """
import os, sys
from pathlib import Path
from tests.unit.test_replays import ReplayStore, claimed, served
store = ReplayStore(Path(sys.argv[1]))
if sys.argv[2] == "kept":
    served(store)
else:
    claim = claimed(store)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("state", "expected"), [("running", Claim), ("kept", Stored)])
def test_what_a_killed_worker_held_can_be_run_anew_and_what_it_kept_is_replayed(
    store: ReplayStore, tmp_path: Path, state: str, expected: type
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "replay"), state]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        if state == "running":
            assert begin(store) is IN_FLIGHT
        holder.send_signal(signal.SIGKILL)
        holder.wait(60)
    found = begin(store)
    assert isinstance(found, expected)
    if isinstance(found, Claim):
        found.end()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["send", "finish", "fail"])), max_size=30))
def test_a_key_is_executed_once_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]]
) -> None:
    """Two workers take turns; `executed` counts claims whose reply was kept: never more than one a key."""
    root = tmp_path_factory.mktemp("replays")
    stores = [ReplayStore(root), ReplayStore(root)]
    running: dict[str, Claim] = {}
    executed: dict[str, int] = {}
    for number, (key, what) in enumerate(steps):
        if what == "send":
            found = begin(stores[number % 2], key.encode())
            if isinstance(found, Claim):
                assert key not in running
                assert not executed.get(key)
                running[key] = found
            elif key in running:
                assert found is IN_FLIGHT
            else:
                assert isinstance(found, Stored)
                assert executed[key] == 1
        elif key in running:
            claim = running.pop(key)
            if what == "finish":
                claim.keep(200, [], key.encode(), None)
                executed[key] = executed.get(key, 0) + 1
            claim.end()
    for claim in running.values():
        claim.end()


class Keyed(World):
    """A gateway that keeps replies."""

    def __init__(self, folder: Path, **more: Any) -> None:
        super().__init__(**more)
        self.gateway.replays = ReplayStore(folder / "replay")

    def send(self, key: bytes = b"k1", body: bytes = b"abc", target: bytes = b"/v2/models/flat/infer") -> FakeExchange:
        return self.post(self.head(target, (b"idempotency-key", key), length=len(body)), body)


@pytest.fixture
def world(tmp_path: Path) -> Keyed:
    return Keyed(tmp_path)


def test_a_call_sent_again_is_answered_by_its_first_reply_and_billed_once(world: Keyed) -> None:
    first = world.send()
    world.answer(world.pool.requests[0], b'{"y":1}')
    assert first.replies == []
    world.log.sync()
    second = world.send()
    (status, headers, body, _), (status_2, headers_2, body_2, _) = first.replies[0], second.replies[0]
    assert (status, body) == (status_2, body_2) == (200, b'{"y":1}')
    assert headers_2[b"idempotency-replayed"] == b"true"
    assert b"idempotency-replayed" not in headers
    assert headers_2[b"tollway-call-id"] == headers[b"tollway-call-id"]
    assert headers_2[b"tollway-charge"] == headers[b"tollway-charge"]
    assert len(world.pool.requests) == len(world.log.records) == 1
    assert world.quota.released == [True]
    world.assert_at_rest()


def test_while_it_runs_and_with_another_body_it_is_refused_and_nothing_runs(world: Keyed) -> None:
    world.send()
    assert refused_with(world.send()) == "idempotency_in_flight"
    assert refused_with(world.send(body=b"else")) == "idempotency_mismatch"
    world.answer(world.pool.requests[0])
    world.log.sync()
    assert refused_with(world.send(body=b"else")) == "idempotency_mismatch"
    assert len(world.pool.requests) == len(world.log.records) == 1
    world.assert_at_rest()


@pytest.mark.parametrize("status", [400, 500])
def test_a_failed_call_is_not_kept_and_may_be_sent_again(world: Keyed, status: int) -> None:
    world.send()
    world.answer(world.pool.requests[0], b"{}", status)
    again = world.send()
    world.answer(world.pool.requests[1])
    world.log.sync()
    assert again.replies[0][0] == 200
    assert len(world.log.records) == 1
    world.assert_at_rest()


def test_a_caller_who_left_before_the_record_pays_nothing_and_may_send_again(world: Keyed) -> None:
    gone = world.send()
    world.gateway.on_abort(gone)
    left = world.send()
    world.answer(world.pool.requests[1])
    world.gateway.on_abort(left)
    world.log.sync()
    assert world.log.ended == [(1, "gone_before_durable", 0)]
    world.send()
    assert len(world.pool.requests) == 3
    world.answer(world.pool.requests[2])
    world.log.sync()
    world.assert_at_rest()


def test_a_large_streamed_reply_is_told_to_be_served_already(world: Keyed) -> None:
    exchange = world.send()
    upstream = world.pool.requests[0]
    upstream.listener.on_reply_head(200, [], -1)
    for _ in range(20):
        upstream.listener.on_reply_body(b"x" * 65_536)
    upstream.listener.on_reply_end([])
    world.log.sync()
    assert len(exchange.streamed) == 20 * 65_536
    assert refused_with(world.send()) == "already_served"
    world.assert_at_rest()


def test_a_streamed_reply_that_is_small_enough_comes_back_whole(world: Keyed) -> None:
    world.send()
    upstream = world.pool.requests[0]
    upstream.listener.on_reply_head(200, [(b"content-type", b"application/json")], -1)
    for piece in (b"a" * 65_536, b"b" * 65_536, b"c"):
        upstream.listener.on_reply_body(piece)
    upstream.listener.on_reply_end([])
    world.log.sync()
    assert world.send().replies[0][2] == b"a" * 65_536 + b"b" * 65_536 + b"c"
    world.assert_at_rest()


def test_a_reply_that_cannot_be_kept_fails_the_call_and_is_not_billed(
    world: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = world.send()
    world.answer(world.pool.requests[0])

    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Claim, "keep", full)
    world.log.sync()
    assert refused_with(exchange) == "internal"
    assert world.log.ended == [(1, "callback_failed", 0)]
    world.assert_at_rest()


def test_without_metering_or_a_place_for_replies_keys_are_refused(world: Keyed) -> None:
    world.gateway.replays = None
    assert refused_with(world.send()) == "idempotency_unsupported"


def test_two_different_keys_at_once_are_refused(world: Keyed) -> None:
    head = world.head(b"/v2/models/flat/infer", (b"idempotency-key", b"a"), (b"idempotency-key", b"b"))
    assert refused_with(world.post(head)) == "bad_request"


def test_a_key_without_the_right_to_the_model_gets_no_replay(tmp_path: Path) -> None:
    allowed = Keyed(tmp_path)
    allowed.send()
    allowed.answer(allowed.pool.requests[0])
    allowed.log.sync()
    limited = Keyed(tmp_path, models=("rows",))
    assert refused_with(limited.send()) == "model_forbidden"


def test_a_request_larger_than_what_is_held_is_refused(world: Keyed) -> None:
    piece = b"x" * (REQUEST_BYTES_MAX // 2)
    for more in (b"", b"y"):
        exchange = world.begin(world.head(b"/v2/models/flat/infer", (b"idempotency-key", b"k" + more), length=-1))
        for data in filter(None, (piece, piece, more)):
            world.gateway.on_body(exchange, data)
        if not more:
            world.gateway.on_end(exchange)
            world.answer(world.pool.requests[0])
            world.log.sync()
            assert exchange.replies[0][0] == 200
    assert refused_with(exchange) == "body_too_large"
    world.assert_at_rest()


def test_a_grpc_call_is_replayed_with_its_trailers(world: Keyed) -> None:
    message = b"\x0a\x04flat"
    body = b"\0" + len(message).to_bytes(4, "big") + message
    headers = [
        (b"authorization", b"Bearer " + KEY_TEXT),
        (b"idempotency-key", b"g1"),
        (b"content-type", b"application/grpc"),
    ]
    target = b"/inference.GRPCInferenceService/ModelInfer"
    exchanges = []
    for _ in range(2):
        exchange = FakeExchange(RequestHead(b"POST", target, headers, b"h", -1, is_grpc=True))
        world.gateway.on_request(exchange, body)
        exchanges.append(exchange)
        if world.grpc_pool.requests and not exchange.replies:
            upstream = world.grpc_pool.requests[0]
            upstream.listener.on_reply_head(200, [(b"content-type", b"application/grpc")], -1)
            upstream.listener.on_reply_body(b"\0\0\0\0\1x")
            upstream.listener.on_reply_end([(b"grpc-status", b"0")])
            world.log.sync()
    first, second = (exchange.replies[0] for exchange in exchanges)
    assert (second[0], second[2], second[3]) == (first[0], first[2], first[3])
    assert second[1][b"idempotency-replayed"] == b"true"
    assert len(world.log.records) == 1
