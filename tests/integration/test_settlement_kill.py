"""Whoever is killed while rating a month leaves all of it or nothing: items, run and credit use commit together."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from billing import credit_store
from billing.invoices.store import pending_items
from billing.plans import PlanCharge, PlanTerms
from billing.settlement import find_run
from billing.tiers import Rate
from tests.unit.billing.invoices.office import DAY_NS, MONTH_END_NS, Office, open_office
from tests.unit.billing.making import T0_NS

TERMS = PlanTerms(
    currency="USD",
    charges=(PlanCharge(name="c", unit="call", rate=Rate(model="per_unit", per_unit_nanos=2_000_000)),),
)
BODY = {
    "tenant": "acme",
    "start_ns": T0_NS,
    "end_ns": MONTH_END_NS,
    "plans": [{"plan": "pro", "version": 1, "terms": msgspec.to_builtins(TERMS)}],
}
RATER = """
import json, os, sys
from pathlib import Path
from billing import failpoint
from tests.unit.billing.invoices.office import Office

office = Office(Path(sys.argv[1]))
failpoint.arm(os.environ["TOLLWAY_FAILPOINT"])
for number in range(1000):
    office.do("month.settle", json.loads(sys.argv[2]), f"{sys.argv[3]}-{number}")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with open_office(tmp_path) as office:
        office.set_up()
        office.now_ns = T0_NS
        office.do("credit.grant", {"tenant": "acme", "source": "g", "amount_nanos": 30_000_000})
        office.now_ns = MONTH_END_NS + DAY_NS
        office.post_usage(10, plan="pro")
    yield tmp_path


@pytest.mark.parametrize("commits", [1, 2, 3])
def test_a_kill_in_the_middle_leaves_all_of_a_rating_or_nothing(folder: Path, commits: int) -> None:
    environment = {
        **os.environ,
        "TOLLWAY_FAILPOINT": f"before_commit:{commits}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", RATER, str(folder / "ledger.db"), msgspec.json.encode(BODY).decode(), "rate"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with open_office(folder) as office:
        _check_whole(office)
        office.do("month.settle", BODY, "rate-0")
        office.do("month.settle", BODY, "after")
        run = find_run(office.reader, "acme", T0_NS)
        assert run is not None
        assert run.net_nanos == 0
        _check_whole(office)
        (holding,) = credit_store.holdings(office.reader, "acme")
        assert holding.left_nanos == 30_000_000 - 20_000_000


def _check_whole(office: Office) -> None:
    run = find_run(office.reader, "acme", T0_NS)
    items = sum(item.amount_nanos for item in pending_items(office.reader, "acme"))
    used = sum(credit_store.burns_of(office.reader, "acme", T0_NS).values())
    if run is None:
        assert (items, used) == (0, 0)
    else:
        assert items == run.net_nanos - run.list_nanos
        assert used == -sum(line.amount_nanos for line in run.lines if line.kind == "promo")
