"""Owns the facts of this machine and of the tools, as certificates and cache keys state them. Imports no tool."""

import importlib.metadata
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Final

#: Instruction sets that change what the runtimes choose or compute; names of Linux on x86-64 and arm64.
_ISA: Final = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
)
TOOLS: Final = ("onnx", "onnxruntime", "onnxslim", "openvino", "numpy", "protobuf")


@cache
def isa() -> tuple[str, ...]:
    """Those of `_ISA` that the CPU has, sorted."""
    return tuple(sorted(set(_ISA) & set(_cpu_fields("flags", "Features"))))


def has_vnni() -> bool:
    return bool({"avx512_vnni", "avx_vnni", "i8mm", "asimddp"} & set(isa()))


@cache
def cpu_model() -> str:
    return " ".join(_cpu_fields("model name"))[:100] or platform.machine()


def _cpu_fields(*names: str) -> list[str]:
    """The words of the first line of that name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []  # No Linux: the certificate then states the architecture alone.
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in names:
            return value.split()
    return []


def host_facts() -> dict[str, object]:
    return {"arch": platform.machine(), "os": platform.system(), "cpu": cpu_model(), "isa": list(isa())}


def tool_versions() -> dict[str, str]:
    """Installed versions by package; what is not installed is left out."""
    found = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for name in TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
