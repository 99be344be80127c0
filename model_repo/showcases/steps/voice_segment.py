"""Last step of `voice_activity`: from the chance of speech in each frame to the stretches of speech.

`SCORES: float32[frames]` (one each 32 ms), `SECONDS: float32[1]` (length of the sound) → `SEGMENT: float32[n, 2]`
(begin and end in seconds, in order, apart). Speech begins at a chance of 0.5 and ends once it stays below 0.35 for
100 ms; what is shorter than 250 ms is none, and 30 ms are added on both sides.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]

Floats = npt.NDArray[Any]

FRAME_S: Final = 0.032
BEGIN_MIN: Final = 0.5
END_BELOW: Final = 0.35
SILENCE_S: Final = 0.1
SPEECH_S_MIN: Final = 0.25
MARGIN_S: Final = 0.03


def find_stretches(scores: Floats) -> list[tuple[int, int]]:
    """First frame, and first frame behind, of each stretch of speech."""
    stretches = []
    begin, quiet = -1, -1
    for frame, score in enumerate(scores):
        if score >= BEGIN_MIN:
            begin, quiet = (frame if begin < 0 else begin), -1
        elif begin >= 0 and score < END_BELOW:
            quiet = frame if quiet < 0 else quiet
            if (frame + 1 - quiet) * FRAME_S >= SILENCE_S:
                stretches.append((begin, quiet))
                begin, quiet = -1, -1
    if begin >= 0:
        stretches.append((begin, quiet if quiet >= 0 else len(scores)))
    return stretches


def to_seconds(stretches: list[tuple[int, int]], seconds: float) -> Floats:
    """SEGMENT: long enough, widened, and joined where the margins meet."""
    segments: list[list[float]] = []
    for begin, end in stretches:
        if (end - begin) * FRAME_S < SPEECH_S_MIN:
            continue
        low, high = max(begin * FRAME_S - MARGIN_S, 0.0), min(end * FRAME_S + MARGIN_S, seconds)
        if segments and low <= segments[-1][1]:
            segments[-1][1] = high
        else:
            segments.append([low, high])
    return np.array(segments, dtype=np.float32).reshape(-1, 2)


class TritonPythonModel:
    """One sound a request."""

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        scores = pb_utils.get_input_tensor_by_name(request, "SCORES").as_numpy()
        (seconds,) = pb_utils.get_input_tensor_by_name(request, "SECONDS").as_numpy()
        segments = to_seconds(find_stretches(scores), float(seconds))
        return pb_utils.InferenceResponse([pb_utils.Tensor("SEGMENT", segments)])
