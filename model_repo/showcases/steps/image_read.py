"""First step of `image_classifier`: an encoded image to the square of pixels that the network sees.

`IMAGE: bytes[1]` (PNG or JPEG) → `PIXELS: float32[1, 3, 224, 224]`: the middle 7/8 of the shorter side, RGB, less
ImageNet's mean, by its deviation.
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

SIDE: Final = 224
#: Of the shorter side; the network was judged with a margin of 32 pixels around its 224.
_SHARE: Final = SIDE / (SIDE + 32)
_FORMATS: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8")
_MEAN: Final = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_DEVIATION: Final = np.array([0.229, 0.224, 0.225], dtype=np.float32)


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


def cut_middle(pixels: Pixels) -> Pixels:
    """`float32[1, 3, 224, 224]` of an image of any shape."""
    height, width = pixels.shape[:2]
    side = max(1, round(min(height, width) * _SHARE))
    top, left = (height - side) // 2, (width - side) // 2
    way = cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC
    square = cv2.resize(pixels[top : top + side, left : left + side], (SIDE, SIDE), interpolation=way)
    return normalise(square)[None]


def normalise(square: Pixels) -> Pixels:
    """`uint8[224, 224, 3]` → `float32[3, 224, 224]`."""
    scaled = (square.astype(np.float32) / np.float32(255) - _MEAN) / _DEVIATION
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


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
            pixels = cut_middle(decode_image(data))
        except ImageError as error:
            return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([pb_utils.Tensor("PIXELS", pixels)])
