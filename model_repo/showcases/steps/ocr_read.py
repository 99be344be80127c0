"""First step of `ocr`: an encoded image to pixels, in bounded memory, and those pixels in the detector's size.

`IMAGE: bytes[1]` (PNG or JPEG) → `PIXELS: uint8[height, width, 3]` (BGR, what lines are cut from),
`PAGE: uint8[page_height, page_width, 3]` (BGR, sides multiples of 32, what the detector sees) and
`FRAME: float32[5]`: image pixels per pixel of PIXELS down and across, rows of padding above, image height and width.
The geometry is that of the source package's pipeline.
"""

import struct
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]

Pixels = npt.NDArray[Any]

ENCODED_BYTES_MAX: Final = 32 << 20
#: Checked on the header, before memory for pixels is taken: 40 million pixels are 120 MB.
PIXELS_MAX: Final = 40_000_000
SIDE_MIN: Final = 4
#: A strip more slender than this would be enlarged without end to reach the detector's least side.
SLENDERNESS_MAX: Final = 60

_LONG_SIDE_MAX: Final = 2000
_SHORT_SIDE_MIN: Final = 30
_WIDTH_HEIGHT_MAX: Final = 8
_PAGE_SIDE_MIN: Final = 736
_PAGE_SIDE_MAX: Final = 4096
_STRIDE: Final = 32

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_WITH_ALPHA: Final = {4, 6}
_JPEG: Final = b"\xff\xd8"
#: JPEG's start-of-frame markers (ITU T.81 table B.1): all of C0..CF but DHT, JPG and DAC.
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE: Final = frozenset({0x01, *range(0xD0, 0xD8)})


class ImageError(Exception):
    """An image that its sender must change; the text says how."""


def read_size(data: bytes) -> tuple[int, int]:
    """Height and width as the header of a PNG or JPEG states them; no pixel is decoded.

    Raises:
        ImageError: neither format, or the header is cut short.
    """
    if data.startswith(_PNG):
        if len(data) < 26 or data[12:16] != b"IHDR":
            raise ImageError("IMAGE is a PNG without its header")
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    if data.startswith(_JPEG):
        return _jpeg_size(data)
    raise ImageError("IMAGE must be an encoded PNG or JPEG")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Walk the marker segments up to the frame header (ITU T.81 B.2.2)."""
    offset = 2
    while offset + 9 <= len(data):
        if data[offset] != 0xFF:
            break
        marker = data[offset + 1]
        if marker == 0xFF:  # Fill bytes may precede a marker.
            offset += 1
        elif marker in _JPEG_BARE:
            offset += 2
        elif marker in _JPEG_FRAMES:
            height, width = struct.unpack(">HH", data[offset + 5 : offset + 9])
            return height, width
        else:
            offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    raise ImageError("IMAGE is a JPEG without a frame header")


def check_size(height: int, width: int) -> None:
    """Refuse what would take too much memory, or is no picture of text.

    Raises:
        ImageError: too many pixels, too small, or too slender.
    """
    if height * width > PIXELS_MAX:
        raise ImageError(f"IMAGE has {width} x {height} pixels, more than {PIXELS_MAX}: scale it down")
    if min(height, width) < SIDE_MIN:
        raise ImageError(f"IMAGE has {width} x {height} pixels; each side must have at least {SIDE_MIN}")
    if max(height, width) > SLENDERNESS_MAX * min(height, width):
        raise ImageError(f"IMAGE of {width} x {height} pixels is more than {SLENDERNESS_MAX} times as long as wide")


def decode_image(data: bytes) -> Pixels:
    """`uint8[height, width, 3]` in BGR, upright by its EXIF note, transparency laid on a background.

    Raises:
        ImageError: as `read_size` and `check_size`, or the data is damaged.
    """
    if len(data) > ENCODED_BYTES_MAX:
        raise ImageError(f"IMAGE has {len(data)} bytes, more than {ENCODED_BYTES_MAX}")
    height, width = read_size(data)
    check_size(height, width)
    has_alpha = data.startswith(_PNG) and data[25] in _PNG_WITH_ALPHA
    flags = cv2.IMREAD_UNCHANGED if has_alpha else cv2.IMREAD_COLOR
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError("IMAGE cannot be decoded: its data is damaged") from error
    # Where a decoder trusts another header than the one that was checked, its result is not to be trusted either.
    if pixels is None or sorted(pixels.shape[:2]) != sorted((height, width)):
        raise ImageError("IMAGE cannot be decoded: its data is damaged")
    return _flatten(pixels) if has_alpha else pixels


def _flatten(pixels: Pixels) -> Pixels:
    """Lay an image with an alpha channel on white, or on black where what is drawn is itself light."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR))
    if pixels.shape[2] == 3:
        return pixels
    drawn = pixels[:, :, :3]
    alpha = pixels[:, :, 3]
    grey = cv2.cvtColor(drawn, cv2.COLOR_BGR2GRAY)
    is_visible = alpha > 0
    is_light = bool(is_visible.any()) and float(grey[is_visible].mean()) >= 128
    share = alpha[:, :, None].astype(np.float32) / 255
    ground = np.float32(0 if is_light else 255)
    return (drawn * share + ground * (1 - share)).astype(np.uint8)


