"""Plans, instants and shorthands for the quota tests."""

from typing import Any
from zoneinfo import ZoneInfo

from gateway.quota.allowance import Allowance, Instant
from gateway.snapshot import Plan, Tenant

MS = 1_000_000
S = 1_000_000_000
#: 2026-01-01T00:00:00Z, the start of a day, a month and a year in UTC.
WALL_NS = 1_767_225_600 * S
DAY_NS = 86_400 * S
UTC_ZONE = ZoneInfo("UTC")
ACME = Tenant(tenant="acme", plan="plan")


def plan_of(**fields: Any) -> Plan:
    values: dict[str, Any] = {"name": "plan", "version": 1, "pricing": "free"}
    return Plan(**(values | fields))


def instant(after_ns: int = 0) -> Instant:
    """`after_ns` after noon on the first of January."""
    return Instant(S + after_ns, WALL_NS + DAY_NS // 2 + after_ns)


def allowance_of(*, is_bucket_full: bool = True, **fields: Any) -> Allowance:
    return Allowance(plan_of(**fields), UTC_ZONE, instant(), is_bucket_full=is_bucket_full, is_rebuilt=True)
