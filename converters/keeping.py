"""Owns the source that a version carries along, so that another host can make it anew: ONNX files and the job.

`source/` of a version holds the model, its external data under their own plain names, and `job.json`.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from converters.errors import UsageFault
from converters.job import Job
from model_repo.errors import RepositoryError
from model_repo.kept import JOB, SCHEMA
from model_repo.manifest import MANIFEST, SOURCE, describe_files, read_manifest


def with_source(bundle: Path, source: Path, external: Sequence[str], job: Job, into: Path) -> Path:
    """`into`: a copy of `bundle` with the source of it, and a manifest that names both.

    Raises:
        UsageFault: external data lies in folders, or has the name of the job's file.
    """
    for name in (source.name, *external):
        if "/" in name or name == JOB:
            text = f"--keep-source: '{name[:80]}' cannot be kept: a version's source has plain files, none called {JOB}"
            raise UsageFault("keep_source", text, next_step="write the external data beside the model, or leave it out")
    shutil.copytree(bundle, into)
    folder = into / SOURCE
    folder.mkdir()
    for name in (source.name, *external):
        shutil.copyfile(source.parent / name, folder / name)
    value = {"schema": SCHEMA, "model": source.name, "job": job.to_json()}
    (folder / JOB).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    manifest = read_manifest(into)
    if manifest is None:
        raise RepositoryError(f"{MANIFEST}: is missing")
    (into / MANIFEST).write_bytes(replace(manifest, files=describe_files(into)).to_bytes())
    return into
