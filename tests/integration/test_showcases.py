"""The showcase models in the real engine give what the packages they come from give (golden results in samples/)."""

import hashlib
import io
import json
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from gateway.commands.oip_client import HEADER_LENGTH, Output, TensorMeta, decode_reply, encode_call
from model_repo.build import CACHE, build, is_default, main
from model_repo.recipes import SHOWCASES, read_recipes
from tests.integration.engine_process import EngineProcess, running_process

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "model_repo" / "models"
SAMPLES = SHOWCASES / "samples"
#: Others are built by name only, or need packages that are not here (tests/integration/test_showcases_extra.py).
DEFAULT = [recipe for recipe in read_recipes() if is_default(recipe)]
ABSENT = [recipe.name for recipe in read_recipes() if not recipe.is_extra and not is_default(recipe)]
OCR = json.loads((SAMPLES / "ocr_golden.json").read_text())["images"]
FILE_TYPES = json.loads((SAMPLES / "file_type" / "golden.json").read_text())["files"]
IMAGE = TensorMeta(name="IMAGE", datatype="BYTES", shape=(1,))
AUDIO = TensorMeta(name="AUDIO", datatype="BYTES", shape=(1,))
CONTENT = TensorMeta(name="CONTENT", datatype="BYTES", shape=(-1,))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """Models as `make models` leaves them; they are built here where that was not run."""
    build(DEFAULT, MODELS, ROOT / CACHE, lambda _label, _have, _total: None)
    with running_process(tmp_path_factory.mktemp("showcases"), MODELS) as process:
        yield process
        assert process.stop() == 0
        assert "Traceback" not in process.log


@pytest.fixture
def client(engine: EngineProcess) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(engine.path))
    with httpx.Client(transport=transport, base_url="http://engine", timeout=100) as client:
        yield client


def infer(client: httpx.Client, model: str, meta: TensorMeta, *items: bytes) -> httpx.Response:
    body, head_bytes = encode_call(meta, items)
    return client.post(f"/v2/models/{model}/infer", content=body, headers={HEADER_LENGTH: str(head_bytes)})


def outputs(response: httpx.Response) -> dict[str, Output]:
    assert response.status_code == 200, response.text
    found = decode_reply(response.content, int(response.headers[HEADER_LENGTH]))
    return {output.name: output for output in found}


def texts(found: dict[str, Output]) -> list[str]:
    return [value.decode() for value in found["TEXT"].values if isinstance(value, bytes)]


def read(client: httpx.Client, data: bytes) -> dict[str, Output]:
    return outputs(infer(client, "ocr", IMAGE, data))


def test_every_model_is_ready_and_says_what_it_takes(client: httpx.Client) -> None:
    for recipe in DEFAULT:
        for model in recipe.models:
            assert client.get(f"/v2/models/{model.name}/ready").status_code == 200, model.name
    ocr = client.get("/v2/models/ocr").json()
    assert ocr["inputs"] == [{"name": "IMAGE", "datatype": "BYTES", "shape": [1]}]
    assert [(item["name"], item["datatype"], item["shape"]) for item in ocr["outputs"]] == [
        ("TEXT", "BYTES", [-1]),
        ("BOX", "FP32", [-1, 4, 2]),
        ("SCORE", "FP32", [-1]),
    ]
    file_type = client.get("/v2/models/file_type").json()
    assert file_type["inputs"] == [{"name": "CONTENT", "datatype": "BYTES", "shape": [-1]}]


@pytest.mark.parametrize("name", sorted(OCR))
def test_ocr_gives_the_texts_boxes_and_scores_of_its_source_package(client: httpx.Client, name: str) -> None:
    found = read(client, (SAMPLES / name).read_bytes())
    boxes = np.array(found["BOX"].values).reshape(found["BOX"].shape)
    scores = np.array(found["SCORE"].values)
    golden = sorted(OCR[name], key=lambda line: line["box"])
    order = sorted(range(len(boxes)), key=lambda row: boxes[row].tolist())
    assert [texts(found)[row] for row in order] == [line["text"] for line in golden]
    assert np.array_equal(boxes[order], np.array([line["box"] for line in golden]))
    # The package rounds each character's chance to five digits, and its arithmetic is another build's.
    assert np.allclose(scores[order], [line["score"] for line in golden], atol=1e-3)


def test_ocr_reads_the_invoice_in_order(client: httpx.Client) -> None:
    lines = texts(read(client, (SAMPLES / "invoice.png").read_bytes()))
    assert lines[:4] == ["TOLLWAY ROADS LTD", "INVOICE", "12 Mill Lane, Harbour Town", "No. 2026-0042"]
    assert lines[-1] == "Total EUR 32.40"


