"""The proofs are strict: a scrape is summed by labels, a record must be in a file, a peer must refuse."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtests.checks import check_peer_policy, is_in_files, judge_books, metric_sum
from loadtests.contenders import Contender
from loadtests.payloads import Body, http_body

_SCRAPE = """# HELP calls Calls.
calls_total{protocol="http",code="ok"} 5
calls_total{protocol="grpc",code="ok"} 7
calls_total{protocol="http",code="unauthenticated"} 2
calls_total_other{protocol="http"} 100
lag 3
"""


def test_metric_sum_adds_matching_samples_of_exactly_that_name() -> None:
    assert metric_sum(_SCRAPE, "calls_total") == 14
    assert metric_sum(_SCRAPE, "calls_total", protocol="http") == 7
    assert metric_sum(_SCRAPE, "calls_total", protocol="http", code="ok") == 5
    assert metric_sum(_SCRAPE, "lag") == 3
    assert metric_sum(_SCRAPE, "absent") == 0


def test_a_record_is_found_in_whatever_file_below_the_folder(tmp_path: Path) -> None:
    (tmp_path / "w0" / "1").mkdir(parents=True)
    (tmp_path / "w0" / "1" / "segment").write_bytes(b"\0" * 100 + b"needle" + b"\0" * 100)
    assert is_in_files(b"needle", tmp_path)
    assert not is_in_files(b"needles", tmp_path)


@contextmanager
def _server(*, is_open: bool) -> Iterator[str]:
    """A proxy that asks for a key, or one that should but does not."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200 if is_open or self.headers["x-api-key"] == "k" else 401)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _run(url: str, folder: Path) -> dict[str, bool]:
    body: Body = http_body(folder, "x", (1, 4))
    usage = folder / "usage.log"
    usage.write_text("a line\n")
    contender = Contender(name="peer", http=url, headers=(("x-api-key", "k"),))
    return {check.name: check.is_passed for check in check_peer_policy(contender, body, usage)}


def test_a_peer_that_refuses_without_key_passes(tmp_path: Path) -> None:
    with _server(is_open=False) as url:
        assert _run(url, tmp_path) == {"key": True, "usage line": True}


def test_a_peer_that_serves_without_key_fails(tmp_path: Path) -> None:
    with _server(is_open=True) as url:
        assert _run(url, tmp_path) == {"key": False, "usage line": True}


def _books(*, answered: int, posted: int, voided: int, quarantined: int = 0, lag: int = 0) -> str:
    return f"""# TYPE tollway_record_wait_seconds histogram
tollway_record_wait_seconds_count {answered}
tollway_meter_lag_records {lag}
tollway_meter_events_total{{fate="posted"}} {posted}
tollway_meter_events_total{{fate="voided"}} {voided}
tollway_meter_events_total{{fate="quarantined"}} {quarantined}
"""


def _kept(text: str) -> list[bool]:
    return [check.is_passed for check in judge_books("tollway_all", text)]


def test_calls_whose_caller_had_left_are_voided_and_the_books_are_whole() -> None:
    assert _kept(_books(answered=100, posted=98, voided=2)) == [True, True]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (_books(answered=100, posted=97, voided=2), [False, True]),
        (_books(answered=100, posted=100, voided=2), [False, True]),
        (_books(answered=100, posted=98, voided=2, lag=1), [False, True]),
        (_books(answered=2, posted=0, voided=2), [False, True]),
        (_books(answered=100, posted=99, voided=0, quarantined=1), [False, False]),
        ("# TYPE x counter\nx 1\n", [False, True]),
    ],
    ids=["lost", "posted twice", "waiting", "only voids", "quarantined", "no meter"],
)
def test_books_that_are_not_whole_are_found(text: str, kept: list[bool]) -> None:
    assert _kept(text) == kept
