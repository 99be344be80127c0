"""Recipes: the committed ones are complete, and a malformed one is refused with the reason."""

import shutil
from pathlib import Path

import pytest

from model_repo.config import parse_config
from model_repo.makers import MAKERS
from model_repo.recipes import RECIPES, SHOWCASES, RecipeError, read_recipe, read_recipes

HASH = "a" * 64
GOOD = f"""
name = "toy"
title = "a toy"
[package]
name = "toy-package"
version = "1.2"
wheel = "toy_package-1.2-py3-none-any.whl"
bytes = 10
sha256 = "{HASH}"
requirements = "toy.txt"
licence = "MIT"
licence_note = "nobody"
[members.weights]
path = "toy/weights.bin"
bytes = 3
sha256 = "{HASH}"
[[models]]
name = "toy"
files = {{ "1/model.bin" = {{ make = "copy", members = ["weights"] }}, "1/model.py" = {{ source = "steps/toy.py" }} }}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.txt").write_text(f"toy-package==1.2 --hash=sha256:{HASH}\n")
    (tmp_path / "toy.toml").write_text(GOOD)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "toy.pbtxt").write_text('backend: "python"')
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "toy.py").write_text("VALUE = 1\n")
    return tmp_path


def test_committed_recipes_name_package_hashes_and_licence() -> None:
    recipes = {recipe.name: recipe for recipe in read_recipes()}
    licences = {name: recipe.package.licence for name, recipe in recipes.items()}
    assert licences == {
        "face_detection": "Apache-2.0",
        "file_type": "Apache-2.0",
        "image_classifier": "Apache-2.0",
        "language_model": "Apache-2.0",
        "ocr": "Apache-2.0",
        "sentence_embedding": "MIT",
        "voice_activity": "MIT",
    }
    assert {name: recipe.requires for name, recipe in recipes.items() if recipe.requires} == {
        "face_detection": "openvino",
        "language_model": "openvino_genai",
    }
    for recipe in recipes.values():
        for package in recipe.packages.values():
            assert package.wheel.startswith(f"{package.name.replace('-', '_')}-{package.version}-")
        assert recipe.models[-1].name == recipe.name, "the ensemble must appear last"
        assert {output.maker for model in recipe.models for output in model.outputs} <= {"", *MAKERS}


def test_every_configuration_is_one_that_the_engine_accepts_under_its_name() -> None:
    names = {model.name for recipe in read_recipes() for model in recipe.models}
    on_disk = {path.stem for path in (SHOWCASES / "configs").glob("*.pbtxt")}
    assert names == on_disk
    for name in names:
        config = parse_config((SHOWCASES / "configs" / f"{name}.pbtxt").read_text(), name=name)
        assert {step.model for step in config.steps} <= names


def test_no_recipe_names_a_host() -> None:
    for path in RECIPES.iterdir():
        assert "://" not in path.read_text(), path.name


def test_outputs_begin_with_the_configuration(folder: Path) -> None:
    (model,) = read_recipe(folder / "toy.toml", folder).models
    assert [output.path for output in model.outputs] == ["config.pbtxt", "1/model.bin", "1/model.py"]


@pytest.mark.parametrize("part", ["toy.toml", "toy.txt", "configs/toy.pbtxt", "steps/toy.py"])
def test_digest_changes_with_every_part(folder: Path, part: str) -> None:
    before = read_recipe(folder / "toy.toml", folder).digest
    with (folder / part).open("a") as file:
        file.write("\n")
    assert read_recipe(folder / "toy.toml", folder).digest != before


def test_digest_does_not_depend_on_the_place(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, other)
    assert read_recipe(other / "toy.toml", other).digest == read_recipe(folder / "toy.toml", folder).digest


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('title = "a toy"', "", "title is missing"),
        ('sha256 = "' + HASH, 'sha256 = "' + "A" * 64, "SHA-256"),
        ('name = "toy"\ntitle', 'name = "../toy"\ntitle', "is no name"),
        ('wheel = "toy', 'wheel = "x/toy', "plain file name"),
        ('requirements = "toy', 'requirements = "../toy', "plain file name"),
        ('path = "toy/weights', 'path = "toy/../../weights', "leads out"),
        ('path = "toy/weights', 'path = "/toy/weights', "leads out"),
        ('"1/model.bin"', '"../model.bin"', "leads out"),
        ('"1/model.bin"', '"1//model.bin"', "leads out"),
        ('source = "steps', 'source = "../steps', "leads out"),
        ('source = "steps/toy', 'source = "steps/other', "other.py is not there"),
        ('members = ["weights"]', 'members = ["other"]', "do not fit"),
        ('members = ["weights"]', "members = []", "do not fit"),
        ('make = "copy", ', "", "make is missing"),
        ("bytes = 10", "bytes = 0", "no size"),
        ('version = "1.2"', 'version = "1.3"', "must hold exactly"),
        ("[package]", "[package", "toy.toml"),
    ],
)
def test_malformed_recipe_is_refused_with_the_reason(folder: Path, old: str, new: str, reason: str) -> None:
    assert old in GOOD
    (folder / "toy.toml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(RecipeError, match=r"toy\.toml") as caught:
        read_recipe(folder / "toy.toml", folder)
    assert reason in str(caught.value)


def test_requirements_without_the_hash_are_refused(folder: Path) -> None:
    (folder / "toy.txt").write_text("toy-package==1.2\n")
    with pytest.raises(RecipeError, match="must hold exactly"):
        read_recipe(folder / "toy.toml", folder)


OTHER = f"""
[packages.words]
name = "other-package"
version = "3"
wheel = "other_package-3-py3-none-any.whl"
bytes = 5
sha256 = "{"d" * 64}"
requirements = "words.txt"
licence = "MIT"
licence_note = "none"

[members.words]
package = "words"
path = "other/words.json"
bytes = 2
sha256 = "{"e" * 64}"
"""


def test_members_may_come_from_a_second_package_and_extras_say_so(folder: Path) -> None:
    (folder / "words.txt").write_text(f"other-package==3 --hash=sha256:{'d' * 64}\n")
    plain = read_recipe(folder / "toy.toml", folder)
    assert (plain.others, plain.is_extra, list(plain.packages)) == ({}, False, [""])
    text = (folder / "toy.toml").read_text().replace("[package]", "extra = true\n\n[package]", 1)
    (folder / "toy.toml").write_text(text.replace("[[models]]", f"{OTHER}\n[[models]]", 1))
    recipe = read_recipe(folder / "toy.toml", folder)
    assert recipe.is_extra
    assert recipe.packages["words"].name == "other-package"
    assert recipe.members["words"].package == "words"
    assert recipe.digest != plain.digest
    before = recipe.digest
    (folder / "words.txt").write_text(f"other-package==3 --hash=sha256:{'d' * 64}\n\n")
    assert read_recipe(folder / "toy.toml", folder).digest != before


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [('package = "words"', 'package = "nobody"', "no package"), ("extra = true", "extra = 1", "neither true")],
)
def test_a_second_package_that_is_not_there_is_refused(old: str, new: str, reason: str, folder: Path) -> None:
    (folder / "words.txt").write_text(f"other-package==3 --hash=sha256:{'d' * 64}\n")
    text = (folder / "toy.toml").read_text().replace("[package]", "extra = true\n\n[package]", 1)
    text = text.replace("[[models]]", f"{OTHER}\n[[models]]", 1)
    assert old in text
    (folder / "toy.toml").write_text(text.replace(old, new))
    with pytest.raises(RecipeError, match=reason):
        read_recipe(folder / "toy.toml", folder)
