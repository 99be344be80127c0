"""HOT PATH. Owns the choice of an endpoint for a model, from backends' own words about what they serve.

`choose` is a plain function over state that `gateway.routing.health` refreshes. Backends are tried in order; the first
whose `models` match and whose catalogue (if it has one) lists the model serves.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from gateway.errors import Code, Refusal
from gateway.net.exchange import UpstreamPool

_RETRY_MS: Final = 1000
_CHOSEN_MAX: Final = 1024


@dataclass(slots=True, kw_only=True)
class Endpoint:
    """One backend and what is known of it. `catalogue`: model → version → is ready; None when it lists nothing."""

    name: str
    models: frozenset[str] | None
    http: UpstreamPool | None
    grpc: UpstreamPool | None
    is_trusted: bool
    #: The prober's own connection: calls that queue for the pool must not make a healthy endpoint look down.
    probe_http: UpstreamPool | None = None
    is_up: bool = False
    catalogue: dict[str, dict[str, bool]] | None = None
    outstanding: int = 0
    #: Grows with every change of what is known: remembered choices of an older state are void.
    state: int = 0
    #: Consecutive failures to connect since the last good answer.
    failures: int = 0
    reason: str = field(default="not asked yet")

    def matches(self, model: str) -> bool:
        return self.models is None or model in self.models


class Router:
    """All endpoints of one worker."""

    __slots__ = ("_chosen", "_is_triton_compat", "endpoints")

    def __init__(self, endpoints: Iterable[Endpoint], *, is_triton_compat: bool = False) -> None:
        self.endpoints = tuple(endpoints)
        self._is_triton_compat = is_triton_compat
        self._chosen: dict[tuple[str, str, bool], tuple[Endpoint, int]] = {}

    def choose(self, model: str, version: str, *, is_grpc: bool) -> Endpoint | Refusal:
        """The endpoint for `model` (`version` may be empty: the backend's policy decides)."""
        chosen = self._chosen.get((model, version, is_grpc))
        if chosen is not None and chosen[1] == chosen[0].state:
            return chosen[0]
        endpoint = self._choose(model, version, is_grpc=is_grpc)
        if isinstance(endpoint, Endpoint) and endpoint is self.endpoints[0]:
            # Only the first in order: a later one may have to give way when an earlier one comes up.
            if len(self._chosen) >= _CHOSEN_MAX:
                self._chosen.clear()
            self._chosen[model, version, is_grpc] = (endpoint, endpoint.state)
        return endpoint

    def _choose(self, model: str, version: str, *, is_grpc: bool) -> Endpoint | Refusal:
        candidate: Endpoint | None = None
        for endpoint in self.endpoints:
            if (endpoint.grpc if is_grpc else endpoint.http) is None or not endpoint.matches(model):
                continue
            catalogue = endpoint.catalogue
            if catalogue is None or model in catalogue:
                candidate = endpoint
                if endpoint.is_up:
                    break
            elif candidate is None and not endpoint.is_up:
                candidate = endpoint  # it may have the model: say 503, not 404, until it can be asked
        if candidate is None:
            code = Code.BAD_REQUEST if self._is_triton_compat else Code.MODEL_NOT_FOUND
            return Refusal(code=code, message=f"Request for unknown model: '{model}' is not found")
        return self._check(candidate, model, version)

    def _check(self, endpoint: Endpoint, model: str, version: str) -> Endpoint | Refusal:
        """Whether `endpoint` can take a call for `model` now."""
        if not endpoint.is_up:
            return Refusal(
                code=Code.BACKEND_UNAVAILABLE,
                message=f"the backend of model '{model}' is not available now",
                retry_after_ms=_RETRY_MS,
            )
        if endpoint.catalogue is None:
            return endpoint
        versions = endpoint.catalogue[model]
        if version and version not in versions:
            message = f"Request for unknown model: '{model}' version {version} is not found"
            return Refusal(code=Code.VERSION_NOT_FOUND, message=message)
        is_ready = versions[version] if version else any(versions.values())
        if not is_ready:
            message = f"model '{model}' is not at ready state"
            return Refusal(code=Code.MODEL_NOT_READY, message=message, retry_after_ms=_RETRY_MS)
        return endpoint

    def any_endpoint(self, *, is_grpc: bool, model: str = "") -> Endpoint | Refusal:
        """For calls about the server: the first that is up; or about a model that need not be served yet: of those
        that may have it, one that lists it, else one that is there for it by name, else the first.
        """
        fits = [
            endpoint
            for endpoint in self.endpoints
            if endpoint.is_up
            and (endpoint.grpc if is_grpc else endpoint.http) is not None
            and (not model or endpoint.matches(model))
        ]
        if model:
            # Sorting keeps the order of equals.
            fits.sort(key=lambda endpoint: (model not in (endpoint.catalogue or ()), endpoint.models is None))
        if fits:
            return fits[0]
        return Refusal(code=Code.BACKEND_UNAVAILABLE, message="no backend is available now", retry_after_ms=_RETRY_MS)

    @property
    def is_ready(self) -> bool:
        """True when at least one endpoint is up and every endpoint that lists models has one that is ready."""
        up = [endpoint for endpoint in self.endpoints if endpoint.is_up]
        return bool(up) and any(
            endpoint.catalogue is None or any(any(v.values()) for v in endpoint.catalogue.values()) for endpoint in up
        )

    def note_connect_failure(self, endpoint: Endpoint, reason: str) -> None:
        """A call could not reach the endpoint: no further call is sent until the health probe succeeds."""
        endpoint.failures += 1
        endpoint.state += 1
        endpoint.is_up = False
        endpoint.reason = reason
