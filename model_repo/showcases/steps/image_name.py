"""Last step of `image_classifier`: the network's scores to the five likeliest names.

`SCORES: float32[1, 1000]` (before the softmax) → `LABEL: bytes[5]`, `SCORE: float32[5]` (chances), the likeliest first.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]

Array = npt.NDArray[Any]

COUNT: Final = 5


def choose(scores: Array, names: list[str]) -> tuple[Array, Array]:
    """LABEL and SCORE of one row of scores."""
    chances = np.exp(scores.astype(np.float64) - scores.max())
    chances /= chances.sum()
    # Stable: of equal scores the lower class comes first, on every machine.
    best = np.argsort(-chances, kind="stable")[:COUNT]
    return np.array([names[place].encode() for place in best], dtype=object), chances[best].astype(np.float32)


class TritonPythonModel:
    """One image a request; the names lie beside this file."""

    def initialize(self, args: dict[str, str]) -> None:
        self._names = Path(__file__).with_name("names.txt").read_text(encoding="utf-8").splitlines()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        (scores,) = pb_utils.get_input_tensor_by_name(request, "SCORES").as_numpy()
        label, score = choose(scores, self._names)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LABEL", label), pb_utils.Tensor("SCORE", score)])
