"""The Python steps of `voice_activity`: WAV of every kind, the rate, the frames, and the stretches of speech."""

import io
import struct
import wave
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.unit.model_repo.steps import execute, load_step, outputs, texts

#: TritonError.INVALID_ARG
INVALID_ARG = 3


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_step("voice_read", monkeypatch)


@pytest.fixture
def segment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_step("voice_segment", monkeypatch)


def wav(samples: Any, *, rate: int = 16_000, channels: int = 1, width: int = 2) -> bytes:
    """`samples` of -1..1, channels interleaved."""
    whole = np.clip(np.asarray(samples), -1, 1) * ((1 << (8 * width - 1)) - 1)
    if width == 1:
        raw = (whole + 128).astype(np.uint8).tobytes()
    elif width == 3:
        raw = whole.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    else:
        raw = whole.astype(f"<i{width}").tobytes()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(raw)
    return buffer.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_of_every_width_mean_the_same(read: ModuleType, width: int) -> None:
    wanted = [0.0, 0.5, -0.5, 0.99, -0.99]
    samples, rate = read.decode_wav(wav(wanted, width=width))
    assert rate == 16_000
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, wanted, atol=2.1 / (1 << (8 * width - 1)) + 1e-6)


def test_channels_are_averaged(read: ModuleType) -> None:
    samples, _ = read.decode_wav(wav([0.5, -0.5, 0.5, 0.25], channels=2))
    np.testing.assert_allclose(samples, [0, 0.375], atol=1e-4)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 16_000])
def test_a_tone_stays_the_tone_it_was(read: ModuleType, rate: int) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    found = read.resample(tone, rate)
    assert len(found) == 16_000
    wanted = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(found[500:-500], wanted[500:-500], atol=0.03)


def test_what_16_khz_cannot_hold_is_filtered_out(read: ModuleType) -> None:
    tone = np.sin(2 * np.pi * 12_000 * np.arange(48_000) / 48_000).astype(np.float32)
    assert np.abs(read.resample(tone, 48_000)[500:-500]).max() < 0.02


def test_frames_overlap_by_what_came_before(read: ModuleType) -> None:
    frames = read.make_frames(np.arange(1, 1025 + 1, dtype=np.float32))
    assert frames.shape == (3, 576)
    assert frames[0, :64].tolist() == [0] * 64
    assert frames[0, 64] == 1
    assert frames[1, :64].tolist() == frames[0, -64:].tolist()
    assert frames[2, 64] == 1025
    assert not frames[2, 65:].any()


def test_the_step_gives_the_network_all_it_needs(read: ModuleType) -> None:
    found = outputs(execute(read.TritonPythonModel(), AUDIO=texts(wav(np.zeros(8000), rate=8000))))
    assert {name: array.shape for name, array in found.items()} == {
        "FRAMES": (32, 576),
        "H": (1, 1, 128),
        "C": (1, 1, 128),
        "SECONDS": (1,),
    }
    assert found["SECONDS"][0] == 1


def float_wav() -> bytes:
    """IEEE floats, which are no PCM."""
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 44, b"WAVE", b"fmt ", 16, 3, 1, 16000, 64000, 4, 32, b"data", 8)
    return head + bytes(8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "must be a WAV file"),
        (b"ID3 nothing", "must be a WAV file"),
        (wav([0.1] * 10)[:20], "must be a WAV file"),
        (float_wav(), "must be a WAV file"),
        (wav([]), "holds no samples"),
        (wav([0.1] * 10, rate=3_999), "3999 samples a second"),
        (wav([0.1] * 10, rate=192_001), "192001 samples a second"),
        (wav([0.1] * 18, channels=9), "9 channels"),
        (wav(np.zeros(4_000 * 600 + 1), rate=4_000, width=1), "longer than 600 s"),
    ],
)
def test_what_cannot_be_heard_is_the_senders_fault(read: ModuleType, data: bytes, reason: str) -> None:
    response = execute(read.TritonPythonModel(), AUDIO=texts(data))
    assert reason in response.error().message()
    assert response.error().code() == INVALID_ARG


def test_more_bytes_than_agreed_are_not_decoded(read: ModuleType) -> None:
    with pytest.raises(read.AudioError, match="more than"):
        read.decode_wav(bytes(read.ENCODED_BYTES_MAX + 1))


def speech(text: str) -> Any:
    """A letter a frame: `#` speech, `~` between the two bounds, `.` silence."""
    return np.array([{"#": 0.9, "~": 0.4, ".": 0.1}[letter] for letter in text], np.float32)


@pytest.mark.parametrize(
    ("text", "stretches"),
    [
        ("", []),
        ("....", []),
        ("..####....", [(2, 6)]),
        ("..####...##....", [(2, 11)]),  # 96 ms are too short a pause
        ("..####....##....", [(2, 6), (10, 12)]),
        ("##~~~~~##....", [(0, 9)]),  # not quiet enough to end
        ("~~##", [(2, 4)]),  # nor loud enough to begin
        ("##..", [(0, 2)]),
    ],
)
def test_stretches_begin_above_one_bound_and_end_below_another(
    segment: ModuleType, text: str, stretches: list[tuple[int, int]]
) -> None:
    assert segment.find_stretches(speech(text)) == stretches


def test_short_stretches_are_none_and_margins_stay_inside(segment: ModuleType) -> None:
    found = segment.to_seconds([(0, 7), (20, 28), (40, 50)], 1.6)
    np.testing.assert_allclose(found, [[0.61, 0.926], [1.25, 1.6]], atol=1e-6)


def test_stretches_whose_margins_meet_are_one(segment: ModuleType) -> None:
    np.testing.assert_allclose(segment.to_seconds([(10, 20), (21, 31)], 9), [[0.29, 1.022]], atol=1e-6)


def test_silence_has_no_segments(segment: ModuleType) -> None:
    found = outputs(execute(segment.TritonPythonModel(), SCORES=speech("...."), SECONDS=np.array([0.128], np.float32)))
    assert found["SEGMENT"].shape == (0, 2)
