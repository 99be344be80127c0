"""Calls whose price is bounded: paid by a wallet, or held to the most that their caller named."""

import gc
import weakref
from typing import Any

import msgspec
import pytest

from billing.events import Reason
from billing.rating import Price, PriceBook, compile_book
from gateway import pipeline
from gateway.auth.keyring import Keyring
from gateway.errors import Code, Refusal
from gateway.quota.funds import OnFunds, Purse
from gateway.quota.local_funds import LocalFundStore, LocalWallets
from gateway.snapshot import Plan
from gateway.tickets import Policy
from tests.unit.test_pipeline import FakeExchange, World, grpc_body, grpc_head, snapshot

ACME = ("acme", "USD")
BOOK = PriceBook(
    version=3,
    currency="USD",
    default=Price(per_call_nanos=1000, per_row_nanos=10),
    models={
        "flat": Price(per_call_nanos=7),
        "timed": Price(per_call_nanos=1, per_compute_ms_nanos=5, compute_ms_max=20),
        "endless": Price(per_compute_ms_nanos=5),
        "gift": Price(),
    },
)
JSON = b'{"inputs":[{"name":"x","shape":[3,2],"datatype":"FP32","data":[1,2,3,4,5,6]}]}'


class SlowFunds(LocalFundStore):
    """Answers when told to, as the owner process does."""

    def __init__(self, wallets: LocalWallets) -> None:
        super().__init__(wallets)
        self.asked: list[tuple[Purse, int, OnFunds]] = []

    def try_reserve(self, purse: Purse, nanos: int, now_ns: int) -> bool:
        return False

    def ask(self, purse: Purse, nanos: int, now_ns: int, on_funds: OnFunds) -> Refusal | None:
        self.asked.append((purse, nanos, on_funds))
        return None

    def answer(self) -> None:
        for purse, nanos, on_funds in self.asked:
            is_there = super().try_reserve(purse, nanos, 0)
            on_funds(None if is_there else super().ask(purse, nanos, 0, on_funds))
        self.asked = []


class Till(World):
    """A gateway whose tenant has a wallet with `funds`, under a plan of `pricing`."""

    def __init__(self, funds: int = 0, pricing: str = "prepaid", *, is_slow: bool = False, **more: Any) -> None:
        super().__init__(**more)
        self.endpoint.catalogue = {name: {"1": True} for name in ("rows", *BOOK.models)}
        plan = Plan(name="payg", version=1, pricing=pricing)
        book = msgspec.structs.replace(snapshot(), plans=(plan,), prices=BOOK)
        self.gateway.policy = Policy(
            version=1, keyring=Keyring(book), rater=compile_book(BOOK), price_version=3, currency="USD"
        )
        self.wallets = LocalWallets()
        self.wallets.top_up(*ACME, funds)
        self.funds = SlowFunds(self.wallets) if is_slow else LocalFundStore(self.wallets)
        self.gateway.funds = self.funds

    def call(self, model: str = "flat", *headers: tuple[bytes, bytes], body: bytes = JSON) -> FakeExchange:
        target = b"/v2/models/%b/infer" % model.encode()
        return self.post(self.head(target, *headers, length=len(body)), body)

    @property
    def left(self) -> int:
        return self.wallets.left[ACME]


def code_of(exchange: FakeExchange) -> str:
    (_, _, body, _) = exchange.replies[0]
    return str(msgspec.json.decode(body)["code"])


def message_of(exchange: FakeExchange) -> str:
    return str(msgspec.json.decode(exchange.replies[0][2])["error"])


def test_the_most_is_reserved_before_and_the_cost_settled_after() -> None:
    till = Till(1_100)
    exchange = till.call("rows")
    assert till.left == 1_100 - 1_030
    till.answer(till.pool.requests[0], b"{}", 200, (b"tollway-rows", b"2"))
    till.log.sync()
    assert exchange.replies[0][1][b"tollway-charge"] == b"0.00000102 USD; reason=prepaid; price=3"
    (record,) = till.log.records
    assert (record.rows, record.charge_nanos, record.reason) == (2, 1_020, Reason.PREPAID)
    assert till.left == 80
    assert till.wallets.spent[ACME] == 1_020
    till.assert_at_rest()


def test_a_wallet_that_does_not_cover_the_call_refuses_it_before_it_runs() -> None:
    till = Till(13)
    till.call()
    assert till.left == 6
    refused = till.call()
    assert (refused.replies[0][0], code_of(refused)) == (402, "insufficient_funds")
    assert "0.000000007 USD" in message_of(refused)
    assert len(till.pool.requests) == 1
    assert till.left == 6
    assert len(till.quota.released) == 0


