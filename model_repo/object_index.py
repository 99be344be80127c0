"""Owns index.json of a model in an object store: its versions, and all that may change. Bytes in, checked value out.

The index is the only object that is ever replaced, and only on the condition that it is still the one that was read.
Everything else lies under the digest of its bytes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from model_repo.errors import RepositoryError
from model_repo.release import Release, parse_release
from model_repo.repository import version_number

SCHEMA: Final = 1
INDEX: Final = "index.json"
INDEX_BYTES_MAX: Final = 4 << 20
_is_digest = re.compile(r"[0-9a-f]{64}").fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """`versions`: digest of the manifest by number; `shared`: digest by path, config.pbtxt among them."""

    versions: Mapping[int, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    release: Release = field(default_factory=Release)

    def to_bytes(self) -> bytes:
        value = {
            "schema": SCHEMA,
            "versions": {str(number): digest for number, digest in self.versions.items()},
            "shared": dict(self.shared),
            "release": json.loads(self.release.to_bytes()),
        }
        return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def parse_index(data: bytes) -> Index:
    """Raises: RepositoryError: of another schema, or malformed."""
    try:
        value = json.loads(data)
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise RepositoryError(f"{INDEX}: schema is not {SCHEMA}")
        versions = {_number(key): _digest(digest) for key, digest in value["versions"].items()}
        shared = {_path(path): _digest(digest) for path, digest in value["shared"].items()}
        release = parse_release(json.dumps(value["release"]).encode())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RepositoryError(f"{INDEX}: malformed ({type(error).__name__}: {str(error)[:100]})") from error
    return Index(versions=versions, shared=shared, release=release)


def _number(key: str) -> int:
    number = version_number(key)
    if not number:
        raise ValueError(f"{key[:40]} is no version")
    return number


def _digest(value: Any) -> str:
    if not isinstance(value, str) or _is_digest(value) is None:
        raise ValueError(f"{str(value)[:40]} is no digest")
    return value


def _path(path: str) -> str:
    """At most one folder deep, as label and state files are, and nothing that leads elsewhere."""
    parts = path.split("/")
    if len(parts) > 2 or any(part in {"", ".", ".."} or set(part) & {"\\", "\0"} for part in parts):
        raise ValueError(f"{path[:80]} is no path below a model")
    return path
