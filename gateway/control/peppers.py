"""Owns DATA/pepper: the keys under which secrets are hashed, so that a stolen database alone is useless.

JSON {"<version>": "<64 hex digits>"}, mode 600, created on the first start. The highest version hashes new secrets;
older ones stay for the secrets hashed under them. Losing the file makes every key unusable: back it up apart.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from gateway.errors import SettingsError

PEPPER_FILE: Final = "pepper"
PEPPER_BYTES: Final = 32
_VERSION = re.compile(r"[1-9][0-9]{0,8}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peppers:
    """`by_version` is never empty. Has no readable repr, so that no log can show it."""

    by_version: dict[int, bytes]

    @property
    def version(self) -> int:
        """The version that new secrets are hashed under."""
        return max(self.by_version)

    @property
    def newest(self) -> bytes:
        return self.by_version[self.version]

    def __repr__(self) -> str:
        return f"Peppers(versions={sorted(self.by_version)})"


def load_peppers(data_dir: Path, *, has_secrets: bool) -> Peppers:
    """Read DATA/pepper, or make it. Raises SettingsError when it is damaged, readable by others, or lost.

    `has_secrets`: the database holds digests, so a missing file is a loss and a new one would hide it.
    """
    path = data_dir / PEPPER_FILE
    try:
        mode = path.stat().st_mode
        raw = path.read_bytes()
    except FileNotFoundError:
        if has_secrets:
            raise SettingsError(
                f"{path} is missing, but control.db holds keys hashed with it: restore it from a backup"
            ) from None
        return _create(path)
    if mode & 0o077:
        raise SettingsError(f"{path} can be read by others: run `chmod 600 {path}`")
    return Peppers(by_version=_parse(path, raw))


def _parse(path: Path, raw: bytes) -> dict[int, bytes]:
    damaged = SettingsError(f"{path} is damaged (want JSON of version to 64 hex digits): restore it from a backup")
    try:
        texts = msgspec.json.decode(raw, type=dict[str, str])
        peppers = {int(version): bytes.fromhex(text) for version, text in texts.items() if _VERSION.match(version)}
    except ValueError as error:
        raise damaged from error
    if not peppers or len(peppers) != len(texts) or any(len(pepper) != PEPPER_BYTES for pepper in peppers.values()):
        raise damaged
    return peppers


def _create(path: Path) -> Peppers:
    """Written aside, fsynced and linked, so that a crash leaves a whole file or none."""
    peppers = Peppers(by_version={1: os.urandom(PEPPER_BYTES)})
    write_private(path, msgspec.json.encode({str(v): pepper.hex() for v, pepper in peppers.by_version.items()}))
    return peppers


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` atomically and durably by `data`, mode 600."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
