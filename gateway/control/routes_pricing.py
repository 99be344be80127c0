"""Owns the admin routes of plans' money: catalogue, price books, quotes, subscriptions, months, credit, simulation."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Path
from sqlalchemy import Connection

from billing import credit_store
from billing.catalogue import parse_catalogue
from billing.credits import Holding, burn_order
from billing.fields import FileError
from billing.pricebook import parse_price_book
from billing.rating import PriceBook, PriceError, compile_book
from billing.rerate import RerateError, rerate
from billing.settlement import list_runs
from gateway.control import catalogue, plans, prices, quoting
from gateway.control.errors import invalid
from gateway.control.pricing_views import (
    AppliedView,
    BookView,
    CreditView,
    FileBody,
    GrantView,
    QuoteBody,
    QuoteView,
    RedeemBody,
    RerateBody,
    SettleBody,
    SimulateBody,
    SubscribeBody,
    TermsView,
)
from gateway.control.registry import Change
from gateway.control.routes import ERRORS, PAGE_DEFAULT, REQUIRE_ACTOR, Actor, After, Limit, TheRegistry
from gateway.control.routes_billing import TheMoney, TheMonths
from gateway.control.simulate import SimulateError
from gateway.control.subscribing import Subscribing
from gateway.control.views import ErrorView, Page, TenantView, instant

T = TypeVar("T")
UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"model": ErrorView, "description": "The meter or its ledger cannot be asked now: try again."}
}
router = APIRouter(prefix="/admin", tags=["plans"], dependencies=[REQUIRE_ACTOR], responses=ERRORS | UNAVAILABLE)

Name = Annotated[str, Path(max_length=64)]
RUNS_MAX = 1_000


@router.post("/catalogue")
def apply_catalogue(registry: TheRegistry, actor: Actor, body: FileBody) -> AppliedView:
    """Apply a file of plans and coupons: all of it or nothing. What says the same already makes no new version."""
    found = checked(lambda: parse_catalogue(body.text.encode(), is_json=body.format == "json", name=body.name))

    def work(tx: Connection, now_ns: int) -> Change[AppliedView]:
        applied = catalogue.apply_catalogue(
            tx, found, book_currency=registry.prices.currency, where=body.name, now_ns=now_ns
        )
        is_needed = bool(applied.coupons) or any(plan.is_new_version for plan in applied.plans)
        return Change(answer=applied, subject="catalogue", before=None, after=applied, is_needed=is_needed)

    return registry.change(actor, "catalogue.apply", work)


@router.get("/plans/{name}/terms")
def list_plan_terms(registry: TheRegistry, name: Name) -> Page[TermsView]:
    """The money of every version of a plan; the last one applies from the next charge month on."""

    def query(tx: Connection, _: int) -> list[TermsView]:
        plans.get_plan(tx, name)
        return [
            TermsView(
                name=name,
                version=one.version,
                created_at=instant(one.created_ns),
                terms=None if one.terms is None else msgspec.to_builtins(one.terms),
            )
            for one in plans.terms_versions(tx, name)
        ]

    return Page(items=registry.read(query))


@router.get("/coupons")
def list_coupons(registry: TheRegistry, limit: Limit = PAGE_DEFAULT, after: After = "") -> Page[dict[str, Any]]:
    """Coupons by code. A coupon never changes."""
    found = registry.read(lambda tx, _: catalogue.list_coupons(tx, after=after, limit=limit))
    return Page(items=[msgspec.to_builtins(one) for one in found], next=found[-1].code if len(found) == limit else None)


@router.post("/prices")
def apply_prices(registry: TheRegistry, money: TheMoney, actor: Actor, body: FileBody) -> BookView:
    """Put a price book with a higher version in force. Calls already recorded keep the version that they name.

    The ledger learns it first, so no call can be priced by a book that the meter does not know.
    """
    book = checked(lambda: parse_price_book(body.text.encode(), is_json=body.format == "json"), body.name)
    registry.read(lambda tx, _: prices.check_new_book(tx, book, registry.prices, registry.backends))
    money.add_prices(book)

    def work(tx: Connection, now_ns: int) -> Change[BookView]:
        is_new = prices.adopt_new_book(tx, book, registry.prices, registry.backends, now_ns)
        view = _book_view(book, book.version, now_ns)
        return Change(answer=view, subject=f"price_book:{book.version}", before=None, after=view, is_needed=is_new)

    answer = registry.change(actor, "prices.apply", work)
    registry.prices = registry.read(lambda tx, _: prices.current_book(tx, book))
    return answer


@router.get("/prices/versions")
def list_price_books(registry: TheRegistry, limit: Limit = PAGE_DEFAULT) -> Page[BookView]:
    """Every price book ever given, newest first. A version never changes."""
    found = registry.read(lambda tx, _: prices.list_books(tx, limit=limit))
    newest = found[0][0].version
    return Page(items=[_book_view(book, newest, created_ns) for book, created_ns in found])


@router.post("/prices/quote")
def get_quote(registry: TheRegistry, body: QuoteBody) -> QuoteView:
    """What calls cost, by the code that charges and rates them: at list price, or in a month under a plan."""
    return registry.read(lambda tx, _: quoting.quote_view(tx, body, registry.prices))


@router.post("/prices/rerate")
def rerate_usage(registry: TheRegistry, money: TheMoney, body: RerateBody) -> dict[str, Any]:
    """Price recorded calls again, as a run with its differences. Posts nothing and changes nothing."""
    books = registry.read(lambda tx, _: [book for book, _ in prices.list_books(tx, limit=prices.BOOKS_MAX)])
    raters = {book.version: compile_book(book) for book in books}

    def question(db: Any) -> Any:
        return rerate(
            db,
            raters,
            since_ns=body.since_ns,
            until_ns=body.until_ns,
            against=body.against,
            tenant=body.tenant,
            model=body.model,
        )

    run: dict[str, Any] = msgspec.to_builtins(checked(lambda: money.read(question)))
    return run


@router.post("/tenants/{tenant}/subscribe", tags=["tenants"])
def subscribe(registry: TheRegistry, money: TheMoney, actor: Actor, tenant: Name, body: SubscribeBody) -> TenantView:
    """Put a tenant on a plan with its fee, packs and trial credit; prorated by the second. Safe to repeat."""
    return Subscribing(money, registry).subscribe(actor, tenant, body.plan, body.packs, body.operation_id)


@router.get("/tenants/{tenant}/months", tags=["tenants"])
def list_months(money: TheMoney, tenant: Name) -> list[dict[str, Any]]:
    """The ratings of a tenant's months, newest first; a month rated again has several."""
    runs = money.read(lambda db: list_runs(db, tenant, limit=RUNS_MAX))
    return [msgspec.to_builtins(run) for run in runs]


