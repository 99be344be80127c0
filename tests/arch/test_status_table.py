"""One table from codes to statuses, and the page of errors says the same (STYLE.md §21, §46)."""

import re
from pathlib import Path

import pytest

from gateway.errors import Code, TollwayError, fault_of, is_retryable
from gateway.wire.status import STATUS, Grpc, grpc_status, http_status

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
ROW = re.compile(r"\| `(\w+)` \| (\d+) \| (\w+) \| (\w+) \| (\w+) \| (.+) \| (.+) \|")


def rows() -> dict[str, tuple[str, ...]]:
    found = [match.groups() for match in map(ROW.fullmatch, PAGE.read_text().splitlines()) if match is not None]
    assert len({row[0] for row in found}) == len(found), "a code is on the page twice"
    return {row[0]: row[1:] for row in found}


def test_every_code_has_a_status_on_both_protocols() -> None:
    assert set(STATUS) == set(Code)


def test_the_page_lists_exactly_the_codes_in_their_order() -> None:
    assert list(rows()) == [code.value for code in Code]


@pytest.mark.parametrize("code", Code)
def test_the_page_says_what_the_table_says(code: Code) -> None:
    http, grpc, fault, retry, when, remedy = rows()[code.value]
    assert (int(http), grpc) == (http_status(code), grpc_status(code).name)
    assert fault == fault_of(code)
    assert (retry == "yes") == is_retryable(code)
    assert when
    assert remedy


@pytest.mark.parametrize("code", Code)
def test_faults_and_statuses_agree(code: Code) -> None:
    """A caller's fault is a 4xx, anybody else's a 5xx; policy is never told as 503, capacity never as 429."""
    status = http_status(code)
    if code is Code.NOT_IMPLEMENTED:
        assert status == 501  # RFC 9110 §15.6.2: the one 5xx that a caller can only mend by asking for something else
        return
    assert (fault_of(code) in ("caller", "policy")) == (400 <= status < 500)
    if fault_of(code) == "capacity":
        assert status in (503, 504)
    assert grpc_status(code) not in (Grpc.OK, Grpc.UNKNOWN)


def test_an_error_becomes_a_refusal_that_says_the_same() -> None:
    error = TollwayError(Code.QUEUE_FULL, "full", retry_after_ms=7)
    refusal = error.as_refusal()
    assert (refusal.code, refusal.message, refusal.retry_after_ms, str(error)) == (Code.QUEUE_FULL, "full", 7, "full")
