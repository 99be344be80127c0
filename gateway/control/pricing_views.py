"""Owns the bodies and answers of the routes about plans' money, prices, quotes, re-rating and simulation.

Amounts are integer nanos (1e-9 of the major unit) beside their decimal text.
"""

from typing import Any, Literal

from pydantic import Field

from gateway.control.bodies import Body, ModelName, Slug
from gateway.control.views import View

FILE_CHARS_MAX = 900_000


class FileBody(Body):
    """A file as it is, so that errors name its own fields."""

    name: str = Field(default="file", min_length=1, max_length=200, description="Its name, for error messages.")
    format: Literal["toml", "json"] = Field(default="toml", description="How `text` is written.")
    text: str = Field(max_length=FILE_CHARS_MAX, description="The whole file.")


class SubscribeBody(Body):
    """The plan that a tenant shall be on, with its QPS packs."""

    operation_id: str = Field(
        min_length=8,
        max_length=60,
        pattern=r"^[\x21-\x7e]+$",
        description="Chosen by the caller, new per change; repeat with the same one.",
    )
    plan: Slug = Field(description="Name of a plan; its newest version applies.")
    packs: int = Field(default=0, ge=0, le=1_000, description="QPS packs of it.")


class SettleBody(Body):
    """The month to rate, again if it was rated before."""

    operation_id: str = Field(
        min_length=8, max_length=60, pattern=r"^[\x21-\x7e]+$", description="Chosen by the caller, new per rating."
    )
    at_ns: int = Field(ge=0, lt=2**63, description="Any instant of the charge month, UTC nanoseconds.")


class RedeemBody(Body):
    """A coupon to redeem for a tenant."""

    operation_id: str = Field(
        min_length=8, max_length=60, pattern=r"^[\x21-\x7e]+$", description="Chosen by the caller, new per redemption."
    )
    code: str = Field(min_length=1, max_length=40, description="The coupon's code.")


class QuoteBody(Body):
    """What to quote."""

    model: ModelName = Field(description="The model's name.")
    rows: int = Field(default=1, ge=0, lt=2**48, description="Rows (images, tokens) of one call.")
    compute_ms: int = Field(default=0, ge=0, lt=2**28, description="Compute milliseconds of one call.")
    byte_count: int = Field(default=0, ge=0, lt=2**48, description="Bytes of request and reply of one call.")
    calls: int = Field(default=1, ge=0, lt=2**48, description="Such calls in a month.")
    plan: Slug | None = Field(default=None, description="Name of a plan; null: list prices.")
    packs: int = Field(default=0, ge=0, le=1_000, description="QPS packs of the plan.")
    version: int | None = Field(default=None, ge=1, lt=2**31, description="Price book; null: the one in force.")


class RerateBody(Body):
    """What to rate again."""

    since_ns: int = Field(ge=0, lt=2**63, description="First instant, UTC nanoseconds.")
    until_ns: int = Field(ge=0, lt=2**63, description="The instant behind the last.")
    against: int | None = Field(
        default=None,
        ge=1,
        lt=2**31,
        description="Price book version; null: each call by its own, which must not differ.",
    )
    tenant: Slug | None = Field(default=None, description="Only this tenant's calls.")
    model: ModelName | None = Field(default=None, description="Only this model's calls.")


class SimulateBody(Body):
    """Recorded usage to replay against another plan."""

    tenant: Slug = Field(description="Whose usage.")
    since_ns: int = Field(ge=0, lt=2**63, description="First instant, UTC nanoseconds.")
    until_ns: int = Field(ge=0, lt=2**63, description="The instant behind the last.")
    plan: Slug | None = Field(default=None, description="A plan by name; null: the tenant's own.")
    file: FileBody | None = Field(default=None, description="A catalogue file to take `plan` from instead.")
    packs: int = Field(default=0, ge=0, le=1_000, description="QPS packs of the plan.")
    limits: dict[str, int | None] = Field(
        default={},
        max_length=8,
        description="Limits to replace: rate_calls, rate_window_s, burst, concurrency, calls_per_day, calls_per_month.",
    )
    prices: FileBody | None = Field(default=None, description="A price book; null: the one in force.")
    bucket_s: int = Field(default=3_600, ge=1, le=31 * 86_400, description="Seconds per point of the series.")


class AppliedPlanView(View):
    name: str
    version: int
    is_new_version: bool = Field(description="False: the newest version said the same already.")


class AppliedView(View):
    """What a catalogue file came to."""

    plans: list[AppliedPlanView]
    coupons: list[str] = Field(description="Codes that are new.")


class TermsView(View):
    """The money of one plan version; `terms` null: list prices only."""

    name: str
    version: int
    created_at: str | None
    terms: dict[str, Any] | None


class BookView(View):
    """One version of the price book."""

    version: int
    currency: str
    models: int
    is_in_force: bool
    created_at: str | None


class LineView(View):
    key: str
    kind: str
    description: str
    amount_nanos: int
    amount: str


class QuoteView(View):
    """A quote: what one call costs at list price, and the month of `calls` such calls."""

    model: str
    currency: str
    price_version: int
    plan: str | None
    calls: int
    call_nanos: int
    call: str
    list_nanos: int
    lines: list[LineView]
    fee_nanos: int = Field(description="Monthly fees, QPS packs included; a yearly fee is not part of a month.")
    total_nanos: int
    total: str


class GrantView(View):
    """Promotional credit and what is left of it, in the order in which it burns."""

    grant_id: str
    kind: str
    currency: str
    amount_nanos: int
    left_nanos: int
    expires_at: str | None
    priority: int
    models: list[str]
    rollovers: int


class CreditView(View):
    """A tenant's credit and coupons."""

    grants: list[GrantView]
    coupons: list[dict[str, Any]]
