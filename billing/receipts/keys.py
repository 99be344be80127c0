"""Owns the keys that sign tree heads: Ed25519, one current, the public parts of all kept for ever.

DATA/receipts/ has mode 700; `<key_id>.key` (the seed, mode 600) of the current key only, `<key_id>.pub` of every key. A
key id is the first 16 hex digits of SHA-256 of the public key, so a key cannot be passed off as another.
"""

import hashlib
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

FOLDER: Final = "receipts"
KEYS_MAX: Final = 1_000
_SEED_BYTES: Final = 32


class ReceiptKeyError(Exception):
    """The signing keys cannot be used; the message says why and what to do."""


class Signer:
    """The current key of a data directory."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()
        self.key_id = key_id_of(self.public)

    def sign(self, message: bytes) -> bytes:
        """64 bytes, the same for the same message."""
        return self._private.sign(message)


def key_id_of(public: bytes) -> str:
    """The id of a public key (32 bytes)."""
    return hashlib.sha256(public).hexdigest()[:16]


def open_signer(data_dir: Path) -> Signer:
    """The current key, made if there is none yet. Raises ReceiptKeyError: more than one, unreadable, open to others."""
    folder = data_dir / FOLDER
    found = sorted(folder.glob("*.key"))
    if not found:
        return rotate(data_dir)
    if len(found) > 1:
        # A rotation was cut short after the new key was whole: the newest is the one that was meant.
        found.sort(key=lambda path: path.stat().st_mtime_ns)
        for old in found[:-1]:
            old.unlink()
    return Signer(_load(found[-1]))


def rotate(data_dir: Path) -> Signer:
    """A new current key; what the old ones signed stays valid. Raises ReceiptKeyError, OSError."""
    folder = data_dir / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    if len(list(folder.glob("*.pub"))) >= KEYS_MAX:
        raise ReceiptKeyError(f"{FOLDER}: {KEYS_MAX} keys were made already")
    before = list(folder.glob("*.key"))
    private = Ed25519PrivateKey.generate()
    signer = Signer(private)
    # The public part first: a signature must never be out whose key nobody can look up.
    _write(folder / f"{signer.key_id}.pub", signer.public.hex().encode() + b"\n", 0o644)
    _write(folder / f"{signer.key_id}.key", private.private_bytes_raw(), 0o600)
    for old in before:
        old.unlink()
    return signer


def public_keys(data_dir: Path) -> dict[str, bytes]:
    """Every key that ever signed here, by id. Raises ReceiptKeyError for a damaged file."""
    keys = {}
    for path in sorted((data_dir / FOLDER).glob("*.pub")):
        try:
            public = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except ValueError as error:
            raise ReceiptKeyError(f"{path.name}: is no public key: {error}") from error
        if key_id_of(public) != path.stem:
            raise ReceiptKeyError(f"{path.name}: holds another key than its name says")
        keys[path.stem] = public
    return keys


def is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` of `message` is by the owner of `public`."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _load(path: Path) -> Ed25519PrivateKey:
    status = path.stat()
    if status.st_mode & 0o077:
        raise ReceiptKeyError(f"{path.name}: others can read it: chmod 600, and rotate the key")
    seed = path.read_bytes()
    if len(seed) != _SEED_BYTES:
        raise ReceiptKeyError(f"{path.name}: has {len(seed)} bytes instead of {_SEED_BYTES}: rotate the key")
    private = Ed25519PrivateKey.from_private_bytes(seed)
    if key_id_of(private.public_key().public_bytes_raw()) != path.stem:
        raise ReceiptKeyError(f"{path.name}: holds another key than its name says")
    return private


def _write(path: Path, data: bytes, mode: int) -> None:
    made = path.with_name(f".{path.name}.new")
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    made.rename(path)
