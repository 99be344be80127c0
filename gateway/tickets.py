"""HOT PATH. Owns what one policy means for one caller of one model: worked out once, looked up for every call.

A `Policy` is one snapshot; its `Ticket`s end with it, so nothing that was derived from a key outlives the snapshot.
"""

from typing import Final

from billing.events import Outcome, Reason, ServedTemplate
from billing.rating import NS_PER_MS, Rater
from gateway.auth.keyring import Keyring, Principal, Scope, authorize
from gateway.errors import Code, Refusal
from gateway.monitoring.call_line import caller_fields
from gateway.monitoring.metrics import CallCounters, Cell
from gateway.quota.funds import Purse

_TICKETS_MAX: Final = 4096
_CHARGES_MAX: Final = 1024
_NANOS: Final = 1_000_000_000
_OK: Final = int(Outcome.OK)
_NOT_BILLABLE: Final = int(Reason.NOT_BILLABLE)
_REASON_NAMES: Final = {reason.value: reason.name.lower().encode() for reason in Reason}
_NOT_REPORTED: Final = Refusal(
    code=Code.METERING_UNAVAILABLE,
    message="this model is priced by compute time, which its backend does not report",
)


class Charge:
    """What a call costs, why, and how `tollway-charge` says it: `0.00002 USD; reason=priced; price=3`."""

    __slots__ = ("nanos", "reason", "text")

    def __init__(self, nanos: int, reason: int, price_version: int, currency: str) -> None:
        self.nanos = nanos
        self.reason = reason
        whole, fraction = divmod(nanos, _NANOS)
        digits = f"{fraction:09d}".rstrip("0")
        amount = f"{whole}.{digits}" if digits else str(whole)
        self.text = b"%b %b; reason=%b; price=%d" % (
            amount.encode(),
            currency.encode(),
            _REASON_NAMES[reason],
            price_version,
        )


class Ticket:
    """One (principal, model, version, protocol) under one policy.

    `refusal`: why the principal may not call the model, or None. `unmeasured`: why the call cannot be sold on a backend
    whose own counts are not believed; `needs_rows`: there, rows are what is sold, so the gateway must count them.
    `template` writes the usage record, `log_fields` is the call's part of a log line that never changes.
    """

    __slots__ = (
        "_cell",
        "_charges",
        "_counters",
        "_policy",
        "_protocol",
        "compute_ns_max",
        "is_prepaid",
        "log_fields",
        "model",
        "needs_rows",
        "pricing",
        "purse",
        "refusal",
        "template",
        "tenant",
        "unmeasured",
    )

    def __init__(self, policy: "Policy", principal: Principal, model: str, version: str, *, is_grpc: bool) -> None:
        self._policy = policy
        self.model = model
        #: As backends are told it.
        self.tenant = _told(principal)
        self.pricing = principal.plan.pricing
        self.refusal = authorize(principal, Scope.INFER, model)
        price = policy.rater.price_of(model)
        #: Whether the tenant's wallet pays; what `purse` it pays from is looked up by the first call.
        self.is_prepaid = self.pricing == "prepaid"
        self.purse: Purse | None = None
        is_priced = self.pricing == "priced" or self.is_prepaid
        #: Compute time that a call with a bounded price is charged for at most; -1: there is no bound.
        self.compute_ns_max = -1
        if not (is_priced and price.per_compute_ms_nanos):
            self.compute_ns_max = 0
        elif price.compute_ms_max:
            self.compute_ns_max = price.compute_ms_max * NS_PER_MS
        self.unmeasured = _NOT_REPORTED if is_priced and price.per_compute_ms_nanos else None
        self.needs_rows = is_priced and bool(price.per_row_nanos)
        self.template = ServedTemplate(
            tenant=principal.tenant.tenant,
            key_id=principal.key.key_id,
            plan=principal.plan.name,
            model=model,
            model_version=version,
            price_version=policy.price_version,
            currency=policy.currency,
            protocol=1 if is_grpc else 0,
        )
        self._protocol = "grpc" if is_grpc else "http"
        self.log_fields = caller_fields(principal.tenant.tenant, principal.key.key_id, self._protocol, model)
        self._charges: dict[int, Charge] = {}
        self._counters: CallCounters | None = None
        self._cell = Cell()

    def cell(self, counters: CallCounters) -> Cell:
        """Where `counters` count the call if it is answered well."""
        if self._counters is not counters:
            self._counters, self._cell = counters, counters.cell(self._protocol, self.model, "ok")
        return self._cell

    def most_nanos(self, rows: int) -> int:
        """The most that a call with so many rows is charged where its price is bounded (`compute_ns_max` >= 0)."""
        if self.unmeasured is None:
            known = self._charges.get(rows)
            return known.nanos if known is not None else self.charge(rows, 0).nanos
        return self._policy.rater.charge(self.model, self.pricing, _OK, rows, self.compute_ns_max)[0]

    def charge(self, rows: int, compute_ns: int) -> Charge:
        """The list price of one answered call at the pinned price version."""
        policy = self._policy
        if self.unmeasured is not None:  # priced by time: every call its own
            nanos, reason = policy.rater.charge(self.model, self.pricing, _OK, rows, compute_ns)
            return Charge(nanos, int(reason), policy.price_version, policy.currency)
        charge = self._charges.get(rows)
        if charge is None:
            nanos, reason = policy.rater.charge(self.model, self.pricing, _OK, rows, compute_ns)
            if len(self._charges) >= _CHARGES_MAX:
                self._charges.clear()
            charge = self._charges[rows] = Charge(nanos, int(reason), policy.price_version, policy.currency)
        return charge


class Policy:
    """What the current snapshot means; replaced as a whole when a new one arrives."""

    __slots__ = ("_tickets", "currency", "keyring", "not_billable", "price_version", "rater", "version")

    def __init__(self, *, version: int, keyring: Keyring, rater: Rater, price_version: int, currency: str) -> None:
        self.version = version
        self.keyring = keyring
        self.rater = rater
        self.price_version = price_version
        self.currency = currency
        #: What everything costs that was not answered well.
        self.not_billable = Charge(0, _NOT_BILLABLE, price_version, currency)
        self._tickets: dict[tuple[Principal, str, str, bool], Ticket] = {}

    def ticket(self, principal: Principal, model: str, version: str, *, is_grpc: bool) -> Ticket:
        """The ticket, made if there is none; all are forgotten when there are too many."""
        key = (principal, model, version, is_grpc)
        ticket = self._tickets.get(key)
        if ticket is None:
            if len(self._tickets) >= _TICKETS_MAX:
                self._tickets.clear()
            ticket = self._tickets[key] = Ticket(self, principal, model, version, is_grpc=is_grpc)
        return ticket


def _told(principal: Principal) -> bytes:
    """The tenant, and what its plan says of its place in queues: `NAME;weight=W;priority=P`, defaults left out."""
    plan = principal.plan
    told = principal.tenant.tenant.encode()
    if plan.queue_weight != 1:
        told += b";weight=%d" % plan.queue_weight
    if plan.priority_best:
        told += b";priority=%d" % plan.priority_best
    return told
