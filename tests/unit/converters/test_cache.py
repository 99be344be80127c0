"""Equal conversions have one key, and a change of anything that the result depends on gives another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.cache import ENTRIES_MAX, cache_key, find_entry, keep_entry, source_digest
from converters.job import Job

JOB = Job(name="m", dims={"seq": (1, 8)})
TOOLS = {"onnxruntime": "1.32.0"}
HOST = {"cpu": "one", "isa": ["avx2"]}


def key(folder: Path, *, job: Job = JOB, bit: int = 0, sample: float = 0.0, **facts: Any) -> str:
    (folder / "model.onnx").write_bytes(bytes([bit, 2, 3]))
    np.savez(folder / "data.npz", x=np.asarray([sample]))
    given = {"tools": TOOLS, "host": HOST, **facts}
    return cache_key(job, source_digest(folder / "model.onnx", []), folder / "data.npz", **given)


def test_the_same_gives_the_same_key_under_any_name(tmp_path: Path) -> None:
    assert key(tmp_path) == key(tmp_path, job=replace(JOB, name="other"))


@pytest.mark.parametrize(
    "change",
    [
        {"bit": 1},
        {"sample": 1e-9},
        {"tools": {"onnxruntime": "1.32.1"}},
        {"host": {"cpu": "one", "isa": []}},
        {"host": {"cpu": "two", "isa": ["avx2"]}},
        {"job": replace(JOB, precisions=("fp32",))},
        {"job": replace(JOB, engines=("onnxruntime",))},
        {"job": replace(JOB, budgets={"fp16": 2.0})},
        {"job": replace(JOB, dims={"seq": (1, 9)})},
        {"job": replace(JOB, optimize="throughput")},
        {"job": replace(JOB, batch_rows_max=16)},
        {"job": replace(JOB, threads=2)},
        {"job": replace(JOB, rounds=5)},
        {"job": replace(JOB, seed=1)},
    ],
)
def test_any_change_gives_another_key(change: dict[str, Any], tmp_path: Path) -> None:
    assert key(tmp_path) != key(tmp_path, **change)


def test_weights_in_other_files_count(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"m")
    (tmp_path / "w.bin").write_bytes(b"a")
    before = source_digest(tmp_path / "model.onnx", ["w.bin"])
    (tmp_path / "w.bin").write_bytes(b"b")
    assert source_digest(tmp_path / "model.onnx", ["w.bin"]) != before


def test_an_entry_that_is_not_whole_is_removed(tmp_path: Path) -> None:
    assert find_entry(tmp_path / "none") is None
    (tmp_path / "half" / "bundle").mkdir(parents=True)
    assert find_entry(tmp_path / "half") is None
    assert not (tmp_path / "half").exists()


def test_the_oldest_entries_go(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for number in range(ENTRIES_MAX + 1):
        work = tmp_path / f"work{number}"
        (work / "bundle").mkdir(parents=True)
        (work / "config.pbtxt").write_text("")
        (work / "report.json").write_text("{}")
        keep_entry(cache / f"k{number}", work)
    assert len(list(cache.iterdir())) == ENTRIES_MAX
    assert (cache / f"k{ENTRIES_MAX}").is_dir()
