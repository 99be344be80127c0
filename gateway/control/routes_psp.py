"""Owns the door for payment providers' messages: open to the world, believed only when the signature fits."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from billing.payments.port import Message, NotAuthentic, PaymentProvider
from billing.wallets.commands import TOP_UP_PREFIX
from gateway.control.errors import ControlCode, ControlError, not_found
from gateway.control.money import Money
from gateway.control.views import ErrorView, View

ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorView, "description": "The signature does not fit, or the message is too old."},
    404: {"model": ErrorView, "description": "This installation has no such provider, or no such invoice."},
    409: {"model": ErrorView, "description": "The books cannot take it: see control's log."},
    503: {"model": ErrorView, "description": "The meter cannot be asked now: send it again."},
}
router = APIRouter(tags=["payments"], responses=ERRORS)


class TakenView(View):
    """`is_news`: it was not known before; false also for kinds that do not matter here."""

    is_news: bool


@router.post("/psp/stripe")
async def take_stripe_message(request: Request) -> TakenView:
    """A signed webhook of Stripe. Taken in any order and any number of times; booked once."""
    return await run_in_threadpool(_take, request, "stripe", await request.body())


def _take(request: Request, name: str, body: bytes) -> TakenView:
    provider: PaymentProvider | None = request.app.state.providers.get(name)
    if provider is None:
        raise not_found("payment provider", name)
    registry = request.app.state.registry
    try:
        message = provider.read_message(body, dict(request.headers), registry.clock.wall_ns() // 1_000_000_000)
    except NotAuthentic as error:
        raise ControlError(ControlCode.UNAUTHENTICATED, str(error)) from error
    if message is None:
        return TakenView(is_news=False)
    money = Money(request.app.state.data_dir, registry, request.app.state.ask_meter)
    verb = "wallet.told" if message.document_id.startswith(TOP_UP_PREFIX) else "payment.told"
    answer = money.run(f"psp:{name}", verb, f"psp:{name}:{message.event_id}", _body(name, message))
    return TakenView(is_news=bool(answer["is_news"]))


def _body(provider: str, message: Message) -> dict[str, Any]:
    fields = message._asdict()
    del fields["event_id"]
    return {"provider": provider, **fields}
