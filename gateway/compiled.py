"""Owns the optional compiled form of the hot modules: mypyc over the very same sources, never a second code base.

`python -m gateway.compiled` copies the packages into `.cache/compiled/<fingerprint>/` and compiles `MODULES` there; it
needs the packages of `make check` (mypy, setuptools) and a C compiler. The supervisor starts workers, meter and engine
from that copy when its fingerprint equals that of the sources it runs from, so a stale build is never used. What is not
compiled, and every machine without a compiler, runs the sources as they are. See docs/compiled.md.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
#: What a worker or the meter imports of ours, and the engine but for `model_repo`, which nothing calls per call.
_PACKAGES: Final = ("gateway", "billing")
_DONE: Final = "done"
#: A running worker may still import from the build before this one.
_BUILDS_MAX: Final = 4
#: Hot modules that mypyc compiles as they are. Left out: structs of msgspec and subclasses of list, which cannot be
#: native; what relies on the identity of tuples (`HeaderMemo` and the modules that fill it), which native code unpacks
#: and packs anew; what is not called per call.
MODULES: Final = (
    "billing/amounts.py",
    "billing/intake.py",
    "billing/judge.py",
    "billing/ledger/merkle.py",
    "billing/ledger/posting.py",
    "billing/served_template.py",
    "billing/unpacker.py",
    "billing/usagelog/framing.py",
    "gateway/auth/credential.py",
    "gateway/auth/keyring.py",
    "gateway/bounds.py",
    "gateway/call.py",
    "gateway/call_state.py",
    "gateway/engine/batcher.py",
    "gateway/engine/body.py",
    "gateway/engine/codec_grpc.py",
    "gateway/engine/codec_http.py",
    "gateway/engine/codec_json.py",
    "gateway/engine/heads.py",
    "gateway/engine/host.py",
    "gateway/engine/inference.py",
    "gateway/engine/interface.py",
    "gateway/engine/model.py",
    "gateway/engine/plan.py",
    "gateway/engine/python_instance.py",
    "gateway/engine/python_wire.py",
    "gateway/engine/queue_limits.py",
    "gateway/engine/request_forms.py",
    "gateway/engine/rest.py",
    "gateway/engine/rpc.py",
    "gateway/engine/runner.py",
    "gateway/engine/runtimes/bound_run.py",
    "gateway/engine/runtimes/onnx.py",
    "gateway/engine/service.py",
    "gateway/engine/statistics.py",
    "gateway/engine/streams.py",
    "gateway/engine/tensors.py",
    "gateway/engine/work.py",
    "gateway/forwarding.py",
    "gateway/heads.py",
    "gateway/metering/group_commit.py",
    "gateway/metering/log.py",
    "gateway/metering/loop_flusher.py",
    "gateway/metering/segments.py",
    "gateway/monitoring/call_line.py",
    "gateway/monitoring/call_log.py",
    "gateway/monitoring/metrics.py",
    "gateway/net/budget.py",
    "gateway/net/h1_inbound.py",
    "gateway/net/h1_outbound.py",
    "gateway/net/h2_call.py",
    "gateway/net/h2_connection.py",
    "gateway/net/h2_exchange.py",
    "gateway/net/h2_held.py",
    "gateway/net/h2_inbound.py",
    "gateway/net/h2_outbound.py",
    "gateway/pipeline.py",
    "gateway/quota/funds.py",
    "gateway/quota/funds_client.py",
    "gateway/quota/headers.py",
    "gateway/quota/memory_client.py",
    "gateway/quota/shelf.py",
    "gateway/quota/store.py",
    "gateway/replies.py",
    "gateway/routing/router.py",
    "gateway/rows.py",
    "gateway/shared.py",
    "gateway/tickets.py",
    "gateway/wire/decimal.py",
    "gateway/wire/grpc.py",
    "gateway/wire/grpc_blocks.py",
    "gateway/wire/http1.py",
    "gateway/wire/http1_body.py",
    "gateway/wire/http2.py",
    "gateway/wire/http2_control.py",
    "gateway/wire/http2_guard.py",
    "gateway/wire/http2_reader.py",
    "gateway/wire/http2_stream.py",
    "gateway/wire/protobuf_peek.py",
)


def fingerprint(root: Path = ROOT) -> str:
    """What a build depends on: every source of the packages, the interpreter, the list above."""
    digest = hashlib.sha256(f"{sys.version}\0{sysconfig.get_platform()}".encode())
    for package in _PACKAGES:
        for folder, folders, names in os.walk(root / package):
            folders.sort()
            for name in sorted(name for name in names if name.endswith(".py")):
                path = os.path.join(folder, name)
                with open(path, "rb", buffering=0) as file:
                    data = file.read()
                digest.update(f"\0{os.path.relpath(path, root)}\0{len(data)}\0".encode())
                digest.update(data)
    return digest.hexdigest()[:32]


def find_compiled(root: Path = ROOT) -> Path | None:
    """The finished build of exactly these sources, or None. Costs up to 30 ms of hashing where anything was built."""
    builds = _builds(root)
    if not builds.is_dir():
        return None
    folder = builds / fingerprint(root)
    return folder if (folder / _DONE).exists() else None


def build(root: Path = ROOT) -> Path:
    """Compile; returns the folder. Raises CalledProcessError when mypyc fails, whose words went to standard error.

    Made beside its place and renamed: a build that was interrupted, or made twice at once, is never half there.
    """
    builds = _builds(root)
    folder = find_compiled(root)
    if folder is not None:
        return folder
    builds.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=builds) as unfinished:
        made = Path(unfinished) / "copy"
        for package in _PACKAGES:
            shutil.copytree(root / package, made / package, ignore=shutil.ignore_patterns("__pycache__"))
        target = builds / fingerprint(made)  # of what is compiled: the sources may change meanwhile
        _compile(made)
        if not (target / _DONE).exists():
            made.rename(target)
    finished = [folder for folder in builds.iterdir() if (folder / _DONE).exists()]
    for old in sorted(finished, key=lambda folder: folder.stat().st_mtime)[:-_BUILDS_MAX]:
        shutil.rmtree(old)
    return target


def _builds(root: Path) -> Path:
    return root / ".cache" / "compiled"


def _compile(folder: Path) -> None:
    """Compile the hot modules of a copy of the packages, in place."""
    subprocess.run(
        [sys.executable, "-P", "-m", "mypyc", "--ignore-missing-imports", "--follow-imports=silent", *MODULES],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "MYPYC_OPT_LEVEL": "2", "MYPYC_DEBUG_LEVEL": "0", "PYTHONPATH": str(folder)},
    )
    for scratch in ("build", ".mypy_cache"):
        shutil.rmtree(folder / scratch, ignore_errors=True)
    (folder / _DONE).write_text("\n".join(MODULES), encoding="ascii")


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
