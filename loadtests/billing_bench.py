"""`python -m loadtests.billing_bench [--quick] [--rounds N] [--folder DIR] [--out DIR] [--json]`: what money costs.

Exit code 1 when a measurement failed, 2 when a store's server is missing; a missed target alone is no failure. Report:
loadtests/reports/billing-latest.{json,md}, with --quick .cache/bench/billing-quick.{json,md}.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from loadtests.billing.figures import SOURCES, Figure, measure
from loadtests.billing.posting import PASS_CALLS, STORES, Figures, median_of, run_posting
from loadtests.billing.report import as_markdown, build_document
from loadtests.machine import file_system_of, git_state, machine_facts, utc_now
from loadtests.processes import BenchError

_ROOT: Final = Path(__file__).parent.parent
_REPORTS: Final = Path(__file__).parent / "reports"
_QUICK: Final = _ROOT / ".cache" / "bench"
_ROUNDS, _CALLS = 5, 60_000
_QUICK_ROUNDS, _QUICK_CALLS = 1, 8_000


def run(folder: Path, rounds: int, calls: int, say: Callable[[str], None]) -> tuple[dict[str, Any], list[str]]:
    """Medians by store, and what went wrong. Rounds alternate between stores, so that a noisy minute hits both."""
    measured: dict[str, list[Figures]] = {store: [] for store in STORES}
    problems = []
    for number in range(rounds):
        for store in STORES:
            try:
                measured[store].append(run_posting(_ROOT, folder, store, calls))
                say(f"round {number + 1}: {store} {measured[store][-1]['events_per_core_s']:,.0f} events/s")
            except BenchError as error:
                problems.append(str(error))
                say(f"PROBLEM {error}")
    return {store: median_of(found) for store, found in measured.items() if found}, problems


def other_figures(problems: list[str], say: Callable[[str], None]) -> dict[str, Figure]:
    """Figures that other measurements bring in; a failing one is a problem and the rest goes on."""
    figures = {}
    for key in SOURCES:
        try:
            figures[key] = measure(key)
        except (BenchError, OSError, ValueError, RuntimeError, AssertionError) as error:
            problems.append(f"{key}: {error or type(error).__name__}")
            figures[key] = Figure(None, "its measurement failed")
        say(f"{key}: {figures[key].value if figures[key].value is not None else figures[key].reason}")
    return figures


def _command(*, is_quick: bool, rounds: int | None) -> str:
    arguments = [*(["--quick"] if is_quick else []), *([f"--rounds {rounds}"] if rounds else [])]
    return "make bench-billing" + (f" ARGS='{' '.join(arguments)}'" if arguments else "")


def _say(text: str) -> None:
    print(text, flush=True)


def _say_aside(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, measure, write the report."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.billing_bench")
    parser.add_argument("--quick", action="store_true", help="one short round: whether it works, not for quoting")
    parser.add_argument("--rounds", type=int, choices=range(1, 51), metavar="N", help=f"default {_ROUNDS}")
    parser.add_argument("--folder", type=Path, help="where ledgers are written; its file system decides the figures")
    parser.add_argument("--out", type=Path, help="where the report goes")
    parser.add_argument("--json", action="store_true", help="the report on standard output")
    options = parser.parse_args(argv)
    say = _say_aside if options.json else _say
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    facts = {
        "date_utc": utc_now(),
        "command": _command(is_quick=options.quick, rounds=options.rounds),
        "machine": machine_facts(),
        "git": git_state(_ROOT),
        "file_system": file_system_of(folder),
        "plan": {"pass_calls": PASS_CALLS, "calls": _QUICK_CALLS if options.quick else _CALLS},
    }
    try:
        folder.chmod(0o755)
        rounds, calls = (_QUICK_ROUNDS, _QUICK_CALLS) if options.quick else (_ROUNDS, _CALLS)
        stores, problems = run(folder, options.rounds or rounds, calls, say)
    finally:
        shutil.rmtree(folder)
    document = build_document(facts, stores, other_figures(problems, say), problems)
    out, name = options.out or _REPORTS, "billing-latest"
    if options.quick:
        out, name = options.out or _QUICK, "billing-quick"
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(as_markdown(document), encoding="utf-8")
    print(json.dumps(document) if options.json else as_markdown(document))
    if "postgresql" not in stores and any("not installed" in one for one in problems):
        return 2
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
