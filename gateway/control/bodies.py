"""Owns what the admin API accepts: request bodies, apart from what it answers (MONEY.md §5, API3).

An unknown field is refused (422), so that no caller can set what is not listed here.
"""

from functools import cache
from typing import Annotated, Literal
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from billing.money import is_currency

Scope = Literal["infer", "read", "admin", "operate"]
SLUG = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"
LIFETIME_S_MAX = 10 * 366 * 86_400
OVERLAP_S_MAX = 30 * 86_400
#: Counts of calls: far above any plan, and twelve orders below 64 bits.
CALLS_MAX = 10**12
WINDOW_S_MAX = 86_400
QUEUE_WEIGHT_MAX = 100
#: Levels of a model (`model_repo.scheduling`).
PRIORITY_MAX = 64


#: Names that open a file of the zone database, too, but are no zone, or another one on each machine.
_NO_ZONES = frozenset({"localtime", "posixrules", "Factory"})


@cache
def _zones() -> frozenset[str]:
    """Every IANA name that this machine knows."""
    return frozenset(available_timezones()) - _NO_ZONES


def _zone(name: str) -> str:
    if name not in _zones():
        raise ValueError(f"{name!r} is not an IANA time zone such as Europe/Berlin")
    return name


def _currency(code: str) -> str:
    if not is_currency(code):
        raise ValueError(f"{code!r} is not an ISO 4217 code such as USD")
    return code


def sorted_models(names: list[str] | None) -> list[str] | None:
    return None if names is None else sorted(set(names))


def sorted_scopes(names: list[Scope]) -> list[Scope]:
    return sorted(set(names))


Slug = Annotated[str, Field(pattern=SLUG)]
ModelName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f/]+$")]


class Body(BaseModel):
    """Base of all bodies: unknown fields are refused, nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TenantBody(Body):
    """A customer to create."""

    tenant: Slug = Field(description="Its id: lower-case letters, digits and dashes; never changes.")
    name: str = Field(default="", max_length=200, description="A name for people.")
    plan: str = Field(default="free", max_length=64, description="Name of a plan; its newest version applies.")
    zone: Annotated[str, AfterValidator(_zone)] = Field(
        default="UTC", max_length=64, description="IANA time zone in which its days and months begin."
    )
    currency: Annotated[str, AfterValidator(_currency)] = Field(
        default="USD", description="ISO 4217 code; must be the currency of the prices in force."
    )


class SetPlanBody(Body):
    """The plan a tenant shall have from now on."""

    plan: str = Field(max_length=64, description="Name of a plan.")


class PlanBody(Body):
    """A plan, or a new version of the plan of that name. A limit left out is unlimited."""

    name: Slug = Field(description="Its id. Adding a known name with other values makes its next version.")
    pricing: Literal["free", "priced", "prepaid", "internal"] = Field(
        description='"priced" calls cost what the price book says, "prepaid" ones as well, out of the tenant\'s wallet;'
        ' "free" and "internal" ones are recorded at zero.'
    )
    rate_calls: int | None = Field(default=None, ge=1, le=CALLS_MAX, description="Sustained calls per window.")
    rate_window_s: int = Field(default=1, ge=1, le=WINDOW_S_MAX, description="That window, in seconds.")
    burst: int | None = Field(
        default=None, ge=1, le=CALLS_MAX, description="Calls that may come at once; needs rate_calls; default 1."
    )
    concurrency: int | None = Field(default=None, ge=1, le=1_000_000, description="Calls in flight at once.")
    calls_per_day: int | None = Field(default=None, ge=0, le=CALLS_MAX, description="Calls per day of the zone.")
    calls_per_month: int | None = Field(default=None, ge=0, le=CALLS_MAX, description="Calls per month of the zone.")
    store_down: Literal["closed", "lease"] = Field(
        default="closed",
        description='While the quota owner cannot be asked: "closed" refuses, "lease" goes on with what is leased.',
    )
    queue_weight: int = Field(
        default=1,
        ge=1,
        le=QUEUE_WEIGHT_MAX,
        description="Share of a model's queue beside other tenants in it.",
    )
    priority_best: int = Field(
        default=0, ge=0, le=PRIORITY_MAX, description="Best priority level that callers get (1 is the first); 0: any."
    )

    @model_validator(mode="after")
    def _knobs_fit(self) -> "PlanBody":
        if self.rate_calls is None and (self.burst is not None or self.rate_window_s != 1):
            raise ValueError("burst and rate_window_s need rate_calls")
        return self


class KeyBody(Body):
    """A key to create. Its text is in the answer, once."""

    tenant: Slug = Field(description="Whose key it is.")
    name: str = Field(default="", max_length=200, description="A name for people.")
    scopes: Annotated[list[Scope], AfterValidator(sorted_scopes)] = Field(
        default=["infer", "read"],
        min_length=1,
        max_length=8,
        description='"infer" calls models, "read" sees metadata and statistics, "admin" changes the tenant\'s own keys '
        'and webhooks (/me), "operate" changes the backends that all tenants share.',
    )
    models: Annotated[list[ModelName] | None, AfterValidator(sorted_models)] = Field(
        default=None, min_length=1, max_length=1_000, description="Exact names it may call; null: every model."
    )
    expires_s: int | None = Field(
        default=None, ge=1, le=LIFETIME_S_MAX, description="Seconds until it expires; null: it does not."
    )
    parent: str | None = Field(
        default=None,
        max_length=64,
        description="Id of the key on whose behalf it is made: its rights must lie within that key's, and end with it.",
    )


class RotateBody(Body):
    """A new secret for a key. Repeating an operation id changes nothing and shows no secret."""

    operation_id: str = Field(
        min_length=8, max_length=128, pattern=r"^[\x21-\x7e]+$", description="Chosen by the caller, new per rotation."
    )
    overlap_s: int = Field(
        default=3_600, ge=0, le=OVERLAP_S_MAX, description="Seconds for which the old secret stays valid."
    )


class RotateTokenBody(Body):
    """A new admin token."""

    expires_s: int | None = Field(
        default=None, ge=60, le=LIFETIME_S_MAX, description="Seconds until it expires; null: it does not."
    )
    overlap_s: int = Field(default=0, ge=0, le=86_400, description="Seconds for which the old token stays valid.")
