"""Owns which execution providers of ONNX Runtime a model asks for, and whether they really run it.

The parameter `tollway_providers` lists them, best first: `tensorrt, cuda?`. One with `?` may be missing; one without
must be among those that the session itself reports, because what the library lists as available says nothing about a
driver or a device. The CPU runs what no other takes.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from model_repo.config import ModelConfig
from model_repo.errors import RepositoryError

PROVIDERS: Final = "tollway_providers"
CPU_PROVIDER: Final = "CPUExecutionProvider"
_NAMES: Final[Mapping[str, str]] = {
    "cpu": CPU_PROVIDER,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt_rtx": "NvTensorRTRTXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
_SHORT: Final = {long: short for short, long in _NAMES.items()}
_PACKAGES: Final[Mapping[str, str]] = {
    "cuda": "the package onnxruntime-gpu in place of onnxruntime, and an NVIDIA driver",
    "tensorrt": "the package onnxruntime-gpu in place of onnxruntime, TensorRT and an NVIDIA driver",
    "tensorrt_rtx": "a build of onnxruntime with TensorRT-RTX, and an NVIDIA driver",
    "openvino": "the package onnxruntime-openvino in place of onnxruntime",
}

#: (the library's name, whether the model must not run without it)
Wanted = tuple[tuple[str, bool], ...]


def wanted_providers(config: ModelConfig) -> Wanted:
    """What the configuration asks for; the CPU where it says nothing.

    Raises:
        RepositoryError: an unknown or doubled name.
    """
    text = config.parameters.get(PROVIDERS)
    if text is None:
        return ((CPU_PROVIDER, True),)
    wanted: list[tuple[str, bool]] = []
    for word in text.split(","):
        short = word.strip()
        is_required = not short.endswith("?")
        name = _NAMES.get(short.removesuffix("?"))
        if name is None:
            raise RepositoryError(
                f"parameters.{PROVIDERS}: '{short[:80]}' is no provider; known are {', '.join(_NAMES)}, "
                "each with '?' behind it where it may be missing"
            )
        if any(name == other for other, _ in wanted):
            raise RepositoryError(f"parameters.{PROVIDERS}: '{short}' is given twice")
        wanted.append((name, is_required))
    return tuple(wanted)


def check_providers(wanted: Wanted, running: Sequence[str]) -> None:
    """Raises: RepositoryError: a provider that must run the model is not among those that do."""
    for name, is_required in wanted:
        if is_required and name not in running:
            short = _SHORT[name]
            needs = f"; it needs {_PACKAGES[short]}" if short in _PACKAGES else ""
            raise RepositoryError(
                f"parameters.{PROVIDERS}: '{short}' did not load, the session runs on {', '.join(running)}{needs}. "
                f"Write '{short}?' to go on without it"
            )