@pytest.mark.parametrize("end", ["backend", "hang_up", "limit", "late_hang_up"])
def test_a_call_that_is_not_sold_gives_its_reservation_back(end: str) -> None:
    till = Till(10)
    if end == "limit":
        till.quota.decision = Refusal(code=Code.RATE_EXCEEDED, message="no")
    exchange = till.call()
    if end == "backend":
        till.answer(till.pool.requests[0], b"{}", 500)
    elif end == "hang_up":
        till.gateway.on_abort(exchange)
    elif end == "late_hang_up":
        till.answer(till.pool.requests[0])
        till.gateway.on_abort(exchange)
        till.log.sync()
        # Recorded, so the meter decides: its void frees what the log's lease still holds.
        assert till.log.ended == [(1, "gone_before_durable", 0)]
    assert till.left == (3 if end == "late_hang_up" else 10)
    till.assert_at_rest()


def test_nothing_is_charged_beyond_what_was_reserved() -> None:
    till = Till(1_100)
    till.call("rows")
    till.answer(till.pool.requests[0], b"{}", 200, (b"tollway-rows", b"64"))
    till.call("timed")
    assert till.left == 1_100 - 1_030
    assert till.log.records[0].rows == 3


def test_time_is_reserved_and_charged_up_to_its_declared_maximum() -> None:
    till = Till(1_000)
    till.call("timed")
    assert till.left == 899
    till.answer(till.pool.requests[0], b"{}", 200, (b"tollway-compute-ns", b"99000000"))
    assert (till.log.records[0].compute_ns, till.log.records[0].charge_nanos) == (20_000_000, 101)
    till.call("timed")
    till.answer(till.pool.requests[1], b"{}", 200, (b"tollway-compute-ns", b"2000000"))
    assert till.log.records[1].charge_nanos == 11
    assert till.left == 1_000 - 101 - 11


@pytest.mark.parametrize("pricing", ["prepaid", "priced"])
def test_a_price_without_a_bound_is_not_sold(pricing: str) -> None:
    till = Till(1_000, pricing)
    refused = till.call("endless", (b"tollway-max-cost", b"1"))
    assert (refused.replies[0][0], code_of(refused)) == (501, "not_implemented")
    assert till.pool.requests == []


def test_streams_are_not_sold_with_a_bound() -> None:
    till = Till(1_000)
    exchange = till.post(till.head(b"/v2/models/flat/generate_stream", method=b"POST", length=2), b"{}")
    assert (exchange.replies[0][0], code_of(exchange)) == (501, "not_implemented")
    assert till.left == 1_000


def test_a_free_model_needs_no_money() -> None:
    till = Till(0)
    till.call("gift")
    till.answer(till.pool.requests[0])
    assert till.log.records[0].charge_nanos == 0


def test_without_metering_prepaid_is_refused() -> None:
    till = Till(1_000)
    till.gateway.funds = None
    assert code_of(till.call()) == "metering_unavailable"


@pytest.mark.parametrize(
    ("model", "limit", "is_refused"),
    [
        ("flat", b"0.000000007", False),
        ("flat", b"0.000000006", True),
        ("flat", b"0", True),
        ("gift", b"0", False),
        ("rows", b"0.00000103", False),
        ("rows", b"0.000001029", True),
        ("timed", b"0.000000101", False),
        ("timed", b"0.0000001", True),
    ],
)
@pytest.mark.parametrize("pricing", ["prepaid", "priced"])
def test_a_call_that_may_cost_more_than_its_caller_allows_is_refused(
    pricing: str, model: str, limit: bytes, is_refused: bool
) -> None:
    till = Till(5_000, pricing)
    exchange = till.call(model, (b"tollway-max-cost", limit))
    assert len(till.pool.requests) == (not is_refused)
    if is_refused:
        assert (exchange.replies[0][0], code_of(exchange)) == (402, "max_cost_exceeded")
        assert "USD" in message_of(exchange)
        assert till.left == 5_000


def test_of_two_limits_the_lower_one_holds() -> None:
    till = Till(5_000)
    exchange = till.call("flat", (b"tollway-max-cost", b"1"), (b"tollway-max-cost", b"0.000000001"))
    assert code_of(exchange) == "max_cost_exceeded"


@pytest.mark.parametrize("value", [b"", b"-1", b"abc", b"1e3", b"0.0000000001", b"1,5", b"\xff", b"9" * 40, b"NaN"])
def test_a_limit_that_is_no_amount_is_refused(value: bytes) -> None:
    till = Till(5_000)
    exchange = till.call("flat", (b"tollway-max-cost", value))
    assert (exchange.replies[0][0], code_of(exchange)) == (400, "bad_request")
    assert till.left == 5_000


def test_a_free_plan_passes_any_limit() -> None:
    till = Till(0, "free")
    till.call("rows", (b"tollway-max-cost", b"0"))
    assert len(till.pool.requests) == 1


