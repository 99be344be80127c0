"""`python -m loadtests.engine_bench [--quick] [--only SCENARIO…] [--out DIR] [--json]`: the engine's own bench.

Scenarios: "conv" (items per second through the gateway against a raw loop), "mlp" (CPU per call beside other model
servers), "load" (a 100 MB model), "stream" (tokens per second against a bare generator), "ocr" (pages per second
against the package the product is made from). Exit code 1 when something misbehaved, 2 when the bench itself cannot
run; a missed target alone is no failure. Report: loadtests/reports/engine-latest.{json,md}.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from loadtests.contenders.model_servers import STARTERS, NotInstalled
from loadtests.engine import EngineResult, run_engine
from loadtests.load_time import MODEL as WIDE
from loadtests.load_time import LoadTimeResult, run_load_time
from loadtests.machine import file_system_of, git_state, machine_facts, missing_tools, tool_versions, utc_now
from loadtests.mlp import MlpResult, run_mlp
from loadtests.ocr import OcrResult, run_ocr
from loadtests.plan import full_plan, quick_plan
from loadtests.processes import BenchError, Cores
from loadtests.ratios import Target
from loadtests.streams import StreamResult, run_streams

_ROOT: Final = Path(__file__).parent.parent
_CACHE: Final = _ROOT / ".cache" / "bench"
_REPORTS: Final = Path(__file__).parent / "reports"
SCENARIOS: Final = ("conv", "mlp", "load", "stream", "ocr")
TARGETS: Final = (
    Target(key="conv_vs_raw", what="convnet items/s through the gateway ÷ raw loop", bound=0.87, is_upper=False),
    Target(key="mlp_vs_mlserver", what="tiny MLP, CPU per call ÷ MLServer's", bound=0.15),
    Target(key="mlp_vs_litserve", what="tiny MLP, CPU per call ÷ LitServe's", bound=0.06),
    Target(key="mlp_vs_triton", what="tiny MLP, CPU per call ÷ Triton's, direct", bound=1.0),
    Target(key="load_vs_session", what="load of a 100 MB model ÷ bare session creation", bound=1.2),
    Target(key="stream_vs_raw", what="64 gRPC streams, tokens/s ÷ bare generator loop", bound=0.8, is_upper=False),
    Target(key="ocr_vs_source", what="OCR product, pages/s ÷ source package's", bound=1.3, is_upper=False),
)
_FAILURES: Final = (BenchError, OSError, subprocess.SubprocessError, ValueError, KeyError)


class Results:
    """What was measured, and what went wrong."""

    def __init__(self) -> None:
        self.conv: EngineResult | None = None
        self.mlp: MlpResult | None = None
        self.load: LoadTimeResult | None = None
        self.stream: StreamResult | None = None
        self.ocr: OcrResult | None = None
        #: Ratio that could not be measured → why.
        self.absent: dict[str, str] = {}
        self.problems: list[str] = []

    def ratios(self) -> dict[str, float]:
        """Those that this run can tell."""
        found: dict[str, float | None] = {}
        if self.conv is not None:
            found["conv_vs_raw"] = self.conv.ratio
        if self.mlp is not None:
            found |= {f"mlp_vs_{peer}": self.mlp.ratio(peer) for peer in STARTERS}
        if self.load is not None:
            found["load_vs_session"] = self.load.ratio
        if self.stream is not None:
            found["stream_vs_raw"] = self.stream.ratio
        if self.ocr is not None:
            found["ocr_vs_source"] = self.ocr.ratio
        return {key: value for key, value in found.items() if value is not None}


def is_compiled() -> bool:
    """Whether Tollway's processes will run compiled modules: a build of exactly these sources is there."""
    command = [sys.executable, "-m", "gateway.compiled", "--check"]
    return subprocess.run(command, capture_output=True, check=False, cwd=_ROOT, timeout=60).returncode == 0


def build_models(workdir: Path, *names: str) -> Path:
    """A repository of bench models, by the model package's own command. Raises BenchError."""
    repository = workdir / "-".join(names)
    for name in names:
        command = [sys.executable, "-m", "model_repo.onnx_builder", name, "--repository", str(repository)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT, timeout=120)
        if done.returncode != 0:
            raise BenchError(f"{name} was not built: {done.stderr[-500:]}")
    return repository


