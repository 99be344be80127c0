"""The Python steps of `face_detection`: framing, anchors, blending, and the way back into the image."""

from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from model_repo.recipes import SHOWCASES
from tests.unit.model_repo.steps import execute, load_step, outputs, texts

FACE = SHOWCASES / "samples" / "face.jpg"
#: TritonError.INVALID_ARG
INVALID_ARG = 3


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # Given by the step to its own process only.
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "")
    return load_step("face_read", monkeypatch)


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_step("face_choose", monkeypatch)


def raw_of(choose: ModuleType, faces: list[tuple[int, float, float]]) -> tuple[Any, Any]:
    """Network outputs in which anchor `index` sees a face of a quarter of the side, moved by `shift`, with a logit."""
    regressors = np.zeros((1, 896, 16), np.float32)
    logits = np.full((1, 896, 1), -20, np.float32)
    for index, shift, logit in faces:
        regressors[0, index, :4] = [shift, shift, 32, 32]
        regressors[0, index, 4:] = [shift + point for point in range(12)]
        logits[0, index, 0] = logit
    return regressors, logits


@pytest.mark.parametrize(
    ("size", "frame"),
    [((128, 128), [1, 0, 0]), ((256, 128), [2, 32, 0]), ((64, 256), [2, 0, 48]), ((60, 30), [60 / 128, 32, 0])],
)
def test_an_image_of_any_shape_lies_whole_in_the_square(
    read: ModuleType, size: tuple[int, int], frame: list[float]
) -> None:
    pixels, found = read.frame_image(np.full((*size, 3), 255, np.uint8))
    assert pixels.shape == (1, 128, 128, 3)
    assert pixels.dtype == np.float32
    assert (pixels.min(), pixels.max()) == (1 if size[0] == size[1] else -1, 1)
    np.testing.assert_allclose(found, [*frame, size[1], size[0]])
    assert (pixels == 1).all(axis=3).sum() == round(size[0] / frame[0]) * round(size[1] / frame[0])


def test_a_line_of_pixels_still_has_one(read: ModuleType) -> None:
    pixels, _ = read.frame_image(np.full((1, 4000, 3), 255, np.uint8))
    assert (pixels == 1).any()


def test_colours_reach_the_network_as_red_green_blue(read: ModuleType) -> None:
    done, data = cv2.imencode(".png", np.full((8, 8, 3), (255, 0, 0), np.uint8))  # OpenCV's blue
    assert done
    assert read.decode_image(data.tobytes())[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "must be an encoded"), (b"GIF89a", "must be an encoded"), (FACE.read_bytes()[:200], "damaged")],
)
def test_what_is_no_image_is_the_senders_fault(read: ModuleType, data: bytes, reason: str) -> None:
    response = execute(read.TritonPythonModel(), IMAGE=texts(data))
    assert reason in response.error().message()
    assert response.error().code() == INVALID_ARG


def test_more_bytes_than_agreed_are_not_decoded(read: ModuleType) -> None:
    with pytest.raises(read.ImageError, match="more than"):
        read.decode_image(b"\xff\xd8" + bytes(read.ENCODED_BYTES_MAX))


def test_anchors_cover_both_grids(choose: ModuleType) -> None:
    anchors = choose.make_anchors()
    assert anchors.shape == (896, 2)
    np.testing.assert_allclose(anchors[:3], [[1 / 32, 1 / 32], [1 / 32, 1 / 32], [3 / 32, 1 / 32]])
    np.testing.assert_allclose(anchors[-1], [15 / 16, 15 / 16])
    assert anchors.min() > 0
    assert anchors.max() < 1


def test_candidates_of_one_face_are_blended_and_others_kept(choose: ModuleType) -> None:
    anchors = choose.make_anchors()
    near, far = 512 + 6 * 9, 512 + 6 * 54
    regressors, logits = raw_of(choose, [(near, 0, 4.0), (near + 1, 4, 4.0), (far, 0, 2.0), (0, 0, -1.0)])
    step = choose.TritonPythonModel()
    step.initialize({})
    frame = np.array([1, 0, 0, 128, 128], np.float32)
    found = outputs(execute(step, REGRESSORS=regressors, CLASSIFICATORS=logits, FRAME=frame))
    assert found["SCORE"].tolist() == pytest.approx([1 / (1 + np.exp(-4.0)), 1 / (1 + np.exp(-2.0))])
    middle = anchors[near] * 128
    np.testing.assert_allclose(found["BOX"][0], [*(middle + 2 - 16), 32, 32], atol=1e-3)
    np.testing.assert_allclose(found["KEYPOINTS"][0][0], middle + 2 + [0, 1], atol=1e-3)
    np.testing.assert_allclose(found["BOX"][1][:2], anchors[far] * 128 - 16, atol=1e-3)


def test_boxes_come_back_into_the_image_and_end_at_its_edges(choose: ModuleType) -> None:
    faces = np.zeros((1, 16), np.float32)
    faces[0, :4] = [0.25, -0.1, 0.75, 0.5]
    faces[0, 4:6] = [0.5, 0.25]
    boxes, points = choose.to_image(faces, np.array([2, 32, 0, 128, 256], np.float32))
    np.testing.assert_allclose(boxes[0], [0, 0, 128, 128])
    np.testing.assert_allclose(points[0, 0], [64, 64])


def test_logits_without_bounds_do_not_overflow(choose: ModuleType) -> None:
    regressors, logits = raw_of(choose, [(0, 0, np.inf), (1, 0, -np.inf)])
    found = choose.choose(regressors[0], logits[0, :, 0], np.array([1, 0, 0, 128, 128]), choose.make_anchors())
    assert found["SCORE"].tolist() == [1.0]


def test_no_more_faces_than_agreed_are_told(choose: ModuleType) -> None:
    rows = np.zeros((300, 16), np.float32)
    rows[:, 0], rows[:, 2] = np.arange(300), np.arange(300) + 0.5
    rows[:, 3] = 1
    faces, scores = choose.blend(rows, np.full(300, 0.9, np.float32))
    assert len(faces) == len(scores) == choose.FACES_MAX
