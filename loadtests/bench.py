"""`python -m loadtests.bench [--quick] [--only SCENARIO…] [--contenders NAME…] [--json]`: the side-by-side bench.

One run: every contender is started once, the scenarios alternate over them, medians and ratios are reported. Exit code
1 when a contender or a check failed, 2 when the bench itself cannot run; a missed target alone is no failure.
"""

import argparse
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, Final

from loadtests.checks import Check, check_all_on, check_books, check_peer_policy
from loadtests.contenders import Contender
from loadtests.contenders.direct import MODEL, start_backend
from loadtests.contenders.envoy import start_envoy, start_envoy_policy
from loadtests.contenders.grpc_aio import start_grpc_aio
from loadtests.contenders.haproxy import start_haproxy
from loadtests.contenders.nginx import start_nginx, start_nginx_lua
from loadtests.contenders.tollway import start_tollway
from loadtests.engine import EngineResult, run_engine
from loadtests.machine import file_system_of, git_state, machine_facts, missing_tools, tool_versions, utc_now
from loadtests.measure import Sample, apply_load, measure, settle, summarise
from loadtests.memory import MemoryResult, run_memory
from loadtests.payloads import SIZES, Body, grpc_body_of_size, http_body_of_size
from loadtests.plan import TOLLWAY_TMPFS, Plan, Scenario, full_plan, narrow, quick_plan, rotated
from loadtests.plot import draw
from loadtests.processes import BenchError, Cores, stop
from loadtests.report import build_document, ratio_lines, scenario_lines, write_report

_ROOT: Final = Path(__file__).parent.parent
_CACHE: Final = _ROOT / ".cache" / "bench"
_REPORTS: Final = Path(__file__).parent / "reports"
_PEERS: Final[Mapping[str, Callable[[Path, str, int], Contender]]] = {
    "nginx": start_nginx,
    "nginx_lua": start_nginx_lua,
    "envoy": start_envoy,
    "envoy_policy": start_envoy_policy,
    "haproxy": start_haproxy,
    "grpc_aio": start_grpc_aio,
}
#: The files in which peers with a policy leave a line per call.
_PEER_LOGS: Final = {"nginx_lua": "usage.log", "envoy_policy": "envoy_policy.access.log"}


#: With fewer calls than this, "flat" would judge the warm-up.
_FLAT_CALLS_MIN: Final = 500_000
#: What a contender that misbehaves can raise here. Anything else is a fault of the bench itself and ends it.
_FAILURES: Final = (BenchError, OSError, http.client.HTTPException, subprocess.SubprocessError, ValueError, KeyError)


