"""I6: one test per row of docs/outcomes.md: what is billed, recorded and counted for each way a call can end."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from billing.events import Reason
from billing.rating import compile_book
from gateway.auth.keyring import Keyring
from gateway.call import RequestHead
from gateway.errors import Code, Refusal
from gateway.net.exchange import POOL_FULL
from gateway.quota.local_funds import LocalFundStore, LocalWallets
from gateway.replays import ReplayStore
from gateway.settings import Limits
from gateway.snapshot import Plan, Tenant
from gateway.tickets import Policy
from tests.unit.test_pipeline import BOOK, FakeExchange, World, snapshot

PAGE = Path(__file__).parents[2] / "docs" / "outcomes.md"


class Row(NamedTuple):
    """What a row promises. `records`: Served records; `charge_nanos` their sum; `ended`: causes noted beside them."""

    act: Callable[[World], FakeExchange | None]
    records: int = 0
    charge_nanos: int = 0
    reason: Reason | None = None
    ended: tuple[str, ...] = ()
    #: Whether the quota counted a call.
    counted: int = 0


def finished(world: World, **more: Any) -> FakeExchange:
    exchange = world.post(world.head(**more))
    world.answer(world.pool.requests[-1])
    world.log.sync()
    return exchange


def of_plan(pricing: str) -> Callable[[World], FakeExchange]:
    def act(world: World) -> FakeExchange:
        changed = msgspec.structs.replace(snapshot(), plans=(Plan(name="payg", version=1, pricing=pricing),))
        world.gateway.policy = policy(changed)
        return finished(world)

    return act


def policy(changed: Any) -> Policy:
    return Policy(version=1, keyring=Keyring(changed), rater=compile_book(BOOK), price_version=3, currency="USD")


def failed(world: World) -> FakeExchange:
    exchange = world.post(world.head())
    world.answer(world.pool.requests[0], b"{}", 500)
    return exchange


def broken(world: World) -> FakeExchange:
    exchange = world.post(world.head())
    world.pool.requests[0].listener.on_reply_error(is_sent=True, reason="cut")
    return exchange


def not_tried_elsewhere(world: World) -> FakeExchange:
    """One backend fails: nobody else is asked, before, beside or after it."""
    exchange = broken(world)
    assert len(world.pool.requests) == 1
    return exchange


def once(world: World) -> FakeExchange:
    exchange = finished(world)
    assert len(world.pool.requests) == 1
    return exchange


def by_key(world: World) -> FakeExchange:
    return world.post(RequestHead(b"POST", b"/v2/models/flat/infer", [(b"x-api-key", b"wrong")], b"h", 3))


def by_scope(world: World) -> FakeExchange:
    world.gateway.policy = policy(snapshot(scopes=("read",)))
    return world.post(world.head())


def by_suspension(world: World) -> FakeExchange:
    suspended = (Tenant(tenant="acme", plan="payg", is_suspended=True),)
    world.gateway.policy = policy(msgspec.structs.replace(snapshot(), tenants=suspended))
    return world.post(world.head())


def by_limit(world: World) -> FakeExchange:
    world.quota.decision = Refusal(code=Code.RATE_EXCEEDED, message="too fast", retry_after_ms=1)
    return world.post(world.head())


def by_wallet(world: World) -> FakeExchange:
    world.gateway.funds = LocalFundStore(LocalWallets())
    changed = msgspec.structs.replace(snapshot(), plans=(Plan(name="payg", version=1, pricing="prepaid"),))
    world.gateway.policy = policy(changed)
    return world.post(world.head())


def by_maximum(world: World) -> FakeExchange:
    return world.post(world.head(b"/v2/models/flat/infer", (b"tollway-max-cost", b"0.000000006")))


def prepaid(world: World) -> FakeExchange:
    wallets = LocalWallets()
    wallets.top_up("acme", "USD", FLAT)
    world.gateway.funds = LocalFundStore(wallets)
    return of_plan("prepaid")(world)


def shed(world: World) -> FakeExchange:
    world.gateway.is_draining = True
    return world.post(world.head())


def unmetered(world: World) -> FakeExchange:
    world.log.is_accepting = False
    return world.post(world.head())


def unknown(world: World) -> FakeExchange:
    return world.post(world.head(b"/v2/models/none/infer"))


def queue_full(world: World) -> FakeExchange:
    exchange = world.post(world.head())
    world.pool.requests[0].listener.on_reply_error(is_sent=False, reason=POOL_FULL)
    return exchange


def malformed(world: World) -> FakeExchange:
    return world.post(world.head(b"/v2/models/flat/infer", (b"x-request-timeout-ms", b"soon")))


def too_large(world: World) -> FakeExchange:
    world.gateway.limits = Limits(body_bytes_max=2)
    return world.post(world.head())


def left_before(world: World) -> FakeExchange:
    exchange = world.post(world.head())
    world.gateway.on_abort(exchange)
    return exchange


def left_while_recording(world: World) -> FakeExchange:
    exchange = world.post(world.head())
    world.answer(world.pool.requests[0])
    world.gateway.on_abort(exchange)
    world.log.sync()
    return exchange


def left_after(world: World) -> FakeExchange:
    exchange = finished(world)
    world.gateway.on_abort(exchange)
    return exchange


def timed_out(world: World) -> FakeExchange:
    exchange = world.post(world.head(b"/v2/models/flat/infer", (b"x-request-timeout-ms", b"5")))
    exchange.call.on_deadline()
    return exchange


def timed_out_by_us(world: World) -> FakeExchange:
    exchange = world.post(world.head())
    world.clock.advance(10**15)
    world.gateway.sweep()
    return exchange


def timed_out_while_recording(world: World) -> FakeExchange:
    exchange = world.post(world.head())
    world.answer(world.pool.requests[0])
    exchange.call.on_deadline()
    world.log.sync()
    return exchange


def cut_in_the_middle(world: World) -> FakeExchange:
    exchange = world.post(world.head())
    listener = world.pool.requests[0].listener
    listener.on_reply_head(200, [], -1)
    for _ in range(3):
        listener.on_reply_body(b"x" * 65_536)
    listener.on_reply_error(is_sent=True, reason="cut")
    return exchange


def metadata(world: World) -> FakeExchange:
    exchange = world.begin(world.head(b"/v2/models/flat", length=0))
    world.gateway.on_end(exchange)
    world.answer(world.pool.requests[0])
    return exchange


def health(world: World) -> FakeExchange:
    return world.begin(RequestHead(b"GET", b"/v2/health/live", [], b"h", 0))


def keyed(world: World, key: bytes = b"k", body: bytes = b"abc") -> FakeExchange:
    return world.post(world.head(b"/v2/models/flat/infer", (b"idempotency-key", key)), body)


def replayed(world: World) -> FakeExchange:
    keyed(world)
    world.answer(world.pool.requests[0])
    world.log.sync()
    exchange = keyed(world)
    assert exchange.replies[0][1][b"idempotency-replayed"] == b"true"
    return exchange


def keyed_refused(world: World) -> FakeExchange:
    running = keyed(world)
    refused = [keyed(world), keyed(world, body=b"xyz"), keyed(world, key=b"two words")]
    assert [exchange.replies[0][0] for exchange in refused] == [409, 422, 400]
    world.gateway.on_abort(running)
    return refused[0]


def not_kept(world: World) -> FakeExchange:
    exchange = keyed(world)
    world.answer(world.pool.requests[0])
    claim = exchange.call.claim
    claim._path = claim._path / "no" / "such" / "folder"
    world.log.sync()
    return exchange


FLAT = 7
BILLED: dict[str, Any] = {"records": 1, "charge_nanos": FLAT, "reason": Reason.PRICED}
#: The page's rows by their first words, each with its cases.
ROWS: dict[str, list[Row]] = {
    "ok": [Row(finished, **BILLED, counted=1)],
    "ok on a free or internal plan": [
        Row(of_plan("free"), records=1, reason=Reason.FREE_PLAN, counted=1),
        Row(of_plan("internal"), records=1, reason=Reason.INTERNAL_PLAN, counted=1),
    ],
    "ok on a prepaid plan": [Row(prepaid, records=1, charge_nanos=FLAT, reason=Reason.PREPAID, counted=1)],
    "answered out of a model's `response_cache`": [Row(once, **BILLED, counted=1)],
    "shadow call, hedge loser, retry": [Row(not_tried_elsewhere)],
    "failed": [Row(failed)],
    "broken": [Row(broken)],
    "refused by key, scope, model, suspension": [Row(by_key), Row(by_scope), Row(by_suspension)],
    "refused by a limit": [Row(by_limit)],
    "refused by the wallet, or by `tollway-max-cost`": [Row(by_wallet), Row(by_maximum)],
    "shed": [Row(shed), Row(unmetered)],
    "unknown model, not ready, unreachable, queue full": [Row(unknown), Row(queue_full)],
    "malformed request, too large": [Row(malformed), Row(too_large)],
    "cancelled by the caller before the record is durable": [
        Row(left_before),
        # The record is there, its mark makes the meter void it (tests/unit/billing/test_intake.py).
        Row(left_while_recording, records=1, charge_nanos=FLAT, ended=("gone_before_durable",)),
    ],
    "cancelled by the caller after it": [Row(left_after, **BILLED, counted=1)],
    "timed out": [Row(timed_out), Row(timed_out_by_us)],
    "time runs out while the record is on its way": [Row(timed_out_while_recording, **BILLED, counted=1)],
    "cut in the middle of a streamed answer": [Row(cut_in_the_middle)],
    "health, metadata, statistics, repository index": [Row(metadata), Row(health)],
    "replay of an Idempotency-Key": [Row(replayed, **BILLED, counted=1)],
    "keyed call that is refused": [Row(keyed_refused)],
    "answer whose replay cannot be kept": [Row(not_kept, records=1, charge_nanos=FLAT, ended=("callback_failed",))],
}
#: Proved with real processes: tests/e2e/crash; and inside the engine, which the gateway's records do not know.
ELSEWHERE = {"worker killed between record and mark", "warm-up of a model"}


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, rows in ROWS.items() for row in rows])
def test_each_outcome_is_billed_as_the_page_says(tmp_path: Path, name: str, row: Row) -> None:
    world = World()
    world.gateway.replays = ReplayStore(tmp_path / "replay")
    row.act(world)
    assert len(world.log.records) == row.records
    assert sum(record.charge_nanos for record in world.log.records) == row.charge_nanos
    if row.reason is not None:
        assert {record.reason for record in world.log.records} == {row.reason}
    assert tuple(cause for _, cause, _ in world.log.ended) == row.ended
    assert sum(world.quota.released) == row.counted
    world.assert_at_rest()
    said = page_rows()[next(text for text in page_rows() if text.startswith(name) and _ends(text, name))]
    is_billed = row.charge_nanos > 0 and not row.ended
    assert said.startswith(("yes", "once")) == is_billed, said


def test_every_row_of_the_page_has_a_test() -> None:
    titles = {re.split(r" \(|:|, the caller", text)[0].strip() for text in page_rows()}
    assert titles == set(ROWS) | ELSEWHERE


def page_rows() -> dict[str, str]:
    """Outcome → what the page says of its billing."""
    lines = PAGE.read_text().split("## Idempotency-Key")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {cell[0]: cell[1] for cell in cells if cell[0] != "outcome"}


def _ends(text: str, name: str) -> bool:
    """Whether `name` is the whole title of the row, not the beginning of another's."""
    return re.split(r" \(|:|, the caller", text)[0].strip() == name
