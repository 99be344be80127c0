"""Owns the installed environments: `<root>/<name>-<digest of its lock>/`, whole by one rename, never changed after.

Packages come as built wheels with the hashes of the lock, so that installing runs no code of theirs.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from converters.errors import ToolFailed
from converters.toolchains.specs import TOOLCHAINS, Toolchain

#: In the checkout; an installed distribution without them is told by `read_lock`.
LOCKS: Final = Path(__file__).parents[2] / "deploy" / "locks" / "toolchains"
STAMP: Final = "toolchain.json"
INSTALL_S_MAX: Final = 3_600
_SHOWN: Final = 600
#: Ours, which works on the other environment: that one needs none.
_PIP: Final = (sys.executable, "-m", "pip", "--disable-pip-version-check")
#: Of an index, or of a folder of packages.
_FETCHED: Final = re.compile(r"(?:Collecting |Processing (?:\S*/)?)([A-Za-z0-9_.]+(?:-[A-Za-z][A-Za-z0-9_.]*)*)")
#: (what, how many packages are done, of how many)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """An environment that is whole. `build`: which one of the toolchain's builds it has; empty if it has but one."""

    toolchain: Toolchain
    folder: Path
    lock_sha256: str
    build: str

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


def default_root() -> Path:
    """The user's cache: environments are the machine's, not a model's."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "tollway" / "toolchains"


def read_locks(toolchain: Toolchain, locks: Path = LOCKS) -> bytes:
    """All lock files of a toolchain, one after the other. Raises: ToolFailed: one is not there."""
    names = (toolchain.name, *(f"{toolchain.name}.{build}" for build in reversed(toolchain.builds)))
    try:
        return b"".join((locks / f"{name}.lock").read_bytes() for name in names)
    except OSError as error:
        step = f"tollway convert toolchain lock {toolchain.name}, in a checkout"
        raise ToolFailed(
            "lock", f"the locks of toolchain {toolchain.name} are not in {locks}", next_step=step
        ) from error


def locked_versions(lock: bytes) -> dict[str, str]:
    """Version by package name, as a lock file states them."""
    return dict(re.findall(r"^([A-Za-z0-9][\w.-]*)==([\w.!+-]+)", lock.decode(), re.MULTILINE))


def find_installed(toolchain: Toolchain, root: Path, locks: Path = LOCKS) -> Installed | None:
    """The environment of the present lock; one of an older lock does not count."""
    sha256 = hashlib.sha256(read_locks(toolchain, locks)).hexdigest()
    folder = root / f"{toolchain.name}-{sha256[:16]}"
    try:
        stamp = json.loads((folder / STAMP).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(stamp, dict) or stamp.get("lock_sha256") != sha256 or not (folder / "bin" / "python").exists():
        return None
    return Installed(toolchain=toolchain, folder=folder, lock_sha256=sha256, build=str(stamp.get("build", "")))


def get_installed(toolchain: Toolchain, root: Path, locks: Path = LOCKS) -> Installed:
    """Raises: ToolFailed: not installed."""
    found = find_installed(toolchain, root, locks)
    if found is None:
        raise missing(toolchain, root)
    return found


def missing(toolchain: Toolchain, root: Path) -> ToolFailed:
    """What is said of a toolchain that is not installed."""
    text = f"the toolchain {toolchain.name} ({toolchain.title}) is not installed in {root}"
    step = f"tollway convert toolchain install {toolchain.name} (about {toolchain.installed_mib} MiB)"
    return ToolFailed("toolchain_missing", text, next_step=step)


def list_toolchains(root: Path, locks: Path = LOCKS) -> list[dict[str, object]]:
    """One row a toolchain; `state`: installed, outdated (of an older lock) or absent."""
    rows: list[dict[str, object]] = []
    for one in TOOLCHAINS:
        versions = locked_versions(read_locks(one, locks))
        found = find_installed(one, root, locks)
        others = [path for path in root.glob(f"{one.name}-*") if found is None or path != found.folder]
        state = "installed" if found else "outdated" if others else "absent"
        rows.append(
            {
                "name": one.name,
                "framework": f"{one.title} {versions.get(one.framework, '?')}",
                "formats": list(one.formats),
                "state": state,
                "folder": str(found.folder) if found else None,
                "outdated": [str(path) for path in others],
                "installed_mib": one.installed_mib,
                "packages": versions,
            }
        )
    return rows


@contextlib.contextmanager
def _locked(root: Path, name: str) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(root / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def install(toolchain: Toolchain, root: Path, progress: Progress, locks: Path = LOCKS) -> Installed:
    """Make the environment of the present lock, unless it is there; older ones of that name go. Blocks for minutes.

    Raises:
        ToolFailed: a package is not to be had, does not have its hash, or does not fit the others.
    """
    with _locked(root, toolchain.name):
        found = find_installed(toolchain, root, locks)
        if found is not None:
            return found
        sha256 = hashlib.sha256(read_locks(toolchain, locks)).hexdigest()
        folder = root / f"{toolchain.name}-{sha256[:16]}"
        # What an installation that was killed left: the lock says that none is under way.
        for left in (folder, *root.glob(f".making-{toolchain.name}-*")):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".making-{toolchain.name}-", dir=root) as made:
            build = _make(toolchain, Path(made) / "venv", locks, progress)
            _stamp(Path(made) / "venv", toolchain.name, sha256, build)
            (Path(made) / "venv").rename(folder)
        for old in root.glob(f"{toolchain.name}-*"):
            if old != folder:
                shutil.rmtree(old)
        return get_installed(toolchain, root, locks)


def _stamp(folder: Path, name: str, sha256: str, build: str) -> None:
    facts = {
        "schema": 1,
        "name": name,
        "lock_sha256": sha256,
        "build": build,
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "installed": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (folder / STAMP).write_text(json.dumps(facts, indent=2) + "\n")


def _make(toolchain: Toolchain, folder: Path, locks: Path, progress: Progress) -> str:
    """Returns the build that was to be had."""
    progress("virtual environment", 0, 1)
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], "venv")
    python = folder / "bin" / "python"
    _pip_install(python, locks / f"{toolchain.name}.lock", progress)
    build = _install_build(toolchain, python, locks, progress)
    missing = _missing(python)
    if missing:
        text = f"toolchain {toolchain.name}: the lock lacks {', '.join(missing[:5])}"
        raise ToolFailed("lock", text, next_step=f"tollway convert toolchain lock {toolchain.name}")
    return build


def _install_build(toolchain: Toolchain, python: Path, locks: Path, progress: Progress) -> str:
    reasons: list[ToolFailed] = []
    for build in toolchain.builds:
        try:
            _pip_install(python, locks / f"{toolchain.name}.{build}.lock", progress)
        except ToolFailed as error:
            reasons.append(error)
        else:
            return build
    if reasons:
        raise reasons[-1]
    return ""


def _pip_install(python: Path, lock: Path, progress: Progress) -> None:
    total = len(locked_versions(lock.read_bytes()))
    command = [*_PIP, "--python", str(python), "install", "--no-input", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--progress-bar", "off", "-r", str(lock)]
    said: list[str] = []
    done = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            said.append(line.strip())
            package = _FETCHED.match(line)
            if package is not None:
                progress(f"fetch {package[1]}", done, total)
                done += 1
            elif line.startswith("Installing collected"):
                progress("unpack", total, total)
    if process.returncode != 0:
        errors = [line for line in said if line.startswith("ERROR")] or said
        text = f"pip ended with {process.returncode}: {' | '.join(errors)[:_SHOWN]}"
        raise ToolFailed("install", text, next_step="see the message; the package index must be reachable")


def _missing(python: Path) -> list[str]:
    """Packages that installed ones require on this machine and that are not there; by pip's own check.

    Raises:
        ToolFailed: two packages do not fit each other.
    """
    command = [*_PIP, "--python", str(python), "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_S_MAX)
    missing = re.findall(r"requires ([\w.-]+), which is not installed", done.stdout)
    if done.returncode != 0 and not missing:
        text = f"packages do not fit each other: {done.stdout.strip()[:_SHOWN]}"
        raise ToolFailed("lock", text, next_step="lock the toolchain anew")
    return sorted(set(missing))


def _run(command: list[str], rule: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_S_MAX)
    if done.returncode != 0:
        text = f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[:_SHOWN]}"
        raise ToolFailed(rule, text, next_step="see the message")
