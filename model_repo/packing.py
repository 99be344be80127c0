"""Owns making a version out of files that a person has: a folder with a manifest, ready to be published.

What is not certified says so: its manifest names the files and fits every host that has the library.
"""

from pathlib import Path
from typing import Final

from model_repo.config import ModelConfig, parse_config
from model_repo.config_digest import SHARED_BYTES_MAX, shared_files
from model_repo.disk import copy_tree
from model_repo.errors import RepositoryError
from model_repo.manifest import MANIFEST, Manifest, describe_files
from model_repo.repository import ModelFolder, read_member
from model_repo.target import Target

CONFIG: Final = "config.pbtxt"


def pack(source: Path, config: ModelConfig, into: Path) -> Path:
    """`into`, made of the files of `source` (a version's folder); with a manifest where there is none yet. Blocks.

    Raises:
        RepositoryError: the model's own file is missing, or one is no regular file.
    """
    try:
        copy_tree(source, into)
    except OSError as error:
        raise RepositoryError(f"{error.filename or source}: {error.strerror}") from error
    if config.model_filename and not (into / config.model_filename).is_file():
        raise RepositoryError(f"{config.model_filename}: is not in {source}")
    if not (into / MANIFEST).exists():
        is_file = config.platform not in ("python", "ensemble")
        manifest = Manifest(
            engine=config.platform,
            precision="as is",
            method="published as it is",
            files=describe_files(into),
            target=Target(runtime=config.platform if is_file else ""),
        )
        (into / MANIFEST).write_bytes(manifest.to_bytes())
    return into


def read_shared(model: Path, text: str, name: str) -> dict[str, bytes]:
    """What the configuration `text` names in a model's folder. Raises: RepositoryError: a file is missing."""
    folder = ModelFolder(name=name, path=model, versions=())
    names = shared_files(parse_config(text, name=name))
    return {path: read_member(folder, *path.split("/"), bytes_max=SHARED_BYTES_MAX) for path in names}
