"""What waits in quarantine, as an operator sees and decides it: real control, real meter, the command line."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_control_process import ControlProcess, told, tollway
from tests.unit.billing.making import MeterProcess, call, marked, write_dead_epoch

BOOK = 'version = 2\ncurrency = "USD"\n[default]\nper_call = "0.000001"\n[models.ocr]\nper_call = "0.0015"\n'


@pytest.fixture
def control() -> Iterator[ControlProcess]:
    """Three calls were priced by a book that the ledger has not heard of; one of them not as the book will say."""
    with tempfile.TemporaryDirectory(prefix="tw") as folder:
        data_dir = Path(folder) / "d"
        with ControlProcess(data_dir) as process:
            assert process.wait_ready()
            calls = [call(1, price_version=2), call(2, price_version=2), call(3, price_version=2, model="file_type")]
            write_dead_epoch(data_dir / "usage", marked(calls))
            with MeterProcess(data_dir) as meter:
                assert meter.wait_ready()
                meter.ask("flush")
                yield process
                assert meter.stop() == 0
            assert process.stop() == 0


def test_calls_of_an_unknown_price_book_are_released_once_it_is_known(control: ControlProcess) -> None:
    held = told(control, "ledger", "quarantine")
    assert [(one["reason"], one["tenant"], one["fate"]) for one in held] == [("price_version_unknown", "acme", "")] * 3
    ids = [str(one["quarantine_id"]) for one in held]
    refused = tollway(control, "ledger", "release", *ids[:2], "--note", "too soon")
    assert refused.exit_code == 1
    assert "still price_version_unknown" in refused.output
    book = control.data_dir.parent / "book.toml"
    book.write_text(BOOK)
    told(control, "prices", "apply", str(book))
    assert told(control, "ledger", "release", *ids[:2], "--note", "the book is there")["posted"] == 2
    assert tollway(control, "ledger", "release", ids[2], "--note", "x").exit_code == 1
    told(control, "ledger", "dismiss", ids[2], "--note", "priced by hand")
    assert told(control, "ledger", "quarantine") == []
    ended = told(control, "ledger", "quarantine", "--ended")
    assert [one["fate"] for one in ended] == ["posted", "posted", "dismissed"]
    report = told(control, "reconcile")
    assert (report["is_ok"], report["posted"], report["quarantined"], report["dismissed"]) == (True, 2, 0, 1)
