"""Files that a load brings: written whole into a folder of their own, or not at all."""

import tempfile
from pathlib import Path

import pytest

from gateway.engine.overrides import read_override, remove_files, write_files
from gateway.errors import Code, TollwayError

CONFIG = '{"backend": "onnxruntime"}'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where folders of loads are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_files_lie_in_a_folder_until_they_are_removed(folder: Path) -> None:
    files = {"file:1/model.onnx": b"one", "file:labels.txt": b"two"}
    made = write_files("m", read_override("m", {"config": CONFIG, **files}))
    assert made.versions == (1,)
    assert (made.path / "1" / "model.onnx").read_bytes() == b"one"
    remove_files(made)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("paths", [("x.txt", "x.txt/y.txt"), ("x.txt/y.txt", "x.txt")])
def test_a_path_that_is_a_file_and_a_folder_is_the_callers_fault_and_leaves_nothing(
    folder: Path, paths: tuple[str, str]
) -> None:
    override = read_override("m", {"config": CONFIG, **{f"file:{path}": b"data" for path in paths}})
    with pytest.raises(TollwayError) as caught:
        write_files("m", override)
    assert caught.value.code is Code.BAD_REQUEST
    assert list(folder.iterdir()) == []
