"""Owns a rebuild as a conversion that waits in control's queue: its source fetched before, its version published after.

The way is that of `tollway models rebuild` (`model_repo.rebuilding`). A crash leaves a version whole or none.
"""

import shutil
from pathlib import Path
from typing import Any, Final

from gateway.control.conversion_store import Conversion, ConversionStore
from model_repo import rebuilding
from model_repo.stores import open_store

MEMORY_BYTES_MAX: Final = 8 << 30
TIME_S_MAX: Final = 1_800
_WORK: Final = "work"


def request_of(repository: Path, name: str, version: int, *, digest: str, host: str) -> dict[str, Any]:
    """What is kept of a rebuild. `digest`: of the version's manifest; `host`: of the host's facts."""
    own = {"repository": str(repository.absolute()), "version": version, "digest": digest, "host": host}
    return {"name": name, "source": f"{name}/{version}/source", "rebuild": own}


def prepare(store: ConversionStore, one: Conversion) -> dict[str, Any]:
    """What the converters are asked. Raises: RepositoryError: the source is missing or not what was published."""
    folder = store.folder(one.conversion_id)
    work = (folder / _WORK).absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    own = one.request["rebuild"]
    return rebuilding.prepare(
        open_store(own["repository"]),
        one.request["name"],
        own["version"],
        work,
        cache=store.cache.absolute(),
        out=(folder / "out").absolute(),
        data=None,
        memory_bytes_max=MEMORY_BYTES_MAX,
        time_s_max=TIME_S_MAX,
    )


def publish(store: ConversionStore, one: Conversion) -> dict[str, Any]:
    """The version that came of it, and whether it is new. Raises: RepositoryError."""
    work = store.folder(one.conversion_id) / _WORK
    made = rebuilding.publish_made(open_store(one.request["rebuild"]["repository"]), one.request["name"], work, None)
    return {"version": made.version, "is_new": made.is_new}


def clean(store: ConversionStore, one: Conversion) -> None:
    """Sources and results may be large; the reports stay."""
    shutil.rmtree(store.folder(one.conversion_id) / _WORK, ignore_errors=True)
