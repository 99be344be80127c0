"""A repository with a version that was really converted and holds its source: what a rebuild begins with."""

from pathlib import Path
from typing import Final

from converters.flow import Request, convert
from converters.job import Job
from converters.selftest.models import mlp

JOB: Final = Job(
    name="m", engines=("onnxruntime",), precisions=("fp32",), batch_rows_max=2, rounds=3, budgets={"fp32": 2.0}
)


def convert_small(folder: Path) -> Path:
    """Make `folder`/repo, whose version 1 of `m` is a small network; returns `folder`, which keeps the cache too."""
    (folder / "net.onnx").write_bytes(mlp().SerializeToString())
    asked = Request(
        source=folder / "net.onnx",
        job=JOB,
        data=None,
        repository=folder / "repo",
        cache=folder / "cache",
        out=folder / "out",
        keeps_source=True,
    )
    convert(asked, lambda event: None)
    return folder
