"""Last step of `ocr`: the reader's classes to text, without what is no text.

`CLASSES: int64[cut, slots]`, `CHANCES: float32[cut, slots]`, `ANGLES: float32[cut, 2]` and `CORNERS: float32[lines, 4,
2]` (see `ocr_cut`; `cut` is `lines`, or 1 where there is none) → `TEXT: bytes[n]` (UTF-8), `BOX: float32[n, 4, 2]` and
`SCORE: float32[n]`, in reading order: of a page that lies upside down, from its own top.
"""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]

Array = npt.NDArray[Any]

_SCORE_MIN: Final = 0.5
_TURN_CHANCE_MIN: Final = 0.9


def read_characters(path: Path) -> list[str]:
    """Class → character: class 0 is CTC's blank, and after the dictionary comes the space."""
    return ["", *path.read_text(encoding="utf-8").splitlines(), " "]


def spell(classes: Array, chances: Array, characters: list[str]) -> tuple[str, float]:
    """One line's text and the mean chance of its characters (0 for no text): CTC's best path.

    A class that repeats without a blank between is one character.
    """
    is_new = np.ones(len(classes), dtype=bool)
    is_new[1:] = classes[1:] != classes[:-1]
    kept = is_new & (classes != 0)
    if not kept.any():
        return "", 0.0
    return "".join(characters[index] for index in classes[kept]), float(chances[kept].mean())


def lies_upside_down(angles: Array) -> bool:
    """Whether most lines of the page do."""
    return bool((angles[:, 1] > _TURN_CHANCE_MIN).mean() > 0.5)


def spell_page(
    classes: Array, chances: Array, angles: Array, corners: Array, characters: list[str]
) -> dict[str, Array]:
    """All outputs of the step by name."""
    found = []
    for row, box in enumerate(corners):
        text, score = spell(classes[row], chances[row], characters)
        if text.strip() and score >= _SCORE_MIN:
            found.append((text, box, score))
    if found and lies_upside_down(angles[: len(corners)]):
        found.reverse()
    return {
        "TEXT": np.array([text.encode() for text, _, _ in found], dtype=object),
        "BOX": np.array([box for _, box, _ in found], dtype=np.float32).reshape(-1, 4, 2),
        "SCORE": np.array([score for _, _, score in found], dtype=np.float32),
    }


class TritonPythonModel:
    """One page a request; the dictionary lies beside this file."""

    def initialize(self, args: dict[str, str]) -> None:
        self._characters = read_characters(Path(__file__).with_name("characters.txt"))
        classes = int(json.loads(args["model_config"])["parameters"]["classes"]["string_value"])
        if len(self._characters) != classes:
            raise ValueError(f"characters.txt gives {len(self._characters)} classes, the reader has {classes}")

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        classes, chances, angles, corners = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("CLASSES", "CHANCES", "ANGLES", "CORNERS")
        )
        outputs = spell_page(classes, chances, angles, corners, self._characters)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
