"""A version that does not fit this host is made anew from the source that it carries, and then serves."""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data
from typer.testing import CliRunner, Result

from converters.errors import UsageFault
from converters.keeping import with_source
from converters.selftest.models import mlp
from gateway.commands.models import app
from gateway.engine.admission import Rules
from model_repo.errors import RepositoryError
from model_repo.kept import read_kept
from model_repo.manifest import MANIFEST, check_files, describe_files, read_manifest
from model_repo.repository import find_model
from model_repo.signing import create_key
from tests.unit.engine.certified import Build, stage
from tests.unit.engine.making import running_engine
from tests.unit.model_repo.converted import JOB, convert_small


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `repo`, whose version 1 holds its source, and the cache of its conversion."""
    folder = tmp_path_factory.mktemp("converted")
    convert_small(folder)
    return folder


def rebuild(folder: Path, root: Path, *words: str) -> Result:
    places = ["--repository", str(root), "--cache", str(folder / "cache"), "--out", str(root.parent / "out")]
    return CliRunner().invoke(app, ["rebuild", "m", "1", *places, *words])


def spoil(root: Path, **target: Any) -> None:
    """Version 1 of `root` is now one of another host."""
    version = root / "m" / "1"
    manifest = read_manifest(version)
    assert manifest is not None
    other = replace(manifest, target=replace(manifest.target, **target), variants=())
    shutil.rmtree(version / "variants", ignore_errors=True)
    (version / MANIFEST).write_bytes(replace(other, files=describe_files(version)).to_bytes())


def test_a_version_carries_its_source_and_the_job_of_it(converted: Path) -> None:
    version = converted / "repo" / "m" / "1"
    manifest = read_manifest(version)
    assert manifest is not None
    check_files(version, manifest)
    kept = read_kept(version / "source")
    assert (version / "source" / kept.model).read_bytes() == (converted / "net.onnx").read_bytes()
    assert (kept.model, kept.dims, kept.budgets) == ("net.onnx", (), ("fp32=2.0",))
    assert kept.job["precisions"] == ["fp32"]


def test_what_does_not_fit_is_made_anew_signed_and_serves(converted: Path, tmp_path: Path) -> None:
    root = tmp_path / "repo"
    shutil.copytree(converted / "repo", root)
    spoil(root, isa=("a_set_of_tomorrow",))
    key = create_key(tmp_path / "key")

    async def states() -> dict[int, str]:
        async with running_engine(root, rules=Rules(golden_ns_max=10**12)) as engine:
            return {version.number: version.reason for version in engine.registry.versions_of("m")}

    before = asyncio.run(states())
    assert "lacks a_set_of_tomorrow; it holds its source: `tollway models rebuild m 1`" in before[1]
    result = rebuild(converted, root, "--key", str(tmp_path / "key"), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "model": "m",
        "from_version": 1,
        "version": 2,
        "is_new": True,
        "selected": "onnxruntime-fp32",
    }
    assert asyncio.run(states()) == {2: ""}
    verified = CliRunner().invoke(app, ["verify", "m", "2", "--repository", str(root), "--trusted", key.public])
    assert verified.exit_code == 0, verified.output
    assert "already was what this host makes of it" in rebuild(converted, root).stdout
    assert (root / "m" / "2" / "source" / "net.onnx").is_file()


def test_a_version_without_its_source_and_a_damaged_one_are_told(converted: Path, tmp_path: Path) -> None:
    root = tmp_path / "repo"
    shutil.copytree(converted / "repo", root)
    (root / "m" / "1" / "source" / "net.onnx").write_bytes(b"\x80\x04.")
    result = rebuild(converted, root)
    assert result.exit_code == 1
    assert "source/net.onnx: sha256" in result.stderr
    shutil.rmtree(root / "m" / "1")
    stage(root / "m" / "1", Build())
    result = rebuild(converted, root)
    assert result.exit_code == 1
    assert "does not hold its source; convert with --keep-source" in result.stderr


def test_a_source_that_is_not_safe_is_refused_as_ever(converted: Path, tmp_path: Path) -> None:
    root = tmp_path / "repo"
    shutil.copytree(converted / "repo", root)
    (root / "m" / "1" / "source" / "net.onnx").write_bytes(b"\x80\x04.")
    spoil(root)
    result = rebuild(converted, root, "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["error"]["rule"] == "pickle"
    folder = find_model(root, "m")
    assert folder is not None
    assert folder.versions == (1,)


def test_weights_beside_the_model_are_kept_and_in_folders_are_refused(converted: Path, tmp_path: Path) -> None:
    bundle = converted / "repo" / "m" / "1"
    plain = tmp_path / "bundle"
    shutil.copytree(bundle, plain, ignore=shutil.ignore_patterns("source"))
    model = mlp()
    convert_model_to_external_data(model, location="net.data", size_threshold=0)
    onnx.save(model, str(tmp_path / "net.onnx"))
    kept = with_source(plain, tmp_path / "net.onnx", ["net.data"], JOB, tmp_path / "with")
    assert sorted(path.name for path in (kept / "source").iterdir()) == ["job.json", "net.data", "net.onnx"]
    manifest = read_manifest(kept)
    assert manifest is not None
    check_files(kept, manifest)
    for name in ("weights/net.data", "job.json"):
        with pytest.raises(UsageFault, match="cannot be kept"):
            with_source(plain, tmp_path / "net.onnx", [name], JOB, tmp_path / "other")


def test_sizes_of_axes_are_kept_as_the_command_takes_them(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")
    job = {"schema": 1, "job": {"dims": {"seq": [1, 512]}}, "model": "net.onnx"}
    (tmp_path / "job.json").write_text(json.dumps(job))
    assert read_kept(tmp_path).dims == ("seq=1..512",)


@pytest.mark.parametrize(
    "job",
    [
        "",
        "[]",
        '{"schema": 2}',
        '{"schema": 1}',
        '{"schema": 1, "job": [], "model": "net.onnx"}',
        '{"schema": 1, "job": {}, "model": "../net.onnx"}',
        '{"schema": 1, "job": {}, "model": 3}',
        '{"schema": 1, "job": {}, "model": "none.onnx"}',
        '{"schema": 1, "job": {"dims": {"a": 3}}, "model": "net.onnx"}',
        '{"schema": 1, "job": {"dims": []}, "model": "net.onnx"}',
    ],
)
def test_a_malformed_job_is_refused(job: str, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(RepositoryError, match="is missing"):
        read_kept(tmp_path)
    (tmp_path / "job.json").write_text(job)
    with pytest.raises(RepositoryError, match="source/"):
        read_kept(tmp_path)
