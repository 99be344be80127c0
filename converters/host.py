"""Owns the facts of this machine and of the tools, as certificates and cache keys state them. Imports no tool."""

import importlib.metadata
import platform
import sys
from typing import Final

from model_repo.host import cpu_model, isa

__all__ = ["TOOLS", "cpu_model", "has_vnni", "host_facts", "isa", "tool_versions"]

TOOLS: Final = ("onnx", "onnxruntime", "onnxslim", "openvino", "numpy", "protobuf")


def has_vnni() -> bool:
    return bool({"avx512_vnni", "avx_vnni", "i8mm", "asimddp"} & set(isa()))


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
