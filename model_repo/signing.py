"""Owns signatures of versions: Ed25519 over a statement of what is signed. Keys in, statement out; no repository.

The statement names the model, the version, the digest of its manifest (which has the digest of every file) and the
digest of the configuration that it was published with. So nothing signed can be passed off under another name or
number, with other files, or as another kind of model.
"""

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from model_repo.errors import RepositoryError
from model_repo.release import Signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_PREFIX: Final = "ed25519:"
#: What the signed bytes begin with: a signature made for another purpose is none here.
_CONTEXT: Final = b"tollway model version 1\n"
_KEY_BYTES: Final = 32
_KEY_FILE_BYTES_MAX: Final = 10_000
TRUSTED_KEYS_MAX: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a signature says. Digests are SHA-256 in hex."""

    model: str
    version: int
    manifest_sha256: str
    config_sha256: str

    def to_bytes(self) -> bytes:
        return _CONTEXT + json.dumps(asdict(self), sort_keys=True).encode()


class SigningKey:
    """A private key; see `create_key`, `read_key`."""

    def __init__(self, key: "Ed25519PrivateKey") -> None:
        self._key = key
        raw = key.public_key().public_bytes_raw()
        self.public = _PREFIX + base64.b64encode(raw).decode()
        self.key_id = key_id_of(raw)

    def sign(self, statement: Statement) -> Signature:
        signature = self._key.sign(statement.to_bytes())
        return Signature(key_id=self.key_id, signature=base64.b64encode(signature).decode())


def key_id_of(raw: bytes) -> str:
    """The short name of a public key of 32 bytes."""
    return hashlib.sha256(raw).hexdigest()[:16]


def create_key(path: Path) -> SigningKey:
    """A new private key in a file of mode 600; an existing file is never replaced.

    Raises:
        RepositoryError: the file is there, or cannot be written.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        raise RepositoryError(f"{path}: {error.strerror}") from error
    return SigningKey(key)


def read_key(path: Path) -> SigningKey:
    """Raises: RepositoryError: missing, readable for others than its owner, or no such key."""
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_KEY_FILE_BYTES_MAX)
    except OSError as error:
        raise RepositoryError(f"{path}: {error.strerror}") from error
    if mode & 0o077:
        raise RepositoryError(
            f"{path}: others may read it (mode {mode & 0o777:o}); run `chmod 600` and think of a new key"
        )
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RepositoryError(f"{path}: is no private key in PEM without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RepositoryError(f"{path}: is no Ed25519 key")
    return SigningKey(key)


def parse_trusted(texts: Iterable[str]) -> dict[str, bytes]:
    """Public keys as `ed25519:BASE64` → 32 raw bytes by key id.

    Raises:
        RepositoryError: one is no such text, or there are more than `TRUSTED_KEYS_MAX`.
    """
    trusted = {}
    for text in texts:
        try:
            raw = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if not text.startswith(_PREFIX) or len(raw) != _KEY_BYTES:
            raise RepositoryError(f"trusted_model_keys: '{text[:60]}' is not {_PREFIX}BASE64 of {_KEY_BYTES} bytes")
        trusted[key_id_of(raw)] = raw
    if len(trusted) > TRUSTED_KEYS_MAX:
        raise RepositoryError(f"trusted_model_keys: more than {TRUSTED_KEYS_MAX}")
    if trusted:
        _need_cryptography()
    return trusted


def check_signature(statement: Statement, signatures: Iterable[Signature], trusted: Mapping[str, bytes]) -> str:
    """The id of a trusted key that signed the statement.

    Raises:
        RepositoryError: unsigned, signed by keys that are not trusted, or changed since it was signed.
    """
    _need_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    known = list(signatures)
    if not known:
        raise RepositoryError("is not signed; only versions signed by one of trusted_model_keys are loaded")
    own = [one for one in known if one.key_id in trusted]
    if not own:
        keys = ", ".join(sorted(one.key_id[:16] for one in known))
        raise RepositoryError(f"is signed by {keys}, trusted are {', '.join(sorted(trusted))}")
    for one in own:
        try:
            signature = base64.b64decode(one.signature, validate=True)
            Ed25519PublicKey.from_public_bytes(trusted[one.key_id]).verify(signature, statement.to_bytes())
        except (InvalidSignature, ValueError):
            continue  # Another trusted key may have signed it rightly; if none has, this is said below.
        return one.key_id
    keys = ", ".join(sorted(one.key_id for one in own))
    raise RepositoryError(
        f"the signature by {keys} is not of this: model {statement.model}, version {statement.version}, manifest "
        f"{statement.manifest_sha256[:16]}…, configuration {statement.config_sha256[:16]}…"
    )


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise RepositoryError("signatures need the package cryptography: pip install 'tollway[money]'") from error