def run(wanted: Sequence[str], workdir: Path, cores: Cores, *, is_quick: bool, say: Callable[[str], None]) -> Results:
    """The scenarios one after another; what fails becomes a problem, and the rest goes on."""
    results = Results()
    plan = quick_plan() if is_quick else full_plan()
    plan = replace(plan, engine_rounds=max(plan.engine_rounds, 5))

    def conv() -> None:
        results.conv = run_engine(plan, workdir, cores)
        results.problems += results.conv.problems

    def mlp() -> None:
        models = build_models(workdir, "mlp")
        rounds, seconds = (3, 1) if is_quick else (5, 2)
        results.mlp = run_mlp(models, workdir, cores, rounds=rounds, seconds=seconds, peers=tuple(STARTERS))
        results.problems += results.mlp.problems

    def load() -> None:
        results.load = run_load_time(build_models(workdir, WIDE), workdir, cores, rounds=3 if is_quick else 7)

    def stream() -> None:
        rounds, seconds = (3, 2) if is_quick else (5, 4)
        results.stream = run_streams(workdir, cores, rounds=rounds, seconds=seconds)
        results.problems += results.stream.problems

    def ocr() -> None:
        try:
            results.ocr = run_ocr(workdir, cores, rounds=2 if is_quick else 3, seconds=4 if is_quick else 12)
            results.problems += results.ocr.problems
        except NotInstalled as error:
            results.absent["ocr_vs_source"] = str(error)

    scenarios = (("conv", conv), ("mlp", mlp), ("load", load), ("stream", stream), ("ocr", ocr))
    chosen = [(name, scenario) for name, scenario in scenarios if name in wanted]
    for number, (name, scenario) in enumerate(chosen, 1):
        say(f"{number}/{len(chosen)} {name} …")
        begun_s, before = time.monotonic(), results.ratios()
        try:
            scenario()
        except _FAILURES as error:
            results.problems.append(f"{name}: {error or type(error).__name__}")
            say(f"PROBLEM {results.problems[-1]}")
        found = ", ".join(f"{key} {value:.3f}" for key, value in results.ratios().items() if key not in before)
        say(f"    {found or 'nothing measured'} ({time.monotonic() - begun_s:.0f} s)")
    return results


def build_engine_document(facts: Mapping[str, Any], results: Results) -> dict[str, Any]:
    """Everything known of a run."""
    ratios = results.ratios()
    absent = dict(results.absent)
    if results.mlp is not None:
        absent |= {f"mlp_vs_{name}": reason for name, reason in results.mlp.absent.items()}
    document = {
        "schema": 1,
        **facts,
        "ratios": ratios,
        "targets": {
            target.key: {
                "bound": target.text,
                "what": target.what,
                "is_met": target.is_met(ratios[target.key]) if target.key in ratios else None,
            }
            for target in TARGETS
        },
        "not_measured": absent,
        "conv": asdict(results.conv) if results.conv else None,
        "mlp": asdict(results.mlp) if results.mlp else None,
        "load": {**asdict(results.load), "ratio": results.load.ratio} if results.load else None,
        "stream": asdict(results.stream) if results.stream else None,
        "ocr": asdict(results.ocr) if results.ocr else None,
        "problems": results.problems,
    }
    rounded: dict[str, Any] = json.loads(json.dumps(document), parse_float=lambda text: round(float(text), 4))
    return rounded


def as_markdown(document: Mapping[str, Any]) -> str:
    """The targets, and the figures behind them."""
    machine, git = document["machine"], document["git"]
    lines = [
        "# The engine's bench",
        "",
        f"{document['date_utc']}, commit `{str(git['commit'])[:12]}`, `{document['command']}`. "
        f"{machine['cores']} × {machine['cpu']}, load average before {machine['load_average_before'][0]:.1f}; "
        f"compiled modules: {'yes' if document.get('compiled') else 'no'}. "
        "Server on one core, load on another; rounds alternate, medians.",
        "",
        "| what | `ratios` key | value | target |  |",
        "|---|---|--:|---|---|",
    ]
    for key, target in document["targets"].items():
        value = document["ratios"].get(key)
        shown = f"{value:.3f}" if value is not None else f"– ({document['not_measured'].get(key, 'not asked for')})"
        verdict = {True: "pass", False: "**fail**", None: ""}[target["is_met"]]
        lines.append(f"| {target['what']} | `{key}` | {shown} | {target['bound']} | {verdict} |")
    lines += _mlp_lines(document["mlp"]) if document["mlp"] else []
    conv = document["conv"]
    if conv:
        served = ", ".join(f"{rate:,.0f} at {items} a call" for items, rate in conv["served"].items())
        lines += ["", f"Convnet: raw loop {conv['raw']:,.0f} items/s at batch {conv['raw_batch']}; served {served}."]
    if document["load"]:
        load = document["load"]
        size = load["file_bytes"] / 1e6
        lines += ["", f"Load of {size:.0f} MB: session {load['session_ms']:.0f} ms, engine {load['engine_ms']:.0f} ms."]
    lines += _stream_lines(document["stream"]) if document["stream"] else []
    lines += _ocr_lines(document["ocr"]) if document["ocr"] else []
    lines += ["", *(f"* Problem: {problem}" for problem in document["problems"])]
    return "\n".join(lines).rstrip() + "\n"


