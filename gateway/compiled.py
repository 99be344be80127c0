"""Owns the optional compiled form of the hot modules: mypyc over the very same sources, never a second code base.

`python -m gateway.compiled` copies the packages into `.cache/compiled/<fingerprint>/` and compiles `MODULES` there; it
needs the packages of `make check` (mypy, setuptools) and a C compiler. The supervisor starts workers, quota owner and
meter from that copy when its fingerprint equals that of the sources it runs from, so a stale build is never used. What
is not compiled, and every machine without a compiler, runs the sources as they are.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
CACHE: Final = ROOT / ".cache" / "compiled"
_PACKAGES: Final = ("gateway", "billing", "model_repo", "converters")
_DONE: Final = "done"
#: Hot modules that mypyc can compile. Structs of msgspec and subclasses of list cannot be native; they stay apart.
MODULES: Final = (
    "gateway/call.py",
    "gateway/heads.py",
    "gateway/pipeline.py",
    "gateway/replies.py",
    "gateway/rows.py",
    "gateway/grpc_blocks.py",
    "gateway/auth/credential.py",
    "gateway/auth/keyring.py",
    "gateway/metering/log.py",
    "gateway/net/budget.py",
    "gateway/net/h1_inbound.py",
    "gateway/net/h1_outbound.py",
    "gateway/net/h2_call.py",
    "gateway/net/h2_connection.py",
    "gateway/net/h2_exchange.py",
    "gateway/net/h2_held.py",
    "gateway/net/h2_inbound.py",
    "gateway/net/h2_outbound.py",
    "gateway/quota/allowance.py",
    "gateway/quota/gcra.py",
    "gateway/quota/headers.py",
    "gateway/quota/memory_client.py",
    "gateway/quota/shelf.py",
    "gateway/routing/router.py",
    "gateway/wire/grpc.py",
    "gateway/wire/header_blocks.py",
    "gateway/wire/header_memo.py",
    "gateway/wire/http1.py",
    "gateway/wire/http1_body.py",
    "gateway/wire/http2.py",
    "gateway/wire/http2_control.py",
    "gateway/wire/http2_fields.py",
    "gateway/wire/http2_guard.py",
    "gateway/wire/http2_reader.py",
    "gateway/wire/http2_stream.py",
    "gateway/wire/oip_peek.py",
    "gateway/wire/protobuf_peek.py",
)


def fingerprint(root: Path = ROOT) -> str:
    """What a build depends on: every source of the packages, the interpreter, the list above."""
    digest = hashlib.sha256(f"{sys.version}\0{sysconfig.get_platform()}".encode())
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if "models" not in path.relative_to(root).parts:
                digest.update(f"\0{path.relative_to(root)}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def find_compiled(root: Path = ROOT) -> Path | None:
    """The finished build of exactly these sources, or None. Costs 20 ms of hashing."""
    folder = root / ".cache" / "compiled" / fingerprint(root)
    return folder if (folder / _DONE).exists() else None


def build(root: Path = ROOT) -> Path:
    """Compile; returns the folder. Raises CalledProcessError with mypyc's words when it fails."""
    target = root / ".cache" / "compiled" / fingerprint(root)
    if (target / _DONE).exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for package in _PACKAGES:
        shutil.copytree(root / package, target / package, ignore=shutil.ignore_patterns("__pycache__", "models"))
    modules = [module for module in MODULES if (target / module).exists()]
    subprocess.run(
        [sys.executable, "-m", "mypyc", "--ignore-missing-imports", "--follow-imports=silent", *modules],
        cwd=target,
        check=True,
        env={**os.environ, "MYPYC_OPT_LEVEL": "2", "PYTHONPATH": str(target)},
    )
    shutil.rmtree(target / "build", ignore_errors=True)
    (target / _DONE).write_text("\n".join(modules), encoding="ascii")
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway.compiled", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether these sources are compiled")
    options = parser.parse_args(arguments)
    if options.check:
        found = find_compiled()
        sys.stdout.write(f"{found}\n" if found else "not compiled\n")
        return 0 if found else 1
    try:
        sys.stdout.write(f"{build()}\n")
    except (subprocess.CalledProcessError, OSError) as error:
        sys.stderr.write(f"not compiled: {error}; the sources run as they are\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
