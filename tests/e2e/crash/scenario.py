"""Owns one run: a whole Tollway, its tenants, the load, the kills, the rest afterwards, and the judgement."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.e2e.crash.archive import Archive
from tests.e2e.crash.checks import Expectations, Violation, find_violations
from tests.e2e.crash.kills import Killer, Tally
from tests.e2e.crash.load import Lane, Load, fixed, in_turn
from tests.e2e.crash.truth import Truth
from tests.e2e.harness import Tollway

Step = Callable[[Killer], None]

CAPPED_TENANTS: Final = 12
#: Reached by all in the middle of a run, so that kills hit them on their way.
DAILY_CAP: Final = 40
RATE: Final = (20, 10)
#: Small, so that segments are finished and deleted all the time.
SEGMENT_BYTES: Final = 16 * 1024


@dataclass(slots=True)
class Outcome:
    """What came of a run."""

    seed: int
    violations: list[Violation]
    tally: Tally
    attempts: int
    answered: int
    reconcile_code: int
    reconcile_says: str
    stop_code: int
    figures: dict[str, int] = field(default_factory=dict)

    def report(self) -> str:
        """For people and for the assertion that fails."""
        lines = [
            f"seed {self.seed}: {self.tally.total} kills, {self.attempts} calls tried, {self.answered} answered",
            f"reconcile: exit {self.reconcile_code}; stop: exit {self.stop_code}; {self.figures}",
            *self.tally.lines(),
            *(f"{one.invariant}: {one.detail}" for one in self.violations[:40]),
        ]
        if self.reconcile_code:
            lines.append(self.reconcile_says)
        return "\n".join(lines)

    @property
    def broken(self) -> set[str]:
        return {one.invariant for one in self.violations}

    @property
    def is_sound(self) -> bool:
        return not self.violations and self.reconcile_code == 0 and self.stop_code == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """The lanes of a run and what is known about their tenants."""

    http: list[Lane]
    grpc: list[Lane]
    daily_cap: int


def run(
    seed: int,
    steps: Sequence[Step],
    *,
    command: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    daily_cap: int = DAILY_CAP,
    segment_bytes: int = SEGMENT_BYTES,
    workers: int = 1,
) -> Outcome:
    """Start, load, `steps`, rest, stop, judge. `command` replaces `tollway up`'s (planted bugs)."""
    changes = {"command": command} if command is not None else {}
    settings = {"usage_segment_bytes": str(segment_bytes), "workers": str(workers)}
    with Tollway(settings=settings, environment=environment, **changes) as tollway:  # type: ignore[arg-type]
        cast = _cast(tollway, daily_cap)
        truth = Truth(tollway.folder / "truth.jsonl")
        archive = Archive(tollway.data_dir / "usage", tollway.folder / "archive")
        load = Load(truth, ("127.0.0.1", tollway.ports["http_port"]), tollway.grpc_address, seed)
        load.start(cast.http, cast.grpc)
        killer = Killer(tollway, seed)
        try:
            for step in steps:
                step(killer)
            tollway.wait(tollway.is_serving, "service after the last kill")
            load.stop()
            return _judge(tollway, truth, archive, cast, killer)
        finally:
            load.stop()
            truth.close()
            archive.stop()


def _judge(tollway: Tollway, truth: Truth, archive: Archive, cast: Cast, killer: Killer) -> Outcome:
    tollway.wait(lambda: tollway.does_answer("control"), "control")
    tollway.wait_until_posted()
    reconciled = tollway.tollway("reconcile")
    status = tollway.meter_status() or {}
    stop_code = tollway.stop()
    archive.stop()
    expected = Expectations(
        lanes=sum(not lane.hang_up_s for lane in cast.http) + len(cast.grpc),
        worker_deaths=killer.tally.worker_deaths,
        daily_caps={f"cap-{number}": cast.daily_cap for number in range(CAPPED_TENANTS)},
        rates={"paced": RATE},
        refused=("refused",),
        leaving=("leaving",),
    )
    violations = find_violations(truth.attempts, archive.read(), tollway.data_dir, expected)
    return Outcome(
        seed=killer.seed,
        violations=violations,
        tally=killer.tally,
        attempts=len(truth.attempts),
        answered=len(truth.good()),
        reconcile_code=reconciled.returncode,
        reconcile_says=reconciled.stdout + reconciled.stderr,
        stop_code=stop_code,
        figures={name: int(status[name]) for name in ("posted", "voided", "quarantined", "pending") if name in status},
    )


def _cast(tollway: Tollway, daily_cap: int) -> Cast:
    """Tenants, keys and lanes: steady payers, a paced one, capped ones, refused ones, and callers that leave."""
    rate, burst = RATE
    tollway.create_plan("steady", "priced", rate_calls=5000, burst=1000, concurrency=64, store_down="lease")
    tollway.create_plan("paced", "priced", rate_calls=rate, burst=burst)
    tollway.create_plan("capped", "free", calls_per_day=daily_cap)
    plans = {"steady": "steady", "plain": "internal", "paced": "paced", "refused": "steady", "leaving": "steady"}
    plans |= {f"cap-{number}": "capped" for number in range(CAPPED_TENANTS)}
    keys = {}
    for tenant, plan_name in plans.items():
        tollway.create_tenant(tenant, plan_name)
        keys[tenant] = tollway.create_key(tenant)
    reader_key = tollway.create_key("refused", scopes=["read"])
    for key in (*keys.values(), reader_key):
        tollway.wait_for_key(key)
    capped = [(f"cap-{number}", keys[f"cap-{number}"]) for number in range(CAPPED_TENANTS)]

    def lane(tenant: str, kind: str = "mlp", pause_s: float = 0.0, hang_up_s: float = 0.0) -> Lane:
        return Lane(next_key=fixed(tenant, keys[tenant]), kind=kind, pause_s=pause_s, hang_up_s=hang_up_s)

    http = [lane("steady", kind, 0.005) for kind in ("mlp", "mlp", "mlp3", "mlp3")]
    http += [lane("plain", "mlp", 0.01), lane("plain", "echo", 0.1), lane("paced", "mlp", 0.02), lane("paced")]
    http += [Lane(next_key=in_turn(capped), pause_s=0.05), Lane(next_key=in_turn(capped[::-1]), pause_s=0.05)]
    http += [lane("refused", kind, 0.1) for kind in ("broken", "no_model", "bad_key")]
    http += [Lane(next_key=fixed("refused", reader_key), pause_s=0.1)]
    http += [lane("leaving", "mlp", 0.02, 0.004), lane("leaving", "mlp", 0.02, 0.004)]
    grpc_lanes = [lane("steady", "mlp", 0.01), lane("steady", "mlp", 0.01), lane("plain", "mlp", 0.02)]
    return Cast(http=http, grpc=grpc_lanes, daily_cap=daily_cap)
