"""The showcases through the converters: every network of every recipe is spoken for, steps are copied whole."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converters.errors import UsageFault
from converters.showcases.run import Places, _copy, _drop_copy, _place, showcases
from converters.showcases.specs import NETWORKS
from model_repo.config import parse_config
from model_repo.recipes import SHOWCASES, read_recipes


def places_of(folder: Path) -> Places:
    return Places(into=folder / "repository", wheels=folder / "wheels", work=folder / "work")


def test_every_network_of_the_recipes_is_converted() -> None:
    made: set[str] = set()
    for recipe in read_recipes():
        for model in recipe.models:
            config = parse_config((SHOWCASES / "configs" / f"{model.name}.pbtxt").read_text(), name=model.name)
            if config.platform not in {"python", "ensemble"}:
                made.add(model.name)
    assert made == set(NETWORKS)


def test_what_needs_data_has_a_maker_and_less_precision_has_data() -> None:
    from converters.showcases.data import MAKERS

    for name, network in NETWORKS.items():
        assert network.data in {"", *MAKERS}, name
        needs = any(precision.startswith("int") for precision in network.precisions)
        assert bool(network.data) >= needs, name


def test_a_source_whose_toolchain_is_absent_is_served_as_it_was_made_and_the_command_is_told(tmp_path: Path) -> None:
    places = replace(places_of(tmp_path), toolchains=tmp_path / "none")
    places.into.mkdir(parents=True)
    folder_of(tmp_path / "plain" / "face_detect", "a")
    found = _place("face_detect", tmp_path / "plain", places, lambda event: None)
    assert not found["is_certified"]
    assert "tollway convert toolchain install tensorflow" in found["why"]
    assert (places.into / "face_detect" / "1" / "model.py").read_text() == "a"


def test_an_unknown_showcase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="no showcase 'alchemy'"):
        showcases(["alchemy"], places_of(tmp_path), lambda event: None)
    assert not (tmp_path / "repository").exists()


def folder_of(path: Path, text: str) -> Path:
    (path / "1").mkdir(parents=True)
    (path / "1" / "model.py").write_text(text)
    (path / "manifest.json").write_text(json.dumps({"text": text}))
    return path


def test_a_step_is_replaced_whole_and_only_when_it_changed(tmp_path: Path) -> None:
    target = tmp_path / "repository" / "step"
    target.parent.mkdir()
    _copy(folder_of(tmp_path / "one", "a"), target)
    before = target.stat().st_ino
    _copy(tmp_path / "one", target)
    assert target.stat().st_ino == before
    _copy(folder_of(tmp_path / "two", "b"), target)
    assert (target / "1" / "model.py").read_text() == "b"
    assert [path.name for path in target.parent.iterdir()] == ["step"]


def test_a_copy_gives_way_to_a_converted_model_and_versions_stay(tmp_path: Path) -> None:
    copied, versions = folder_of(tmp_path / "copied", "a"), tmp_path / "converted"
    (versions / "1").mkdir(parents=True)
    (versions / "1" / "manifest.json").write_text("{}")
    _drop_copy(copied)
    _drop_copy(versions)
    _drop_copy(tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == ["converted"]


@pytest.mark.parametrize(
    "request_", [{}, {"only": [], "into": "a"}, {"only": 3, "into": "a", "wheels": "b", "work": "c"}]
)
def test_a_malformed_request_is_told(request_: Any) -> None:
    command = [sys.executable, "-m", "converters", "showcases"]
    done = subprocess.run(command, input=json.dumps(request_), capture_output=True, text=True, check=False)
    event = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, event["ev"], event["rule"]) == (2, "error", "request")
