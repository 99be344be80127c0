"""Owns the digest of what a configuration says of a model, as signatures state it.

What `tollway models tune` and an operator may change — how a model is batched, how often it is loaded, which versions
are served — does not count; everything that decides what runs and what it answers does, label and state files too.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from typing import Final

from google.protobuf import text_format

from model_repo.config import ModelConfig
from model_repo.repository import ModelFolder, read_member

_TUNABLE: Final = (
    "dynamic_batching",
    "instance_group",
    "version_policy",
    "model_warmup",
    "response_cache",
    "optimization",
)
SHARED_BYTES_MAX: Final = 256 << 20
INITIAL_STATE: Final = "initial_state"


def shared_files(config: ModelConfig) -> Iterator[str]:
    """Paths below the model's folder of what the configuration names and the versions share, sorted, each once."""
    names = {spec.label_filename for spec in config.outputs if spec.label_filename}
    if config.sequences is not None:
        names |= {f"{INITIAL_STATE}/{state.file}" for state in config.sequences.states if state.file}
    yield from sorted(names)


def config_sha256(config: ModelConfig, read: Callable[[str], bytes]) -> str:
    """`read` gives the bytes of a shared file by its path. What it raises passes through."""
    message = copy.deepcopy(config.message)
    for name in _TUNABLE:
        message.ClearField(name)
    digest = hashlib.sha256(text_format.MessageToString(message).encode())
    for name in shared_files(config):
        digest.update(f"\n{name} {hashlib.sha256(read(name)).hexdigest()}".encode())
    return digest.hexdigest()


def folder_config_sha256(folder: ModelFolder, config: ModelConfig) -> str:
    """Of a model on disk. Raises: RepositoryError: a shared file is missing or too large."""
    return config_sha256(config, lambda name: read_member(folder, *name.split("/"), bytes_max=SHARED_BYTES_MAX))