def test_ocr_reads_a_page_that_lies_upside_down_from_its_own_top(client: httpx.Client) -> None:
    found = read(client, (SAMPLES / "upside_down.jpg").read_bytes())
    assert texts(found) == ["This page was scanned", "upside down on 24.11."]


def test_ocr_of_a_page_without_text_gives_no_rows(client: httpx.Client) -> None:
    _, data = cv2.imencode(".png", np.full((200, 300), 255, np.uint8))
    found = read(client, data.tobytes())
    assert [found[name].shape for name in ("TEXT", "BOX", "SCORE")] == [(0,), (0, 4, 2), (0,)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "must be an encoded PNG or JPEG"),
        ((SAMPLES / "invoice.png").read_bytes()[:5000], "IMAGE"),
        ((SAMPLES / "slanted.jpg").read_bytes()[:30], "without a frame header"),
    ],
)
def test_ocr_refuses_what_is_no_image_and_goes_on(client: httpx.Client, data: bytes, reason: str) -> None:
    response = infer(client, "ocr", IMAGE, data)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_tensor")
    assert reason in response.json()["error"]
    assert texts(read(client, (SAMPLES / "slanted.jpg").read_bytes()))


def test_ocr_gives_every_caller_his_own_page(client: httpx.Client) -> None:
    names = sorted(OCR) * 2
    with ThreadPoolExecutor(len(names)) as pool:
        replies = list(pool.map(lambda name: infer(client, "ocr", IMAGE, (SAMPLES / name).read_bytes()), names))
    for name, reply in zip(names, replies, strict=True):
        assert sorted(texts(outputs(reply))) == sorted(line["text"] for line in OCR[name])


def file_types(client: httpx.Client, *contents: bytes) -> list[tuple[str, float]]:
    found = outputs(infer(client, "file_type", CONTENT, *contents))
    labels = [value.decode() for value in found["LABEL"].values if isinstance(value, bytes)]
    return list(zip(labels, (float(value) for value in found["SCORE"].values), strict=True))


def test_file_type_gives_labels_and_scores_of_its_source_package(client: httpx.Client) -> None:
    assert len(FILE_TYPES) >= 40
    for name, golden in FILE_TYPES.items():
        ((label, score),) = file_types(client, (SAMPLES / "file_type" / name).read_bytes())
        assert label == golden["label"], name
        assert score == pytest.approx(golden["score"], abs=1e-5), name


def test_file_type_golden_results_meet_every_rule() -> None:
    labels = [(entry["network"], entry["label"]) for entry in FILE_TYPES.values()]
    assert ("randombytes", "unknown") in labels, "overwritten"
    assert ("randomtxt", "txt") in labels, "overwritten"
    assert ("undefined", "empty") in labels, "not asked"
    assert any(label == "txt" and network == "javascript" for network, label in labels), "not sure enough"


def test_file_type_of_many_is_that_of_each(client: httpx.Client) -> None:
    contents = [(SAMPLES / "file_type" / name).read_bytes() for name in FILE_TYPES]
    found = file_types(client, *contents)
    assert [label for label, _ in found] == [entry["label"] for entry in FILE_TYPES.values()]
    # The package itself differs by 2e-3 between one file and a batch: the network sums in another order.
    assert [score for _, score in found] == pytest.approx([entry["score"] for entry in FILE_TYPES.values()], abs=5e-3)


def test_file_type_refuses_more_than_a_call_may_hold(client: httpx.Client) -> None:
    response = infer(client, "file_type", CONTENT, *[b"x"] * 257)
    assert response.status_code == 400
    assert "one call takes 1 to 256" in response.json()["error"]


