"""First step of `face_detection`: an encoded image to the square of pixels that the network sees.

`IMAGE: bytes[1]` (PNG or JPEG) → `PIXELS: float32[1, 128, 128, 3]` (RGB, -1..1, the whole image in the middle, black
around it) and `FRAME: float32[5]`: image pixels per pixel of PIXELS, columns and rows of the image's top left corner
in PIXELS, image width and height.
"""

import os
from typing import Any, Final

ENCODED_BYTES_MAX: Final = 32 << 20
#: 40 million pixels are 120 MB. The decoder itself refuses more, before it takes memory for them.
PIXELS_MAX: Final = 40_000_000
os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(PIXELS_MAX)

import cv2  # noqa: E402 - reads the variable above when it is loaded
import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]  # noqa: E402

Pixels = npt.NDArray[Any]

SIDE: Final = 128
_FORMATS: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8")


class ImageError(Exception):
    """An image that its sender must change; the text says how."""


def decode_image(data: bytes) -> Pixels:
    """`uint8[height, width, 3]` in RGB, upright by its EXIF note.

    Raises:
        ImageError: no PNG or JPEG, damaged, or too large.
    """
    if len(data) > ENCODED_BYTES_MAX:
        raise ImageError(f"IMAGE has {len(data)} bytes, more than {ENCODED_BYTES_MAX}")
    if not data.startswith(_FORMATS):
        raise ImageError("IMAGE must be an encoded PNG or JPEG")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(f"IMAGE cannot be decoded: damaged, or more than {PIXELS_MAX} pixels") from error
    if pixels is None:
        raise ImageError("IMAGE cannot be decoded: its data is damaged")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def frame_image(pixels: Pixels) -> tuple[Pixels, Pixels]:
    """PIXELS and FRAME of an image of any shape."""
    height, width = pixels.shape[:2]
    scale = max(height, width) / SIDE
    inner = (max(1, round(width / scale)), max(1, round(height / scale)))
    left, top = (SIDE - inner[0]) // 2, (SIDE - inner[1]) // 2
    square = np.zeros((1, SIDE, SIDE, 3), dtype=np.float32)
    way = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    square[0, top : top + inner[1], left : left + inner[0]] = cv2.resize(pixels, inner, interpolation=way)
    frame = np.array([scale, left, top, width, height], dtype=np.float32)
    return square / np.float32(127.5) - np.float32(1), frame


class TritonPythonModel:
    """One image a request."""

    def initialize(self, args: dict[str, str]) -> None:
        """The parent owns the cores; a pool of threads here would only fight it."""
        cv2.setNumThreads(1)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        (data,) = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
        try:
            pixels, frame = frame_image(decode_image(data))
        except ImageError as error:
            return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([pb_utils.Tensor("PIXELS", pixels), pb_utils.Tensor("FRAME", frame)])
