"""A version is published whole or not at all, never changed, and checked byte by byte."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_repo import certificate as certificates
from model_repo.certificate import (
    CERTIFICATE,
    GOLDEN,
    Certificate,
    GoldenResult,
    check_golden,
    read_certificate,
    write_golden,
)
from model_repo.errors import ConfigError, RepositoryError
from model_repo.manifest import (
    FILES_MAX,
    MANIFEST,
    MANIFEST_BYTES_MAX,
    FileEntry,
    Manifest,
    check_files,
    describe_files,
    parse_manifest,
    read_manifest,
)
from model_repo.repository import scan_repository
from model_repo.store import publish
from model_repo.target import Target

CONFIG = """backend: "{backend}" max_batch_size: 8
input {{ name: "x" data_type: TYPE_FP32 dims: {wide} }} output {{ name: "y" data_type: TYPE_FP32 dims: 2 }}"""
TARGET = Target(arch="x86_64", isa=("avx2",), runtime="onnxruntime", runtime_version="1.32.0")


def config(backend: str = "onnxruntime", wide: int = 4) -> str:
    return CONFIG.format(backend=backend, wide=wide)


def stage(folder: Path, content: bytes = b"model") -> Path:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(content)
    manifest = Manifest(
        engine="onnxruntime", precision="fp32", method="none", files=describe_files(folder), target=TARGET
    )
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return folder


def test_versions_count_up_and_the_same_again_is_the_same_version(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    first, second = stage(tmp_path / "a"), stage(tmp_path / "b", b"other")
    versions = [publish(root, "m", staged, config()) for staged in (first, first, second, first)]
    assert [(one.version, one.is_new) for one in versions] == [(1, True), (1, False), (2, True), (3, True)]
    assert [model.versions for model in scan_repository(root).models] == [(1, 2, 3)]
    assert (root / "m" / "2" / "model.onnx").read_bytes() == b"other"
    assert not list(root.glob(".staging-*"))


def test_what_a_crash_left_is_removed_and_was_never_seen(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    (root / ".staging-old" / "1").mkdir(parents=True)
    assert scan_repository(root).models == ()
    publish(root, "m", stage(tmp_path / "a"), config())
    assert not list(root.glob(".staging-*"))


def test_readers_see_whole_versions_only(tmp_path: Path) -> None:
    """A reader that looks at all times while versions are published."""
    root = tmp_path / "repo"
    root.mkdir()
    stages = [stage(tmp_path / f"s{number}", bytes([number]) * 50_000) for number in range(12)]
    stopped = threading.Event()
    seen: set[int] = set()
    faults: list[int] = []

    def read() -> None:
        while not stopped.is_set():
            for model in scan_repository(root).models:
                for version in model.versions:
                    folder = model.path / str(version)
                    manifest = read_manifest(folder)
                    if manifest is None:
                        faults.append(version)
                        continue
                    check_files(folder, manifest)
                    seen.add(version)

    reader = threading.Thread(target=read)
    reader.start()
    for staged in stages:
        publish(root, "m", staged, config())
    stopped.set()
    reader.join()
    assert not faults
    assert seen


PUBLISHER = """
import sys
from pathlib import Path
from model_repo.store import publish
from model_repo.target import Target
root, stages, config = Path(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir()), sys.argv[3]
for round in range(100):
    for staged in stages:
        print(staged, flush=True)
        publish(root, "m", staged, config)
