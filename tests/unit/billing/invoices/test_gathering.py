"""An invoice's usage added up in parts is the usage added up at once, whatever is posted and billed in between."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from billing.invoices import gathering, store
from billing.invoices.assemble import InvoiceError
from billing.usage import UsageRow, usage_by
from tests.unit.billing.invoices.office import DAY_NS, MONTH_END_NS, NS_PER_S, Office, open_office
from tests.unit.billing.making import T0_NS

FEBRUARY_NS = MONTH_END_NS + 28 * DAY_NS


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with open_office(tmp_path) as opened:
        opened.set_up()
        yield opened


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of seven events, drafts over three."""
    monkeypatch.setattr(gathering, "PART_EVENTS", 7)
    monkeypatch.setattr(gathering, "TAIL_EVENTS_MAX", 3)


def gather(office: Office, until_ns: int = MONTH_END_NS) -> Any:
    return office.do("invoice.gather", {"tenant": "acme", "until_ns": until_ns})


def at_once(office: Office, until_ns: int) -> list[UsageRow]:
    cut, previous = gathering.cut_until(office.reader, "acme", until_ns), store.find_cut(office.reader, "acme")
    return usage_by(
        office.reader,
        ("model", "price_version"),
        tenant="acme",
        covered=(cut.event_id, cut.end_ns),
        beyond=None if previous is None else (previous.event_id, previous.end_ns),
        is_prepaid=False,
    )


def post_some(office: Office, chance: random.Random) -> None:
    office.post_usage(
        chance.randint(1, 9),
        tenant=chance.choice(["acme", "acme", "beta"]),
        model=chance.choice(["ocr", "file_type", "other"]),
        outcome=chance.choice([0, 0, 1]),
        t_ns=chance.choice([T0_NS, MONTH_END_NS - 1, MONTH_END_NS, MONTH_END_NS + DAY_NS]),
    )


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(12))
def test_parts_of_any_invoice_are_what_one_walk_would_give(office: Office, seed: int) -> None:
    chance = random.Random(seed)
    office.now_ns = FEBRUARY_NS + DAY_NS
    for until_ns in (MONTH_END_NS, MONTH_END_NS, FEBRUARY_NS):
        for _ in range(chance.randrange(2, 6)):
            post_some(office, chance)
            if chance.random() < 0.6:
                gather(office, until_ns)
        while gathering.left(office.reader, "acme", until_ns) > gathering.TAIL_EVENTS_MAX:
            gather(office, until_ns)
        cut = gathering.cut_until(office.reader, "acme", until_ns)
        wanted = at_once(office, until_ns)
        assert gathering.usage_until(office.reader, "acme", cut) == wanted
        made = office.bill(until_ns)
        lines = [] if made is None else [line for line in made["lines"] if line["kind"] == "usage"]
        assert [line["exact_nanos"] for line in lines] == ([row.charge_nanos for row in wanted] if made else [])


@pytest.mark.usefixtures("small")
def test_a_draft_over_too_much_is_refused_until_it_is_gathered(office: Office) -> None:
    office.post_usage(30)
    with pytest.raises(InvoiceError) as refused:
        office.bill()
    assert refused.value.code == "gather_first"
    left = [gather(office)["left"] for _ in range(5)]
    assert left[-1] == 0
    assert office.bill()["lines"][0]["quantity"] == 30
    # Beyond the invoice a new sum begins.
    office.post_usage(2)
    assert gathering.find_part(office.reader, "acme", MONTH_END_NS).rows == ()
    assert office.bill()["lines"][0]["quantity"] == 2


@pytest.mark.usefixtures("small")
def test_many_events_of_others_do_not_make_a_small_tenant_gather(office: Office) -> None:
    office.post_usage(50, tenant="beta")
    office.post_usage(3)
    assert office.bill()["lines"][0]["quantity"] == 3


def test_the_bound_itself_is_walked(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "TAIL_EVENTS_MAX", 5)
    office.post_usage(5)
    office.do("invoice.draft", {"tenant": "acme", "until_ns": MONTH_END_NS})
    office.post_usage(1)
    with pytest.raises(InvoiceError):
        office.do("invoice.draft", {"tenant": "acme", "until_ns": MONTH_END_NS})


@pytest.mark.parametrize("until_ns", [-1, 2**63])
def test_a_time_that_is_none_is_refused(office: Office, until_ns: int) -> None:
    with pytest.raises(InvoiceError) as refused:
        gather(office, until_ns)
    assert refused.value.code == "field"


def test_a_part_walks_its_number_of_events_and_no_more(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "PART_EVENTS", 10)
    office.post_usage(11, t_ns=T0_NS + NS_PER_S)
    assert gather(office)["through_event_id"] == 10
    assert gather(office) == {"through_event_id": 11, "left": 0}
    assert gather(office) == {"through_event_id": 11, "left": 0}
