"""Owns the routes of receipts: signed heads, receipts of calls, proofs of bills; for the operator, and for a tenant."""

from typing import Annotated, Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel

from billing.receipts.heads import list_heads
from billing.receipts.keys import ReceiptKeyError, public_keys, rotate
from billing.receipts.receipt import Head, encode_receipt
from gateway.control import routes_me
from gateway.control.audit import append_audit
from gateway.control.errors import ControlCode, ControlError, invalid
from gateway.control.receipts import Receipts
from gateway.control.routes import ERRORS, PAGE_DEFAULT, REQUIRE_ACTOR, Actor, Limit, TheRegistry
from gateway.control.routes_billing import TheMoney
from gateway.control.views import ErrorView, Page

_UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"model": ErrorView, "description": "The ledger, the meter or the signing keys cannot be used now."}
}
router = APIRouter(
    prefix="/admin/receipts", tags=["receipts"], dependencies=[REQUIRE_ACTOR], responses=ERRORS | _UNAVAILABLE
)
mine = APIRouter(prefix="/me/receipts", tags=["self-service"], responses=routes_me.ERRORS)

Tenant = Annotated[str, Query(max_length=64, description="Id of the tenant.")]
CallId = Annotated[str, Path(max_length=64, description="The `tollway-call-id` of a reply.")]
Name = Annotated[str, Path(max_length=64, description="Number or id of the invoice.")]
Size = Annotated[int, Query(ge=1, le=2**63 - 1, description="Size of the head that is held.")]
OtherSize = Annotated[int | None, Query(ge=1, le=2**63 - 1, description="Of a newer head; default: the newest.")]
AfterSize = Annotated[int, Query(ge=0, le=2**63 - 1, description="`next` of the page before.")]


class HeadView(BaseModel):
    """A signed tree head; docs/receipts.md says what the signature is over."""

    tenant: str
    size: int
    root: str
    at_ns: int
    key_id: str
    signature: str


class KeyIdView(BaseModel):
    """The key that signs from now on."""

    key_id: str


def _receipts(request: Request, registry: TheRegistry, money: TheMoney) -> Receipts:
    return Receipts(money, registry, request.app.state.data_dir)


TheReceipts = Annotated[Receipts, Depends(_receipts)]


@router.get("/keys")
def get_keys(request: Request) -> dict[str, str]:
    """The public keys (hex) of all heads ever signed here, by id."""
    return _keys(request)


@router.post("/rotate-key")
def rotate_key(request: Request, registry: TheRegistry, actor: Actor) -> KeyIdView:
    """Sign with a new key from now on; what the old one signed stays valid."""
    with registry.database.write() as tx:
        at_ns = registry.clock.wall_ns()
        append_audit(
            tx, at_ns=at_ns, actor=actor, action="receipts.rotate", subject="receipts", before=None, after=None
        )
    try:
        return KeyIdView(key_id=rotate(request.app.state.data_dir).key_id)
    except ReceiptKeyError as error:
        raise ControlError(ControlCode.CONFLICT, str(error)) from error


@router.get("/head")
def get_head(receipts: TheReceipts, tenant: Tenant) -> HeadView:
    """A published head over all posted calls of a tenant."""
    return _view(receipts.head(tenant))


@router.get("/heads")
def get_heads(money: TheMoney, tenant: Tenant, limit: Limit = PAGE_DEFAULT, after: AfterSize = 0) -> Page[HeadView]:
    """Every published head of a tenant, smallest first."""
    return _page(money, tenant, limit=limit, after=after)


@router.get("/calls/{call_id}", response_class=Response)
def get_receipt(receipts: TheReceipts, call_id: CallId, tenant: Tenant) -> Response:
    """The receipt of one posted call."""
    return _json(encode_receipt(receipts.receipt(tenant, _raw(call_id))))


@router.get("/consistency", response_class=Response)
def get_consistency(receipts: TheReceipts, tenant: Tenant, first: Size, second: OtherSize = None) -> Response:
    """The path that shows one published head's tree to be the beginning of another's."""
    return _json(msgspec.json.encode(receipts.consistency(tenant, first, second)))


@router.get("/bills/{name}", response_class=Response)
def get_bill(receipts: TheReceipts, name: Name) -> Response:
    """The proof of one invoice, for `tollway verify-bill`."""
    return _json(msgspec.json.encode(receipts.proof(name), order="deterministic"))


@mine.get("/keys")
def my_keys(request: Request, caller: routes_me.Reader) -> dict[str, str]:
    """The public keys (hex) that heads are verified with, by id. Get them another way as well, once."""
    return _keys(request)


@mine.get("/head")
def my_head(receipts: TheReceipts, caller: routes_me.Reader) -> HeadView:
    """A published head over all of the tenant's posted calls. Keep it: it can be compared with any later one."""
    return _view(receipts.head(caller.tenant.tenant))


@mine.get("/heads")
def my_heads(
    money: TheMoney, caller: routes_me.Reader, limit: Limit = PAGE_DEFAULT, after: AfterSize = 0
) -> Page[HeadView]:
    """Every published head of the tenant, smallest first."""
    return _page(money, caller.tenant.tenant, limit=limit, after=after)


@mine.get("/calls/{call_id}", response_class=Response)
def my_receipt(receipts: TheReceipts, caller: routes_me.Reader, call_id: CallId) -> Response:
    """The receipt of one of the tenant's posted calls."""
    return _json(encode_receipt(receipts.receipt(caller.tenant.tenant, _raw(call_id))))


@mine.get("/consistency", response_class=Response)
def my_consistency(receipts: TheReceipts, caller: routes_me.Reader, first: Size, second: OtherSize = None) -> Response:
    """The path from a head that the tenant holds to a newer one."""
    return _json(msgspec.json.encode(receipts.consistency(caller.tenant.tenant, first, second)))


@mine.get("/bills/{name}", response_class=Response)
def my_bill(receipts: TheReceipts, caller: routes_me.Reader, name: Name) -> Response:
    """The proof of one of the tenant's invoices, for `tollway verify-bill`."""
    return _json(msgspec.json.encode(receipts.proof(name, tenant=caller.tenant.tenant), order="deterministic"))


def _keys(request: Request) -> dict[str, str]:
    try:
        return {key_id: public.hex() for key_id, public in public_keys(request.app.state.data_dir).items()}
    except ReceiptKeyError as error:
        raise ControlError(ControlCode.CONFLICT, str(error)) from error


def _page(money: TheMoney, tenant: str, *, limit: int, after: int) -> Page[HeadView]:
    heads = money.read(lambda db: list_heads(db, tenant, after=after, limit=limit), tenant=tenant)
    return Page(items=[_view(head) for head in heads], next=str(heads[-1].size) if len(heads) == limit else None)


def _view(head: Head) -> HeadView:
    return HeadView(**msgspec.structs.asdict(head))


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _raw(call_id: str) -> bytes:
    try:
        return UUID(call_id).bytes
    except ValueError as error:
        raise invalid(f"call_id: {call_id!r} is not the tollway-call-id of a reply") from error
