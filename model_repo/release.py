"""Owns release.json: what may change about a model whose versions never do — aliases, approvals, signatures.

One file a model, replaced whole, so that a reader sees one state of all three. Bytes in, checked value out; every
change counts `generation` up. Approvals and signatures name the digest of the version's manifest: they hold for these
bytes, never for whatever else comes to lie under the same number.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from model_repo.errors import RepositoryError
from model_repo.repository import version_number

SCHEMA: Final = 1
RELEASE: Final = "release.json"
RELEASE_BYTES_MAX: Final = 1 << 20
ALIASES_MAX: Final = 32
SIGNATURES_MAX: Final = 8
#: An alias begins with a letter, so that none looks like a version.
ALIAS: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
#: The alias that a call without a version gets.
STABLE: Final = "stable"
_BY_MAX: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """`at` is UTC. `manifest_sha256`: of the bytes that were approved."""

    by: str
    at: str
    manifest_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """`key_id` names the public key; `signature` is base64. See `model_repo.signing`."""

    key_id: str
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """`generation` 0: there is no file yet."""

    generation: int = 0
    aliases: Mapping[str, int] = field(default_factory=dict)
    approvals: Mapping[int, Approval] = field(default_factory=dict)
    signatures: Mapping[int, tuple[Signature, ...]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        value = {
            "schema": SCHEMA,
            "generation": self.generation,
            "aliases": dict(self.aliases),
            "approvals": {str(number): asdict(one) for number, one in self.approvals.items()},
            "signatures": {str(number): [asdict(one) for one in own] for number, own in self.signatures.items()},
        }
        return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

    def aliases_of(self, number: int) -> list[str]:
        return sorted(alias for alias, own in self.aliases.items() if own == number)

    def is_approved(self, number: int, manifest_sha256: str) -> bool:
        approval = self.approvals.get(number)
        return approval is not None and approval.manifest_sha256 == manifest_sha256

    def with_alias(self, alias: str, number: int | None) -> "Release":
        """`alias` for a version, or for none any more.

        Raises:
            RepositoryError: no alias's name, too many, or there is none to take away.
        """
        _check_alias(alias)
        aliases = {name: own for name, own in self.aliases.items() if name != alias}
        if number is not None:
            aliases[alias] = number
        elif alias not in self.aliases:
            raise RepositoryError(f"alias '{alias}': there is none")
        if len(aliases) > ALIASES_MAX:
            raise RepositoryError(f"alias '{alias}': a model has at most {ALIASES_MAX} aliases")
        return replace(self, aliases=aliases)

    def with_approval(self, number: int, approval: Approval | None) -> "Release":
        """Approved, or (None) no more. Raises: RepositoryError: the name of who approves is empty or too long."""
        if approval is not None and not 0 < len(approval.by) <= _BY_MAX:
            raise RepositoryError(f"by: who approves is told in 1 to {_BY_MAX} characters")
        approvals = {own: one for own, one in self.approvals.items() if own != number}
        if approval is not None:
            approvals[number] = approval
        return replace(self, approvals=approvals)

    def with_signature(self, number: int, signature: Signature, *, is_new_version: bool = False) -> "Release":
        """Beside those of other keys. `is_new_version`: what is there under the number was of a publish that died.

        Raises:
            RepositoryError: too many signatures.
        """
        others = () if is_new_version else self.signatures.get(number, ())
        own = (*(one for one in others if one.key_id != signature.key_id), signature)
        if len(own) > SIGNATURES_MAX:
            raise RepositoryError(f"a version has at most {SIGNATURES_MAX} signatures")
        return replace(self, signatures={**self.signatures, number: own})

    def without(self, numbers: set[int]) -> "Release":
        """Nothing about these versions any more."""
        return replace(
            self,
            aliases={alias: own for alias, own in self.aliases.items() if own not in numbers},
            approvals={own: one for own, one in self.approvals.items() if own not in numbers},
            signatures={own: one for own, one in self.signatures.items() if own not in numbers},
        )


def _check_alias(alias: str) -> None:
    if ALIAS.fullmatch(alias) is None:
        raise RepositoryError(f"alias '{alias[:40]}' must match {ALIAS.pattern}")


def parse_release(data: bytes) -> Release:
    """Raises: RepositoryError: of another schema, or malformed."""
    try:
        value = json.loads(data)
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise RepositoryError(f"{RELEASE}: schema is not {SCHEMA}")
        generation = value["generation"]
        aliases = {alias: _number(number) for alias, number in value["aliases"].items()}
        approvals = {_number_of(key): Approval(**one) for key, one in value["approvals"].items()}
        signatures = {
            _number_of(key): tuple(Signature(**one) for one in own) for key, own in value["signatures"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RepositoryError(f"{RELEASE}: malformed ({type(error).__name__}: {str(error)[:100]})") from error
    if type(generation) is not int or generation < 0:
        raise RepositoryError(f"{RELEASE}: generation is no whole number")
    _check_words(approvals, signatures)
    for alias in aliases:
        _check_alias(alias)
    if len(aliases) > ALIASES_MAX or any(len(own) > SIGNATURES_MAX for own in signatures.values()):
        raise RepositoryError(
            f"{RELEASE}: more than {ALIASES_MAX} aliases, or {SIGNATURES_MAX} signatures of a version"
        )
    return Release(generation=generation, aliases=aliases, approvals=approvals, signatures=signatures)


def _check_words(approvals: Mapping[int, Approval], signatures: Mapping[int, tuple[Signature, ...]]) -> None:
    records: list[Any] = [*approvals.values(), *(one for own in signatures.values() for one in own)]
    for record in records:
        if not all(isinstance(value, str) for value in asdict(record).values()):
            raise RepositoryError(f"{RELEASE}: a member of an approval or a signature is no text")


def _number(value: Any) -> int:
    if type(value) is not int or not 0 < value < 10**18:
        raise ValueError(f"{str(value)[:40]} is no version")
    return value


def _number_of(key: str) -> int:
    number = version_number(key)
    if not number:
        raise ValueError(f"{key[:40]} is no version")
    return number


def read_release(model: Path) -> Release:
    """The release of a model's folder; an empty one where there is no file. Raises: RepositoryError."""
    path = model / RELEASE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return Release()
    except OSError as error:
        raise RepositoryError(f"{RELEASE}: a link, or unreadable ({error.strerror})") from error
    with os.fdopen(descriptor, "rb") as file:
        try:
            data = file.read(RELEASE_BYTES_MAX + 1)
        except OSError as error:
            raise RepositoryError(f"{RELEASE}: unreadable ({error.strerror})") from error
    if len(data) > RELEASE_BYTES_MAX:
        raise RepositoryError(f"{RELEASE}: more than {RELEASE_BYTES_MAX} bytes")
    return parse_release(data)