def bound_sides(pixels: Pixels) -> Pixels:
    """Scale so that the long side is at most 2000 and the short one at least 30, to multiples of 32."""
    ratio = _LONG_SIDE_MAX / max(pixels.shape[:2])
    if ratio < 1:
        pixels = _resize(pixels, ratio)
    ratio = _SHORT_SIDE_MIN / min(pixels.shape[:2])
    if ratio > 1:
        pixels = _resize(pixels, ratio)
    return pixels


def pad_strip(pixels: Pixels) -> tuple[Pixels, int]:
    """A low strip between black bars, for the detector wants room around text; and the rows added above."""
    height, width = pixels.shape[:2]
    if height > _SHORT_SIDE_MIN and width / height <= _WIDTH_HEIGHT_MAX:
        return pixels, 0
    wanted = max(int(width / _WIDTH_HEIGHT_MAX), _SHORT_SIDE_MIN) * 2
    rows = abs(wanted - height) // 2
    return np.asarray(cv2.copyMakeBorder(pixels, rows, rows, 0, 0, cv2.BORDER_CONSTANT, value=(0, 0, 0))), rows


def fit_page(pixels: Pixels) -> Pixels:
    """The detector's view: short side at least 736, but never a side beyond 4096."""
    short, long = sorted(pixels.shape[:2])
    ratio = min(max(_PAGE_SIDE_MIN / short, 1.0), max(_PAGE_SIDE_MAX / long, 1.0))
    return _resize(pixels, ratio)


def _resize(pixels: Pixels, ratio: float) -> Pixels:
    height, width = (max(round(int(side * ratio) / _STRIDE), 1) * _STRIDE for side in pixels.shape[:2])
    return np.asarray(cv2.resize(pixels, (width, height)))


def read_page(data: bytes) -> tuple[Pixels, Pixels, Pixels]:
    """PIXELS, PAGE and FRAME of one encoded image.

    Raises:
        ImageError: as `decode_image`.
    """
    image = decode_image(data)
    height, width = image.shape[:2]
    pixels = bound_sides(image)
    scale_down, scale_across = height / pixels.shape[0], width / pixels.shape[1]
    pixels, rows_above = pad_strip(pixels)
    frame = np.array([scale_down, scale_across, rows_above, height, width], dtype=np.float32)
    return pixels, fit_page(pixels), frame


class TritonPythonModel:
    """One image a request."""

    def initialize(self, args: dict[str, str]) -> None:
        """The parent owns the cores; a pool of threads here would only fight it."""
        cv2.setNumThreads(1)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        (data,) = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy().ravel()
        try:
            pixels, page, frame = read_page(data)
        except ImageError as error:
            return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        tensors = {"PIXELS": pixels, "PAGE": page, "FRAME": frame}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])
