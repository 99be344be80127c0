"""Owns how `tollway call` shows a reply: rows of outputs, and the charge, limits and timings from its headers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from gateway.commands.oip_client import Output, Scalar

_VALUES_SHOWN_MAX: Final = 12
_ROWS_SHOWN_MAX: Final = 50
_CELL_CHARS_MAX: Final = 400
_MINUTE_S: Final = 60


def outputs_as_json(outputs: Sequence[Output]) -> list[dict[str, Any]]:
    """Outputs as OIP's own JSON has them; bytes that are no text are escaped, NaN and infinities are text."""
    return [
        {
            "name": item.name,
            "datatype": item.datatype,
            "shape": list(item.shape),
            "data": [_json_value(value) for value in item.values],
        }
        for item in outputs
    ]


def _json_value(value: Scalar) -> bool | int | float | str:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def headers_as_json(headers: Mapping[str, str]) -> dict[str, Any]:
    """What a reply's headers say about the call, by our own names; None or empty where they say nothing."""
    timings = parse_items(headers.get("server-timing", ""))
    return {
        "call_id": headers.get("tollway-call-id"),
        "charge": headers.get("tollway-charge"),
        "limits": parse_items(headers.get("ratelimit", "")),
        "timings_ms": {name: item["dur"] for name, item in timings.items() if "dur" in item},
    }


def parse_items(text: str) -> dict[str, dict[str, float]]:
    """`"day";r=5;t=60, "burst";r=9` → {"day": {"r": 5, "t": 60}, "burst": {"r": 9}}; what is no number is left out.

    Enough of structured fields and Server-Timing for the fields that the gateway writes: no name holds a comma.
    """
    items: dict[str, dict[str, float]] = {}
    for item in text.split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        pairs = (parameter.partition("=") for parameter in parameters)
        if name:
            items[name.strip('"')] = {key: float(value) for key, _, value in pairs if _is_number(value)}
    return items


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isascii() and text.replace(".", "", 1).isdigit()


def outputs_as_lines(outputs: Sequence[Output]) -> Iterator[str]:
    """A line per row where outputs have rows in common; other outputs on a line of their own."""
    columns = _columns(outputs)
    if columns:
        count = len(columns[0].values)
        cells = [[_cell(value) for value in column.values] for column in columns]
        widths = [max((len(cell) for cell in column), default=0) for column in cells]
        for row in range(count):
            line = "  ".join(column[row].ljust(width) for column, width in zip(cells, widths, strict=True))
            yield line.rstrip()
        if count == 0:
            yield f"no rows in {', '.join(column.name for column in columns)}"
    for item in outputs:
        if item not in columns:
            # Beside rows of text a table of numbers, such as corners, would only be noise.
            yield from [_line(item)] if columns else _block(item)


def _columns(outputs: Sequence[Output]) -> list[Output]:
    """Outputs of one value a row with one and the same number of rows, numbers before text; only beside some text."""
    texts = [item for item in outputs if item.datatype == "BYTES" and _is_column(item)]
    if not texts:
        return []
    rows = len(texts[0].values)
    numbers = [item for item in outputs if item.datatype != "BYTES" and _is_column(item) and len(item.values) == rows]
    return [*numbers, *(item for item in texts if len(item.values) == rows)]


def _is_column(item: Output) -> bool:
    return len(item.values) == (item.shape[0] if item.shape else 1)


def _cell(value: Scalar) -> str:
    if isinstance(value, bytes):
        text = value.decode(errors="backslashreplace")
        # A reply must not be able to steer the terminal it is shown on.
        shown = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
        return shown if len(shown) <= _CELL_CHARS_MAX else shown[:_CELL_CHARS_MAX] + "…"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _block(item: Output) -> Iterator[str]:
    """Name, type and shape, and a table's rows on lines of their own where they are few and short."""
    rows = item.shape[0] if len(item.shape) > 1 else 0
    width = len(item.values) // rows if rows else 0
    if not (1 < rows <= _ROWS_SHOWN_MAX and 0 < width <= _VALUES_SHOWN_MAX):
        yield _line(item)
        return
    yield _head(item)
    for start in range(0, len(item.values), width):
        yield "  " + "  ".join(_cell(value) for value in item.values[start : start + width])


def _head(item: Output) -> str:
    return f"{item.name}  {item.datatype}{list(item.shape)}"


def _line(item: Output) -> str:
    return _head(item) + _glimpse(item)


def _glimpse(item: Output) -> str:
    """The first values, where there are few enough to be read."""
    if not item.values or len(item.values) > _VALUES_SHOWN_MAX:
        return ""
    return ": " + " ".join(_cell(value) for value in item.values)


def facts_as_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """`headers_as_json` for people; nothing about what the headers do not say."""
    if facts["charge"]:
        yield f"charge   {facts['charge']}"
    if facts["limits"]:
        yield f"left     {' · '.join(_limit(name, item) for name, item in facts['limits'].items())}"
    if facts["timings_ms"]:
        yield f"time     {' · '.join(f'{name} {_milliseconds(value)}' for name, value in facts['timings_ms'].items())}"
    if facts["call_id"]:
        yield f"call     {facts['call_id']}"


def _limit(name: str, item: Mapping[str, float]) -> str:
    left = f"{name} {item.get('r', 0):.0f}"
    return f"{left} (resets in {duration(item['t'])})" if item.get("t", 0) >= _MINUTE_S else left


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def duration(seconds: float) -> str:
    """`90` → `1 min 30 s`; the two largest units."""
    days, rest = divmod(int(seconds), 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, left = divmod(rest, _MINUTE_S)
    parts = [f"{value} {unit}" for value, unit in ((days, "d"), (hours, "h"), (minutes, "min"), (left, "s")) if value]
    return " ".join(parts[:2]) or "0 s"
