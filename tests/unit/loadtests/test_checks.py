"""The proofs are strict: a scrape is summed by labels, a record must be in a file, a peer must refuse."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtests.checks import check_peer_policy, is_in_files, metric_sum
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
