"""Compiled hot modules: only a finished build of exactly these sources is ever used. Nothing is compiled here."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway import compiled
from gateway.compiled import MODULES, find_compiled, fingerprint


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree of sources, and its finished build."""
    for name in ("gateway/__init__.py", "gateway/wire/http1.py", "billing/rating.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
    finish(tmp_path)
    return tmp_path


def finish(root: Path) -> Path:
    folder = root / ".cache" / "compiled" / fingerprint(root)
    folder.mkdir(parents=True)
    (folder / "done").touch()
    return folder


def append(root: Path) -> None:
    with (root / "billing/rating.py").open("a") as file:
        file.write("x = 1\n")


def add(root: Path) -> None:
    (root / "gateway/wire/new.py").touch()


def remove(root: Path) -> None:
    (root / "gateway/wire/http1.py").unlink()


def rename(root: Path) -> None:
    (root / "gateway/wire/http1.py").rename(root / "gateway/http1.py")


def move_text(root: Path) -> None:
    """The same bytes one after the other, cut elsewhere."""
    (root / "gateway/__init__.py").write_text("# gateway/__init__.py")
    (root / "gateway/wire/http1.py").write_text("\n# gateway/wire/http1.py\n")


def test_a_finished_build_of_these_sources_is_found(tree: Path) -> None:
    assert find_compiled(tree) == tree / ".cache" / "compiled" / fingerprint(tree)


@pytest.mark.parametrize("change", [append, add, remove, rename, move_text])
def test_a_build_of_other_sources_is_not_found(tree: Path, change: Callable[[Path], None]) -> None:
    change(tree)
    assert find_compiled(tree) is None


def test_what_is_no_source_does_not_make_a_build_stale(tree: Path) -> None:
    (tree / "gateway/__pycache__").mkdir()
    (tree / "gateway/__pycache__/call.cpython-311.pyc").touch()
    (tree / "gateway/page.html").touch()
    assert find_compiled(tree) is not None


def test_a_build_for_another_interpreter_is_not_found(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.version", "3.12.0")
    assert find_compiled(tree) is None


def test_an_unfinished_build_is_not_found(tree: Path) -> None:
    (tree / ".cache" / "compiled" / fingerprint(tree) / "done").unlink()
    assert find_compiled(tree) is None


def test_without_any_build_nothing_is_found(tree: Path) -> None:
    shutil.rmtree(tree / ".cache")
    assert find_compiled(tree) is None


def test_a_finished_build_is_not_made_again(tree: Path) -> None:
    assert compiled.build(tree) == find_compiled(tree)


def test_every_module_of_the_list_exists_once_and_in_order() -> None:
    assert list(MODULES) == sorted(set(MODULES))
    assert [name for name in MODULES if not (compiled.ROOT / name).is_file()] == []


def test_check_says_where_the_build_is(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = find_compiled()
    assert compiled.main(["--check"]) == (0 if found else 1)
    assert capsys.readouterr().out == (f"{found}\n" if found else "not compiled\n")


@pytest.mark.parametrize("module", MODULES)
def test_no_compiled_module_calculates_with_the_views_of_a_dict(module: str) -> None:
    """Compiled, they are lists: `known - given.keys()` is a TypeError there, and only there."""
    text = (compiled.ROOT / module).read_text()
    assert not re.search(r" [-&|^] [\w.]+\.(keys|items)\(\)|\.(keys|items)\(\) [-&|^] ", text)
