"""Owns how the verbs print: tables for people, JSON for programs, and how they read durations and days."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from typing import Any, Final, NoReturn
from zoneinfo import ZoneInfo

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Of a pipe: wide enough that no cell is cut, because a cut id is useless.
PIPE_COLUMNS: Final = 400
_DURATION: Final = re.compile(r"(\d{1,9})([smhd]?)\Z")
_UNIT_S: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: frozenset[str] = frozenset()
) -> None:
    """`right`: columns of numbers."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_COLUMNS)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell_text(cell)) for cell in row))
    console.print(table)


def print_list(
    found: Sequence[Any],
    columns: Sequence[str],
    *,
    as_json: bool,
    cells: Callable[[Any], Sequence[object]] | None = None,
    right: frozenset[str] = frozenset(),
) -> None:
    """What a list verb found: JSON as it came, or a table. `cells`: a row's, where they are not its columns."""
    if as_json:
        print_json(found)
        return
    read = cells or (lambda one: [one[column] for column in columns])
    print_table(columns, (read(one) for one in found), right=right)


def print_answer(answer: dict[str, Any], *, as_json: bool) -> None:
    """What a command answered: JSON as it came, or its fields."""
    print_json(answer) if as_json else print_fields(answer)


def print_fields(fields: dict[str, object]) -> None:
    """One `name  value` line each."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        print(f"{name:<{width}}  {cell_text(value)}")


def cell_text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(cell_text(item) for item in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {cell_text(item)}" for name, item in value.items()) or "-"
    return str(value)


def parse_duration_s(option: str, text: str | None) -> int | None:
    """Seconds of "90", "90s", "15m", "12h" or "30d"; None for None."""
    if text is None:
        return None
    match = _DURATION.match(text)
    if match is None:
        _fail(f"{option} {text!r} is no duration: use for example 90s, 15m, 12h or 30d")
    return int(match[1]) * _UNIT_S[match[2]]


def parse_day_ns(option: str, text: str | None, zone: str) -> int | None:
    """The instant (UTC nanoseconds) at which the day "2026-01-31" begins in `zone`; None for None."""
    if text is None:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError:
        _fail(f"{option} {text!r} is no day: use for example 2026-01-31")
    try:
        start = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone))
    except (KeyError, ValueError, OSError):
        _fail(f"--zone {zone!r} is no IANA time zone: use for example Europe/Berlin")
    return int(start.timestamp()) * 1_000_000_000


def _fail(message: str) -> NoReturn:
    # Imported when it is needed: the HTTP client comes with it, which verbs that only print can do without.
    from gateway.commands.client import fail

    fail(message)
