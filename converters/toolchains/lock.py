"""Owns `tollway convert toolchain lock`: versions and hashes of a toolchain's packages, resolved anew by uv.

The files state no place that packages come from; that is the machine's affair.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from converters.errors import ToolFailed
from converters.toolchains.specs import Toolchain
from converters.toolchains.store import LOCKS, locked_versions, read_locks

PYTHON: Final = "3.11"
_LOCK_S_MAX: Final = 600
#: Places on this machine where builds lie that others do not have: a lock resolved with them would not install there.
_LOCAL: Final = ("PIP_FIND_LINKS", "UV_FIND_LINKS")


def lock(toolchain: Toolchain, locks: Path = LOCKS) -> dict[str, str]:
    """Write `<name>.lock`, and those of its builds. Returns the locked versions.

    Raises:
        ToolFailed: uv is not there, or finds no set of versions.
    """
    blocks = re.split(r"\n(?=\S)", _resolve(toolchain).strip())
    apart = [block for block in blocks if toolchain.apart and block.startswith(toolchain.apart)]
    locks.mkdir(parents=True, exist_ok=True)
    _write(locks / f"{toolchain.name}.lock", [block for block in blocks if block not in apart])
    if toolchain.small_build is not None:
        pinned, sha256 = toolchain.small_build
        _write(locks / f"{toolchain.name}.small.lock", [f"{pinned} \\\n    --hash=sha256:{sha256}"])
        _write(locks / f"{toolchain.name}.full.lock", apart)
    return locked_versions(read_locks(toolchain, locks))


def _write(path: Path, blocks: list[str]) -> None:
    made = path.with_suffix(".lock.new")
    made.write_text("\n".join(blocks) + "\n")
    made.replace(path)


def _resolve(toolchain: Toolchain) -> str:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise ToolFailed("uv", "uv is not installed", next_step="pip install uv, or have it on the path")
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / f"{toolchain.name}.in"
        wanted.write_text("\n".join(toolchain.requirements) + "\n")
        command = [uv, "pip", "compile", str(wanted), "--python-version", PYTHON, "--generate-hashes", "--no-header"]
        command += ["--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--only-binary", ":all:", "--quiet"]
        environment = {name: value for name, value in os.environ.items() if name not in _LOCAL}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=_LOCK_S_MAX
        )
    if done.returncode != 0:
        raise ToolFailed("lock", f"uv: {done.stderr.strip()[:600]}", next_step="change the toolchain's requirements")
    return done.stdout
