"""HOT PATH. Owns what the calls of one worker share, and what of it decides for all alike: capacity, not policy."""

import asyncio
from typing import Protocol

from gateway.call import CallIds
from gateway.clock import Clock
from gateway.errors import Code, Refusal
from gateway.heads import INFER, HeadFacts
from gateway.local_services import LocalServices
from gateway.metering.port import RecordLog
from gateway.monitoring.call_line import CallLines
from gateway.monitoring.call_log import CallLog
from gateway.monitoring.metrics import CallCounters
from gateway.net.budget import BufferBudget
from gateway.quota.funds import FundStore
from gateway.quota.store import QuotaStore
from gateway.relay import Relay
from gateway.replays import ReplayStore
from gateway.routing.router import Endpoint, Router
from gateway.settings import Limits
from gateway.tickets import Policy
from gateway.wire.header_blocks import BlockEncoder


class Live(Protocol):
    """A call that has not ended: `gateway.pipeline.LiveCall`."""

    arrival_ns: int
    facts: HeadFacts

    def on_deadline(self) -> None: ...

    def on_hang_up(self) -> None: ...


class Shared:
    """The parts of a worker as its calls see them."""

    def __init__(
        self,
        *,
        policy: Policy,
        router: Router,
        quota: QuotaStore | None,
        log: RecordLog | None,
        limits: Limits,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        counters: CallCounters,
        call_log: CallLog | None,
        budget: BufferBudget,
        is_key_required: bool = True,
        replays: ReplayStore | None = None,
        funds: FundStore | None = None,
        is_reflecting: bool = True,
        relay: Relay | None = None,
    ) -> None:
        #: The way to control's self-service, where there is one.
        self.relay = relay
        self.replays = replays
        self.funds = funds
        self.is_reflecting = is_reflecting
        self.policy = policy
        self.router = router
        self.quota = quota
        self.log = log
        self.limits = limits
        self.clock = clock
        #: Of `clock` and `limits`, where each call finds them in one step.
        self.monotonic_ns = clock.monotonic_ns
        self.wall_ns = clock.wall_ns
        self.calls_in_flight_max = limits.calls_in_flight_max
        self.body_bytes_max = limits.body_bytes_max
        self.loop = loop
        self.counters = counters
        self.call_log = call_log
        self.budget = budget
        self.is_key_required = is_key_required
        #: Told to stop: not ready any more, but calls on their way here are served until `is_draining`.
        self.is_leaving = False
        self.is_draining = False
        self.is_policy_refused = False
        self.ids = CallIds()
        self.lines = CallLines()
        self.encoder = BlockEncoder()
        self.live: set[Live] = set()
        self.services = LocalServices(lambda: self.is_ready)
        #: What a worker answers by itself is a backend to its calls.
        self.own_endpoint = Endpoint(
            name="worker", models=None, http=None, grpc=self.services, is_trusted=True, is_up=True, reason=""
        )

    def is_open_for(self, content_length: int) -> bool:
        """Whether nothing of ours stands against a new call; `refusal_of_state` says what does."""
        log, budget = self.log, self.budget
        return (
            not (self.is_draining or self.is_policy_refused)
            and budget.bytes_used <= budget.bytes_max
            and len(self.live) <= self.calls_in_flight_max
            and content_length <= self.body_bytes_max
            and (log is None or log.is_accepting)
        )

    def refusal_of_state(self, facts: HeadFacts, content_length: int) -> Refusal | None:
        """503 or 413 before anything else is looked at. None: only metering stands against it, and this is a read."""
        if content_length > self.limits.body_bytes_max:
            return too_large(self.limits.body_bytes_max)
        if self.is_draining:
            return Refusal(code=Code.SHUTTING_DOWN, message="this worker is shutting down", retry_after_ms=1000)
        if self.budget.is_over or len(self.live) > self.limits.calls_in_flight_max:
            return Refusal(code=Code.OVERLOADED, message="too much is in flight", retry_after_ms=1000)
        if self.is_policy_refused:
            return Refusal(code=Code.POLICY_STALE, message="the policy is too old to serve by", retry_after_ms=5000)
        if facts.kind == INFER and self.log is not None and not self.log.is_accepting:
            return Refusal(code=Code.METERING_UNAVAILABLE, message="usage cannot be recorded", retry_after_ms=1000)
        return None

    @property
    def is_ready(self) -> bool:
        """Ready that cannot lie: some model is ready, usage can be recorded, and we mean to stay."""
        log_ready = self.log is None or self.log.is_accepting
        is_staying = not (self.is_leaving or self.is_draining)
        return log_ready and is_staying and not self.is_policy_refused and self.router.is_ready

    def sweep(self) -> None:
        """Once a second: end calls that outlive `limits.call_s`, whose callers named no deadline; tell of readiness."""
        self.services.notify()
        oldest_ns = self.clock.monotonic_ns() - int(self.limits.call_s * 1e9)
        for call in [one for one in self.live if one.arrival_ns < oldest_ns and not one.facts.timeout_ns]:
            call.on_deadline()


def too_large(limit: int) -> Refusal:
    return Refusal(code=Code.BODY_TOO_LARGE, message=f"the request body is larger than {limit} bytes")
