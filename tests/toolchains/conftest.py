"""Models made by each framework in its own environment, and how they are converted. Run by `make test-toolchains`."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converters.errors import VerificationFailed
from converters.flow import Request, convert
from converters.job import Job
from converters.toolchains.specs import get_toolchain
from converters.toolchains.store import default_root, get_installed

Make = Callable[[str, str], Path]
Convert = Callable[..., dict[str, Any]]
MAKE_S_MAX = 600


def toolchains_root() -> Path:
    named = os.environ.get("TOLLWAY_TOOLCHAINS", "")
    return Path(named) if named else default_root()


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Run a text in a toolchain's Python, in a folder of its own; the folder."""

    def run(toolchain: str, text: str) -> Path:
        folder = tmp_path_factory.mktemp(toolchain)
        python = get_installed(get_toolchain(toolchain), toolchains_root()).python
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
        (folder / "make.py").write_text(text)
        done = subprocess.run(
            [str(python), "-B", "make.py"],
            cwd=folder,
            env={**environment, "KERAS_BACKEND": "tensorflow"},
            capture_output=True,
            text=True,
            check=False,
            timeout=MAKE_S_MAX,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return folder

    return run


@pytest.fixture
def to_version(tmp_path: Path) -> Convert:
    """Convert in fp32 for ONNX Runtime; the report. A refusal for slowness alone is tried again."""

    def run(source: Path, **changes: Any) -> dict[str, Any]:
        dims = changes.pop("dims", {})
        job = Job(name="m", engines=("onnxruntime",), precisions=("fp32",), batch_rows_max=2, rounds=3, dims=dims)
        asked = Request(
            source=source,
            job=job,
            data=None,
            repository=tmp_path / "repo",
            cache=tmp_path / "cache",
            out=tmp_path / "out",
            toolchains=toolchains_root(),
            **changes,
        )
        for _ in range(5):
            try:
                return convert(asked, lambda event: None)
            except VerificationFailed as error:
                if error.rule != "not_faster":
                    raise
        return convert(asked, lambda event: None)

    return run