@router.post("/tenants/{tenant}/months", tags=["tenants"])
def settle_month(months: TheMonths, actor: Actor, tenant: Name, body: SettleBody) -> dict[str, Any]:
    """Rate a month that is over, again if it was rated: items over the differences come with the next invoice."""
    run: dict[str, Any] = months.settle(actor, tenant, body.at_ns, body.operation_id)
    return run


@router.get("/tenants/{tenant}/credit", tags=["tenants"])
def get_credit(money: TheMoney, tenant: Name) -> CreditView:
    """A tenant's promotional credit in the order in which it burns, and its coupons in the order of redemption."""
    holdings, redeemed = money.read(
        lambda db: (credit_store.holdings(db, tenant), credit_store.redemptions(db, tenant))
    )
    return CreditView(
        grants=[_grant_view(one) for one in sorted(holdings, key=lambda holding: burn_order(holding.grant))],
        coupons=[
            {"code": one.coupon.code, "redeemed_at": instant(one.redeemed_ns)} | msgspec.to_builtins(one.coupon)
            for one in redeemed
        ],
    )


@router.post("/tenants/{tenant}/coupons", tags=["tenants"])
def redeem_coupon(
    registry: TheRegistry, money: TheMoney, actor: Actor, tenant: Name, body: RedeemBody
) -> dict[str, Any]:
    """Redeem a coupon for a tenant; its definition is kept as it is now."""
    coupon = registry.read(lambda tx, _: catalogue.get_coupon(tx, body.code))
    command = {"tenant": tenant, "coupon": msgspec.to_builtins(coupon)}
    answer: dict[str, Any] = money.run(actor, "coupon.redeem", body.operation_id, command)
    return answer


@router.post("/plans/simulate")
def simulate_plan(registry: TheRegistry, money: TheMoney, body: SimulateBody) -> dict[str, Any]:
    """Replay a tenant's recorded usage against other limits, money or prices: who is throttled, what it would cost."""
    return checked(lambda: quoting.simulation(registry, money, body))


def checked(work: Callable[[], T], name: str = "") -> T:
    """`work()`, its refusals of files and arguments as answers with status 422."""
    try:
        return work()
    except (FileError, RerateError, SimulateError) as error:
        raise invalid(str(error)) from error
    except PriceError as error:
        raise invalid(f"{name}: {error}" if name else str(error)) from error


def _book_view(book: PriceBook, in_force: int, created_ns: int) -> BookView:
    return BookView(
        version=book.version,
        currency=book.currency,
        models=len(book.models),
        is_in_force=book.version == in_force,
        created_at=instant(created_ns),
    )


def _grant_view(holding: Holding) -> GrantView:
    grant, left = holding
    return GrantView(
        grant_id=grant.grant_id,
        kind=grant.kind,
        currency=grant.currency,
        amount_nanos=grant.amount_nanos,
        left_nanos=left,
        expires_at=instant(grant.expires_ns),
        priority=grant.priority,
        models=list(grant.models),
        rollovers=grant.rollovers,
    )
