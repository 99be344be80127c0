"""Owns what the converters' bench converts: the bench's own networks, and the showcases' as they lie here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from loadtests.converters_models import MODELS, rows_of

_ROWS: Final = 120
_ALL: Final = "fp32,fp16,int8,int8_dynamic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`budget`: the accuracy that is asked for, in words. `feeds`: what a run is timed with."""

    name: str
    kind: str
    source: Path
    options: tuple[str, ...]
    feeds: Mapping[str, npt.NDArray[Any]]
    budget: str
    data: Path | None = None


_STRICT: Final = "fp32: each element within 2e-5 of the RMS + 1e-4 of itself; fp16 4e-3"
_WITH_INT8: Final = f"{_STRICT}; int8 on unseen rows: relative RMS error at most 0.08, cosine at least 0.995"


def generated_cases(folder: Path, names: Sequence[str] = tuple(MODELS)) -> list[Case]:
    """The bench's own networks with their rows, written below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for seed, name in enumerate(names):
        build, shape = MODELS[name]
        source, data = folder / f"{name}.onnx", folder / f"{name}.npz"
        source.write_bytes(build())
        np.savez(data, x=rows_of(shape, _ROWS, seed))
        cases.append(
            Case(
                name=name,
                kind="generated",
                source=source,
                options=("--precision", _ALL),
                feeds={"x": rows_of(shape, 1, 99)},
                budget=_WITH_INT8,
                data=data,
            )
        )
    return cases


def showcase_cases(root: Path, folder: Path) -> tuple[list[Case], dict[str, str]]:
    """Those of the showcases' networks that are built here, and why others are not."""
    noise = np.random.default_rng(7)
    zeros = np.zeros((1, 1, 128), np.float32)
    frames = (noise.standard_normal((64, 576)) * 0.1).astype(np.float32)
    lines = noise.standard_normal((8, 3, 48, 192)).astype(np.float32)
    page = noise.integers(0, 256, (736, 992, 3)).astype(np.uint8)
    models = root / "model_repo" / "models"
    # Sides are multiples of 32 at all five sizes, and the middle, where the converter measures, is near a page's.
    sizes = ("--dim", "height=352..864", "--dim", "width=352..864", "--values", "IMAGE=0..255", "--batch-max", "1")
    wanted: dict[str, tuple[tuple[str, ...], dict[str, npt.NDArray[Any]]]] = {
        "voice_network": (("--dim", "sequence_length=16..128"), {"input": frames, "h": zeros, "c": zeros}),
        # Lines of a page come together.
        "ocr_angle": (("--dim", "x.2=48", "--dim", "x.3=192", "--optimize", "throughput"), {"x": lines}),
        "ocr_detect": (sizes, {"IMAGE": page}),
    }
    cases, absent = [], {}
    for name, (options, feeds) in wanted.items():
        source = models / name / "1" / "model.onnx"
        if not source.is_file():
            absent[name] = "not built here: make models"
            continue
        precise = ("--precision", "fp32,fp16", *options)
        cases.append(Case(name=name, kind="showcase", source=source, options=precise, feeds=feeds, budget=_STRICT))
    made = root / ".cache" / "showcases"
    source, data = made / "plain" / "text_network" / "1" / "model.onnx", made / "data" / "text_network.npz"
    if source.is_file() and data.is_file():
        cases.append(_text_case(source, data, noise))
    else:
        absent["text_network"] = "not built here: tollway models build sentence_embedding"
    return cases, absent


def _text_case(source: Path, data: Path, noise: np.random.Generator) -> Case:
    """Timed with one sentence of 32 tokens."""
    options = ("--to", "onnxruntime", "--precision", "fp32,int8_dynamic", "--budget", "int8_dynamic=1.5")
    return Case(
        name="text_network",
        kind="showcase",
        source=source,
        options=(*options, "--dim", "tokens=8..64", "--batch-max", "4"),
        feeds={"IDS": noise.integers(1_000, 30_000, (1, 32)), "MASK": np.ones((1, 32), np.int64)},
        budget=f"{_STRICT}; int8_dynamic on unseen sentences: relative RMS error at most 0.12, cosine at least 0.9925",
        data=data,
    )