class Bench:
    """One run: what was started, what was measured, what went wrong."""

    def __init__(self, plan: Plan, workdir: Path, cores: Cores, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.workdir = workdir
        self.cores = cores
        self.say = say
        self.contenders: dict[str, Contender] = {}
        self.samples: list[Sample] = []
        self.checks: list[Check] = []
        self.problems: list[str] = []
        self.engine: EngineResult | None = None
        self.memory: MemoryResult | None = None
        self.bodies: dict[tuple[str, str], Body] = {}

    def run(self, stack: ExitStack) -> None:
        """Everything, in order. What fails becomes a problem; the rest goes on."""
        for size in SIZES:
            self.bodies["http", size] = http_body_of_size(self.workdir, size)
            self.bodies["grpc", size] = grpc_body_of_size(self.workdir, size, MODEL)
        backend = start_backend(self.workdir, _CACHE, self.cores.load)
        assert backend.process is not None
        stack.callback(stop, backend.process)
        self.contenders["direct"] = backend
        wanted = {name for scenario in self.plan.scenarios for name in scenario.contenders}
        self._start_all(wanted - {"direct"}, backend.extras["address"], stack)
        self._check_policies(backend)
        for scenario in self.plan.scenarios:
            self._run_scenario(scenario, backend)
        for name in ("tollway_all", TOLLWAY_TMPFS):
            if name in self.contenders:
                self._check(name, check_books, self.contenders[name])
        if self.plan.has_engine:
            self.say("engine: raw loop and served convnet")
            self._attempt("engine", self._run_engine)
        if self.plan.has_memory:
            self.say(f"memory: {self.plan.memory_calls:,} calls")
            self._attempt("memory", self._run_memory, backend)

    def _attempt(self, what: str, work: Callable[..., object], *arguments: object) -> None:
        """One part's failure is reported, and does not take the figures of the others with it."""
        try:
            work(*arguments)
        except _FAILURES as error:
            self._note(f"{what}: {error or type(error).__name__}")

    def _note(self, problem: str) -> None:
        self.problems.append(problem)
        self.say(f"PROBLEM {problem}")

    def _start_all(self, names: set[str], address: str, stack: ExitStack) -> None:
        for name in sorted(names):
            self._attempt(name, self._start, name, address, stack)

    def _start(self, name: str, address: str, stack: ExitStack) -> None:
        if name in _PEERS:
            contender = _PEERS[name](self.workdir, address, self.cores.server)
        else:
            usage_dir = None
            if name == TOLLWAY_TMPFS:
                usage_dir = Path(tempfile.mkdtemp(prefix="tollway-bench-", dir="/dev/shm"))
                stack.callback(shutil.rmtree, usage_dir, ignore_errors=True)
            mode = "all" if usage_dir else name.removeprefix("tollway_")
            contender = start_tollway(
                mode, address, self.workdir, core=self.cores.server, name=name, usage_dir=usage_dir
            )
        assert contender.process is not None
        stack.callback(stop, contender.process)
        self.contenders[name] = contender
        self.say(f"started {name}: {contender.note}")

    def _check_policies(self, backend: Contender) -> None:
        bodies = {protocol: self.bodies[protocol, "1k"] for protocol in ("http", "grpc")}
        for name, file in _PEER_LOGS.items():
            if name in self.contenders:
                self._check(name, check_peer_policy, self.contenders[name], bodies["http"], self.workdir / file)
        for name in ("tollway_all", TOLLWAY_TMPFS):
            if name in self.contenders:
                self._check(name, check_all_on, self.contenders[name], bodies, backend)

    def _check(self, name: str, checks: Callable[..., Iterable[Check]], *arguments: object) -> None:
        def collect() -> None:
            for check in checks(*arguments):
                self.checks.append(check)
                if not check.is_passed:
                    self.say(f"CHECK FAILED {name}: {check.name} ({check.detail})")

        self._attempt(f"{name}: checks", collect)

    def _run_scenario(self, scenario: Scenario, backend: Contender) -> None:
        body = self.bodies[scenario.protocol, scenario.size]
        present = [name for name in scenario.contenders if name in self.contenders]
        for name in present if self.plan.warm_up_s else ():
            self._attempt(f"{scenario.name}: warm-up of {name}", self._warm_up, name, scenario, body)
        for round_ in range(scenario.rounds):
            self.say(f"{scenario.name}: round {round_ + 1} of {scenario.rounds}")
            for name in rotated(present, round_):
                self._attempt(f"{scenario.name}: {name}", self._measure, name, scenario, body, round_, backend)
        for group in summarise([s for s in self.samples if s.scenario == scenario.name]).items():
            for line in scenario_lines(*group):
                self.say(line)

    def _warm_up(self, name: str, scenario: Scenario, body: Body) -> None:
        contender = self.contenders[name]
        apply_load(contender, scenario, body, seconds=self.plan.warm_up_s, cores=self.cores, workdir=self.workdir)
        if contender.process is not None:
            settle(contender.process.pid)

    def _measure(self, name: str, scenario: Scenario, body: Body, round_: int, backend: Contender) -> None:
        sample = measure(
            self.contenders[name],
            scenario,
            body,
            round_,
            backend=backend,
            cores=self.cores,
            workdir=self.workdir,
        )
        self.samples.append(sample)
        for problem in sample.problems:
            self._note(f"{scenario.name}: {name}: {problem}")

    def _run_engine(self) -> None:
        self.engine = run_engine(self.plan, self.workdir, self.cores)
        for problem in self.engine.problems:
            self._note(f"engine: {problem}")

    def _run_memory(self, backend: Contender) -> None:
        bodies = {protocol: self.bodies[protocol, "1k"] for protocol in ("http", "grpc")}
        self.memory = run_memory(self.plan, bodies, backend, self.workdir, self.cores)
        for problem in self.memory.problems:
            self._note(f"memory: {problem}")
        if self.memory.calls >= _FLAT_CALLS_MIN:
            detail = f"{self.memory.growth_mb:+.2f} MB over the second half"
            is_flat = self.memory.is_flat
            self.checks.append(Check(contender="tollway_memory", name="flat", is_passed=is_flat, detail=detail))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2-3 minutes instead of 15")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="SCENARIO", help="scenarios by the start of their name"
    )
    parser.add_argument("--contenders", nargs="+", default=[], metavar="NAME", help="only these contenders")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on standard output")
    parser.add_argument("--out", type=Path, help="folder of the report (a partial run needs one to be kept)")
    parser.add_argument("--keep", action="store_true", help="keep logs and configurations of the contenders")
    return parser.parse_args(arguments)


