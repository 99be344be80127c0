"""Owns showing people how far a build is: rich's bar on a terminal where rich is installed, plain lines otherwise."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec

Report = Callable[[str, int, int], None]


@contextmanager
def open_progress(*, is_quiet: bool) -> Iterator[Report]:
    """A function of (label, bytes at hand, bytes in all); in all is 0 for a step that has no length.

    Everything goes to standard error: standard output belongs to the result.
    """
    if is_quiet:
        yield lambda _label, _have, _total: None
    elif sys.stderr.isatty() and find_spec("rich") is not None:
        with ExitStack() as stack:
            yield _bar(stack)
    else:
        yield _lines()


def _bar(stack: ExitStack) -> Report:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    # Opened at the first report, so that a run with nothing to do stays without a bar.
    opened: list[Progress] = []
    tasks: dict[str, int] = {}

    def report(label: str, have: int, total: int) -> None:
        if not opened:
            opened.append(stack.enter_context(Progress(*columns, console=Console(stderr=True))))
        bar = opened[0]
        if total == 0:
            bar.console.print(label)
            return
        if label not in tasks:
            tasks[label] = bar.add_task(label, total=total)
        bar.update(bar.task_ids[list(tasks).index(label)], completed=have)

    return report


def _lines() -> Report:
    """One line a label, and one for each quarter of a download."""
    last: dict[str, int] = {}

    def report(label: str, have: int, total: int) -> None:
        quarter = 4 * have // total if total else 0
        if last.get(label, -1) < quarter:
            last[label] = quarter
            share = f" {25 * quarter} %" if quarter else f" ({total / 1e6:.1f} MB)" if total else ""
            sys.stderr.write(f"{label}{share}\n")

    return report
