"""Owns the proof that what a contender is said to do is really done: sampled calls, file growth, a metrics scrape."""

import http.client
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import grpc

from loadtests.contenders import Contender
from loadtests.contenders.direct import MODEL
from loadtests.measure import backend_counters
from loadtests.payloads import GRPC_PATH, HTTP_PATH, Body

_TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
_TRACEPARENT: Final = f"00-{_TRACE_ID}-00f067aa0ba902b7-01"
_WAIT_S: Final = 5.0
#: More than the small plan's burst of 10 plus what a slow second lets through.
_BURST_CALLS: Final = 40
_GRPC_MESSAGE_BYTES_MAX: Final = -1
_LAG: Final = "tollway_meter_lag_records"
_EVENTS: Final = "tollway_meter_events_total"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One promise and whether it was kept."""

    contender: str
    name: str
    is_passed: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Status and headers (names lower-case); for gRPC status is the code's number and both metadata are merged."""

    status: int
    headers: Mapping[str, str]


def call_http(contender: Contender, body: Body, headers: Mapping[str, str]) -> Reply:
    """One infer call with exactly `headers` besides the body's own."""
    address = urlsplit(contender.http or "")
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
    try:
        path = HTTP_PATH.format(model=MODEL)
        connection.request("POST", path, body.file.read_bytes(), {**dict(body.headers), **headers})
        answer = connection.getresponse()
        answer.read()
        return Reply(status=answer.status, headers={name.lower(): value for name, value in answer.getheaders()})
    finally:
        connection.close()


def call_grpc(contender: Contender, body: Body, headers: Mapping[str, str]) -> Reply:
    """One ModelInfer with raw bytes."""
    message = body.file.read_bytes()[5:]
    options = (("grpc.max_receive_message_length", _GRPC_MESSAGE_BYTES_MAX),)
    with grpc.insecure_channel((contender.grpc or "").removeprefix("http://"), options=options) as channel:
        future = channel.unary_unary(GRPC_PATH).future(message, metadata=tuple(headers.items()), timeout=10)
        status = future.code().value[0]
        pairs = [*(future.initial_metadata() or ()), *(future.trailing_metadata() or ())]
    return Reply(status=status, headers={name: value for name, value in pairs if isinstance(value, str)})


def is_in_files(needle: bytes, folder: Path) -> bool:
    """Whether some file below `folder` holds `needle` now. Files that vanish meanwhile hold nothing."""
    for path in sorted(folder.rglob("*")):
        try:
            if path.is_file() and needle in path.read_bytes():
                return True
        except FileNotFoundError:
            continue
    return False


