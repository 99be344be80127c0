"""Owns the seam between the child and a framework: an open source, what exporting it gave, what is asked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from converters.errors import UsageFault
from converters.importers.exchange import Array, Feeds

DTYPES: Final[Mapping[str, Any]] = {
    "FP32": np.float32, "FP16": np.float16, "FP64": np.float64, "BOOL": np.bool_,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8,
}  # fmt: skip
INPUTS_MAX: Final = 64
RANK_MAX: Final = 8
_INPUT: Final = re.compile(r"([A-Za-z_]\w{0,99})=([A-Z0-9]{2,6})\[([\w,]{1,200})\]\Z")
_EXAMPLE: Final = "for example --input x=FP32[batch,3,224,224]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An input as a person states it. `shape`: a number is fixed, a name is a variable axis."""

    name: str
    datatype: str
    shape: tuple[int | str, ...]

    def example(self, sizes: Mapping[str, int], noise: np.random.Generator) -> Array:
        """Seeded values: normal floats; integers 0 and 1, which are valid indices wherever an axis has two entries."""
        shape = tuple(size if isinstance(size, int) else sizes[size] for size in self.shape)
        dtype = DTYPES[self.datatype]
        if self.datatype.startswith("FP"):
            return noise.standard_normal(shape).astype(dtype)
        return noise.integers(0, 2, shape).astype(dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to open. `code`: a Python file that builds the model, named by the person who converts."""

    format: str
    source: Path
    code: Path | None = None
    inputs: tuple[Input, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """`classes`: names of the labels 0, 1, 2 … where the source's labels are no whole numbers.

    `extra`: further cases to be judged at values that the model itself makes critical, each a batch of rows.
    """

    method: str
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    extra: tuple[Feeds, ...] = field(default=())


class Source(Protocol):
    """A model open in its own framework."""

    def export(self, path: Path) -> Export:
        """Write the model as ONNX to `path`. Raises: ConvertError; anything that the exporter meets."""

    def answer(self, feeds: Feeds) -> dict[str, Array]:
        """The framework's own outputs by the names in the ONNX file. Raises anything: the input is then refused."""

    def versions(self) -> dict[str, str]:
        """Packages that decide the result, with versions."""


def parse_inputs(texts: list[str]) -> tuple[Input, ...]:
    """`x=FP32[batch,16]` each.

    Raises:
        UsageFault: not of that form, an unknown type, too many, or a name twice.
    """
    found: list[Input] = []
    for text in texts:
        match = _INPUT.match(text)
        words = match[3].split(",") if match else []
        if match is None or match[2] not in DTYPES or len(words) > RANK_MAX or not all(words):
            raise UsageFault("input", f"--input {text[:80]!r} is not NAME=TYPE[AXIS,AXIS]", next_step=_EXAMPLE)
        sizes = tuple(int(word) if word.isdigit() else word for word in words)
        if any(size == 0 for size in sizes) or any(isinstance(size, str) and size[0].isdigit() for size in sizes):
            raise UsageFault(
                "input", f"--input {text[:80]!r}: an axis is a name or a number from 1", next_step=_EXAMPLE
            )
        found.append(Input(name=match[1], datatype=match[2], shape=sizes))
    if len(found) > INPUTS_MAX or len({one.name for one in found}) != len(found):
        text = f"more than {INPUTS_MAX} inputs, or one named twice"
        raise UsageFault("input", text, next_step="name each input once")
    return tuple(found)


def need_inputs(asked: Asked) -> tuple[Input, ...]:
    """Raises: UsageFault: the format does not say what its inputs are, and neither did the person."""
    if not asked.inputs:
        text = f"a source of format {asked.format} does not state its inputs"
        raise UsageFault("input", text, next_step=f"name each, {_EXAMPLE}")
    return asked.inputs
