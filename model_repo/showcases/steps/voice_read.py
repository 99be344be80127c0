"""First step of `voice_activity`: a WAV file to the frames that the network sees, and the state it begins with.

`AUDIO: bytes[1]` (WAV, PCM of 8 to 32 bits, any rate and channels) → `FRAMES: float32[frames, 576]` (16 kHz, -1..1: 64
samples of what came before and 512 new ones), `H` and `C: float32[1, 1, 128]` (zeros) and `SECONDS: float32[1]`.
"""

import io
import wave
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]

Floats = npt.NDArray[Any]

ENCODED_BYTES_MAX: Final = 64 << 20
SECONDS_MAX: Final = 600
RATE: Final = 16_000
FRAME: Final = 512
CONTEXT: Final = 64
STATE: Final = (1, 1, 128)
_RATES: Final = (4_000, 192_000)
_CHANNELS_MAX: Final = 8
#: Zero crossings of the low-pass filter on each side, at the lower of the two rates.
_FILTER_CROSSINGS: Final = 16


class AudioError(Exception):
    """A sound that its sender must change; the text says how."""


def decode_wav(data: bytes) -> tuple[Floats, int]:
    """`float32[samples]` in -1..1, the mean of all channels, and their rate.

    Raises:
        AudioError: no WAV of PCM, damaged, empty or too long.
    """
    if len(data) > ENCODED_BYTES_MAX:
        raise AudioError(f"AUDIO has {len(data)} bytes, more than {ENCODED_BYTES_MAX}")
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate, count = file.getparams()[:4]
            _check(channels, rate, count)
            raw = file.readframes(count)
    except (wave.Error, EOFError, ValueError) as error:
        raise AudioError(f"AUDIO must be a WAV file of PCM samples ({error or 'it is cut short'})") from error
    whole = len(raw) // (channels * width) * channels * width
    samples = _to_floats(raw[:whole], width)
    if not samples.size:
        raise AudioError("AUDIO holds no samples")
    return samples.reshape(-1, channels).mean(axis=1, dtype=np.float32), rate


def _check(channels: int, rate: int, count: int) -> None:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise AudioError(f"AUDIO has {rate} samples a second; {_RATES[0]} to {_RATES[1]} are served")
    if channels > _CHANNELS_MAX:
        raise AudioError(f"AUDIO has {channels} channels, more than {_CHANNELS_MAX}")
    if count > SECONDS_MAX * rate:
        raise AudioError(f"AUDIO is longer than {SECONDS_MAX} s: divide it")


def _to_floats(raw: bytes, width: int) -> Floats:
    """PCM of `width` bytes, little-endian; one byte is unsigned (RIFF)."""
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        parts = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        padded = np.zeros((len(parts), 4), dtype=np.uint8)
        padded[:, 1:] = parts
        return padded.view("<i4")[:, 0].astype(np.float32) / float(1 << 31)
    return np.frombuffer(raw, f"<i{width}").astype(np.float32) / float(1 << (8 * width - 1))


def resample(samples: Floats, rate: int) -> Floats:
    """At 16 kHz: band-limited by a windowed sinc where the rate falls, then read between samples."""
    if rate == RATE:
        return samples
    if rate > RATE:
        share = RATE / rate
        reach = round(_FILTER_CROSSINGS / share)
        places = np.arange(-reach, reach + 1)
        kernel = share * np.sinc(share * places) * np.hamming(2 * reach + 1)
        samples = np.convolve(samples, (kernel / kernel.sum()).astype(np.float32), mode="same")
    count = max(1, round(len(samples) * RATE / rate))
    found = np.interp(np.arange(count) * (rate / RATE), np.arange(len(samples)), samples)
    return np.asarray(found, dtype=np.float32)


def make_frames(samples: Floats) -> Floats:
    """FRAMES: silence before the first and behind the last sample."""
    count = -(-len(samples) // FRAME)
    padded = np.zeros(CONTEXT + count * FRAME, dtype=np.float32)
    padded[CONTEXT : CONTEXT + len(samples)] = samples
    return np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME].copy()


class TritonPythonModel:
    """One sound a request."""

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        (data,) = pb_utils.get_input_tensor_by_name(request, "AUDIO").as_numpy()
        try:
            samples, rate = decode_wav(data)
        except AudioError as error:
            return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        outputs = {
            "FRAMES": make_frames(resample(samples, rate)),
            "H": np.zeros(STATE, np.float32),
            "C": np.zeros(STATE, np.float32),
            "SECONDS": np.array([len(samples) / rate], np.float32),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
