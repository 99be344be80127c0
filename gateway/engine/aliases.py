"""Owns what a call that names its version by an alias is told: which version that was."""

from gateway.engine.model import ModelVersion


def is_alias(version: str) -> bool:
    """Whether what a call names as its version is a name, not a number."""
    return bool(version) and not (version.isascii() and version.isdigit())


def version_header(version: ModelVersion) -> tuple[bytes, bytes]:
    """For the gateway, which records calls by the version that answered."""
    return b"tollway-version", b"%d" % version.number
