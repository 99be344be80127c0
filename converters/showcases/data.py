"""Owns real inputs for the showcases' networks, made on this machine from what Python itself ships."""

import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

SENTENCES: Final = 240
#: Tokens of a row: rows of one file have one length, shorter sentences are padded.
TOKENS: Final = 64
_SENTENCE_CHARS: Final = (40, 400)

#: Writes an npz file of real inputs, given the folder with the models as made.
Maker = Callable[[Path, Path], None]


def sentences(target: Path, models: Path) -> None:
    """`IDS`, `MASK`: int64[240, 64], English sentences of Python's own help pages, by the showcase's own vocabulary."""
    from pydoc_data.topics import topics

    step = _step("text_read")
    tokeniser = step.Tokeniser((models / "text_read" / "1" / "vocab.txt").read_text(encoding="utf-8"))
    plain = " ".join(re.sub(r"\s+", " ", topics[name]) for name in sorted(topics))
    low, high = _SENTENCE_CHARS
    found = [text for text in re.split(r"(?<=[.!?]) ", plain) if low < len(text) < high]
    chosen = np.random.default_rng(0).permutation(len(found))[:SENTENCES]
    ids = np.zeros((len(chosen), TOKENS), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, place in enumerate(chosen):
        numbers = tokeniser.numbers(found[place])[:TOKENS]
        ids[row, : len(numbers)] = numbers
        mask[row, : len(numbers)] = 1
    np.savez(target, IDS=ids, MASK=mask)


def _step(name: str) -> Any:
    """A showcase's Python step as a module; of the serving side it needs a name only."""
    sys.modules.setdefault("triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    return import_module(f"model_repo.showcases.steps.{name}")


MAKERS: Final[Mapping[str, Maker]] = {"sentences": sentences}
