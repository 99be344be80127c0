"""Last step of `face_detection`: from the network's 896 anchors to the faces in the sender's image.

`REGRESSORS: float32[1, 896, 16]`, `CLASSIFICATORS: float32[1, 896, 1]`, `FRAME` (see `face_read`) →
`BOX: float32[faces, 4]` (x and y of the top left corner, width, height, in image pixels), `KEYPOINTS: float32[faces, 6,
2]` (right eye, left eye, tip of the nose, mouth, right ear, left ear; the person's own sides) and
`SCORE: float32[faces]`, best first.

The method is BlazeFace's (Bazarevsky et al. 2019): boxes relative to fixed anchors, and overlapping ones blended by
their scores instead of dropped.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]

Floats = npt.NDArray[Any]

SIDE: Final = 128
POINTS: Final = 6
FACES_MAX: Final = 100
SCORE_MIN: Final = 0.5
_OVERLAP_MIN: Final = 0.3
#: (cells a side, anchors a cell): strides 8, and 16 three times.
_GRIDS: Final = ((16, 2), (8, 6))


def make_anchors() -> Floats:
    """`float32[896, 2]`: middles of the anchors (x, y) in 0..1, row by row."""
    parts = []
    for cells, each in _GRIDS:
        middles = (np.arange(cells, dtype=np.float32) + np.float32(0.5)) / cells
        rows, columns = np.meshgrid(middles, middles, indexing="ij")
        parts.append(np.repeat(np.stack([columns.ravel(), rows.ravel()], axis=1), each, axis=0))
    return np.concatenate(parts)


def decode(regressors: Floats, logits: Floats, anchors: Floats) -> tuple[Floats, Floats]:
    """Candidates with a score of at least `SCORE_MIN`, best first: `float32[n, 16]` in 0..1 and `float32[n]`.

    A row holds left, top, right, bottom, and the six points.
    """
    scores = 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
    order = np.argsort(-scores, kind="stable")
    kept = order[scores[order] >= SCORE_MIN]
    raw, at = regressors[kept] / np.float32(SIDE), anchors[kept]
    middle, half = raw[:, :2] + at, raw[:, 2:4] / 2
    points = raw[:, 4:].reshape(-1, POINTS, 2) + at[:, None, :]
    rows = np.concatenate([middle - half, middle + half, points.reshape(-1, 2 * POINTS)], axis=1)
    return rows.astype(np.float32), scores[kept].astype(np.float32)


def overlaps(box: Floats, others: Floats) -> Floats:
    """Intersection over union of a box with each of `others`, all as left, top, right, bottom."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:4], others[:, 2:4])
    common = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = [np.prod(np.clip(own[:, 2:4] - own[:, :2], 0, None), axis=1) for own in (box[None], others)]
    return np.asarray(common / np.maximum(areas[0] + areas[1] - common, 1e-9))


def blend(rows: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """One row a face: the mean, weighted by score, of candidates that overlap the best of them."""
    faces: list[Floats] = []
    chosen: list[float] = []
    while len(rows) and len(faces) < FACES_MAX:
        is_same = overlaps(rows[0], rows) >= _OVERLAP_MIN
        is_same[0] = True
        weights = scores[is_same]
        faces.append(np.average(rows[is_same], axis=0, weights=weights))
        chosen.append(scores[0])
        rows, scores = rows[~is_same], scores[~is_same]
    return np.array(faces, dtype=np.float32).reshape(-1, 4 + 2 * POINTS), np.array(chosen, dtype=np.float32)


def to_image(faces: Floats, frame: Floats) -> tuple[Floats, Floats]:
    """BOX and KEYPOINTS in pixels of the sender's image; boxes are cut at its edges."""
    scale, left, top, width, height = (float(value) for value in frame)
    points = (faces.reshape(-1, 2 + POINTS, 2) * SIDE - np.array([left, top])) * scale
    corners = np.clip(points[:, :2], 0, [width, height])
    boxes = np.concatenate([corners[:, 0], corners[:, 1] - corners[:, 0]], axis=1)
    return boxes.astype(np.float32), points[:, 2:].astype(np.float32)


def choose(regressors: Floats, logits: Floats, frame: Floats, anchors: Floats) -> dict[str, Floats]:
    """All outputs of the step by name."""
    faces, scores = blend(*decode(regressors, logits, anchors))
    boxes, points = to_image(faces, frame)
    return {"BOX": boxes, "KEYPOINTS": points, "SCORE": scores}


class TritonPythonModel:
    """One image a request."""

    def initialize(self, args: dict[str, str]) -> None:
        self._anchors = make_anchors()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        regressors, logits, frame = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("REGRESSORS", "CLASSIFICATORS", "FRAME")
        )
        outputs = choose(regressors[0], logits[0, :, 0], frame, self._anchors)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
