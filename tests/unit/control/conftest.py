"""A fresh control plane for each test, copied from one that was started once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.control.support import Desk, open_desk


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory after its first start."""
    data_dir = tmp_path_factory.mktemp("control") / "data"
    with open_desk(data_dir):
        pass
    return data_dir


@pytest.fixture
def desk(tmp_path: Path, started: Path) -> Iterator[Desk]:
    shutil.copytree(started, tmp_path / "data")
    with open_desk(tmp_path / "data") as opened:
        yield opened