"""


@pytest.mark.parametrize("lines", range(1, 17, 2))
def test_a_publisher_that_is_killed_leaves_whole_versions_only(lines: int, tmp_path: Path) -> None:
    root, stages = tmp_path / "repo", tmp_path / "stages"
    stages.mkdir()
    for number in range(2):
        stage(stages / f"s{number}", bytes([number]) * 300_000)
    command = [sys.executable, "-c", PUBLISHER, str(root), str(stages), config()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as process:
        assert process.stdout is not None
        for _ in range(lines):
            assert process.stdout.readline()
        process.kill()
    for model in scan_repository(root).models if root.exists() else ():
        assert model.versions == tuple(range(1, len(model.versions) + 1))
        for version in model.versions:
            manifest = read_manifest(model.path / str(version))
            assert manifest is not None
            check_files(model.path / str(version), manifest)
    assert publish(root, "m", stage(tmp_path / "last", b"last"), config()).is_new
    assert not list(root.glob(".staging-*"))


def test_concurrent_publishers_each_get_a_version(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    stages = [stage(tmp_path / f"s{number}", bytes([number])) for number in range(6)]
    versions: list[int] = []

    def one(staged: Path) -> None:
        versions.append(publish(root, "m", staged, config()).version)

    threads = [threading.Thread(target=one, args=(staged,)) for staged in stages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("other", [config(backend="openvino"), config(wide=5)])
def test_a_version_of_another_interface_is_refused(other: str, tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish(root, "m", stage(tmp_path / "a"), config())
    with pytest.raises(RepositoryError, match="publish under another name"):
        publish(root, "m", stage(tmp_path / "b", b"2"), other)
    assert scan_repository(root).models[0].versions == (1,)


@pytest.mark.parametrize("name", ["../m", "", ".m", "a/b", "x" * 129])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        publish(tmp_path / "repo", name, stage(tmp_path / "a"), config())


def test_a_staged_file_that_differs_from_the_manifest_is_refused(tmp_path: Path) -> None:
    staged = stage(tmp_path / "a")
    (staged / "model.onnx").write_bytes(b"moedl")
    with pytest.raises(RepositoryError, match=r"model\.onnx: sha256"):
        publish(tmp_path / "repo", "m", staged, config())
    assert not (tmp_path / "repo").exists()


def test_missing_added_and_linked_files_are_named(tmp_path: Path) -> None:
    staged = stage(tmp_path / "a")
    manifest = read_manifest(staged)
    assert manifest is not None
    (staged / "more").write_bytes(b"")
    with pytest.raises(RepositoryError, match="more: is not in the manifest"):
        check_files(staged, manifest)
    (staged / "more").unlink()
    (staged / "model.onnx").unlink()
    with pytest.raises(RepositoryError, match=r"model\.onnx: is missing"):
        check_files(staged, manifest)
    (staged / "model.onnx").symlink_to("/dev/null")
    with pytest.raises(RepositoryError, match="no regular file"):
        check_files(staged, manifest)


def manifest_of(files: dict[str, FileEntry]) -> bytes:
    return Manifest(engine="e", precision="fp32", method="", files=files, target=TARGET).to_bytes()


def test_a_manifest_survives_the_round_trip() -> None:
    entry = FileEntry(sha256="0" * 64, size_bytes=3)
    assert parse_manifest(manifest_of({"a": entry})).files == {"a": entry}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"schema": 3}',
        b'{"schema": 1}',
        b"\xff",
        manifest_of({"../x": FileEntry(sha256="", size_bytes=1)}),
        manifest_of({MANIFEST: FileEntry(sha256="", size_bytes=1)}),
    ],
)
def test_a_malformed_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(RepositoryError):
        parse_manifest(data)


def test_the_limits_of_a_manifest(tmp_path: Path) -> None:
    entry = FileEntry(sha256="0" * 64, size_bytes=1)
    parse_manifest(manifest_of({f"f{number}": entry for number in range(FILES_MAX)}))
    with pytest.raises(RepositoryError, match="more than 1000 files"):
        parse_manifest(manifest_of({f"f{number}": entry for number in range(FILES_MAX + 1)}))
    (tmp_path / MANIFEST).write_bytes(b" " * (MANIFEST_BYTES_MAX + 1))
    with pytest.raises(RepositoryError, match="more than 1048576 bytes"):
        read_manifest(tmp_path)


def certify(folder: Path, tolerance: float = 1e-3, cases: int = 2) -> Path:
    folder.mkdir()
    xs = [np.full((rows, 2), rows, np.float32) for rows in (1, 3)]
    write_golden(folder, [({"x": x}, {"y": x * 2, "n": np.asarray([len(x)])}) for x in xs])
    certificate = Certificate(
        created="",
        source={},
        tools={},
        host={},
        variant={},
        calibration=None,
        evidence="generated",
        parity={},
        speed={},
        golden={"cases": cases, "tolerance": {"y": tolerance, "n": 0}},
    )
    (folder / CERTIFICATE).write_bytes(certificate.to_bytes())
    return folder


def test_golden_answers_within_tolerance_pass_and_others_are_named(tmp_path: Path) -> None:
    folder = certify(tmp_path / "v")

    def scaled(factor: float) -> GoldenResult:
        return check_golden(
            folder, lambda inputs: {"y": inputs["x"] * np.float32(factor), "n": np.asarray([len(inputs["x"])])}
        )

    assert scaled(2.0) == GoldenResult(fault="", done=2, cases=2)
    assert not scaled(2.0001).fault
    wrong = scaled(2.01)
    assert wrong.fault.startswith("golden case 0, output 'y': error 0.01")
    assert wrong.done == 1
    assert check_golden(folder, lambda inputs: {"y": inputs["x"] * 2}).fault == "golden case 0, output 'n': missing"
    shapes = check_golden(folder, lambda inputs: {"y": inputs["x"][:, 0], "n": np.asarray([1])})
    assert "float32[1], certified is float32[1, 2]" in shapes.fault
    nan = check_golden(folder, lambda inputs: {"y": inputs["x"] * np.float32(np.nan), "n": np.asarray([1])})
    assert "not finite" in nan.fault


def test_a_check_that_is_due_ends_after_the_case_under_way_and_runs_one_at_least(tmp_path: Path) -> None:
    folder = certify(tmp_path / "v")
    found = check_golden(
        folder, lambda inputs: {"y": inputs["x"] * 2, "n": np.asarray([len(inputs["x"])])}, is_due=lambda: True
    )
    assert found == GoldenResult(fault="", done=1, cases=2)


def test_words_are_compared_exactly(tmp_path: Path) -> None:
    folder = certify(tmp_path / "v", cases=1)
    write_golden(folder, [({"x": np.zeros(1, np.float32)}, {"y": np.asarray([b"cat"])})])
    assert not check_golden(folder, lambda inputs: {"y": np.asarray([b"cat"])}).fault
    assert "has to be equal" in check_golden(folder, lambda inputs: {"y": np.asarray([b"dog"])}).fault


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_a_tolerance_that_allows_everything_is_refused(tolerance: float, tmp_path: Path) -> None:
    folder = certify(tmp_path / "v", tolerance=tolerance)
    with pytest.raises(RepositoryError, match="tolerance of 'y'"):
        check_golden(folder, lambda inputs: {"y": inputs["x"] * 2, "n": np.asarray([len(inputs["x"])])})


def test_a_certificate_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder = certify(tmp_path / "v", cases=3)
    with pytest.raises(RepositoryError, match="not those of the certificate"):
        check_golden(folder, lambda inputs: inputs)
    (folder / GOLDEN).write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(RepositoryError, match="unreadable"):
        check_golden(folder, lambda inputs: inputs)
    (folder / CERTIFICATE).write_bytes(b'{"schema": 9}')
    with pytest.raises(RepositoryError, match="schema is not 1"):
        read_certificate(folder)
    (folder / CERTIFICATE).unlink()
    with pytest.raises(RepositoryError, match="unreadable"):
        read_certificate(folder)


def test_golden_objects_are_not_unpickled_and_bombs_are_not_unpacked(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "canary"),))

    folder = certify(tmp_path / "v")
    objects: dict[str, Any] = {"0.in.x": np.asarray([Canary()], dtype=object)}
    np.savez(folder / GOLDEN, **objects)
    with pytest.raises(RepositoryError):
        check_golden(folder, lambda inputs: inputs)
    assert not (tmp_path / "canary").exists()
    bomb: dict[str, Any] = {"0.in.x": np.zeros(certificates.GOLDEN_BYTES_MAX, np.uint8)}
    np.savez_compressed(folder / GOLDEN, **bomb)
    with pytest.raises(RepositoryError, match="unpacks to"):
        check_golden(folder, lambda inputs: inputs)
