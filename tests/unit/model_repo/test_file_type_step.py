"""The Python step of `file_type`: features as magika's configuration says."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.unit.model_repo.steps import execute, load_step, outputs, texts

CONFIG = {
    "beg_size": 6,
    "mid_size": 0,
    "end_size": 4,
    "use_inputs_at_offsets": False,
    "padding_token": 256,
    "block_size": 16,
    "min_file_size_for_dl": 3,
}


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_step("file_type_read", monkeypatch)


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "config.min.json"
    path.write_text(json.dumps({**CONFIG, **changes}))
    return path


def features(step: ModuleType, folder: Path, content: bytes) -> tuple[list[int], int]:
    found = step.extract_all([content], step.read_rules(write(folder)))
    return found["FEATURES"][0].tolist(), int(found["KINDS"][0])


def test_long_content_gives_its_first_and_last_bytes(step: ModuleType, tmp_path: Path) -> None:
    assert features(step, tmp_path, bytes(range(65, 91))) == ([*range(65, 71), *range(87, 91)], 0)


def test_short_content_is_padded_behind_its_beginning_and_before_its_end(step: ModuleType, tmp_path: Path) -> None:
    assert features(step, tmp_path, b"abc") == ([97, 98, 99, 256, 256, 256, 256, 97, 98, 99], 0)


def test_white_space_is_stripped_on_the_outer_sides_only(step: ModuleType, tmp_path: Path) -> None:
    assert features(step, tmp_path, b" \n\ta b c \r\n") == (
        [97, 32, 98, 32, 99, 32, 32, 98, 32, 99],
        0,
    )


def test_stripping_does_not_look_beyond_a_block(step: ModuleType, tmp_path: Path) -> None:
    assert features(step, tmp_path, b" " * 14 + b"ab" + b"cdefgh" + b" " * 16) == ([256] * 10, 2)


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", 1), (b"a", 2), (b"\xff", 3), (b"     ", 2), (b"    ab", 2), ("é".encode(), 2), (b"   \xff", 3)],
)
def test_content_too_short_for_the_network_has_a_kind_of_its_own(
    step: ModuleType, tmp_path: Path, content: bytes, kind: int
) -> None:
    assert features(step, tmp_path, content) == ([256] * 10, kind)


@pytest.mark.parametrize("changes", [{"mid_size": 2}, {"use_inputs_at_offsets": True}])
def test_configuration_that_asks_for_more_is_refused(step: ModuleType, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="are not made here"):
        step.read_rules(write(tmp_path, **changes))


def started(step: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    write(folder)
    monkeypatch.setattr(step, "__file__", str(folder / "model.py"))
    model = step.TritonPythonModel()
    model.initialize({})
    return model


def test_items_keep_their_order(step: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = started(step, tmp_path, monkeypatch)
    found = outputs(execute(model, CONTENT=texts(b"abc", b"", b"\xff")))
    assert found["KINDS"].tolist() == [0, 1, 3]
    assert found["FEATURES"].shape == (3, 10)
    assert found["FEATURES"].dtype == np.int32


@pytest.mark.parametrize("count", [0, 257])
def test_number_of_items_is_bounded(
    step: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    response = execute(started(step, tmp_path, monkeypatch), CONTENT=texts(*[b"x"] * count))
    assert f"holds {count} items; one call takes 1 to 256" in response.error().message()
    assert response.error().code() == 3, "INVALID_ARG"
