"""Owns a worker's way to control's self-service: one endpoint, and how many calls may be on their way there.

Control is one process that answers thousands of times slower than a worker asks. So a worker keeps few calls there, and
fewer of one tenant, whatever their number: what is beyond is refused at once and costs control nothing.
"""

from collections.abc import Set as AbstractSet
from typing import Final, Protocol

from gateway.auth.keyring import Principal
from gateway.errors import Code, Refusal
from gateway.routing.router import Endpoint

#: Self-service calls of one worker at once, and of one tenant among them. Suspended tenants count as one.
RELAYED_MAX: Final = 16
RELAYED_TENANT_MAX: Final = 4
_TENANT_FULL: Final = Refusal(
    code=Code.CONCURRENCY_EXCEEDED,
    message=f"{RELAYED_TENANT_MAX} calls of this tenant to /me are under way",
    retry_after_ms=1000,
)
_FULL: Final = Refusal(code=Code.OVERLOADED, message="too many calls to /me are under way", retry_after_ms=1000)


class Relayed(Protocol):
    """A call on its way: `gateway.pipeline.LiveCall`."""

    #: None: its tenant is suspended.
    principal: Principal | None


class Relay:
    """The endpoint of self-service. One event loop uses it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._calls: set[Relayed] = set()

    def refusal_of(self, tenant: str, live: AbstractSet[object]) -> Refusal | None:
        """Why `tenant` ("": suspended ones) may not send one more now. `live`: calls of the worker that go on."""
        self._calls = {call for call in self._calls if call in live}
        if sum(_tenant_of(call) == tenant for call in self._calls) >= RELAYED_TENANT_MAX:
            return _TENANT_FULL
        return _FULL if len(self._calls) >= RELAYED_MAX else None

    def enter(self, call: Relayed) -> None:
        """Count `call` until it has ended."""
        self._calls.add(call)


def _tenant_of(call: Relayed) -> str:
    return "" if call.principal is None else call.principal.tenant.tenant
