"""Counts what a call that needs no refill costs a shared quota store: commands to a real Valkey, heartbeats aside.

    python -m tests.perf.leases [--calls 20000] [--json]

A host's owner and one worker's quota store over their socket, as in service, under a plan with all three kinds of
limits. The clock of owner and store stands still, so nothing lapses and nothing is given back for being idle: what is
sent is what calls cause. Commands are counted by operation where the owner sends them and compared with what the server
ran: `ask` is a refill, `beat` and `register` are the host's own, everything else about a tenant is what calls cost.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, NamedTuple

from gateway.quota.memory_client import MemoryQuotaStore
from gateway.quota.server import QuotaServer
from gateway.quota.shared_owner import SharedOwner
from gateway.quota.store import Decision, Grant
from gateway.quota.store_keeper import StoreKeeper
from gateway.quota.store_link import Command, Reply, StoreLink
from gateway.snapshot import Plan, Tenant
from tests.unit.quota.valkey import KEY_CLOCK, PATIENT_S, StoreClock, Valkey, link, valkey

TENANT: Final = Tenant(tenant="acme", plan="plan")
PLAN: Final = Plan(
    name="plan",
    version=1,
    pricing="priced",
    rate_calls=1_000_000,
    burst=1_000_000,
    concurrency=1_000,
    calls_per_day=1_000_000_000,
    calls_per_month=1_000_000_000,
)
#: Of the host itself, whatever calls there are.
_HOST_OPERATIONS: Final = frozenset({"beat", "register", "goodbye"})
_REFILL: Final = "ask"
#: Calls open at a time; a batch ends before the next begins.
_OPEN_CALLS: Final = 16
#: Beats that are waited for after the last call, so that whatever it left to be sent has been.
_LAST_BEATS: Final = 2


class Figures(NamedTuple):
    """`commands`: about a tenant and no refill. `free_calls`: those that made no refill necessary."""

    calls: int
    refills: int
    free_calls: int
    commands: int
    host_commands: int

    @property
    def commands_per_free_call(self) -> float:
        return self.commands / self.free_calls


class CountingLink:
    """A link whose commands are counted by operation."""

    def __init__(self, inner: StoreLink, counts: Counter[str]) -> None:
        self._inner = inner
        self._counts = counts

    async def open(self) -> str:
        return await self._inner.open()

    async def run(self, session: str, epoch: str, commands: Sequence[Command]) -> list[Reply]:
        self._counts.update(command.operation for command in commands)
        return await self._inner.run(session, epoch, commands)

    async def close(self) -> None:
        await self._inner.close()


async def _no_news() -> None:
    """There is no snapshot to look at."""


class Bench:
    """One host at a real Valkey, and one worker of it."""

    def __init__(self, server: Valkey, folder: Path, clock: StoreClock, plan: Plan) -> None:
        self.plan = plan
        self.loop = asyncio.get_running_loop()
        self.counts: Counter[str] = Counter()
        self.server = server
        self._path = folder / "quota.sock"
        self._owner = SharedOwner(clock, has_meter=False)
        self._quota = QuotaServer(self._owner, self.loop, _no_news, None, settle_s=0, park_s=PATIENT_S)
        self._keeper = StoreKeeper(
            self._owner,
            lambda: CountingLink(link(server, "host0", clock=KEY_CLOCK), self.counts),
            clock=clock,
            loop=self.loop,
            away_s=PATIENT_S,
        )
        self.store = MemoryQuotaStore(self._path, worker="w0", clock=clock, loop=self.loop)

    async def start(self, stack: AsyncExitStack) -> None:
        self._quota.speak_for(self._owner)
        await self._quota.listen(self._path)
        stack.push_async_callback(self._quota.close)
        for job in (self._quota.run(), self._keeper.run()):
            task = self.loop.create_task(job)
            stack.push_async_callback(asyncio.wait, [task])
            stack.callback(task.cancel)
        await self._keeper.registered.wait()
        await self.store.start()
        stack.push_async_callback(self.store.close)
        self._owner.learn(TENANT, self.plan)

    async def call(self, count: int) -> int:
        """`count` calls, a few open at a time; how many of them had to wait for the store."""
        waited = 0
        for _ in range(0, count, _OPEN_CALLS):
            grants = []
            for _ in range(_OPEN_CALLS):
                later: asyncio.Future[Decision] = self.loop.create_future()
                decision = self.store.admit(TENANT, self.plan, later.set_result)
                if decision is None:
                    waited += 1
                    decision = await later
                if not isinstance(decision, Grant):
                    raise RuntimeError(f"a call was refused: {decision.code}")
                grants.append(decision)
            for grant in grants:
                self.store.release(grant, is_counted=True)
            await asyncio.sleep(0)
        return waited

    async def beats(self, count: int) -> None:
        """Wait until the host has beaten so often again."""
        until = self.counts["beat"] + count
        while self.counts["beat"] < until:
            await asyncio.sleep(0.02)


async def measure(calls: int, plan: Plan = PLAN) -> Figures:
    """Raises RuntimeError when the server ran other commands than were counted, or leases did not carry the calls."""
    with valkey() as server, tempfile.TemporaryDirectory(prefix="ql") as folder:
        async with AsyncExitStack() as stack:
            clock = StoreClock(server)
            stack.callback(clock.close)
            bench = Bench(server, Path(folder), clock, plan)
            await bench.start(stack)
            clock.show()  # the epoch began long ago
            await bench.call(2_000)  # the first leases are small, and a cap is counted once
            await bench.beats(_LAST_BEATS)
            before = bench.counts.copy()
            waited = await bench.call(calls)
            await bench.beats(_LAST_BEATS)
            spent = bench.counts - before
            _check(bench, calls, waited, spent)
    refills = spent[_REFILL]
    host = sum(spent[operation] for operation in _HOST_OPERATIONS)
    return Figures(
        calls=calls,
        refills=refills,
        free_calls=calls - max(refills, waited),
        commands=spent.total() - refills - host,
        host_commands=host,
    )


def _check(bench: Bench, calls: int, waited: int, spent: Counter[str]) -> None:
    ran, sent = bench.server.script_runs(), bench.counts.total()
    if abs(ran - sent) > 1:  # a beat may be on its way
        raise RuntimeError(f"the server ran {ran} commands, {sent} were counted")
    if max(spent[_REFILL], waited) > calls // 10:
        raise RuntimeError(f"{waited} of {calls} calls waited for the store: leases do not carry them")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.perf.leases")
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    figures = asyncio.run(measure(options.calls))
    if options.json:
        print(json.dumps(figures._asdict() | {"commands_per_free_call": figures.commands_per_free_call}))
    else:
        print(
            f"{figures.calls} calls, {figures.refills} refills: {figures.commands} further commands for "
            f"{figures.free_calls} calls that needed none; the host's own: {figures.host_commands}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
