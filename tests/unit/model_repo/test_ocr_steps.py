"""The Python steps of `ocr`: limits before memory, geometry, reading order, CTC."""

import json
import struct
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from model_repo.recipes import SHOWCASES
from tests.unit.model_repo.steps import execute, load_step, outputs, texts

#: TritonError.INVALID_ARG
INVALID_ARG = 3
INVOICE = SHOWCASES / "samples" / "invoice.png"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_step("ocr_read", monkeypatch)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_step("ocr_cut", monkeypatch)


@pytest.fixture
def spell(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_step("ocr_spell", monkeypatch)


def encode(pixels: Any, extension: str = ".png") -> bytes:
    is_done, data = cv2.imencode(extension, pixels)
    assert is_done
    return bytes(data.tobytes())


def png_claiming(height: int, width: int) -> bytes:
    """A PNG that says it is large and holds almost nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    body = zlib.compress(b"\0" * 10)
    parts = [struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))]
    for name, data in ((b"IDAT", body), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_size_is_read_from_the_header_alone(read: ModuleType, extension: str) -> None:
    data = encode(np.zeros((37, 91, 3), np.uint8), extension)
    assert read.read_size(data) == (37, 91)


def test_jpeg_size_is_found_behind_segments_of_any_kind(read: ModuleType) -> None:
    data = encode(np.zeros((37, 91, 3), np.uint8), ".jpg")
    comment = b"\xff\xfe\x00\x06\xff\xc0\xff\xc0"
    assert read.read_size(data[:2] + b"\xff" + comment + data[2:]) == (37, 91)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "must be an encoded PNG or JPEG"),
        (b"GIF89a" + b"\0" * 40, "must be an encoded PNG or JPEG"),
        (b"\x89PNG\r\n\x1a\n", "without its header"),
        (b"\xff\xd8\xff\xda\x00\x02", "without a frame header"),
        (b"\xff\xd8" + b"\0" * 30, "without a frame header"),
        (png_claiming(20_000, 20_000), "more than 40000000"),
        (png_claiming(3, 100), "at least 4"),
        (png_claiming(10, 1_000), "more than 60 times as long"),
        (png_claiming(100, 100), "damaged"),
    ],
)
def test_what_cannot_be_read_is_refused_to_its_sender(read: ModuleType, data: bytes, reason: str) -> None:
    response = execute(read.TritonPythonModel(), IMAGE=texts(data))
    assert reason in response.error().message()
    assert response.error().code() == INVALID_ARG


def test_large_image_is_refused_before_it_is_decoded(read: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(read.cv2, "imdecode", decode)
    with pytest.raises(read.ImageError):
        read.decode_image(png_claiming(30_000, 30_000))
    with pytest.raises(read.ImageError, match="bytes, more than"):
        read.decode_image(b"\xff\xd8" + bytes(read.ENCODED_BYTES_MAX))


def test_every_prefix_of_a_jpeg_is_decoded_or_refused(read: ModuleType) -> None:
    data = encode(np.full((40, 40, 3), 200, np.uint8), ".jpg")
    for size in range(0, len(data), 7):
        try:
            assert read.decode_image(data[:size]).shape == (40, 40, 3)
        except read.ImageError:
            continue


def test_grey_and_deep_images_become_bgr(read: ModuleType) -> None:
    assert read.decode_image(encode(np.full((20, 30), 7, np.uint8))).tolist()[0][0] == [7, 7, 7]
    deep = read.decode_image(encode(np.full((20, 30), 7 << 8, np.uint16)))
    assert deep.dtype == np.uint8
    assert deep.shape == (20, 30, 3)


@pytest.mark.parametrize(("ink", "ground"), [(10, 255), (250, 0)])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_transparent_image_is_laid_on_a_ground_that_contrasts(
    read: ModuleType, ink: int, ground: int, depth: Any
) -> None:
    factor = 257 if depth == np.uint16 else 1
    pixels = np.zeros((20, 30, 4), depth)
    pixels[5:10, 5:10] = np.array([ink, ink, ink, 255]) * factor
    image = read.decode_image(encode(pixels))
    assert image[0, 0].tolist() == [ground] * 3
    assert image[6, 6].tolist() == [ink] * 3


@pytest.mark.parametrize(
    ("height", "width", "pixels", "page", "rows"),
    [
        (620, 880, (620, 880), (736, 1056), 0),
        (3000, 1000, (1984, 672), (2176, 736), 0),
        (100, 3000, (314, 1984), None, None),
        (20, 600, None, None, None),
        (4, 240, None, None, None),
        (3000, 60, None, None, 0),
        (4, 4, (32, 32), (736, 736), 0),
    ],
)
def test_sides_stay_in_bounds(
    read: ModuleType, height: int, width: int, pixels: Any, page: Any, rows: int | None
) -> None:
    got, seen, frame = read.read_page(encode(np.full((height, width, 3), 255, np.uint8)))
    assert max(got.shape[:2]) <= 2016
    assert max(seen.shape[:2]) <= 4096
    assert seen.shape[0] % 32 == seen.shape[1] % 32 == 0
    assert min(got.shape[:2]) >= 30
    assert frame.tolist()[3:] == [height, width]
    if pixels is not None and rows == 0:
        assert got.shape[:2] == pixels
    if page is not None:
        assert seen.shape[:2] == page
    if rows is not None:
        assert frame[2] == rows


def test_low_strip_gets_bars_above_and_below(read: ModuleType) -> None:
    strip, rows = read.pad_strip(np.full((20, 600, 3), 255, np.uint8))
    assert rows == 65
    assert strip.shape == (150, 600, 3)
    assert not strip[:rows].any()
    assert strip[rows : rows + 20].all()


def chances_with(*boxes: tuple[int, int, int, int], height: int = 128, width: int = 256) -> Any:
    chances = np.zeros((height, width), np.float32)
    for x, y, right, bottom in boxes:
        chances[y:bottom, x:right] = 0.9
    return chances


def test_box_is_grown_around_what_the_detector_marks(cut: ModuleType) -> None:
    (box,) = cut.find_boxes(chances_with((40, 40, 140, 56)), 128, 256)
    left, top = box[0]
    right, bottom = box[2]
    assert 20 < left < 40
    assert 140 < right < 160
    assert 25 < top < 40
    assert 56 < bottom < 71


def test_boxes_are_scaled_to_the_image(cut: ModuleType) -> None:
    (small,) = cut.find_boxes(chances_with((40, 40, 140, 56)), 128, 256)
    (large,) = cut.find_boxes(chances_with((40, 40, 140, 56)), 256, 512)
    assert np.allclose(large, small * 2, atol=2)


@pytest.mark.parametrize("mark", [(40, 40, 42, 41), (40, 40, 41, 42)])
def test_specks_are_no_text(cut: ModuleType, mark: tuple[int, int, int, int]) -> None:
    assert cut.find_boxes(chances_with(mark), 128, 256) == []


def test_faint_marks_are_no_text(cut: ModuleType) -> None:
    assert cut.find_boxes(chances_with((40, 40, 140, 56)) / 2, 128, 256) == []


def test_number_of_contours_is_bounded(cut: ModuleType) -> None:
    chances = np.zeros((512, 4096), np.float32)
    chances[::8, ::8] = 0.9
    assert len(cut.find_boxes(chances, 512, 4096)) <= 1000


def square(x: float, y: float, width: float = 60, height: float = 20) -> Any:
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.float32)


def test_reading_order_is_by_line_then_from_the_left(cut: ModuleType) -> None:
    places = [(200, 12), (10, 10), (10, 50), (100, 7), (150, 52), (300, 90)]
    ordered = [tuple(box[0].astype(int)) for box in cut.reading_order([square(*place) for place in places])]
    assert ordered == [(10, 10), (100, 7), (200, 12), (10, 50), (150, 52), (300, 90)]


def test_small_lines_close_together_are_not_one_line(cut: ModuleType) -> None:
    first, second = square(100, 10, height=8), square(10, 18, height=8)
    assert [box[0, 0] for box in cut.reading_order([second, first])] == [100, 10]


def test_reading_order_of_nothing_is_nothing(cut: ModuleType) -> None:
    assert cut.reading_order([]) == []


def test_line_is_laid_straight(cut: ModuleType) -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    corners = np.array([[20, 60], [120, 20], [130, 45], [30, 85]], np.float32)
    cv2.fillPoly(pixels, [corners.astype(np.int32)], (255, 255, 255))
    straight = cut.cut_line(pixels, corners)
    assert straight.shape[:2] == (26, 107)
    assert straight[4:-4, 4:-4].mean() > 250


def test_column_of_text_is_turned_on_its_side(cut: ModuleType) -> None:
    assert cut.cut_line(np.zeros((200, 200, 3), np.uint8), square(10, 10, 20, 100)).shape[:2] == (20, 100)


def test_lines_lie_at_the_left_and_widths_say_how_far(cut: ModuleType) -> None:
    lines, widths = cut.pack_lines([np.full((24, 48, 3), 9, np.uint8), np.full((48, 200, 3), 5, np.uint8)])
    assert lines.shape == (2, 48, 200, 3)
    assert widths.tolist() == [96, 200]
    assert (lines[0, :, :96] == 9).all()
    assert not lines[0, :, 96:].any()


def test_too_much_text_is_refused_with_advice(cut: ModuleType) -> None:
    long = np.zeros((1, 60, 3), np.uint8)
    with pytest.raises(cut.PageError, match="divide it"):
        cut.pack_lines([long] * 100)


def test_faces_are_normalised_and_padded_with_grey(cut: ModuleType) -> None:
    faces = cut.pack_faces([np.full((48, 96, 3), 255, np.uint8), np.zeros((48, 960, 3), np.uint8)])
    assert faces.shape == (2, 3, 48, 192)
    assert (faces[0, :, :, :96] == 1).all()
    assert not faces[0, :, :, 96:].any()
    assert (faces[1] == -1).all()


def frame_of(*values: float) -> Any:
    return np.array(values, np.float32)


def test_corners_are_those_of_the_senders_image(cut: ModuleType) -> None:
    corners = cut.to_image([square(10, 40)], frame_of(2, 3, 30, 55, 200))
    assert corners[0, 0].tolist() == [30, 20]
    assert corners[0, 2].tolist() == [200, 55], "inside the image"


def test_page_without_text_gives_no_corners_and_one_empty_cut(cut: ModuleType) -> None:
    pixels = np.full((64, 64, 3), 255, np.uint8)
    chances = np.zeros((1, 1, 64, 64), np.float32)
    model = cut.TritonPythonModel()
    model.initialize({})
    found = outputs(execute(model, CHANCES=chances, PIXELS=pixels, FRAME=frame_of(1, 1, 0, 64, 64)))
    assert found["CORNERS"].shape == (0, 4, 2)
    assert found["LINES"].shape[0] == found["WIDTHS"].shape[0] == found["FACES"].shape[0] == 1


def test_page_with_too_many_lines_is_refused_to_its_sender(cut: ModuleType) -> None:
    chances = np.zeros((1, 1, 1600, 800), np.float32)
    for row in range(24):
        for column in range(20):
            chances[0, 0, 20 + 64 * row : 36 + 64 * row, 8 + 40 * column : 28 + 40 * column] = 0.9
    pixels = np.full((1600, 800, 3), 255, np.uint8)
    response = execute(cut.TritonPythonModel(), CHANCES=chances, PIXELS=pixels, FRAME=frame_of(1, 1, 0, 1600, 800))
    assert "480 lines of text, more than 400" in response.error().message()
    assert response.error().code() == INVALID_ARG


CHARACTERS = ["", "a", "b", " "]


@pytest.mark.parametrize(
    ("classes", "text"),
    [([0, 1, 1, 0, 1, 2], "aab"), ([1, 1, 1], "a"), ([0, 0], ""), ([2, 3, 2, 0], "b b"), ([], "")],
)
def test_ctc_drops_blanks_and_repeats(spell: ModuleType, classes: list[int], text: str) -> None:
    chances = np.full(len(classes), 0.5, np.float32)
    assert spell.spell(np.array(classes, np.int64), chances, CHARACTERS)[0] == text


def test_score_is_the_mean_of_the_characters_kept(spell: ModuleType) -> None:
    _, score = spell.spell(np.array([0, 1, 1, 2]), np.array([0.1, 0.6, 0.2, 0.8], np.float32), CHARACTERS)
    assert score == pytest.approx(0.7)


def page(spell: ModuleType, turned: bool = False) -> Any:
    classes = np.array([[1, 0], [2, 0], [3, 0], [1, 2]])
    chances = np.array([[0.9, 0], [0.3, 0], [0.9, 0], [0.8, 0.8]], np.float32)
    angles = np.array([[0.05, 0.95] if turned else [0.95, 0.05]] * 4, np.float32)
    corners = np.stack([square(0, 30 * row) for row in range(4)])
    return spell.spell_page(classes, chances, angles, corners, CHARACTERS)


def test_faint_and_blank_lines_are_left_out(spell: ModuleType) -> None:
    found = page(spell)
    assert found["TEXT"].tolist() == [b"a", b"ab"]
    assert found["BOX"][:, 0, 1].tolist() == [0, 90]
    assert found["SCORE"].tolist() == pytest.approx([0.9, 0.8])


def test_page_that_lies_upside_down_is_read_from_its_own_top(spell: ModuleType) -> None:
    assert page(spell, turned=True)["TEXT"].tolist() == [b"ab", b"a"]


def test_no_lines_give_empty_outputs_of_the_right_rank(spell: ModuleType) -> None:
    found = spell.spell_page(
        np.zeros((1, 5), np.int64), np.zeros((1, 5), np.float32), np.zeros((1, 2)), np.zeros((0, 4, 2)), CHARACTERS
    )
    assert [found[name].shape for name in ("TEXT", "BOX", "SCORE")] == [(0,), (0, 4, 2), (0,)]


def test_dictionary_of_another_reader_is_refused_at_start(
    spell: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "characters.txt").write_text("a\nb\n")
    monkeypatch.setattr(spell, "__file__", str(tmp_path / "model.py"))
    model = spell.TritonPythonModel()

    def start(classes: str) -> None:
        config = {"parameters": {"classes": {"string_value": classes}}}
        model.initialize({"model_config": json.dumps(config)})

    with pytest.raises(ValueError, match="gives 4 classes, the reader has 18710"):
        start("18710")
    start("4")
    shapes = {"CLASSES": np.array([[1, 2]]), "CHANCES": np.ones((1, 2), np.float32)}
    found = outputs(execute(model, **shapes, ANGLES=np.zeros((1, 2)), CORNERS=square(0, 0)[None]))
    assert found["TEXT"].tolist() == [b"ab"]


def test_sample_invoice_is_read_as_it_is(read: ModuleType) -> None:
    model = read.TritonPythonModel()
    model.initialize({})
    found = outputs(execute(model, IMAGE=texts(INVOICE.read_bytes())))
    assert found["PIXELS"].shape == (620, 880, 3)
    assert found["PAGE"].shape == (736, 1056, 3)
    assert found["FRAME"].tolist() == [1, 1, 0, 620, 880]