def _mlp_lines(mlp: Mapping[str, Any]) -> list[str]:
    head = ["", "## Tiny MLP, one row as JSON, 32 connections", ""]
    head += ["| server | CPU µs/call | calls/s | p50 µs | |", "|---|--:|--:|--:|---|"]
    rates, latencies, notes = mlp["calls_per_s"], mlp["p50_us"], mlp["notes"]
    return head + [
        f"| {name} | {cpu:.1f} | {rates[name]:,.0f} | {latencies[name]:,.0f} | {notes[name]} |"
        for name, cpu in mlp["cpu_us"].items()
    ]


def _stream_lines(stream: Mapping[str, Any]) -> list[str]:
    costs = stream["cpu_us_by_role"]
    roles = ", ".join(f"{role} {cost:.1f}" for role, cost in costs.items() if cost >= 0.05)
    return [
        "",
        f"Streams: {stream['served_per_s']:,.0f} tokens/s of {stream['bare_per_s']:,.0f}. Of a model without work: "
        f"{stream['counted_per_s']:,.0f} tokens/s, {sum(costs.values()):.1f} µs of CPU a token ({roles}).",
    ]


def _ocr_lines(ocr: Mapping[str, Any]) -> list[str]:
    lines = ["", "## OCR, sample pages, one core", "", "| side | pages/s | CPU s/page | lines as the product's |"]
    lines.append("|---|--:|--:|---|")
    for side, rate in ocr["pages_per_s"].items():
        count, whole = ocr["lines_alike"].get(side, (0, 0))
        shown = f"{count} of {whole}" if whole else ""
        lines.append(f"| {side} | {rate:.3f} | {ocr['cpu_s_per_page'][side]:.3f} | {shown} |")
    return lines


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.engine_bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter rounds")
    parser.add_argument("--only", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    parser.add_argument("--out", type=Path, help="folder of the report (a partial run needs one to be kept)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on standard output")
    return parser.parse_args(arguments)


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
        cores = Cores.of_machine()
    except BenchError as error:
        say(str(error))
        return 2
    _CACHE.mkdir(parents=True, exist_ok=True)
    workdir = Path(tempfile.mkdtemp(prefix="engine-", dir=_CACHE))
    facts = {
        "date_utc": utc_now(),
        "git": git_state(_ROOT),
        "command": " ".join(["python -m loadtests.engine_bench", *arguments]),
        "mode": "quick" if options.quick else "full",
        "machine": {**machine_facts(), "work_file_system": file_system_of(workdir)},
        "tools": tool_versions(),
        "compiled": is_compiled(),
    }
    try:
        results = run(options.only, workdir, cores, is_quick=options.quick, say=say)
    except KeyboardInterrupt:
        say("stopped; no report is written")
        return 130
    finally:
        shutil.rmtree(workdir, ignore_errors=True)
    document = build_engine_document(facts, results)
    is_whole = set(options.only) == set(SCENARIOS)
    # A partial run never replaces the report of a whole one.
    folder: Path = options.out or (_REPORTS if is_whole else _CACHE / "partial")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engine-latest.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    (folder / "engine-latest.md").write_text(as_markdown(document))
    for key, value in document["ratios"].items():
        say(f"{key:<20} {value:>8.3f}  {document['targets'][key]['bound']}")
    say(f"problems: {len(results.problems)}; report: {os.path.relpath(folder / 'engine-latest.json')}")
    if options.json:
        print(json.dumps(document, ensure_ascii=False))
    return 1 if results.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
