"""Owns the source that a version may carry along, as it lies in `source/`: a model, its weights, and the job of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model_repo.errors import RepositoryError
from model_repo.manifest import SOURCE

JOB: Final = "job.json"
SCHEMA: Final = 1
_JOB_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """`model`: file name in `source/`. `job`: what the conversion was asked, but its ranges and budgets.

    `dims` and `budgets` as the command line takes them: `seq=1..512`, `fp16=2.0`.
    """

    model: str
    job: Mapping[str, Any]
    dims: tuple[str, ...]
    budgets: tuple[str, ...]


def read_kept(source: Path) -> Kept:
    """What the `source/` folder of a version holds.

    Raises:
        RepositoryError: there is none, or its job is malformed.
    """
    path = source / JOB
    try:
        if path.is_symlink() or path.stat().st_size > _JOB_BYTES_MAX:
            raise RepositoryError(f"{SOURCE}/{JOB}: a link, or more than {_JOB_BYTES_MAX} bytes")
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise RepositoryError(f"{SOURCE}/{JOB}: schema is not {SCHEMA}")
        job, model = {**value["job"]}, value["model"]
        dims = tuple(f"{name}={low}..{high}" for name, (low, high) in job.pop("dims", {}).items())
        budgets = tuple(f"{name}={factor}" for name, factor in job.pop("budgets", {}).items())
    except FileNotFoundError as error:
        raise RepositoryError(f"{SOURCE}/{JOB}: is missing: the version does not hold its source") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RepositoryError(f"{SOURCE}/{JOB}: malformed ({type(error).__name__}: {str(error)[:100]})") from error
    if not isinstance(model, str) or model in {"", ".", ".."} or set(model) & {"/", "\0"}:
        raise RepositoryError(f"{SOURCE}/{JOB}: '{str(model)[:80]}' is no plain file name")
    if not (source / model).is_file() or (source / model).is_symlink():
        raise RepositoryError(f"{SOURCE}/{model}: is missing")
    return Kept(model=model, job=job, dims=dims, budgets=budgets)
