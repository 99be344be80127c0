"""Re-rating against brute force: each call priced alone by the rater, in pages of any size, nothing posted."""

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from billing.event_pages import event_pages
from billing.ledger.views import trial_balance
from billing.rating import PRICING_BY_REASON, Price, PriceBook, Rater, compile_book
from billing.rerate import RerateError, rerate
from tests.unit.billing.invoices.office import MONTH_END_NS, Office, open_office
from tests.unit.billing.making import RATER, T0_NS, call

DEARER = PriceBook(
    version=2,
    currency="USD",
    default=Price(per_call_nanos=3, per_row_nanos=5, per_compute_ms_nanos=11),
    models={"ocr": Price(per_row_nanos=7)},
)
RATERS = {1: RATER, 2: compile_book(DEARER)}


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with open_office(tmp_path) as opened:
        yield opened


def fill(office: Office, seed: int) -> list[tuple[str, str, int, int, int, int]]:
    """Random calls of all kinds; (tenant, model, outcome, reason, rows, compute_ns) of each."""
    chance = random.Random(seed)
    facts = []
    for number in range(1, 80):
        fields = {
            "tenant": chance.choice(["acme", "globex"]),
            "model": chance.choice(["ocr", "file_type", "other"]),
            "outcome": chance.choice([0, 0, 0, 1]),
            "reason": chance.choice([0, 0, 1, 2]),
            "rows": chance.randrange(5),
            # Halves of a millisecond: where rounding calls apart and rounding their sum differ.
            "compute_ns": chance.choice([0, 500_000, 1_500_000, 2_499_999]),
        }
        office.post_usage(1, **fields)
        made = call(number, **fields)
        facts.append((made.tenant, made.model, made.outcome, made.reason, made.rows, made.compute_ns))
    return facts


def brute(facts: list[tuple[str, str, int, int, int, int]], rater: Rater) -> dict[tuple[str, str], int]:
    sums: dict[tuple[str, str], int] = {}
    for tenant, model, outcome, reason, rows, compute_ns in facts:
        pricing = {int(key): value for key, value in PRICING_BY_REASON.items()}.get(reason, "priced")
        amount, _ = rater.charge(model, pricing, outcome, rows, compute_ns)
        sums[tenant, model] = sums.get((tenant, model), 0) + amount
    return sums


@pytest.mark.parametrize("seed", range(3))
def test_a_run_is_the_sum_of_calls_rated_one_by_one(office: Office, seed: int) -> None:
    facts = fill(office, seed)
    before = trial_balance(office.reader)
    own = rerate(office.reader, RATERS, since_ns=T0_NS, until_ns=MONTH_END_NS)
    assert all(line.difference_nanos == 0 for line in own.lines)
    assert {(line.tenant, line.model): line.posted_nanos for line in own.lines} == brute(facts, RATER)
    other = rerate(office.reader, RATERS, since_ns=T0_NS, until_ns=MONTH_END_NS, against=2)
    assert {(line.tenant, line.model): line.rerated_nanos for line in other.lines} == brute(facts, RATERS[2])
    assert sum(line.calls for line in other.lines) == len(facts)
    assert trial_balance(office.reader) == before


def test_a_run_can_be_narrowed_and_is_the_same_when_it_is_made_again(office: Office) -> None:
    facts = fill(office, 7)
    found = rerate(office.reader, RATERS, since_ns=T0_NS, until_ns=MONTH_END_NS, tenant="acme", model="ocr")
    assert [(line.tenant, line.model) for line in found.lines] == [("acme", "ocr")]
    assert found.lines[0].calls == sum(1 for fact in facts if fact[:2] == ("acme", "ocr"))
    again = rerate(office.reader, RATERS, since_ns=T0_NS, until_ns=MONTH_END_NS, tenant="acme", model="ocr")
    assert again == found
    office.post_usage(1)
    assert rerate(office.reader, RATERS, since_ns=T0_NS, until_ns=MONTH_END_NS).digest != found.digest


def test_books_in_another_currency_or_unknown_are_refused(office: Office) -> None:
    office.post_usage(1)
    euros = {3: compile_book(msgspec.structs.replace(DEARER, version=3, currency="EUR"))}
    with pytest.raises(RerateError, match="price book 3 is in EUR, the calls in USD"):
        rerate(office.reader, RATERS | euros, since_ns=T0_NS, until_ns=MONTH_END_NS, against=3)
    with pytest.raises(RerateError, match="price book 1 of posted calls is unknown"):
        rerate(office.reader, {2: RATERS[2]}, since_ns=T0_NS, until_ns=MONTH_END_NS)
    with pytest.raises(RerateError, match="against: price book 9 is unknown; known: 1, 2"):
        rerate(office.reader, RATERS, since_ns=T0_NS, until_ns=MONTH_END_NS, against=9)


@pytest.mark.parametrize("page_events", [1, 3, 7, 1_000])
def test_pages_hold_every_event_once(office: Office, page_events: int) -> None:
    for count in (1, 5, 2):
        office.post_usage(count)
    pages = list(event_pages(office.reader, T0_NS, MONTH_END_NS, page_events=page_events))
    ids = [event_id for first, last in pages for event_id in range(first, last + 1)]
    assert ids == [event_id for (event_id,) in office.reader.execute("SELECT event_id FROM usage_event ORDER BY 1")]
    assert list(event_pages(office.reader, MONTH_END_NS, MONTH_END_NS + 1)) == []
