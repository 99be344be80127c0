"""Owns the seam between the quota owner's socket and whoever decides: `Owner` (this machine's memory) or `SharedOwner`.

All of it is synchronous and does no I/O; what cannot be decided yet is a `Parked` reason, and the ask is tried again.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.quota.owner import Parked, WorkerState
from gateway.quota.protocol import Answer, Ask, Holding, Return


class Decider(Protocol):
    """Decides about all tenants of this host; see `Owner` for what each method promises and raises."""

    @property
    def workers(self) -> set[WorkerState]: ...

    # -- decide --

    def ask(self, worker: WorkerState, ask: Ask, *, is_final: bool) -> Answer | Parked: ...

    def is_policy_unclear(self, worker: WorkerState, ask: Ask) -> bool: ...

    def spare_holders(self, asker: WorkerState, tenant: str) -> list[WorkerState]: ...

    # -- what workers hold --

    def hello(self, worker: WorkerState, holdings: Sequence[Holding]) -> None: ...

    def declare(self, worker: WorkerState, tenant: str, slots: int) -> None: ...

    def give_back(self, worker: WorkerState, message: Return) -> None: ...

    def goodbye(self, worker: WorkerState) -> None: ...

    # -- settling and recount --

    def settle(self) -> None: ...

    def needs_recount(self) -> bool: ...

    def begin_recount(self) -> int: ...

    def report(self, worker: WorkerState, sequence: int, holdings: Sequence[Holding], *, is_last: bool) -> None: ...

    def windows_to_count(self) -> list[tuple[str, int]]: ...

    def finish_recount(self, counts: Sequence[int]) -> None: ...

    def abandon_recount(self) -> None: ...


class Remote(Protocol):
    """A decider whose decisions come later."""

    def listen(
        self,
        *,
        on_decided: Callable[[WorkerState, str], None],
        on_news: Callable[[], None],
        on_recall: Callable[[WorkerState, str], None],
        on_count_wanted: Callable[[], None],
    ) -> None: ...
