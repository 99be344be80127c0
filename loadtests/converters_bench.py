"""`python -m loadtests.converters_bench [--quick] [--only PART…] [--out DIR] [--json]`: the converters' own bench.

Parts: "faults" (the self-test), "models" (six kinds of networks), "showcases" (those that are built here), "cache". It
calls the product's commands and times the files they publish against the source with the runtimes' own interfaces. Exit
code 1 when something misbehaved, 2 when the bench cannot run. Report: loadtests/reports/converters-latest.{json,md}.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import onnx

from loadtests.converters_cases import Case, generated_cases, showcase_cases
from loadtests.converters_report import TARGETS, as_markdown, build_document
from loadtests.machine import git_state, machine_facts, utc_now
from loadtests.processes import BenchError
from loadtests.variants import compare, open_file

_ROOT: Final = Path(__file__).parent.parent
_REPORTS: Final = Path(__file__).parent / "reports"
PARTS: Final = ("faults", "models", "showcases", "cache")
_TIMEOUT_S: Final = 1_500
#: What the commands say when a conversion ends without a version: the source is then served as it is.
_NOT_FASTER: Final = "not_faster"


@dataclass(slots=True, kw_only=True)
class Results:
    """What was measured; `problems`: what misbehaved."""

    selftest: dict[str, Any] | None = None
    models: list[dict[str, Any]] = field(default_factory=list)
    cached: dict[str, Any] | None = None
    absent: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def run_selftest() -> dict[str, Any]:
    """The self-test's result. Raises: BenchError."""
    command = [sys.executable, "-m", "converters", "selftest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT, timeout=_TIMEOUT_S)
    lines = done.stdout.splitlines()
    last: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    if last.get("ev") != "result":
        raise BenchError(f"the self-test ended with {done.returncode}: {done.stderr[-500:]}")
    value: dict[str, Any] = last["value"]
    return value


def convert(case: Case, folder: Path) -> tuple[dict[str, Any], float, float]:
    """The report of `tollway convert`, wall seconds, and CPU seconds of it and its children. Raises: BenchError."""
    program = Path(sys.executable).with_name("tollway")
    command = [str(program), "convert", str(case.source), "--name", case.name, "--json", *case.options]
    if case.data is not None:
        command += ["--data", str(case.data)]
    command += ["--repository", str(folder / "repository"), "--cache", str(folder / "cache")]
    command += ["--out", str(folder / "out" / case.name)]
    folder.mkdir(parents=True, exist_ok=True)
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=_TIMEOUT_S)
    after = os.times()
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise BenchError(f"{case.name}: convert ended with {done.returncode}: {done.stderr[-500:]}") from error
    rule = report.get("error", {}).get("rule")
    if rule not in {None, _NOT_FASTER}:
        raise BenchError(f"{case.name}: {rule}: {report['error']['message'][:300]}")
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return report, after.elapsed - before.elapsed, cpu


def measure_case(case: Case, folder: Path, *, rounds: int) -> dict[str, Any]:
    """Convert, then time what was published against the source. Raises: BenchError."""
    report, wall_s, _ = convert(case, folder)
    variants = [
        {key: one[key] for key in ("engine", "precision", "status", "reason", "method", "size_bytes", "per_output")}
        for one in report["variants"]
    ]
    found: dict[str, Any] = {
        "name": case.name,
        "kind": case.kind,
        "budget": case.budget,
        "timed_with": {name: list(array.shape) for name, array in case.feeds.items()},
        "selected": report.get("selected"),
        "evidence": report["evidence"],
        "task": next((one["task"] for one in report["variants"] if one["status"] == "selected"), None),
        "variants": variants,
        "converted_s": wall_s,
        "source_bytes": case.source.stat().st_size,
        "comparison": None,
    }
    published = report.get("published")
    if published is None:
        return found
    file = _file_of(Path(published["path"]))
    result = compare(open_file(case.source, case.feeds), open_file(file, case.feeds), rounds=rounds)
    found["comparison"] = {
        "fp32_ms": result.base_ms,
        "selected_ms": result.other_ms,
        "ratio": result.ratio,
        "wall_ratio": result.wall_ratio,
        "speedup": 1 / result.ratio,
        "rounds": result.rounds,
        "is_source": is_same_graph(case.source, file),
    }
    return found


def is_same_graph(one: Path, other: Path) -> bool:
    """Where nothing was faster the source itself is published: its ratio is 1, and what is measured is the noise."""
    if other.suffix != ".onnx":
        return False
    graphs = [onnx.load(str(path)).graph for path in (one, other)]
    for graph in graphs:
        graph.name = ""
    return bool(graphs[0] == graphs[1])


def _file_of(version: Path) -> Path:
    files = [version / name for name in ("model.onnx", "model.xml") if (version / name).is_file()]
    if len(files) != 1:
        raise BenchError(f"{version} holds {len(files)} models")
    return files[0]


