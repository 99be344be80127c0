"""Owns what passes between our side and a framework's environment: cases and answers as npz files, an index as JSON.

`cases/index.json`: {"inputs": [name], "labels": [label]}; `cases/NNNNN.npz`: arrays `a0`, `a1` … as the inputs.
`answers/index.json`: {"outputs": [name], "refused": {"NNNNN": reason}}; `answers/NNNNN.npz`: the same for the outputs.
Needs NumPy only, of any version.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from converters.errors import ToolFailed

Array: TypeAlias = npt.NDArray[Any]
Feeds: TypeAlias = Mapping[str, Array]
INDEX: Final = "index.json"
#: Arrays that importers give beside the generated cases: rows at the thresholds of trees.
EXTRA_ROWS_MAX: Final = 1_024


def write_arrays(path: Path, names: Sequence[str], arrays: Feeds) -> None:
    """Raises: KeyError: a name has no array."""
    numbered: dict[str, Any] = {f"a{place}": np.ascontiguousarray(arrays[name]) for place, name in enumerate(names)}
    np.savez(path, **numbered)


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Raises: ToolFailed: no such npz, objects in it, or too few arrays."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[f"a{place}"] for place, name in enumerate(names)}
    except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        text = f"{path.parent.name}/{path.name} cannot be read: {error}"
        raise ToolFailed("exchange", text, next_step="report this, with the model") from error


def file_of(folder: Path, place: int) -> Path:
    return folder / f"{place:05d}.npz"


def write_index(folder: Path, value: Mapping[str, Any]) -> None:
    (folder / INDEX).write_text(json.dumps(value))


def read_index(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / INDEX).read_bytes())
    return value
