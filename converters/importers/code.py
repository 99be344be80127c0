"""Owns running the Python file that a person named to build a model. It runs in the child, behind the limits.

The file defines `build(weights)`: weights by name, or None without a file of them → the model. It may define `INPUTS`,
a list of texts as for `--input`, `OUTPUTS`, a list of names, and `example()`: one batch of arrays by input name.
"""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from converters.errors import UsageFault
from converters.importers.exchange import Array
from converters.importers.protocol import Asked, Input, need_inputs, parse_inputs

#: Sizes of variable axes while exporting, in the order in which they appear; no two equal, none 0 or 1.
_SIZES: Final = (2, 5, 7, 11, 13)
MODULE: Final = "tollway_model"
_SEED: Final = 20261124


def _run(path: Path) -> Mapping[str, Any]:
    """As a module that can be found by its name, since frameworks read the source of the classes in it."""
    spec = importlib.util.spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    return vars(module)


class Code:
    def __init__(self, asked: Asked) -> None:
        """Raises: UsageFault: no `build` in the file, or it raises; inputs are not stated anywhere."""
        path = asked.code or asked.source
        try:
            self._names: Mapping[str, Any] = _run(path)
        except Exception as error:
            text = f"{path.name}: {type(error).__name__}: {str(error)[:200]}"
            raise UsageFault("code", text, next_step="run the file in the toolchain's own Python") from error
        if not callable(self._names.get("build")):
            text = f"{path.name} defines no function build(weights)"
            raise UsageFault("code", text, next_step="see docs/converters.md for the form of the file")
        own = parse_inputs([str(text) for text in self._names.get("INPUTS", ())])
        self.inputs: tuple[Input, ...] = asked.inputs or own or need_inputs(asked)
        self.outputs: tuple[str, ...] = tuple(str(name) for name in self._names.get("OUTPUTS", ()))

    def build(self, weights: Any) -> Any:
        return self._names["build"](weights)

    def example(self) -> dict[str, Array]:
        """One batch by input name: the file's own, or a generated one."""
        if "example" not in self._names:
            return examples(self.inputs)
        given = self._names["example"]()
        missing = [one.name for one in self.inputs if one.name not in given]
        if missing:
            raise UsageFault("code", f"example() gives no '{missing[0]}'", next_step="give an array for each input")
        return {one.name: np.asarray(given[one.name]) for one in self.inputs}


def examples(inputs: tuple[Input, ...]) -> dict[str, Array]:
    axes = dict.fromkeys(size for one in inputs for size in one.shape if isinstance(size, str))
    sizes = {name: _SIZES[place] if place < len(_SIZES) else 17 + 2 * place for place, name in enumerate(axes)}
    noise = np.random.default_rng(_SEED)
    return {one.name: one.example(sizes, noise) for one in inputs}


def name_outputs(outputs: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """What a model returned, by name: a mapping's own keys, else `names`, else `output` or `output_0`, `output_1` …

    Raises:
        UsageFault: not as many names as outputs, or what is no tensor.
    """
    if isinstance(outputs, Mapping):
        found = {str(name): value for name, value in outputs.items() if value is not None}
    else:
        parts = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
        own = names or (("output",) if len(parts) == 1 else tuple(f"output_{place}" for place in range(len(parts))))
        if len(own) != len(parts):
            text = f"the model gives {len(parts)} outputs, {len(own)} are named"
            raise UsageFault("outputs", text, next_step="name as many in OUTPUTS")
        found = dict(zip(own, parts, strict=True))
    if any(not hasattr(value, "shape") for value in found.values()):
        raise UsageFault("outputs", "the model gives what is no tensor", next_step="let it return tensors only")
    return found
