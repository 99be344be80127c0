"""Second step of `ocr`: from the detector's map of chances to the lines of text, cut out and laid straight.

`CHANCES: float32[1, 1, page_height, page_width]`, `PIXELS` and `FRAME` (see `ocr_read`) → `CORNERS: float32[lines, 4,
2]` (x, y in the sender's image; clockwise from top left; reading order), `LINES: uint8[cut, 48, width, 3]` (BGR, each
line's pixels from the left), `WIDTHS: int64[cut]` (columns of each) and `FACES: float32[cut, 3, 48, 192]` (what tells
whether a line is upside down). An image without text has no corners but one empty cut, for the networks take no less.
The method is differentiable binarisation's (Liao et al. 2020): threshold, contours, and each box grown by a ratio of
area to perimeter.
"""

import math
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import pyclipper
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]

Pixels = npt.NDArray[Any]
#: Four corners, `float32[4, 2]`.
Box = npt.NDArray[Any]

LINES_MAX: Final = 400
#: Lines times the widest line, which is what LINES occupies: 192 columns are 27 KB.
COLUMNS_MAX: Final = 1 << 18
LINE_HEIGHT: Final = 48
FACE_WIDTH: Final = 192
#: Shorter lines are padded by the reader.
_PADDED_BELOW: Final = 320

_CHANCE_MIN: Final = 0.3
_BOX_CHANCE_MIN: Final = 0.5
_GROWTH: Final = 1.6
_CONTOURS_MAX: Final = 1000
_SIDE_MIN: Final = 3
_UPRIGHT_MIN: Final = 1.5
#: Boxes whose middles differ by less than this share of their height are on one line.
_SAME_LINE: Final = 0.5


class PageError(Exception):
    """A page that holds more than one call may read."""


def find_boxes(chances: Pixels, height: int, width: int) -> list[Box]:
    """The boxes of `chances: float32[page_height, page_width]`, in pixels of an image of `height` x `width`."""
    mask = cv2.dilate((chances > _CHANCE_MIN).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask * 255, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.array([width / chances.shape[1], height / chances.shape[0]])
    boxes = []
    for contour in contours[:_CONTOURS_MAX]:
        corners, side = _smallest_box(contour)
        if side < _SIDE_MIN or _mean_chance(chances, corners) < _BOX_CHANCE_MIN:
            continue
        grown, side = _smallest_box(_grow(corners))
        if side < _SIDE_MIN + 2:
            continue
        placed = np.clip(np.round(grown * scale), 0, (width, height)).astype(np.int32)
        box = np.clip(_clockwise(placed.astype(np.float32)), 0, (width - 1, height - 1)).astype(np.float32)
        if min(int(np.linalg.norm(box[0] - box[1])), int(np.linalg.norm(box[0] - box[3]))) > _SIDE_MIN:
            boxes.append(box)
    return boxes


def _smallest_box(contour: Pixels) -> tuple[Box, float]:
    """The smallest rectangle at any angle around `contour`, and its shorter side."""
    rectangle = cv2.minAreaRect(contour)
    return _clockwise(cv2.boxPoints(rectangle)), min(rectangle[1])


def _clockwise(corners: Box) -> Box:
    """Corners from the top left: of the two leftmost and the two rightmost, the upper one comes first."""
    by_x = corners[np.argsort(corners[:, 0], kind="stable")]
    left = by_x[:2][np.argsort(by_x[:2, 1], kind="stable")]
    right = by_x[2:][np.argsort(by_x[2:, 1], kind="stable")]
    return np.array([left[0], right[0], right[1], left[1]], dtype=np.float32)


def _mean_chance(chances: Pixels, corners: Box) -> float:
    height, width = chances.shape
    low = np.clip(np.floor(corners.min(axis=0)).astype(np.int32), 0, (width - 1, height - 1))
    high = np.clip(np.ceil(corners.max(axis=0)).astype(np.int32), 0, (width - 1, height - 1))
    mask = np.zeros((high[1] - low[1] + 1, high[0] - low[0] + 1), dtype=np.uint8)
    cv2.fillPoly(mask, [(corners - low).astype(np.int32)], (1,))
    inside = chances[low[1] : high[1] + 1, low[0] : high[0] + 1]
    return float(cv2.mean(inside, mask)[0])


def _grow(corners: Box) -> Pixels:
    """Text is wider than the core that the detector marks; round joins keep the growth even."""
    area = cv2.contourArea(corners)
    distance = area * _GROWTH / cv2.arcLength(corners, True)
    offset = pyclipper.PyclipperOffset()
    offset.AddPath(corners, pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    points = [point for path in offset.Execute(distance) for point in path]
    return np.array(points, dtype=np.int32).reshape(-1, 1, 2) if points else corners.reshape(-1, 1, 2)


def reading_order(boxes: list[Box]) -> list[Box]:
    """Lines from top to bottom, and within a line from left to right."""
    lines: list[list[Box]] = []
    for box in sorted(boxes, key=lambda box: float(box[:, 1].mean())):
        if lines and _is_beside(lines[-1][0], box):
            lines[-1].append(box)
        else:
            lines.append([box])
    return [box for line in lines for box in sorted(line, key=lambda box: float(box[:, 0].mean()))]


def _is_beside(first: Box, box: Box) -> bool:
    heights = [float(np.linalg.norm(corners[0] - corners[3])) for corners in (first, box)]
    return abs(float(box[:, 1].mean() - first[:, 1].mean())) < _SAME_LINE * min(heights)


def cut_line(pixels: Pixels, box: Box) -> Pixels:
    """The content of `box` laid straight: `uint8[height, width, 3]`; a column of text is turned on its side."""
    width = int(max(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[2] - box[3])))
    height = int(max(np.linalg.norm(box[0] - box[3]), np.linalg.norm(box[1] - box[2])))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float32)
    lay = cv2.getPerspectiveTransform(box, target)
    line = cv2.warpPerspective(pixels, lay, (width, height), borderMode=cv2.BORDER_REPLICATE, flags=cv2.INTER_CUBIC)
    return np.rot90(line) if height / width >= _UPRIGHT_MIN else np.asarray(line)


