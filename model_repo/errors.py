"""Owns the faults of a model repository: what is wrong on disk, said so that its owner can mend it."""


class RepositoryError(Exception):
    """A model that cannot be served as it lies on disk; the message names the setting or the file."""


class ConfigError(RepositoryError):
    """A config.pbtxt that is malformed, contradicts itself, or asks for what is not served."""
