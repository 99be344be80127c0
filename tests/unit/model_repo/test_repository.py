"""Reading a repository: Triton's layout, and nothing outside of it."""

import os
from pathlib import Path

import pytest

from model_repo.errors import RepositoryError
from model_repo.repository import ModelFolder, find_member, read_config, read_member, scan_repository
from tests.leaks import assert_none_left, held


def make(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("data")
    return root


def only(root: Path) -> ModelFolder:
    (folder,) = scan_repository(root).models
    return folder


def test_models_and_their_versions_are_found(tmp_path: Path) -> None:
    make(tmp_path, "b/config.pbtxt", "b/10/model.onnx", "b/2/model.onnx", "a/1/model.py", "README.md", ".cache/x")
    scan = scan_repository(tmp_path)
    assert [(folder.name, folder.versions) for folder in scan.models] == [("a", (1,)), ("b", (2, 10))]
    assert scan.refused == ()


@pytest.mark.parametrize("name", ["0", "01", "-1", "1a", "latest", "٣", "9" * 19])
def test_only_plain_numbers_are_versions(tmp_path: Path, name: str) -> None:
    make(tmp_path, f"m/{name}/model.onnx")
    assert only(tmp_path).versions == ()


def test_what_cannot_be_a_model_is_named_with_the_reason(tmp_path: Path) -> None:
    make(tmp_path, "good/config.pbtxt", "bad name/config.pbtxt")
    (tmp_path / "link").symlink_to(tmp_path / "good")
    scan = scan_repository(tmp_path)
    assert [folder.name for folder in scan.models] == ["good"]
    assert {name: reason.split(",")[0] for name, reason in scan.refused} == {
        "bad name": scan.refused[0][1].split(",")[0],
        "link": "is a symbolic link",
    }
    assert "no model name" in dict(scan.refused)["bad name"]


def test_a_version_that_is_a_link_is_no_version(tmp_path: Path) -> None:
    make(tmp_path, "m/config.pbtxt", "elsewhere/1/model.onnx")
    (tmp_path / "m" / "1").symlink_to(tmp_path / "elsewhere" / "1")
    assert scan_repository(tmp_path).models[1].versions == ()


def test_a_missing_repository_says_so(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="No such file"):
        scan_repository(tmp_path / "nowhere")


def test_members_are_read(tmp_path: Path) -> None:
    make(tmp_path, "m/1/model.onnx")
    folder = only(tmp_path)
    assert read_member(folder, "1", "model.onnx", bytes_max=4) == b"data"
    assert find_member(folder, "1", "model.onnx") == folder.path / "1" / "model.onnx"
    assert find_member(folder, "1", "other.onnx") is None


@pytest.mark.parametrize("parts", [("..", "secret"), ("1", "..", "..", "secret"), ("1/../../secret",), ("",), (".",)])
def test_names_do_not_lead_out(tmp_path: Path, parts: tuple[str, ...]) -> None:
    make(tmp_path, "m/1/model.onnx", "secret")
    with pytest.raises(RepositoryError, match="leads out"):
        read_member(scan_repository(tmp_path).models[0], *parts, bytes_max=10)


def test_links_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path, "repo/m/1/other", "secret")
    folder = only(tmp_path / "repo")
    (folder.path / "1" / "model.onnx").symlink_to(tmp_path / "secret")
    (folder.path / "2").symlink_to(tmp_path)
    for parts in (("1", "model.onnx"), ("2", "secret")):
        with pytest.raises(RepositoryError, match="symbolic link"):
            read_member(folder, *parts, bytes_max=10)
        with pytest.raises(RepositoryError, match="symbolic link"):
            find_member(folder, *parts)


def test_sizes_are_bounded(tmp_path: Path) -> None:
    make(tmp_path, "m/file")
    with pytest.raises(RepositoryError, match="more than 3"):
        read_member(only(tmp_path), "file", bytes_max=3)


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_only_regular_files_are_members(tmp_path: Path, kind: str) -> None:
    make(tmp_path, "m/config.pbtxt")
    path = tmp_path / "m" / "thing"
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(RepositoryError, match="no regular file"):
        read_member(only(tmp_path), "thing", bytes_max=10)


def test_config_must_be_text(tmp_path: Path) -> None:
    make(tmp_path, "m/1/x")
    folder = only(tmp_path)
    with pytest.raises(RepositoryError, match=r"config\.pbtxt: No such file"):
        read_config(folder)
    (folder.path / "config.pbtxt").write_bytes(b"\xff\xfe")
    with pytest.raises(RepositoryError, match="UTF-8"):
        read_config(folder)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    make(tmp_path, "m/1/model.onnx")
    folder = only(tmp_path)
    before = held()
    for _ in range(50):
        read_member(folder, "1", "model.onnx", bytes_max=10)
        find_member(folder, "1", "model.onnx")
        with pytest.raises(RepositoryError):
            read_member(folder, "1", bytes_max=10)
    assert_none_left(before, 50)
