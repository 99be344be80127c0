"""Owns the OCR scenario: pages per second of the `ocr` product through the gateway, and of the package it is made from.

Both read the sample pages on one core, one after the other. The package runs its own pipeline in a process of its own,
with one thread a network as its core has no more: as it comes (six lines a batch), and with one line a batch, which is
how the product reads and what gives the same text. The product is divided by the fastest of those with the same text.
"""

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from loadtests.contenders import Contender
from loadtests.contenders.model_servers import environment_of
from loadtests.contenders.tollway import start_tollway
from loadtests.payloads import HTTP_PATH
from loadtests.processes import BenchError, Cores, cpu_ns_by_role, read_cpu, stop

_ROOT: Final = Path(__file__).parent.parent
_SAMPLES: Final = _ROOT / "model_repo" / "showcases" / "samples"
PAGES: Final = ("invoice.png", "slanted.jpg", "upside_down.jpg")
#: Lines a batch of the package's recogniser; 0: its default.
VARIANTS: Final = {"source": 0, "source_line_by_line": 1}
_CALLERS: Final = 2
_SCRIPT: Final = Path(__file__).parent / "contenders" / "ocr_source.py"

#: Page → its texts.
Texts = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OcrRun:
    """One round of one side. CPU seconds a page are those of its whole process tree."""

    side: str
    pages_per_s: float
    cpu_s_per_page: float
    texts: Texts


@dataclass(frozen=True, slots=True, kw_only=True)
class OcrResult:
    """Medians by side: "product" and the variants of the package. `lines_alike`: (lines of equal text, all lines)."""

    pages_per_s: dict[str, float]
    cpu_s_per_page: dict[str, float]
    lines_alike: dict[str, tuple[int, int]]
    rounds: tuple[dict[str, float], ...]
    ratio: float | None
    problems: tuple[str, ...]


def alike(one: Texts, other: Texts) -> tuple[int, int]:
    """How many lines of `one` are in `other`, and how many `one` has; the order of lines within a page is free."""
    count = 0
    for page, lines in one.items():
        left = list(other.get(page, ()))
        for line in lines:
            if line in left:
                left.remove(line)
                count += 1
    return count, sum(map(len, one.values()))


def build_product(repository: Path) -> Path:
    """The `ocr` product by the model package's own command. Raises BenchError."""
    command = [sys.executable, "-m", "model_repo.build", "--into", str(repository), "--only", "ocr"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT, timeout=300)
    if done.returncode != 0:
        raise BenchError(f"the ocr product was not built: {done.stderr[-500:]}")
    return repository


def run_source(variant: str, seconds: int, core: int) -> OcrRun:
    """The package's own pipeline. Raises BenchError; NotInstalled where its environment is missing."""
    python = environment_of("rapidocr") / "bin" / "python"
    pages = [str(_SAMPLES / page) for page in PAGES]
    command = ["taskset", "-c", str(core), str(python), str(_SCRIPT), str(seconds), str(VARIANTS[variant]), "1", *pages]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120 + 2 * seconds)
    if done.returncode != 0:
        raise BenchError(f"the source package ended with {done.returncode}: {done.stderr[-500:]}")
    return OcrRun(side=variant, **json.loads(done.stdout.splitlines()[-1]))


def ask(contender: Contender, page: str) -> list[str]:
    """The texts of a page, by a call of the product. Raises BenchError."""
    image = (_SAMPLES / page).read_bytes()
    packed = len(image).to_bytes(4, "little") + image
    parameters = {"binary_data_size": len(packed)}
    inputs = [{"name": "IMAGE", "shape": [1], "datatype": "BYTES", "parameters": parameters}]
    head = json.dumps({"inputs": inputs, "outputs": [{"name": "TEXT"}]}).encode()
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
        **dict(contender.headers),
    }
    url = f"{contender.http}{HTTP_PATH.format(model='ocr')}"
    request = urllib.request.Request(url, data=head + packed, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=60) as reply:
        texts: list[str] = json.load(reply)["outputs"][0]["data"]
    return texts


def run_product(contender: Contender, seconds: int) -> OcrRun:
    """`_CALLERS` callers that go through the pages until time is up; counted to the end of the last call."""
    assert contender.process is not None
    texts = {page: ask(contender, page) for page in PAGES}
    faults: list[Exception] = []
    counts = [0] * _CALLERS
    before = read_cpu(contender.process.pid)
    begun_s = time.perf_counter()

    def call(number: int) -> None:
        try:
            while time.perf_counter() - begun_s < seconds:
                for page in PAGES:
                    ask(contender, page)
                    counts[number] += 1
        except (OSError, ValueError, KeyError) as error:
            faults.append(error)

    callers = [threading.Thread(target=call, args=(number,), name=f"caller-{number}") for number in range(_CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    took_s = time.perf_counter() - begun_s
    if faults:
        raise BenchError(f"the ocr product failed: {faults[0]}")
    cpu_s = sum(cpu_ns_by_role(before, read_cpu(contender.process.pid)).values()) / 1e9
    pages = sum(counts)
    return OcrRun(side="product", pages_per_s=pages / took_s, cpu_s_per_page=cpu_s / pages, texts=texts)


def run_ocr(workdir: Path, cores: Cores, *, rounds: int, seconds: int) -> OcrResult:
    """Alternate the product and both variants of the package. Raises BenchError; NotInstalled without the package."""
    environment_of("rapidocr")
    models = build_product(workdir / "ocr_models")
    runs: list[OcrRun] = []
    contender = start_tollway(
        "all", None, workdir, core=cores.server, name="tollway_ocr", models=models, runs_python=True
    )
    assert contender.process is not None
    try:
        for _ in range(rounds):
            runs.append(run_product(contender, seconds))
            runs += [run_source(variant, seconds, cores.server) for variant in VARIANTS]
    finally:
        stop(contender.process)
    return summarise_ocr(runs)


def summarise_ocr(runs: Sequence[OcrRun]) -> OcrResult:
    """Medians of each side; the ratio is to the fastest variant whose text is the product's, line by line."""
    sides: dict[str, list[OcrRun]] = {}
    for run in runs:
        sides.setdefault(run.side, []).append(run)
    rates = {side: median(run.pages_per_s for run in group) for side, group in sides.items()}
    wanted = sides["product"][0].texts
    lines = {side: alike(group[0].texts, wanted) for side, group in sides.items() if side != "product"}
    same = [side for side, (count, whole) in lines.items() if count == whole == sum(map(len, wanted.values()))]
    problems = [] if same else ["no variant of the source package reads the product's text"]
    return OcrResult(
        pages_per_s=rates,
        cpu_s_per_page={side: median(run.cpu_s_per_page for run in group) for side, group in sides.items()},
        lines_alike=lines,
        rounds=tuple(
            {side: group[number].pages_per_s for side, group in sides.items()}
            for number in range(len(sides["product"]))
        ),
        ratio=rates["product"] / max(rates[side] for side in same) if same else None,
        problems=tuple(problems),
    )