def measure_cached(folder: Path, times: int) -> dict[str, Any]:
    """A model is converted, then again `times` times."""
    case = next(iter(generated_cases(folder / "sources", names=("tiny",))))
    convert(case, folder)
    walls, cpus = [], []
    for _ in range(times):
        report, wall, cpu = convert(case, folder)
        if not report["is_cached"]:
            raise BenchError("the same conversion was built again")
        walls.append(wall)
        cpus.append(cpu)
    return {"wall_s": sorted(walls), "cpu_s": sorted(cpus)}


def run(
    wanted: Sequence[str], names: Sequence[str], folder: Path, *, is_quick: bool, say: Callable[[str], None]
) -> Results:
    """The parts one after another; what fails becomes a problem, and the rest goes on. `names` of cases; empty: all."""
    results = Results()
    rounds = 5 if is_quick else 11

    def guarded(name: str, work: Callable[[], None]) -> None:
        say(name)
        try:
            work()
        except (BenchError, OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
            results.problems.append(f"{name}: {error or type(error).__name__}")
            say(f"PROBLEM {results.problems[-1]}")

    def faults() -> None:
        results.selftest = run_selftest()

    def measured(case: Case) -> None:
        results.models.append(measure_case(case, folder, rounds=rounds))

    def cached() -> None:
        results.cached = measure_cached(folder / "cached", 3 if is_quick else 5)

    if "faults" in wanted:
        guarded("faults", faults)
    cases: list[Case] = []
    if "models" in wanted:
        cases += generated_cases(folder / "sources")
    if "showcases" in wanted:
        found, results.absent = showcase_cases(_ROOT, folder / "sources")
        cases += found
    for case in cases:
        if case.name in names or not names:
            guarded(case.name, partial(measured, case))
    if "cache" in wanted:
        guarded("cache", cached)
    return results


def join(files: Sequence[Path]) -> tuple[Results, list[dict[str, Any]]]:
    """The results of partial reports, and when, how and of what commit each was measured.

    Raises:
        BenchError: two of them measured the same; OSError, KeyError: one is no report.
    """
    results, origins = Results(), []
    for path in files:
        document = json.loads(path.read_bytes())
        command = " ".join(_portable(word) for word in document["command"].split(" "))
        origins.append({"date_utc": document["date_utc"], "command": command, "git": document["git"]})
        known = {one["name"] for one in results.models}
        again = known & {one["name"] for one in document["models"]}
        for key in ("selftest", "cached"):
            if document[key] is not None and getattr(results, key) is not None:
                again.add(key)
            setattr(results, key, document[key] or getattr(results, key))
        if again:
            raise BenchError(f"{path}: {', '.join(sorted(again))} was measured before")
        results.models += document["models"]
        results.absent |= document["absent"]
        results.problems += document["problems"]
    return results, origins


def _facts(arguments: Sequence[str]) -> dict[str, Any]:
    return {
        "date_utc": utc_now(),
        "machine": machine_facts(),
        "tools": {name: _version(name) for name in ("onnxruntime", "openvino", "onnx", "onnxslim")},
        "git": git_state(_ROOT),
        "command": " ".join(["python -m loadtests.converters_bench", *(_portable(word) for word in arguments)]),
    }


def _portable(word: str) -> str:
    """No place of this machine in a report that is committed."""
    return Path(word).name if word.startswith("/") else word


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.converters_bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--cases", nargs="+", default=[], metavar="NAME", help="of models and showcases, only these")
    parser.add_argument(
        "--join", nargs="+", default=[], type=Path, metavar="FILE", help="measure nothing: partial reports into one"
    )
    parser.add_argument("--out", type=Path, help="folder of the report (a partial run needs one to be kept)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on standard output")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run and report; returns the exit code."""
    options = _parse(arguments)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    facts = _facts(arguments)
    with tempfile.TemporaryDirectory(prefix="tollway-converters-") as name:
        try:
            if options.join:
                results, facts["joined"] = join(options.join)
            else:
                results = run(options.only, options.cases, Path(name), is_quick=options.quick, say=say)
        except (BenchError, OSError, KeyError) as error:
            say(f"cannot run: {error}")
            return 2
    document = build_document(facts, asdict(results))
    is_whole = set(options.only) == set(PARTS) and not options.cases
    folder = options.out or (_REPORTS if is_whole else None)
    if folder is not None:
        write_report(document, folder)
    print(json.dumps(document, indent=1) if options.json else as_markdown(document))
    missed = [target.key for target in TARGETS if document["targets"][target.key]["is_met"] is False]
    say(f"targets missed: {', '.join(missed) or 'none'}")
    return 1 if results.problems else 0


def write_report(document: Mapping[str, Any], folder: Path) -> None:
    """converters-latest.json and converters-latest.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "converters-latest.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    (folder / "converters-latest.md").write_text(as_markdown(document))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
