"""Owns the report's comparison: time, size and error of every variant that was built, side by side, as one SVG."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

_WIDTH: Final = 860
_ROW: Final = 30
_TOP: Final = 30
_LABEL: Final = 190
_PANEL: Final = 205
#: Of a panel, for the bar; the rest is for its figure.
_BAR: Final = 115
#: Errors from here to 1 have a bar, by their logarithm.
_ERROR_MIN: Final = 1e-8
_COLOURS: Final = {"selected": "#1a7f37", "accepted": "#0550ae", "refused": "#b8bec6"}
_PLAIN: Final = "#57606a"
_HEADS: Final = ("time of one run", "size", "relative RMS error")


def comparison_plot(
    variants: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]], source_bytes: int | None
) -> str:
    """Empty where nothing was built. What is refused is grey; a variant that never ran has no time.

    `source_bytes` None: of an earlier report that does not say.
    """
    built = [one for one in variants if one["size_bytes"]]
    if not built:
        return ""
    rows = [_plain_row(plain, source_bytes)] if plain else []
    rows += [_row(one) for one in built]
    scales = [max((row[column] or 0.0 for row in (row[2] for row in rows)), default=0.0) for column in range(2)]
    parts = [
        f'<text x={_LABEL + place * (_PANEL + 15)} y=16 font-weight="600">{head}</text>'
        for place, head in enumerate(_HEADS)
    ]
    for place, (label, colour, figures) in enumerate(rows):
        y = _TOP + place * _ROW
        parts.append(f"<text x={_LABEL - 8} y={y + 19} text-anchor=end>{escape(label)}</text>")
        shares = [_share(figures[0], scales[0]), _share(figures[1], scales[1]), _error_share(figures[2])]
        texts = [_ms(figures[0]), _mb(figures[1]), _error(figures[2])]
        parts += [
            _bar(panel, y, colour, share, text) for panel, (share, text) in enumerate(zip(shares, texts, strict=True))
        ]
    head = "<h3>Time, size and error (less is better; grey was refused; the error's bar is logarithmic)</h3>"
    return f'{head}<svg viewBox="0 0 {_WIDTH} {_TOP + len(rows) * _ROW}" role=img>{"".join(parts)}</svg>'


def label_of(one: Mapping[str, Any]) -> str:
    """What a variant is called: engine, precision, and the GPU that it is for, if it is for one."""
    gpu = one.get("compute_capability")
    return f"{one['engine']} {one['precision']}{f' {gpu}' if gpu else ''}"


Figures = tuple[float | None, float | None, float | None]


def _plain_row(plain: Sequence[Mapping[str, Any]], source_bytes: int | None) -> tuple[str, str, Figures]:
    return "plain source", _PLAIN, (plain[0]["median_ns"] / 1e6, source_bytes, 0.0)


def _row(one: Mapping[str, Any]) -> tuple[str, str, Figures]:
    time = one["speeds"][0]["median_ns"] / 1e6 if one["speeds"] else None
    errors = [figures["rms_rel"] for figures in one["per_output"].values()]
    # One that is not finite has no place on any scale, and is the worst.
    error = None if not errors else math.inf if None in errors else max(errors)
    return label_of(one), _COLOURS[one["status"]], (time, float(one["size_bytes"]), error)


def _share(value: float | None, greatest: float) -> float:
    return value / greatest if value and greatest else 0.0


def _error_share(error: float | None) -> float:
    if not error or error <= _ERROR_MIN:
        return 0.0
    return min(1.0, 1 - math.log(min(error, 1.0)) / math.log(_ERROR_MIN))


def _bar(panel: int, y: int, colour: str, share: float, text: str) -> str:
    x, width = _LABEL + panel * (_PANEL + 15), _BAR * share
    bar = f'<rect x={x} y={y + 5} width={width:.1f} height=20 fill="{colour}"/>'
    return f"{bar}<text x={x + width + 6:.1f} y={y + 19}>{text}</text>"


def _ms(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


def _mb(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e6:.2f} MB" if value >= 1e5 else f"{value / 1e3:.1f} kB"


def _error(value: float | None) -> str:
    if value is None:
        return "not compared"
    return "not finite" if math.isinf(value) else "0" if value == 0 else f"{value:.1e}"