def _on_terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the bench as Ctrl-C does: through the stack that stops what was started."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    """Run and report; returns the exit code."""
    options = _parse(arguments)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    missing = missing_tools()
    if missing:
        say(f"the bench needs {', '.join(missing)}: run `sh loadtests/tools.sh` (as root on Debian)")
        return 2
    try:
        plan = narrow(quick_plan() if options.quick else full_plan(), options.only, options.contenders)
        cores = Cores.of_machine()
    except (ValueError, BenchError) as error:
        say(str(error))
        return 2
    signal.signal(signal.SIGTERM, _on_terminate)
    _CACHE.mkdir(parents=True, exist_ok=True)
    workdir = Path(tempfile.mkdtemp(prefix="run-", dir=_CACHE))
    facts = _facts(options, workdir, arguments)
    bench = Bench(plan, workdir, cores, say)
    try:
        with ExitStack() as stack:
            bench.run(stack)
    except KeyboardInterrupt:
        say("stopped; no report is written")
        return 130
    except BenchError as error:
        say(str(error))
        return 2
    finally:
        if not options.keep:
            shutil.rmtree(workdir, ignore_errors=True)
    return _report(bench, facts, options, say)


def _facts(options: argparse.Namespace, workdir: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Where, when and what; taken before the load, so that the load average is the machine's own."""
    return {
        "date_utc": utc_now(),
        "git": git_state(_ROOT),
        "command": " ".join(["python -m loadtests.bench", *arguments]),
        "mode": "quick" if options.quick else "full",
        "is_partial": bool(options.only or options.contenders),
        "machine": {**machine_facts(), "work_file_system": file_system_of(workdir)},
        "tools": tool_versions(),
    }


def _report(bench: Bench, facts: Mapping[str, Any], options: argparse.Namespace, say: Callable[[str], None]) -> int:
    document = build_document(
        facts,
        samples=bench.samples,
        contenders=bench.contenders.values(),
        engine=bench.engine,
        memory=bench.memory,
        checks=bench.checks,
        problems=bench.problems,
    )
    # A partial run never replaces the report of a whole one.
    folder: Path = options.out or (_CACHE / "partial" if facts["is_partial"] else _REPORTS)
    write_report(document, folder)
    draw(document, folder / "latest.png")
    for line in ["", *ratio_lines(document), ""]:
        say(line)
    passed = sum(check.is_passed for check in bench.checks)
    say(f"checks: {passed} of {len(bench.checks)} passed; problems: {len(bench.problems)}")
    say(f"report: {os.path.relpath(folder / 'latest.json')}")
    if options.json:
        print(json.dumps(document, ensure_ascii=False))
    return 0 if passed == len(bench.checks) and not bench.problems else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
