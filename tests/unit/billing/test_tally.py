"""A month added up in parts is the month added up at once, however it is cut, whatever comes in between or dies."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from billing import settlement, tally
from billing.invoices.assemble import InvoiceError
from billing.settlement import find_run
from billing.tally import find_tally, fold, left, month_usage
from billing.usage import usage_by
from tests.unit.billing.invoices.office import MONTH_END_NS, Office, open_office
from tests.unit.billing.making import T0_NS
from tests.unit.billing.test_settlement import month

BODY = {"tenant": "acme", "start_ns": T0_NS, "end_ns": MONTH_END_NS}
_ids = count(1)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with open_office(tmp_path) as opened:
        opened.set_up()
        yield opened


def gather(office: Office) -> dict[str, Any]:
    answer: dict[str, Any] = office.do("month.gather", BODY, f"gather-{next(_ids)}")
    return answer


def at_once(office: Office) -> list[Any]:
    """The same sums by one query over everything."""
    rows = usage_by(
        office.reader,
        ("plan", "model", "outcome"),
        tenant="acme",
        since_ns=T0_NS,
        until_ns=MONTH_END_NS,
        is_prepaid=False,
    )
    return fold(tally._usage_of(row) for row in rows if row.group[2] == 0)


def post_some(office: Office, chance: random.Random) -> None:
    """Calls of two tenants; some fail, some are of another month, some plans have packs."""
    office.post_usage(
        chance.randint(1, 30),
        tenant=chance.choice(["acme", "acme", "beta"]),
        plan=chance.choice(["pro", "pro+2", "free"]),
        model=chance.choice(["ocr", "file_type", "other"]),
        outcome=chance.choice([0, 0, 0, 1]),
        rows=chance.randint(1, 5),
        **(
            {"t_ns": chance.choice([T0_NS - 1, T0_NS, MONTH_END_NS - 1, MONTH_END_NS])} if chance.random() < 0.3 else {}
        ),
    )


@pytest.mark.parametrize("seed", range(12))
def test_parts_of_any_size_add_up_to_the_month_at_every_moment(
    office: Office, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    for _ in range(30):
        if chance.random() < 0.5:
            post_some(office, chance)
        else:
            monkeypatch.setattr(tally, "PART_EVENTS", chance.choice([1, 7, 50, 10_000]))
            gather(office)
        assert month_usage(office.reader, "acme", T0_NS, MONTH_END_NS) == at_once(office)


def test_parts_go_on_where_the_last_one_ended_and_end(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.post_usage(3, tenant="beta")
    office.post_usage(25, plan="pro")
    monkeypatch.setattr(tally, "PART_EVENTS", 10)
    assert left(office.reader, "acme", T0_NS, MONTH_END_NS) == 25  # what was before its first call is never walked
    assert [gather(office)["left"] for _ in range(4)] == [15, 5, 0, 0]
    found = find_tally(office.reader, "acme", T0_NS, MONTH_END_NS)
    assert (found.through_event_id, [one.ok_calls for one in found.usage]) == (28, [25])
    assert office.reader.execute("SELECT COUNT(*) FROM month_tally").fetchone()[0] == 3


def test_a_month_that_is_too_much_at_once_is_gathered_first(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settlement, "TAIL_EVENTS_MAX", 20)
    office.post_usage(20, plan="pro")
    first = office.do("month.settle", month())
    office.post_usage(1, plan="pro")
    with pytest.raises(InvoiceError, match="21 events are not added up") as caught:
        office.do("month.settle", month())
    assert caught.value.code == "gather_first"
    gather(office)
    run = office.do("month.settle", month())
    assert (first["ok_calls"], run["ok_calls"], run["n"]) == (20, 21, 1)


def test_a_time_that_is_none_is_refused(office: Office) -> None:
    for start_ns, end_ns in ((5, 5), (6, 5), (-1, 5), (0, 2**63)):
        with pytest.raises(InvoiceError, match="end_ns"):
            office.do("month.gather", {"tenant": "acme", "start_ns": start_ns, "end_ns": end_ns})
    assert office.do("month.gather", BODY) == {"through_event_id": 0, "left": 0}


def test_a_part_walks_its_range_of_events_and_not_the_tenant_s(office: Office) -> None:
    asked: list[str] = []
    office.reader.set_trace_callback(asked.append)
    tally._usage(office.reader, "acme", T0_NS, MONTH_END_NS, (0, 10))
    office.reader.set_trace_callback(None)
    (query,) = [one for one in asked if "usage_event e" in one]
    plan = [row[3] for row in office.reader.execute(f"EXPLAIN QUERY PLAN {query}")]
    assert any("SEARCH e USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in step for step in plan), plan


GATHERER = """
import json, os, sys
from pathlib import Path
from billing import failpoint, tally
from tests.unit.billing.invoices.office import Office

tally.PART_EVENTS = 10
office = Office(Path(sys.argv[1]))
failpoint.arm(os.environ["TOLLWAY_FAILPOINT"])
for number in range(1000):
    office.do("month.gather", json.loads(sys.argv[2]), f"part-{number}")
"""


@pytest.mark.parametrize("commits", [1, 2, 4])
def test_a_kill_between_parts_loses_no_part_and_counts_none_twice(tmp_path: Path, commits: int) -> None:
    with open_office(tmp_path) as office:
        office.set_up()
        office.post_usage(55, plan="pro")
    environment = {
        **os.environ,
        "TOLLWAY_FAILPOINT": f"before_commit:{commits}",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    command = [sys.executable, "-c", GATHERER, str(tmp_path / "ledger.db"), msgspec.json.encode(BODY).decode()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with open_office(tmp_path) as office:
        assert find_tally(office.reader, "acme", T0_NS, MONTH_END_NS).through_event_id == 10 * (commits - 1)
        while gather(office)["left"]:
            pass
        assert month_usage(office.reader, "acme", T0_NS, MONTH_END_NS) == at_once(office)
        office.do("month.settle", month(), "after")
        run = find_run(office.reader, "acme", T0_NS)
        assert run is not None
        assert run.ok_calls == 55
