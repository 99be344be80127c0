"""One suite over every `Ledger`: SQLite, PostgreSQL and the in-memory twin give the same outcomes, state and chain."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from billing.events import Outcome as CallOutcome
from billing.events import Reason
from billing.ledger.memory import MemoryLedger
from billing.ledger.port import (
    BATCH_EVENTS_MAX,
    Batch,
    Ending,
    Ledger,
    LedgerError,
    Outcome,
    Position,
    PriceBookConflict,
    Rejected,
    Source,
)
from billing.ledger.rules import GENESIS
from tests.contract.ledgers import BOOKS, open_books
from tests.unit.billing.making import BOOK, T0_NS, W0, call, items

OTHER = Source("w1", 3)


@pytest.fixture(params=["memory", *BOOKS])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    opened = MemoryLedger() if request.param == "memory" else open_books(request.param, tmp_path, request)
    yield opened
    opened.close()


def batch(numbers: list[int], now_ns: int = 5) -> Batch:
    return Batch(posts=items(numbers), now_ns=now_ns)


def test_fresh_ledger_is_empty(ledger: Ledger) -> None:
    state = ledger.state()
    assert (state.positions, state.posted, state.transactions, state.head) == ({}, 0, 0, GENESIS)
    assert ledger.counts([("acme", 0)]) == [0]
    assert ledger.prices() == {}


def test_new_events_are_posted_one_transaction_per_tenant(ledger: Ledger) -> None:
    posts = [*items([1, 2]), *items([3], tenant="beta")]
    report = ledger.post(Batch(posts=posts, now_ns=5))
    assert [(group.tenant, group.tx_id, group.posted, group.outcome) for group in report.groups] == [
        ("acme", 1, 2, Outcome.POSTED),
        ("beta", 2, 1, Outcome.POSTED),
    ]
    assert (report.posted, ledger.state().posted, ledger.state().transactions) == (3, 3, 2)


def test_same_batch_again_exists_and_changes_nothing(ledger: Ledger) -> None:
    ledger.post(batch([1, 2, 3]))
    before = ledger.state()
    report = ledger.post(batch([3, 1, 2], now_ns=77))
    assert (report.posted, report.groups[0].exists, report.groups[0].outcome) == (0, 3, Outcome.EXISTS)
    assert report.groups[0].tx_id is None
    assert ledger.state() == before


def test_partly_known_batch_posts_only_what_is_new(ledger: Ledger) -> None:
    ledger.post(batch([1, 2]))
    report = ledger.post(batch([2, 3, 1, 4]))
    assert (report.groups[0].posted, report.groups[0].exists, report.groups[0].tx_id) == (2, 2, 2)
    assert ledger.state().posted == 4


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"charge_nanos": 7}, "charge_nanos"),
        ({"rows": 2}, "rows"),
        ({"model": "other"}, "charge_nanos"),
        ({"model": "other", "charge_nanos": 1_500_000}, "model"),
        ({"key_id": "key_2", "t_ns": 1}, "key_id"),
        ({"outcome": CallOutcome.FAILED, "charge_nanos": 1_500_000}, "outcome"),
        ({"request_bytes": 1, "protocol": 1}, "request_bytes"),
    ],
)
def test_known_id_with_other_content_is_quarantined_naming_the_first_field(
    ledger: Ledger, changes: dict[str, object], field: str
) -> None:
    ledger.post(batch([1]))
    head = ledger.state().head
    report = ledger.post(Batch(posts=[(OTHER, 9, call(1, **changes))], now_ns=6))
    assert report.groups[0].outcome is Outcome.EXISTS_WITH_DIFFERENT
    assert report.groups[0].conflicts == ((call(1).call_id, field),)
    assert (report.posted, report.quarantined) == (0, 1)
    assert ledger.state().head == head
    assert ledger.post(Batch(posts=[(OTHER, 9, call(1, **changes))], now_ns=7)).quarantined == 0


def test_conflict_names_the_group_even_when_others_of_it_post(ledger: Ledger) -> None:
    ledger.post(batch([1]))
    report = ledger.post(Batch(posts=[(OTHER, 1, call(1, rows=9)), (OTHER, 2, call(2))], now_ns=6))
    assert (report.groups[0].outcome, report.groups[0].posted) == (Outcome.EXISTS_WITH_DIFFERENT, 1)


def test_twins_inside_one_batch_post_once(ledger: Ledger) -> None:
    posts = [(W0, 1, call(1)), (OTHER, 8, call(1)), (OTHER, 9, call(1, rows=3))]
    report = ledger.post(Batch(posts=posts, now_ns=5))
    assert (report.groups[0].posted, report.groups[0].exists, len(report.groups[0].conflicts)) == (1, 1, 1)
    assert (ledger.state().posted, ledger.state().quarantined) == (1, 1)


def test_one_call_id_of_two_tenants_is_two_events(ledger: Ledger) -> None:
    report = ledger.post(Batch(posts=[(W0, 1, call(1)), (W0, 2, call(1, tenant="beta"))], now_ns=5))
    assert report.posted == 2


def test_rejected_and_voided_are_recorded_once_per_place(ledger: Ledger) -> None:
    wrong = Batch(
        rejected=[Rejected((W0, 4, call(4, charge_nanos=9)), "charge_mismatch", "charge_nanos")],
        voids=[(W0, 5, call(5))],
        now_ns=5,
    )
    first, second = ledger.post(wrong), ledger.post(wrong)
    assert (first.quarantined, first.voided, second.quarantined, second.voided) == (1, 1, 0, 0)
    state = ledger.state()
    assert (state.posted, state.quarantined, state.voided) == (0, 1, 1)


def test_posted_call_is_never_voided_by_a_later_look_at_its_log(ledger: Ledger) -> None:
    ledger.post(batch([1]))
    assert ledger.post(Batch(voids=items([1]), now_ns=6)).voided == 0


def test_positions_move_forward_only(ledger: Ledger) -> None:
    ledger.post(Batch(positions={W0: Position(10, 4)}, now_ns=5))
    ledger.post(Batch(positions={W0: Position(7, 3), OTHER: Position(1, 1)}, now_ns=6))
    ledger.post(Batch(positions={OTHER: Position(1, 1, True)}, now_ns=7))
    assert ledger.state().positions == {W0: Position(10, 4), OTHER: Position(1, 1, True)}


def test_counts_are_of_good_calls_from_an_instant_on(ledger: Ledger) -> None:
    posts = [*items([1, 2, 3]), *items([4], outcome=CallOutcome.FAILED), *items([5], reason=Reason.FREE_PLAN)]
    ledger.post(Batch(posts=posts, now_ns=5))
    ledger.post(batch([6, 7]))
    windows = [("acme", T0_NS), ("acme", call(3).t_ns), ("acme", call(6).t_ns), ("acme", call(8).t_ns), ("beta", 0)]
    assert ledger.counts(windows) == [6, 4, 2, 0, 0]


def test_price_book_is_kept_and_its_version_never_changes(ledger: Ledger) -> None:
    assert ledger.prices(BOOK) == {1: BOOK}
    assert ledger.prices(BOOK) == {1: BOOK}
    with pytest.raises(PriceBookConflict, match="version 1 is already in use with other content"):
        ledger.prices(msgspec.structs.replace(BOOK, currency="EUR"))
    second = msgspec.structs.replace(BOOK, version=2, currency="EUR")
    assert ledger.prices(second) == {1: BOOK, 2: second}


def test_batch_over_the_limit_is_refused_whole(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="over the limit"):
        ledger.post(batch(list(range(1, BATCH_EVENTS_MAX + 2))))
    assert ledger.state().posted == 0


def test_all_ledgers_reach_the_same_head(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    heads = set()
    ledgers: list[Ledger] = [MemoryLedger(), *(open_books(name, tmp_path, request) for name in BOOKS)]
    for ledger in ledgers:
        ledger.post(Batch(posts=[*items([3, 1, 2]), *items([9], tenant="beta", model="file_type")], now_ns=5))
        ledger.post(
            Batch(
                posts=[(OTHER, 1, call(1)), *items([4], outcome=CallOutcome.FAILED)],
                endings={(W0, 4): Ending("client_gone", 10)},
                now_ns=6,
            )
        )
        ledger.post(Batch(posts=items([5], currency="EUR"), now_ns=7))
        heads.add(ledger.state().head)
        ledger.close()
    assert len(heads) == 1
