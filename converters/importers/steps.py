"""Owns the two steps in a framework's environment: export the source; answer our cases with the framework itself."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from converters.errors import ToolFailed
from converters.importers.exchange import Array, file_of, read_arrays, read_index, write_arrays, write_index
from converters.importers.protocol import Source

MODEL: Final = "model.onnx"
_REASON_MAX: Final = 200


def export_source(source: Source, work: Path) -> dict[str, Any]:
    """Leave `export/model.onnx` and `extra/` in `work`."""
    folder = work / "export"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    export = source.export(folder / MODEL)
    if not (folder / MODEL).is_file():
        raise ToolFailed("export", "the exporter wrote no file", next_step="report the model")
    extra = work / "extra"
    extra.mkdir(exist_ok=True)
    names = list(export.extra[0]) if export.extra else []
    for place, feeds in enumerate(export.extra):
        write_arrays(file_of(extra, place), names, feeds)
    write_index(extra, {"inputs": names, "count": len(export.extra)})
    return {
        "method": export.method,
        "notes": list(export.notes),
        "classes": list(export.classes),
        "versions": source.versions(),
    }


def answer_cases(source: Source, work: Path, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Leave `answers/` in `work`, one file for each of `cases/` that the framework answers.

    Raises:
        ToolFailed: it answers none.
    """
    cases, answers = work / "cases", work / "answers"
    answers.mkdir()
    index = read_index(cases)
    refused: dict[str, str] = {}
    names: list[str] = []
    for place, label in enumerate(index["labels"]):
        progress("framework's answers", place, len(index["labels"]))
        feeds = read_arrays(file_of(cases, place), index["inputs"])
        try:
            outputs = source.answer(feeds)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a framework raises anything
            # Whatever the framework raises on an input means that it does not take it.
            refused[str(place)] = f"{label}: {first_line(error)}"
            continue
        names = names or list(outputs)
        write_arrays(file_of(answers, place), names, outputs)
    if not names:
        reason = next(iter(refused.values()), "there are no cases")
        step = "give real inputs with --data, or sizes with --dim"
        raise ToolFailed("no_answer", f"the framework answers no case; {reason}", next_step=step)
    write_index(answers, {"outputs": names, "refused": refused})
    return {"answered": len(index["labels"]) - len(refused), "refused": len(refused)}


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:_REASON_MAX]


def as_numpy(outputs: Mapping[str, Any]) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in outputs.items()}