def test_a_call_waits_for_the_wallet_and_then_goes_on() -> None:
    till = Till(10, is_slow=True)
    first, second = till.call(), till.call()
    assert (first.replies, second.replies, till.pool.requests) == ([], [], [])
    assert isinstance(till.funds, SlowFunds)
    till.funds.answer()
    assert len(till.pool.requests) == 1
    assert code_of(second) == "insufficient_funds"
    till.answer(till.pool.requests[0])
    till.log.sync()
    assert first.replies[0][0] == 200
    assert till.left == 3
    till.assert_at_rest()


def test_money_for_a_caller_who_left_is_given_back() -> None:
    till = Till(10, is_slow=True)
    till.gateway.on_abort(till.call())
    assert isinstance(till.funds, SlowFunds)
    till.funds.answer()
    assert till.left == 10
    assert till.quota.released == []
    till.assert_at_rest()


def test_rows_are_counted_before_on_a_trusted_backend_too() -> None:
    till = Till(5_000)
    exchange = till.begin(till.head(b"/v2/models/rows/infer", length=len(JSON)))
    till.gateway.on_body(exchange, JSON[:20])
    assert till.left == 5_000
    assert till.pool.requests == []
    till.gateway.on_body(exchange, JSON[20:])
    till.gateway.on_end(exchange)
    assert till.left == 5_000 - 1_030
    assert till.pool.requests[0].body == JSON


def test_rows_that_cannot_be_told_are_not_sold_with_a_bound() -> None:
    till = Till(5_000)
    assert code_of(till.call("rows", body=b"{}")) == "invalid_tensor"
    assert till.left == 5_000
    till.assert_at_rest()


#: `inputs[0]` named x with shape [3, 2].
TENSOR = b"\x2a\x0d\x0a\x01x\x12\x04FP32\x1a\x02\x03\x02"


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_grpc_rows_are_known_before_the_call_runs_whatever_the_cut(size: int) -> None:
    till = Till(5_000)
    body = grpc_body(b"rows", TENSOR)
    exchange = till.begin(grpc_head(till))
    for at in range(0, len(body), size):
        till.gateway.on_body(exchange, body[at : at + size])
    till.gateway.on_end(exchange)
    assert till.left == 5_000 - 1_030
    upstream = till.grpc_pool.requests[0]
    assert (upstream.body, upstream.ended) == (body, True)
    upstream.listener.on_reply_whole(200, [(b"tollway-rows", b"3")], b"\0\0\0\0\0", [(b"grpc-status", b"0")])
    till.log.sync()
    assert till.log.records[0].charge_nanos == 1_030
    till.assert_at_rest()


@pytest.mark.parametrize("size", [1, 1_000])
def test_grpc_rows_that_cannot_be_told_are_refused(size: int) -> None:
    till = Till(5_000)
    body = grpc_body(b"rows")
    exchange = till.begin(grpc_head(till))
    for at in range(0, len(body), size):
        till.gateway.on_body(exchange, body[at : at + size])
    till.gateway.on_end(exchange)
    assert dict(exchange.replies[0][3] or [])[b"tollway-code"] == b"invalid_tensor"
    assert till.left == 5_000
    till.assert_at_rest()


def test_an_empty_wallet_and_a_limit_are_told_in_grpc_s_words() -> None:
    till = Till(0)
    trailers = []
    for headers in ((), ((b"tollway-max-cost", b"0"),)):
        exchange = till.begin(till.head(grpc_head(till).target, *headers, length=-1, is_grpc=True, method=b"POST"))
        till.gateway.on_body(exchange, grpc_body(b"flat"))
        till.gateway.on_end(exchange)
        trailers.append(dict(exchange.replies[0][3] or []))
    assert [(one[b"grpc-status"], one[b"tollway-code"]) for one in trailers] == [
        (b"8", b"insufficient_funds"),
        (b"9", b"max_cost_exceeded"),
    ]


@pytest.mark.parametrize("end", ["answered", "refused", "waited", "left"])
def test_a_bounded_call_is_freed_by_its_count(end: str) -> None:
    """A cycle of call and bound would leave every prepaid call to the collector."""
    if (pipeline.__file__ or "").endswith(".so"):
        pytest.skip("objects of a compiled module take no weak references")
    till = Till(0 if end == "refused" else 10, is_slow=end in {"waited", "left"})
    exchange = till.begin(till.head(length=len(JSON)))
    call = weakref.ref(exchange.call) if exchange.call is not None else None
    assert (call is None) == (end == "refused")
    gc.disable()
    try:
        if end != "refused":
            till.gateway.on_body(exchange, JSON)
            till.gateway.on_end(exchange)
        if end == "left":
            till.gateway.on_abort(exchange)
        if isinstance(till.funds, SlowFunds):
            till.funds.answer()
        if end in {"answered", "waited"}:
            till.answer(till.pool.requests[0])
            till.log.sync()
            till.pool.requests.clear()
        assert call is None or call() is None
    finally:
        gc.enable()
