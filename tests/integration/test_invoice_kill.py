"""I22: whoever is killed while finalizing leaves no gap, no half a document and no document without its entries."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from billing.ledger.connect import open_reader
from tests.unit.billing.invoices.office import ACCOUNT, Office, open_office

ROUNDS = 5
FINALIZER = """
import os, sys
from pathlib import Path
from billing import failpoint
from tests.unit.billing.invoices.office import Office

office = Office(Path(sys.argv[1]))
failpoint.arm(os.environ["TOLLWAY_FAILPOINT"])
for number in range(1000):
    fields = {"tenant": "acme", "kind": "adjustment", "description": "fee", "amount_nanos": 10**9}
    office.do("item.add", fields | {"source": f"{os.getpid()}-{number}"}, f"add-{os.getpid()}-{number}")
    office.do("invoice.bill", {"tenant": "acme", "until_ns": int(sys.argv[2]) + number}, f"bill-{os.getpid()}-{number}")
    print(number, flush=True)
"""


@pytest.mark.parametrize("point", ["after_invoice_number", "before_commit"])
def test_numbers_have_no_gap_and_no_twin_after_kills(tmp_path: Path, point: str) -> None:
    with open_office(tmp_path) as office:
        office.set_up()
    finalized = 0
    for round_number in range(1, ROUNDS + 1):
        done = _killed(tmp_path / "ledger.db", f"{point}:{round_number}", round_number)
        with open_office(tmp_path) as office:
            finalized = _check(office, at_least=finalized + done)
    assert finalized >= ROUNDS - 1


def _killed(path: Path, failpoint: str, round_number: int) -> int:
    """Run the finalizer until it is killed; how many invoices it had acknowledged."""
    environment = {**os.environ, "TOLLWAY_FAILPOINT": failpoint, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", FINALIZER, str(path), str(ACCOUNT["anchor_ns"] + round_number * 10**6)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return len(done.stdout.split())


def _check(office: Office, *, at_least: int) -> int:
    db = open_reader(office.path)
    serials = [serial for (serial,) in db.execute("SELECT serial FROM invoice WHERE series = 'INV' ORDER BY serial")]
    assert serials == list(range(1, len(serials) + 1))
    assert len(serials) >= at_least
    posted = db.execute("SELECT COUNT(*) FROM journal_tx WHERE kind = 'invoice'").fetchone()[0]
    finalized = db.execute("SELECT COUNT(*) FROM invoice_step WHERE kind = 'finalized'").fetchone()[0]
    told = db.execute("SELECT COUNT(*) FROM billing_event WHERE type = 'invoice.finalized'").fetchone()[0]
    assert posted == finalized == told == len(serials)
    assert office.balance("accounts_receivable:acme") == sum(
        total * 10**7 for (total,) in db.execute("SELECT total_minor FROM invoice")
    )
    db.close()
    return len(serials)
