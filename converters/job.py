"""Owns what a conversion is asked to do, as a checked value that travels to the child as JSON."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from converters.errors import UsageFault
from converters.plans.recipe import PLAN_ENGINES, PLAN_PRECISIONS, check_gpus, check_options

#: What runs here, and is measured; asked for where nothing else is.
ENGINES: Final = ("onnxruntime", "openvino")
PRECISIONS: Final = ("fp32", "fp16", "int8", "int8_dynamic", "int8_weights", "int4_weights")
_NO_FORM: Final = "OpenVINO's files have no such form here; ask onnxruntime for it"
#: What an engine cannot be asked for, and why.
NOT_OFFERED: Final[Mapping[tuple[str, str], str]] = {
    **{("openvino", name): _NO_FORM for name in ("int8_dynamic", "int8_weights", "int4_weights")},
}
#: The file of class names, beside config.pbtxt.
LABELS: Final = "labels.txt"
BATCH_ROWS_MAX: Final = 256
CLASS_NAMES_MAX: Final = 100_000
CLASS_NAME_CHARS_MAX: Final = 200
_DIM: Final = re.compile(r"([A-Za-z_][\w.:/-]{0,99})=(\d{1,7})(?:\.\.(\d{1,7}))?\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`dims`: size range of named variable axes. `budgets`: factor on the error budget of a precision.

    `values`: what generated elements of an integer input lie between, by its name.
    `batch_rows_max` 0: the batch stays the callers' own, `max_batch_size` is 0.
    `threads` are those of one run, as the engine is told. `rounds` of measurement give one median.
    `labels`: array of the data with a label a row; `label_output`: what it is of, empty: the first that fits;
    `metric_drop`: how much of the task metric a variant may lose, a share. `class_names`: in the order of the scores.
    `gpus`: compute capabilities that TensorRT-RTX compiles for; `plan`: words of `--plan` (converters.plans.recipe).
    """

    name: str
    engines: tuple[str, ...] = ENGINES
    precisions: tuple[str, ...] = ("fp32", "fp16")
    dims: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    budgets: Mapping[str, float] = field(default_factory=dict)
    optimize: str = "latency"
    batch_rows_max: int = 32
    values: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    threads: int = 1
    rounds: int = 9
    seed: int = 0
    labels: str = ""
    label_output: str = ""
    metric_drop: float = 0.01
    class_names: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    plan: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _known("--to", self.engines, (*ENGINES, *PLAN_ENGINES))
        _known("--precision", self.precisions, PRECISIONS)
        _known("--budget", self.budgets, PRECISIONS)
        _known("--optimize", (self.optimize,), ("latency", "throughput"))
        _within("--batch-max", self.batch_rows_max, 0, BATCH_ROWS_MAX)
        _within("--threads", self.threads, 1, 64)
        _within("--rounds", self.rounds, 3, 99)
        if not 0 <= self.metric_drop <= 1:
            raise UsageFault("range", f"--metric-drop {self.metric_drop} is outside 0..1", next_step="see --help")
        _check_names(self.class_names)
        for precision, factor in self.budgets.items():
            if not 0 < factor <= 100:
                raise UsageFault("budget", f"--budget {precision}={factor} is outside 0..100", next_step="see --help")
        if not self.engines or not self.precisions:
            raise UsageFault("nothing", "no engine or no precision asked for", next_step="see --help")
        check_gpus(self.gpus, self.engines)
        check_options(self.plan, self.engines)
        if self.plan_engines and not self.plan_precisions:
            text = f"plans are made in {', '.join(PLAN_PRECISIONS)}, and none of them is asked for"
            raise UsageFault("precision", text, next_step="add one to --precision")

    @property
    def own_engines(self) -> tuple[str, ...]:
        """Of those asked for, the ones that run here."""
        return tuple(engine for engine in self.engines if engine not in PLAN_ENGINES)

    @property
    def plan_engines(self) -> tuple[str, ...]:
        """Of those asked for, the ones whose plans are made for GPUs."""
        return tuple(engine for engine in self.engines if engine in PLAN_ENGINES)

    @property
    def plan_precisions(self) -> tuple[str, ...]:
        """Those that plans are made in, in the order asked for."""
        return tuple(precision for precision in self.precisions if precision in PLAN_PRECISIONS)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Job":
        """Raises: UsageFault."""
        lists = ("engines", "precisions", "class_names", "gpus", "plan")
        tuples = {key: tuple(value[key]) for key in lists if key in value}
        ranges = {
            key: {name: (int(low), int(high)) for name, (low, high) in value.get(key, {}).items()}
            for key in ("dims", "values")
        }
        try:
            return cls(**{**value, **tuples, **ranges})
        except TypeError as error:
            raise UsageFault("job", f"not a conversion's job: {error}", next_step="see --help") from error

    def canonical(self) -> str:
        """Equal jobs give equal text; the name they are published under does not count."""
        return json.dumps({**self.to_json(), "name": ""}, sort_keys=True)


def parse_dims(texts: list[str]) -> dict[str, tuple[int, int]]:
    """`seq=1..512` or `seq=128` each → size range by axis name.

    Raises:
        UsageFault: not of that form, or an empty range.
    """
    found = {}
    for text in texts:
        match = _DIM.match(text)
        low, high = (int(match[2]), int(match[3] or match[2])) if match else (0, 0)
        if match is None or not 1 <= low <= high:
            raise UsageFault("dims", f"--dim {text!r} is not NAME=LOW..HIGH", next_step="for example --dim seq=1..512")
        found[match[1]] = (low, high)
    return found


def parse_values(texts: list[str]) -> dict[str, tuple[int, int]]:
    """`IMAGE=0..255` each → least and greatest value by input.

    Raises:
        UsageFault: not of that form, or an empty range.
    """
    found = {}
    for text in texts:
        match = _DIM.match(text)
        low, high = (int(match[2]), int(match[3] or match[2])) if match else (1, 0)
        if match is None or low > high:
            step = "for example --values IDS=0..30521"
            raise UsageFault("values", f"--values {text!r} is not NAME=LOW..HIGH", next_step=step)
        found[match[1]] = (low, high)
    return found


def parse_budgets(texts: list[str]) -> dict[str, float]:
    """`fp16=2` each → factor on that precision's budget. Raises: UsageFault."""
    found = {}
    for text in texts:
        name, _, factor = text.partition("=")
        try:
            found[name] = float(factor)
        except ValueError as error:
            raise UsageFault("budget", f"--budget {text!r} is not PRECISION=FACTOR", next_step="see --help") from error
    return found


def _check_names(names: tuple[str, ...]) -> None:
    if len(names) > CLASS_NAMES_MAX:
        text = f"--class-names: {len(names)} names, more than {CLASS_NAMES_MAX}"
        raise UsageFault("class_names", text, next_step="give fewer")
    for name in names:
        if not 1 <= len(name) <= CLASS_NAME_CHARS_MAX or not name.isprintable():
            text = f"--class-names: {name[:40]!r} is empty, over {CLASS_NAME_CHARS_MAX} long or not printable"
            raise UsageFault("class_names", text, next_step="give one name a line")


def _known(option: str, values: Any, known: tuple[str, ...]) -> None:
    for value in values:
        if value not in known:
            raise UsageFault("unknown", f"{option} {value!r} is none of {', '.join(known)}", next_step="see --help")


def _within(option: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageFault("range", f"{option} {value} is outside {low}..{high}", next_step="see --help")
