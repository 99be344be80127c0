"""Environments: whole by one rename, of the present lock, with the locked hashes; a real pip, no network."""

import base64
import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from converters.errors import ConvertError, ToolFailed, UsageFault
from converters.importers.child import OPENERS
from converters.toolchains.serve import serve
from converters.toolchains.specs import TOOLCHAINS, Toolchain, get_toolchain, toolchain_of
from converters.toolchains.store import (
    STAMP,
    find_installed,
    get_installed,
    install,
    list_toolchains,
    locked_versions,
    read_locks,
)

TINY = Toolchain(
    name="tiny",
    title="Tiny",
    framework="tollway-tiny",
    formats=(),
    requirements=("tollway-tiny==1.0",),
    installed_mib=1,
    small_build=("tollway-tiny==1.0", "0" * 64),
)


def wheel(folder: Path) -> str:
    """A package of one module. Returns its digest."""
    path = folder / "tollway_tiny-1.0-py3-none-any.whl"
    files = {
        "tollway_tiny.py": b"VALUE = 42\n",
        "tollway_tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tollway-tiny\nVersion: 1.0\n",
        "tollway_tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in files.items()
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr("tollway_tiny-1.0.dist-info/RECORD", record + "tollway_tiny-1.0.dist-info/RECORD,,\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.timeout(600)
def test_a_build_with_another_hash_is_passed_over_and_the_right_one_is_installed_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small build's hash is wrong here, as of a package that was exchanged; the full build's is right."""
    (tmp_path / "wheels").mkdir()
    sha256 = wheel(tmp_path / "wheels")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    locks = tmp_path / "locks"
    locks.mkdir()
    (locks / "tiny.lock").write_text("")
    (locks / "tiny.small.lock").write_text(f"tollway-tiny==1.0 \\\n    --hash=sha256:{'0' * 64}\n")
    (locks / "tiny.full.lock").write_text(f"tollway-tiny==1.0 \\\n    --hash=sha256:{sha256}\n")
    steps: list[str] = []
    root = tmp_path / "root"
    # Of an installation that was killed, and of an older lock.
    for left in (".making-tiny-killed", "tiny-0000000000000000"):
        (root / left / "venv").mkdir(parents=True)
    made = install(TINY, root, lambda step, done, total: steps.append(step), locks)
    assert made.build == "full"
    assert "fetch tollway_tiny" in steps
    assert list(made.folder.glob("lib/*/site-packages/tollway_tiny.py"))
    assert json.loads((made.folder / STAMP).read_bytes())["lock_sha256"] == made.lock_sha256
    assert sorted(path.name for path in root.iterdir()) == [".tiny.lock", made.folder.name]
    before = (made.folder / STAMP).stat().st_mtime_ns
    assert install(TINY, root, lambda step, done, total: steps.append("again"), locks) == made
    assert "again" not in steps
    assert (made.folder / STAMP).stat().st_mtime_ns == before


@pytest.mark.timeout(600)
def test_a_failed_install_leaves_nothing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    locks = tmp_path / "locks"
    locks.mkdir()
    (locks / "tiny.lock").write_text(f"tollway-tiny==1.0 \\\n    --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ToolFailed) as failed:
        install(replace(TINY, small_build=None), tmp_path / "root", lambda step, done, total: None, locks)
    assert failed.value.rule == "install"
    assert "tollway-tiny" in str(failed.value)
    assert [path.name for path in (tmp_path / "root").iterdir()] == [".tiny.lock"]


def put(root: Path, toolchain: Toolchain, sha256: str, stamped: str | None = None) -> Path:
    """An environment as it lies on disk."""
    folder = root / f"{toolchain.name}-{sha256[:16]}"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    (folder / STAMP).write_text(json.dumps({"lock_sha256": stamped or sha256, "build": "small"}))
    return folder


def test_an_environment_counts_only_if_it_is_of_the_present_lock_and_whole(tmp_path: Path) -> None:
    one = TOOLCHAINS[0]
    sha256 = hashlib.sha256(read_locks(one)).hexdigest()
    assert find_installed(one, tmp_path) is None
    folder = put(tmp_path, one, sha256)
    assert get_installed(one, tmp_path).folder == folder
    (folder / STAMP).write_text("{")
    assert find_installed(one, tmp_path) is None
    (folder / STAMP).write_text(json.dumps({"lock_sha256": "0" * 64}))
    assert find_installed(one, tmp_path) is None
    with pytest.raises(ToolFailed) as failed:
        get_installed(one, tmp_path)
    assert failed.value.rule == "toolchain_missing"
    assert failed.value.next_step.startswith(f"tollway convert toolchain install {one.name}")


def test_the_list_tells_installed_outdated_and_absent(tmp_path: Path) -> None:
    one, two = TOOLCHAINS[:2]
    put(tmp_path, one, hashlib.sha256(read_locks(one)).hexdigest())
    put(tmp_path, two, "0" * 64)
    states = {row["name"]: row["state"] for row in list_toolchains(tmp_path)}
    assert (states[one.name], states[two.name]) == ("installed", "outdated")
    assert {state for name, state in states.items() if name not in {one.name, two.name}} == {"absent"}


def test_every_toolchain_has_a_lock_with_its_framework_and_every_format_an_importer() -> None:
    formats = [name for one in TOOLCHAINS for name in one.formats]
    assert sorted(formats) == sorted(OPENERS)
    for one in TOOLCHAINS:
        versions = locked_versions(read_locks(one))
        assert one.framework in versions, one.name
        # Those that read no format compile what ours wrote.
        assert "onnx" in versions or not one.formats, one.name
        assert all(toolchain_of(name) is one for name in one.formats)


def test_unknown_names_and_actions_are_usage_faults(tmp_path: Path) -> None:
    for request in ({"action": "ls", "names": ["caffe"]}, {"action": "burn", "names": []}):
        with pytest.raises(UsageFault):
            serve({**request, "root": str(tmp_path)}, lambda event: None)
    with pytest.raises(ConvertError):
        get_toolchain("caffe")
    listed = serve({"action": "ls", "names": ["jax"], "root": str(tmp_path)}, lambda event: None)
    assert [row["name"] for row in listed["toolchains"]] == ["jax"]


def test_a_lock_that_is_missing_is_said_by_name(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="torch"):
        read_locks(get_toolchain("torch"), tmp_path)
