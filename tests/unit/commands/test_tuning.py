"""The choice of batch size and delay, and the load that measures them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.commands.tuning import (
    Candidate,
    Measured,
    TuningError,
    choose,
    copy_model,
    delays,
    fetch,
    load,
    request_bytes,
    sizes,
    summarise,
    tune,
)

TARGET_MS = 10.0


def measured(rows: int, calls_per_s: float, p99_ms: float, *, delay_us: int = 0, failed: int = 0) -> Measured:
    candidate = Candidate(rows=rows, delay_us=delay_us)
    return Measured(candidate=candidate, calls_per_s=calls_per_s, p50_ms=p99_ms / 2, p99_ms=p99_ms, failed=failed)


@pytest.mark.parametrize(
    ("rows_max", "rows"), [(1, [0]), (2, [0, 2]), (8, [0, 2, 4, 8]), (12, [0, 2, 4, 8, 12]), (16, [0, 2, 4, 8, 16])]
)
def test_sizes_double_up_to_the_models_own_bound(rows_max: int, rows: list[int]) -> None:
    assert [one.rows for one in sizes(rows_max)] == rows
    assert not any(one.delay_us for one in sizes(rows_max))


def test_the_fastest_that_keeps_the_target_is_chosen() -> None:
    found = [measured(0, 100, 1), measured(4, 200, 9.9), measured(8, 300, 10.1)]
    assert choose(found, TARGET_MS) is found[1]


def test_batching_must_pay() -> None:
    found = [measured(0, 980, 1), measured(4, 1000, 2), measured(8, 1005, 3)]
    assert choose(found, TARGET_MS) is found[0]


def test_a_candidate_with_failures_is_none() -> None:
    assert choose([measured(0, 100, 1, failed=1)], TARGET_MS) is None


def test_none_is_chosen_where_none_keeps_the_target() -> None:
    assert choose([measured(0, 100, 11), measured(2, 100, 12)], TARGET_MS) is None


def test_waits_are_measured_for_the_best_size_only() -> None:
    asked: list[Candidate] = []
    reported: list[tuple[int, int]] = []

    def measure(candidate: Candidate) -> Measured:
        asked.append(candidate)
        gain = 2 if candidate.delay_us == 2000 else 1
        return measured(candidate.rows, 100 * gain * max(candidate.rows, 1), 5, delay_us=candidate.delay_us)

    found, best = tune(measure, 4, TARGET_MS, lambda _one, done, total: reported.append((done, total)))
    assert asked == [*sizes(4), *delays(4, TARGET_MS)]
    assert [one.delay_us for one in delays(4, TARGET_MS)] == [500, 2000, 5000]
    assert best is found[4]
    assert reported == [(number, 6) for number in range(1, 7)]


def test_no_waits_are_measured_where_batching_does_not_pay() -> None:
    found, best = tune(lambda one: measured(one.rows, 100, 5), 8, TARGET_MS, lambda *_: None)
    assert [one.candidate for one in found] == sizes(8)
    assert best is found[0]


def test_percentiles_are_those_of_callers() -> None:
    one = summarise(Candidate(rows=0, delay_us=0), [0.001 * number for number in range(1, 101)], 2.0, 3)
    assert (one.calls_per_s, one.p50_ms, one.p99_ms, one.failed) == (50, 50, 99, 3)
    with pytest.raises(TuningError, match="no call was answered within 2 s"):
        summarise(Candidate(rows=0, delay_us=0), [], 2.0, 0)


def test_a_models_files_lie_beside_another_configuration(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(b"weights")
    (tmp_path / "m" / "config.pbtxt").write_text("old")
    copy_model(tmp_path / "m", tmp_path / "copy" / "m", "new")
    assert (tmp_path / "copy" / "m" / "1" / "model.onnx").read_bytes() == b"weights"
    assert (tmp_path / "copy" / "m" / "config.pbtxt").read_text() == "new"
    assert (tmp_path / "m" / "config.pbtxt").read_text() == "old"


Answer = Callable[[bytes], bytes]


@contextlib.asynccontextmanager
async def serving(path: Path, answer: Answer) -> AsyncIterator[None]:
    """A server that gives `answer(request)` to each request of a known length."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                reply = answer(head + await reader.readexactly(length))
                if not reply:
                    break
                writer.write(reply)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield


def reply(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


def test_every_answer_is_counted_and_other_than_200_as_failed(tmp_path: Path) -> None:
    request = request_bytes("POST", "/v2/models/m/infer", b"body", "x: y\r\n")
    seen: list[bytes] = []

    def answer(data: bytes) -> bytes:
        seen.append(data)
        return reply(200 if len(seen) % 2 else 503, b"ok")

    async def main() -> None:
        async with serving(tmp_path / "s", answer):
            latencies, seconds, failed = await load(tmp_path / "s", request, 4, 0.1)
        assert seconds == 0.1
        assert set(seen) == {request}
        assert 0 < len(latencies) <= len(seen)
        assert 0 < failed < len(latencies)

    asyncio.run(main())


def test_an_engine_that_breaks_off_ends_the_measurement(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path / "s", lambda _data: b""):
            with pytest.raises(TuningError, match="broke the connection off"):
                await fetch(tmp_path / "s", "GET", "/")
            with pytest.raises(TuningError, match="broke the connection off"):
                await load(tmp_path / "s", request_bytes("GET", "/", b"", ""), 2, 0.1)
        with pytest.raises(TuningError, match=r"No such file|refused"):
            await load(tmp_path / "s", request_bytes("GET", "/", b"", ""), 1, 0.1)

    asyncio.run(main())
