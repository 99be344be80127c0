"""Owns the facts of a host that decide whether a version may run on it. Imports no runtime; read once."""

import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
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
#: Engine → distributions that bring it, the first installed one counts.
_PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
_SMI_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """`compute_capability` such as 8.6; empty where it cannot be told, as is `driver`."""

    name: str
    compute_capability: str = ""
    driver: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """`os` in lower case; `glibc` empty where there is none; `runtimes`: installed versions by engine."""

    arch: str
    os: str
    glibc: str
    isa: tuple[str, ...]
    runtimes: Mapping[str, str]
    gpus: tuple[Gpu, ...] = ()


@cache
def read_host() -> HostFacts:
    """The facts of this machine. Blocks, the first time for as long as `nvidia-smi` takes where there is one."""
    name, version = platform.libc_ver()
    return HostFacts(
        arch=platform.machine(),
        os=platform.system().lower(),
        glibc=version if name == "glibc" else "",
        isa=isa(),
        runtimes=_runtimes(),
        gpus=_gpus(),
    )


@cache
def isa() -> tuple[str, ...]:
    """The instruction sets of `_ISA` that the CPU has, sorted."""
    return tuple(sorted(set(_ISA) & set(_cpu_fields("flags", "Features"))))


@cache
def cpu_model() -> str:
    """The CPU as it calls itself, else its architecture."""
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


def _runtimes() -> dict[str, str]:
    found = {}
    for engine, packages in _PACKAGES.items():
        for package in packages:
            try:
                found[engine] = importlib.metadata.version(package)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def _gpus() -> tuple[Gpu, ...]:
    """As the driver's own tool lists them; none where it is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    command = [tool, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_gpus(told)


def parse_gpus(told: str) -> tuple[Gpu, ...]:
    """Lines of `name, compute capability, driver`; what is no such line is passed over."""
    rows = [[cell.strip() for cell in line.split(",")] for line in told.splitlines()]
    return tuple(Gpu(name=row[0], compute_capability=row[1], driver=row[2]) for row in rows if len(row) == 3 and row[0])
