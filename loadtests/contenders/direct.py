"""Owns the backend itself: compiled by gcc at bench time, and measured alone as "direct"."""

import subprocess
from pathlib import Path
from typing import Final

from loadtests.contenders import LOOPBACK, Contender, free_port, is_http_ready
from loadtests.processes import BenchError, spawn, wait_until

_SOURCES: Final = Path(__file__).parent.parent / "backend"
#: The model that the backend lists and answers for.
MODEL: Final = "bench"


def build_backend(cache: Path) -> Path:
    """Compile when a source is newer than the binary. Raises BenchError with the compiler's words."""
    binary = cache / "backend"
    sources = sorted(_SOURCES.glob("*.[ch]"))
    if binary.exists() and all(binary.stat().st_mtime > source.stat().st_mtime for source in sources):
        return binary
    cache.mkdir(parents=True, exist_ok=True)
    units = [str(source) for source in sources if source.suffix == ".c"]
    command = ["gcc", "-O2", "-std=c11", "-Wall", "-Wextra", "-Werror", "-o", str(binary), *units]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BenchError("gcc is missing: run `sh loadtests/tools.sh`") from None
    if done.returncode != 0:
        raise BenchError(f"the backend does not compile:\n{done.stderr}")
    return binary


def start_backend(workdir: Path, cache: Path, core: int) -> Contender:
    """One backend on a TCP port (both protocols) and on `workdir`/backend.sock."""
    binary, port, log = build_backend(cache), free_port(), workdir / "backend.log"
    process = spawn([str(binary), str(port), str(workdir / "backend.sock")], core=core, log=log)
    base = f"http://{LOOPBACK}:{port}"
    wait_until("the backend", lambda: is_http_ready(base), process, log)
    return Contender(
        name="direct",
        http=base,
        grpc=base,
        process=process,
        note="the backend alone (its CPU is not counted)",
        extras={"address": f"{LOOPBACK}:{port}", "socket": str(workdir / "backend.sock")},
    )