def detect_faces(client: httpx.Client, data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    found = outputs(infer(client, "face_detection", IMAGE, data))
    return {name: np.array(item.values, dtype=np.float32).reshape(item.shape) for name, item in found.items()}


def test_face_detection_finds_the_face_and_its_six_points(client: httpx.Client) -> None:
    found = detect_faces(client, (SAMPLES / "face.jpg").read_bytes())
    assert found["SCORE"].shape == (1,)
    assert found["SCORE"][0] > 0.9
    # By eye, in pixels of the photograph: the box to a tenth of its side, the points to a few pixels.
    np.testing.assert_allclose(found["BOX"][0], [114, 72, 104, 104], atol=10)
    points = [[144, 101], [188, 104], [163, 129], [162, 149], [121, 106], [212, 113]]
    np.testing.assert_allclose(found["KEYPOINTS"][0], points, atol=6)


def test_face_detection_places_a_face_wherever_it_lies(client: httpx.Client) -> None:
    pixels = cv2.imread(str(SAMPLES / "face.jpg"))
    canvas = np.zeros((360, 800, 3), np.uint8)
    canvas[:, 400:760] = np.asarray(pixels)
    _, data = cv2.imencode(".png", canvas)
    found = detect_faces(client, data.tobytes())
    assert len(found["SCORE"]) == 1
    np.testing.assert_allclose(found["BOX"][0], [514, 72, 104, 104], atol=20)


def test_face_detection_of_a_picture_without_faces_gives_no_rows(client: httpx.Client) -> None:
    found = detect_faces(client, (SAMPLES / "invoice.png").read_bytes())
    assert [found[name].shape for name in ("BOX", "KEYPOINTS", "SCORE")] == [(0, 4), (0, 6, 2), (0,)]


def test_face_detection_refuses_what_is_no_image_and_goes_on(client: httpx.Client) -> None:
    response = infer(client, "face_detection", IMAGE, b"no image")
    assert (response.status_code, response.json()["code"]) == (400, "invalid_tensor")
    assert len(detect_faces(client, (SAMPLES / "face.jpg").read_bytes())["SCORE"]) == 1


def test_the_face_network_is_the_published_file_run_at_float32(client: httpx.Client) -> None:
    config = client.get("/v2/models/face_detect/config").json()
    assert config["parameters"]["tollway_runtime"]["string_value"].endswith("CPU; f32")
    published = MODELS / "face_detect" / "1" / "model.tflite"
    (recipe,) = (recipe for recipe in DEFAULT if recipe.name == "face_detection")
    assert hashlib.sha256(published.read_bytes()).hexdigest() == recipe.members["detector"].sha256


def hear(client: httpx.Client, data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    found = outputs(infer(client, "voice_activity", AUDIO, data))
    return {name: np.array(item.values, dtype=np.float32).reshape(item.shape) for name, item in found.items()}


def test_voice_activity_finds_both_sentences(client: httpx.Client) -> None:
    """The sample: 0.8 s of silence, a sentence of two parts, 1 s, another of two, 0.7 s."""
    found = hear(client, (SAMPLES / "speech.wav").read_bytes())
    assert found["SCORE"].shape == (229,)
    np.testing.assert_allclose(found["SEGMENT"], [[0.80, 1.66], [1.95, 3.23], [4.61, 5.31], [5.38, 6.24]], atol=0.07)


def test_voice_activity_hears_nobody_in_noise(client: httpx.Client) -> None:
    noise = np.random.default_rng(1).normal(0, 3000, 32_000).astype("<i2")
    found = hear(client, wav(noise.tobytes(), rate=16_000))
    assert found["SEGMENT"].shape == (0, 2)
    assert found["SCORE"].max() < 0.2


def test_voice_activity_refuses_what_is_no_wav_and_goes_on(client: httpx.Client) -> None:
    response = infer(client, "voice_activity", AUDIO, b"ID3 no wav")
    assert (response.status_code, response.json()["code"]) == (400, "invalid_tensor")
    assert "WAV file of PCM" in response.json()["error"]
    assert len(hear(client, (SAMPLES / "speech.wav").read_bytes())["SEGMENT"]) == 4


def test_a_caller_that_streams_carries_the_state_himself(client: httpx.Client) -> None:
    """Frames in two calls, with the state handed on, give what one call gives."""
    frames = np.random.default_rng(2).normal(0, 0.1, (40, 576)).astype(np.float32)
    zeros = np.zeros((1, 1, 128), np.float32)
    whole = ask_network(client, frames, zeros, zeros)["speech_probs"]
    first = ask_network(client, frames[:17], zeros, zeros)
    second = ask_network(client, frames[17:], first["hn"], first["cn"])
    np.testing.assert_allclose(
        np.concatenate([first["speech_probs"], second["speech_probs"]]), whole, rtol=1e-4, atol=1e-6
    )


def ask_network(client: httpx.Client, *arrays: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    tensors = [
        {"name": name, "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}
        for name, array in zip(("input", "h", "c"), arrays, strict=True)
    ]
    reply = client.post("/v2/models/voice_network/infer", json={"inputs": tensors})
    assert reply.status_code == 200, reply.text
    return {item["name"]: np.array(item["data"], np.float32).reshape(item["shape"]) for item in reply.json()["outputs"]}


def wav(samples: bytes, rate: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples)
    return buffer.getvalue()


def test_json_callers_get_text(client: httpx.Client) -> None:
    tensor: dict[str, Any] = {"name": "CONTENT", "datatype": "BYTES", "shape": [1], "data": ["#!/bin/sh\nset -e\nls\n"]}
    reply = client.post("/v2/models/file_type/infer", json={"inputs": [tensor]}).json()
    assert reply["outputs"][0]["data"] == ["shell"]


def test_second_build_finds_nothing_to_do(engine: EngineProcess, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--into", str(MODELS), "--cache", str(ROOT / CACHE), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [item["built"] for item in result["recipes"]] == [[]] * len(DEFAULT)
    assert result["skipped"] == ABSENT