def pack_lines(cuts: list[Pixels]) -> tuple[Pixels, Pixels]:
    """LINES and WIDTHS of the cut lines.

    Raises:
        PageError: together they are too large.
    """
    widths = [_line_width(cut) for cut in cuts]
    if len(cuts) * max(widths) > COLUMNS_MAX:
        raise PageError(f"IMAGE holds more text than one call reads ({len(cuts)} lines, some very long): divide it")
    lines = np.zeros((len(cuts), LINE_HEIGHT, max(widths), 3), dtype=np.uint8)
    for row, (cut, width) in enumerate(zip(cuts, widths, strict=True)):
        lines[row, :, :width] = cv2.resize(cut, (width, LINE_HEIGHT))
    return lines, np.array(widths, dtype=np.int64)


def _line_width(cut: Pixels) -> int:
    """Columns at the reader's height, rounded as the source package does: up while padding follows, else down."""
    columns = LINE_HEIGHT * (cut.shape[1] / cut.shape[0])
    return math.ceil(columns) if columns <= _PADDED_BELOW else int(columns)


def pack_faces(cuts: list[Pixels]) -> Pixels:
    """FACES of the cut lines: normalised to -1..1, padded with 0 on the right."""
    faces = np.zeros((len(cuts), 3, LINE_HEIGHT, FACE_WIDTH), dtype=np.float32)
    for row, cut in enumerate(cuts):
        width = min(math.ceil(LINE_HEIGHT * cut.shape[1] / cut.shape[0]), FACE_WIDTH)
        face = cv2.resize(cut, (width, LINE_HEIGHT)).astype(np.float32).transpose(2, 0, 1)
        faces[row, :, :, :width] = (face / 255 - np.float32(0.5)) / np.float32(0.5)
    return faces


def to_image(boxes: list[Box], frame: Pixels) -> Pixels:
    """CORNERS: the boxes in the sender's image, inside of it."""
    scale_down, scale_across, rows_above, height, width = (float(value) for value in frame)
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4, 2)
    corners[:, :, 0] *= scale_across
    corners[:, :, 1] = (corners[:, :, 1] - rows_above) * scale_down
    return np.clip(corners, 0, np.array([width, height], dtype=np.float32))


def cut_page(chances: Pixels, pixels: Pixels, frame: Pixels) -> dict[str, Pixels]:
    """All outputs of the step by name.

    Raises:
        PageError: the page holds too much text for one call.
    """
    boxes = reading_order(find_boxes(chances[0, 0], *pixels.shape[:2]))
    if len(boxes) > LINES_MAX:
        raise PageError(f"IMAGE holds {len(boxes)} lines of text, more than {LINES_MAX} a call: divide it")
    cuts = [cut_line(pixels, box) for box in boxes]
    if not cuts:
        cuts = [np.full((LINE_HEIGHT, LINE_HEIGHT, 3), 255, dtype=np.uint8)]
    lines, widths = pack_lines(cuts)
    return {"CORNERS": to_image(boxes, frame), "LINES": lines, "WIDTHS": widths, "FACES": pack_faces(cuts)}


class TritonPythonModel:
    """One page a request."""

    def initialize(self, args: dict[str, str]) -> None:
        """The parent owns the cores; a pool of threads here would only fight it."""
        cv2.setNumThreads(1)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        chances, pixels, frame = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("CHANCES", "PIXELS", "FRAME")
        )
        try:
            outputs = cut_page(chances, pixels, frame)
        except PageError as error:
            return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
