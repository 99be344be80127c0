"""Owns finished conversions by content: same source, data, job, tools, CPU and code → not built again."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from converters.job import Job
from model_repo.errors import RepositoryError
from model_repo.manifest import check_files, file_sha256, read_manifest

ENTRIES_MAX: Final = 200
_KEPT: Final = ("bundle", "config.pbtxt", "report.json")


def source_digest(source: Path, external: Sequence[str]) -> str:
    """Of the model file and all files that its weights lie in."""
    digest = hashlib.sha256(file_sha256(source).encode())
    for name in external:
        digest.update(f"\n{name} {file_sha256(source.parent / name)}".encode())
    return digest.hexdigest()


def cache_key(job: Job, sha256: str, data: Path | None, *, tools: Mapping[str, str], host: Mapping[str, object]) -> str:
    """Everything that the result depends on."""
    parts = {
        "source": sha256,
        "data": file_sha256(data) if data is not None else None,
        "job": job.canonical(),
        "tools": dict(tools),
        "host": dict(host),
        "code": _code_digest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _code_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(str(path.relative_to(Path(__file__).parent)).encode() + path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def locked_entry(root: Path, key: str) -> Iterator[Path]:
    """The folder of an entry, there or not, for one process at a time: equal conversions at once are built once."""
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root / f"{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield root / key
    finally:
        os.close(descriptor)


def find_entry(entry: Path) -> dict[str, Any] | None:
    """The report of a whole entry; one whose files are not as they were written is removed and None."""
    if not entry.is_dir():
        return None
    try:
        manifest = read_manifest(entry / "bundle")
        if manifest is None:
            raise RepositoryError("no manifest")
        check_files(entry / "bundle", manifest)
        (entry / "config.pbtxt").read_bytes()
        report: dict[str, Any] = json.loads((entry / "report.json").read_bytes())
    except (RepositoryError, OSError, ValueError):
        shutil.rmtree(entry)
        return None
    os.utime(entry)
    return report


def keep_entry(entry: Path, work: Path) -> None:
    """Move what a conversion left in `work` into the cache, whole by one rename; the oldest beyond the limit go."""
    made = work / "entry"
    made.mkdir()
    for name in _KEPT:
        (work / name).rename(made / name)
    made.rename(entry)
    entries = sorted((path for path in entry.parent.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in entries[: max(0, len(entries) - ENTRIES_MAX)]:
        if not old.name.startswith("work-"):
            shutil.rmtree(old)
            (entry.parent / f"{old.name}.lock").unlink(missing_ok=True)
