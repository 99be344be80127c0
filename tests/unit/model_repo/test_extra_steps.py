"""The steps around the image and text networks: what callers send, and what they are told when it cannot be used."""

from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from tests.unit.model_repo.steps import execute, load_step, outputs, texts

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "word", "##s", ",", "$", "中", "cafe", "s"]


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_step("text_read", monkeypatch)


def step_of(module: ModuleType, folder: Path, name: str, content: str) -> Any:
    """The step's model as the engine makes it: its file beside what it reads."""
    module.__file__ = str(folder / "model.py")
    (folder / name).write_text(content, encoding="utf-8")
    step = module.TritonPythonModel()
    step.initialize({})
    return step


def test_words_become_the_longest_pieces_and_rows_are_padded(reading: ModuleType, tmp_path: Path) -> None:
    step = step_of(reading, tmp_path, "vocab.txt", "\n".join(VOCABULARY))
    found = outputs(execute(step, TEXT=texts(b"Unaffable words,", b"word")))
    assert found["IDS"].tolist() == [[2, 4, 5, 6, 7, 8, 9, 3], [2, 7, 3, 0, 0, 0, 0, 0]]
    assert found["MASK"].tolist() == [[1] * 8, [1, 1, 1, 0, 0, 0, 0, 0]]
    assert found["IDS"].dtype == np.int64


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", [2, 3]),
        ("   \t\n", [2, 3]),
        ("Café", [2, 12, 3]),
        ("Cafe\u0301", [2, 12, 3]),
        ("$word中words", [2, 10, 7, 11, 7, 8, 3]),
        ("wo\u200brd\x07", [2, 7, 3]),
        ("unknownword", [2, 1, 3]),
        ("s" * 101, [2, 1, 3]),
        ("\u2028word", [2, 7, 3]),
    ],
)
def test_text_is_cleaned_as_the_network_was_trained(
    text: str, ids: list[int], reading: ModuleType, tmp_path: Path
) -> None:
    assert reading.Tokeniser("\n".join(VOCABULARY)).numbers(text) == ids


def test_a_long_text_is_cut_with_its_end_mark(reading: ModuleType) -> None:
    found = reading.Tokeniser("\n".join(VOCABULARY)).numbers("word " * 5_000)
    assert len(found) == reading.TOKENS_MAX
    assert (found[0], found[-1], set(found[1:-1])) == (2, 3, {7})


def test_texts_that_cannot_be_used_are_refused_with_their_place(reading: ModuleType, tmp_path: Path) -> None:
    step = step_of(reading, tmp_path, "vocab.txt", "\n".join(VOCABULARY))
    cases = {
        "1 to 256": [b"a"] * (reading.TEXTS_MAX + 1),
        r"TEXT\[1\] is not UTF-8": [b"a", b"\xff"],
        r"TEXT\[0\] has": [b"a" * (reading.TEXT_BYTES_MAX + 1)],
    }
    for said, contents in cases.items():
        response = execute(step, TEXT=texts(*contents))
        assert response.has_error()
        with pytest.raises(reading.TextError, match=said):
            reading.read_texts(contents)
    assert len(reading.read_texts([b"a"] * reading.TEXTS_MAX)) == reading.TEXTS_MAX


def encoded(pixels: Any, kind: str = ".png") -> bytes:
    done, data = cv2.imencode(kind, pixels)
    assert done
    return bytes(data)


@pytest.mark.parametrize("shape", [(300, 500), (500, 300), (224, 224), (20, 31), (1, 1)])
def test_the_middle_of_an_image_is_what_the_network_sees(shape: tuple[int, int], monkeypatch: Any) -> None:
    module = load_step("image_read", monkeypatch)
    step = module.TritonPythonModel()
    step.initialize({})
    image = np.zeros((*shape, 3), np.uint8)
    image[:, :, 2] = 255
    found = outputs(execute(step, IMAGE=texts(encoded(image))))["PIXELS"]
    assert found.shape == (1, 3, 224, 224)
    assert found.dtype == np.float32
    red, green, blue = (float(plane.mean()) for plane in found[0])
    assert red == pytest.approx((1 - 0.485) / 0.229, abs=1e-3)
    assert (green, blue) == pytest.approx((-0.456 / 0.224, -0.406 / 0.225), abs=1e-3)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n broken", b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_step("image_read", monkeypatch)
    step = module.TritonPythonModel()
    response = execute(step, IMAGE=texts(data))
    assert response.has_error()
    assert "IMAGE" in response.error().message()


def test_the_likeliest_names_come_first_with_chances(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = load_step("image_name", monkeypatch)
    step = step_of(module, tmp_path, "names.txt", "".join(f"name {place}\n" for place in range(1000)))
    scores = np.zeros((1, 1000), np.float32)
    scores[0, [7, 3, 900]] = [5, 4, 4]
    found = outputs(execute(step, SCORES=scores))
    assert list(found["LABEL"]) == [b"name 7", b"name 3", b"name 900", b"name 0", b"name 1"]
    chances = np.exp(scores[0]) / np.exp(scores[0]).sum()
    np.testing.assert_allclose(found["SCORE"], np.sort(chances)[::-1][:5], rtol=1e-5)
