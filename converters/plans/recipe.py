"""Owns how a plan is to be built: the GPU it is for, its flags, the range of every input. Pure; JSON to and from.

Shapes are derived from what was verified (`make_profile`), never typed by hand; precision is the graph's own: the
library is told to obey the types it finds (docs/plans.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from converters.errors import UsageFault

#: Engine → what it is called.
PLAN_ENGINES: Final[Mapping[str, str]] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
#: Compute capabilities that TensorRT-RTX 1.7 compiles for, and its names of them.
COMPUTE_CAPABILITIES: Final[Mapping[str, str]] = {
    "7.5": "SM75",
    "8.0": "SM80",
    "8.6": "SM86",
    "8.9": "SM89",
    "12.0": "SM120",
    "12.1": "SM121",
}
#: Precisions whose typed graphs the libraries obey; weight-only and dynamic forms are ONNX Runtime's own.
PLAN_PRECISIONS: Final = ("fp32", "fp16", "int8")
#: Words of `--plan` by engine; TensorRT also has `level=N`.
OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "tensorrt": frozenset(
        {"tf32", "batch_invariant", "same_compute_capability", "ampere_plus", "version_compatible", "from_timing_cache"}
    ),
    "tensorrt_rtx": frozenset({"tf32", "batch_invariant"}),
}
LEVEL_MAX: Final = 5
_LEVEL: Final = "level="


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Sizes of one input: least, those that kernels are tuned for, greatest."""

    name: str
    least: tuple[int, ...]
    best: tuple[int, ...]
    greatest: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one plan is built. `compute_capability` empty: of the GPU in this host (TensorRT).

    `has_tf32` False: products of float32 are float32; the library's default is not. `is_batch_invariant`: a row's
    answer does not depend on its place. `compatibility`: `` (this very kind of GPU), `same_compute_capability` or
    `ampere_plus`. `is_version_compatible`: later versions of the library load it, by code in the plan that runs on the
    host. `is_from_timing_cache`: a kernel that the cache has no time of ends the build. `level` -1: the library's own.
    """

    engine: str
    precision: str
    compute_capability: str = ""
    ranges: tuple[Range, ...] = ()
    has_tf32: bool = False
    is_batch_invariant: bool = False
    compatibility: str = ""
    is_version_compatible: bool = False
    is_from_timing_cache: bool = False
    level: int = -1

    @property
    def key(self) -> str:
        """Names the plan in reports and in a version's folder."""
        sm = f"-sm{self.compute_capability.replace('.', '')}" if self.compute_capability else ""
        return f"{self.engine}-{self.precision}{sm}"

    @property
    def method(self) -> str:
        """In words, for certificates."""
        words = [f"typed {self.precision} graph compiled by {PLAN_ENGINES[self.engine]}"]
        words.append("TF32 allowed" if self.has_tf32 else "no TF32")
        named = {
            "batch invariant": self.is_batch_invariant,
            self.compatibility.replace("_", " "): bool(self.compatibility),
            "version compatible": self.is_version_compatible,
            "tactics of the timing cache": self.is_from_timing_cache,
            f"level {self.level}": self.level >= 0,
        }
        return ", ".join(words + [word for word, is_said in named.items() if is_said])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Recipe":
        """Of what `to_json` gave. Raises TypeError and KeyError for anything else."""
        sizes = ("least", "best", "greatest")
        ranges = tuple(
            Range(name=one["name"], **{key: tuple(int(size) for size in one[key]) for key in sizes})
            for one in value["ranges"]
        )
        return cls(**{**value, "ranges": ranges})


def check_gpus(gpus: Sequence[str], engines: Sequence[str]) -> None:
    """Raises: UsageFault: `--gpu` is missing, unknown, twice there, or goes with no engine that was asked for."""
    known = ", ".join(COMPUTE_CAPABILITIES)
    if "tensorrt_rtx" in engines:
        if not gpus:
            text = "--to tensorrt_rtx compiles for GPUs that are named: their compute capability is missing"
            raise UsageFault("gpu", text, next_step=f"--gpu with one or more of {known}")
    elif gpus:
        text = "--gpu goes with --to tensorrt_rtx; TensorRT builds for the GPU of its own host"
        raise UsageFault("gpu", text, next_step="leave it out")
    unknown = [one for one in gpus if one not in COMPUTE_CAPABILITIES]
    if unknown:
        text = f"--gpu {unknown[0][:20]!r} is no compute capability that TensorRT-RTX compiles for"
        raise UsageFault("gpu", text, next_step=f"one or more of {known}")
    if len(set(gpus)) != len(gpus):
        raise UsageFault("gpu", "--gpu names a compute capability twice", next_step="name each once")


def check_options(options: Sequence[str], engines: Sequence[str]) -> None:
    """Raises: UsageFault: an option of `--plan` is none of the engine's, or two contradict each other."""
    plans = [engine for engine in engines if engine in PLAN_ENGINES]
    if options and not plans:
        raise UsageFault("plan", "--plan goes with --to tensorrt or tensorrt_rtx", next_step="leave it out")
    for engine in plans:
        for word in options:
            if word not in OPTIONS[engine] and not (engine == "tensorrt" and _level(word) >= 0):
                known = ", ".join(sorted(OPTIONS[engine]))
                more = f", {_LEVEL}0..{LEVEL_MAX}" if engine == "tensorrt" else ""
                text = f"--plan {word[:40]!r} is nothing that {PLAN_ENGINES[engine]} can be asked for"
                raise UsageFault("plan", text, next_step=f"one or more of {known}{more}")
    if {"same_compute_capability", "ampere_plus"} <= set(options):
        text = "--plan same_compute_capability and ampere_plus are two different promises"
        raise UsageFault("plan", text, next_step="choose one of them")
    if len({word.partition("=")[0] for word in options}) != len(options):
        raise UsageFault("plan", "--plan names an option twice", next_step="name each once")


def with_options(recipe: Recipe, options: Sequence[str]) -> Recipe:
    """`recipe` as the checked words of `--plan` say."""
    level = max((_level(word) for word in options), default=-1)
    compatibility = [word for word in options if word in {"same_compute_capability", "ampere_plus"}]
    return replace(
        recipe,
        has_tf32="tf32" in options,
        is_batch_invariant="batch_invariant" in options,
        compatibility=compatibility[0] if compatibility else "",
        is_version_compatible="version_compatible" in options,
        is_from_timing_cache="from_timing_cache" in options,
        level=level,
    )


def _level(word: str) -> int:
    """-1: it is none."""
    digits = word.removeprefix(_LEVEL)
    is_level = word.startswith(_LEVEL) and len(digits) == 1 and digits.isascii() and digits.isdigit()
    return int(digits) if is_level and int(digits) <= LEVEL_MAX else -1


def make_ranges(
    inputs: Sequence[tuple[str, Sequence[int | str]]],
    sizes: Mapping[str, tuple[int, int, int]],
) -> tuple[Range, ...]:
    """`inputs`: name and shape, where a word is a variable axis; `sizes`: least, best, greatest of each such axis.

    Inputs whose sizes are all fixed need no range.
    """
    found = []
    for name, shape in inputs:
        if any(isinstance(size, str) for size in shape):
            least, best, greatest = (
                tuple(size if isinstance(size, int) else sizes[size][place] for size in shape) for place in range(3)
            )
            found.append(Range(name=name, least=least, best=best, greatest=greatest))
    return tuple(found)