def _waited(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + _WAIT_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def scrape(contender: Contender) -> str:
    """The text of the contender's metrics page."""
    with urllib.request.urlopen(contender.extras["metrics"], timeout=10) as reply:
        return str(reply.read().decode())


def metric_sum(text: str, name: str, **labels: str) -> float:
    """Sum of a metric's samples that carry `labels`, in Prometheus' text format."""
    total = 0.0
    for line in text.splitlines():
        match = re.match(rf"{re.escape(name)}(?:{{(.*)}})? (\S+)", line)
        if match is not None and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
            total += float(match[2])
    return total


def check_peer_policy(contender: Contender, body: Body, usage_file: Path) -> Iterator[Check]:
    """A proxy with a policy refuses a call without key, serves one with it, and writes a line about it."""
    without = call_http(contender, body, {}).status
    with_key = call_http(contender, body, dict(contender.headers)).status
    is_key = without == 401 and with_key == 200
    yield Check(contender=contender.name, name="key", is_passed=is_key, detail=f"without {without}, with {with_key}")
    is_written = _waited(lambda: usage_file.exists() and usage_file.stat().st_size > 0)
    yield Check(contender=contender.name, name="usage line", is_passed=is_written, detail=usage_file.name)


def check_all_on(contender: Contender, bodies: Mapping[str, Body], backend: Contender) -> Iterator[Check]:
    """Everything that "all on" promises, on sampled calls of both protocols."""
    for protocol, body, call, ok in (
        ("http", bodies["http"], call_http, 200),
        ("grpc", bodies["grpc"], call_grpc, 0),
    ):
        yield from _check_key(contender, protocol, call, body)
        yield from _check_sample(contender, protocol, call, body, ok=ok, backend=backend)
    yield _check_quota(contender, bodies["http"])


def _check_key(contender: Contender, protocol: str, call: Any, body: Body) -> Iterator[Check]:
    refused = 401 if protocol == "http" else grpc.StatusCode.UNAUTHENTICATED.value[0]
    wrong = dict(contender.headers)
    wrong["x-api-key"] = wrong["x-api-key"][:-4] + "AAAA"
    for kind, headers in (("no key", {}), ("a wrong key", wrong)):
        status = call(contender, body, headers).status
        is_passed = status == refused
        yield Check(
            contender=contender.name, name=f"{protocol}: {kind} refused", is_passed=is_passed, detail=f"{status}"
        )


def _check_sample(
    contender: Contender, protocol: str, call: Any, body: Body, *, ok: int, backend: Contender
) -> Iterator[Check]:
    def check(name: str, detail: str, *, is_passed: bool) -> Check:
        return Check(contender=contender.name, name=f"{protocol}: {name}", is_passed=is_passed, detail=detail)

    counted_before = metric_sum(scrape(contender), "tollway_call_duration_seconds_count", protocol=protocol)
    traced_before = backend_counters(backend)["traced"]
    reply: Reply = call(contender, body, {**dict(contender.headers), "traceparent": _TRACEPARENT})
    call_id = reply.headers.get("tollway-call-id", "")
    # Read at once: the record must be in the log when the reply is here, not some time later.
    raw_id = bytes.fromhex(call_id.replace("-", "")) if re.fullmatch(r"[0-9a-f-]{36}", call_id) else b"?"
    is_recorded = len(raw_id) == 16 and is_in_files(raw_id, Path(contender.extras["usage"]))
    yield check("answered", f"status {reply.status}", is_passed=reply.status == ok)
    yield check("durable record", f"call {call_id} in the usage log on its reply", is_passed=is_recorded)
    for name in ("tollway-call-id", "tollway-charge", "ratelimit", "ratelimit-policy", "server-timing"):
        value = reply.headers.get(name, "")
        yield check(f"header {name}", value, is_passed=value != "")
    charge = reply.headers.get("tollway-charge", "")
    yield check("charge is priced", charge, is_passed="reason=priced" in charge and not charge.startswith("0 "))
    log_dir = Path(contender.extras["data"]) / "log"
    has_line = _waited(lambda: is_in_files(call_id.encode(), log_dir)) if call_id else False
    yield check("log line", f"call {call_id} in the call log", is_passed=has_line)
    counted = metric_sum(scrape(contender), "tollway_call_duration_seconds_count", protocol=protocol)
    yield check("histogram", f"{counted_before:g} → {counted:g} calls", is_passed=counted > counted_before)
    traced = backend_counters(backend)["traced"] - traced_before
    is_traced = traced == 1 and is_in_files(_TRACE_ID.encode(), log_dir)
    yield check("trace", f"{traced} call with traceparent at the backend", is_passed=is_traced)


def _check_quota(contender: Contender, body: Body) -> Check:
    headers = {"x-api-key": contender.extras["small_key"]}
    statuses = [call_http(contender, body, headers).status for _ in range(_BURST_CALLS)]
    is_passed = statuses[0] == 200 and 429 in statuses and set(statuses) <= {200, 429}
    detail = f"{statuses.count(200)} of {len(statuses)} quick calls let in on the small plan"
    return Check(contender=contender.name, name="quota refuses", is_passed=is_passed, detail=detail)


def check_books(contender: Contender) -> Iterator[Check]:
    """At the run's end, once the meter has caught up, or has not in time: see `judge_books`."""
    _waited(lambda: _waiting_count(scrape(contender)) == 0)
    yield from judge_books(contender.name, scrape(contender))


def judge_books(name: str, text: str) -> Iterator[Check]:
    """Every record is posted or voided, none is quarantined. A metric that is not there proves nothing.

    Voided is a call whose caller had left before its record was durable, as load tools do when their time is up (R8).
    """
    waiting = _waiting_count(text)
    posted = metric_sum(text, _EVENTS, fate="posted")
    voided = metric_sum(text, _EVENTS, fate="voided")
    answered = metric_sum(text, "tollway_record_wait_seconds_count")
    detail = f"{posted:g} posted + {voided:g} voided of {answered:g} answered with a record, {waiting} wait"
    is_whole = waiting == 0 and posted > 0 and answered == posted + voided
    yield Check(contender=name, name="all posted or voided", is_passed=is_whole, detail=detail)
    bad = metric_sum(text, _EVENTS, fate="quarantined")
    yield Check(contender=name, name="none quarantined", is_passed=bad == 0, detail=f"{bad:g} records")


def _waiting_count(text: str) -> float | None:
    """Records that wait to be posted; None where the metrics of the meter are missing."""
    is_there = f"\n{_LAG}" in text and f"\n{_EVENTS}" in text
    return metric_sum(text, _LAG) if is_there else None
