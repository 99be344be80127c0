"""Owns `tollway models tune`: finds batch size and delay of a model against a latency target, and writes them down."""

import asyncio
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from gateway.commands.client import AsJson, fail
from gateway.commands.oip_client import HEADER_LENGTH
from gateway.commands.output import print_json, print_table
from gateway.commands.tuning import (
    Candidate,
    Measured,
    TuningError,
    copy_model,
    load,
    request_bytes,
    running_engine,
    summarise,
    tune,
    wait_ready,
)
from model_repo.config import ModelConfig, TensorSpec, parse_config
from model_repo.config_edit import with_batching
from model_repo.errors import RepositoryError

DEFAULT_REPOSITORY: Final = Path("model_repo/models")
_CONFIG_BYTES_MAX: Final = 1 << 20
_REQUEST_BYTES_MAX: Final = 64 << 20
_CONCURRENCY_MAX: Final = 1024
#: struct's letter for each datatype that can be filled, and what it is filled with.
_FILLS: Final[dict[str, tuple[str, float]]] = {
    **{f"FP{bits}": (letter, 0.5) for bits, letter in ((16, "e"), (32, "f"), (64, "d"))},
    **{f"INT{bits}": (letter, 0) for bits, letter in ((8, "b"), (16, "h"), (32, "i"), (64, "q"))},
    **{f"UINT{bits}": (letter, 0) for bits, letter in ((8, "B"), (16, "H"), (32, "I"), (64, "Q"))},
    "BOOL": ("?", 0),
}
_COLUMNS: Final = ("batch", "delay µs", "calls/s", "p50 ms", "p99 ms", "")


def tune_(
    model: Annotated[str, typer.Argument(help="The model, a folder of the repository.", show_default=False)],
    *,
    target_ms: Annotated[float, typer.Option(min=0.01, help="What 99 of 100 calls must keep.", show_default=False)],
    repository: Annotated[Path, typer.Option(help="The model repository.")] = DEFAULT_REPOSITORY,
    concurrency: Annotated[int, typer.Option(min=1, max=_CONCURRENCY_MAX, help="Callers side by side.")] = 32,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Of measuring, each candidate.")] = 1.0,
    threads: Annotated[int, typer.Option(min=0, help="Of the engine; 0: one per core.")] = 0,
    request: Annotated[Path | None, typer.Option(help="A call of one row as OIP's JSON; default: made up.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, and leave config.pbtxt as it is.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure batch sizes and delays of a model, and write the fastest that keeps the target to its config.pbtxt."""
    path = repository / model / "config.pbtxt"
    text = _read(path)
    try:
        config = parse_config(text, name=model)
        call = _request(config, request)
        with _measuring(
            repository / model, text, call, concurrency=concurrency, seconds=seconds, threads=threads
        ) as measure:
            found, best = _run(measure, config, target_ms, is_quiet=as_json)
        chosen = with_batching(text, best.candidate.rows, best.candidate.delay_us) if best is not None else text
    except (RepositoryError, TuningError) as error:
        fail(f"{model}: {error}")
    is_written = not dry_run and best is not None and chosen != text
    if is_written:
        _write(path, chosen)
    _show(found, best, path, is_written=is_written, as_json=as_json)
    if best is None:
        fail(f"{model}: no batch size keeps {target_ms:g} ms with {concurrency} callers; nothing was changed")


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_CONFIG_BYTES_MAX)
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path}: {getattr(error, 'strerror', None) or error}")


def _request(config: ModelConfig, file: Path | None) -> bytes:
    """The call that is made again and again.

    Raises:
        TuningError: the model has no batches to tune, or none of its calls can be made up.
    """
    if config.platform == "ensemble":
        raise TuningError("an ensemble has no batches of its own: tune its steps")
    if config.batch_rows_max < 2:
        raise TuningError(f"max_batch_size is {config.batch_rows_max}: there are no batches to tune")
    target = f"/v2/models/{config.name}/infer"
    if file is not None:
        try:
            with file.open("rb") as opened:
                body = opened.read(_REQUEST_BYTES_MAX)
        except OSError as error:
            raise TuningError(f"{file}: {error.strerror or error}") from error
        return request_bytes("POST", target, body, "content-type: application/json\r\n")
    tensors, blobs = zip(*(_filled(spec) for spec in config.inputs if not spec.is_optional), strict=True)
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    headers = f"content-type: application/octet-stream\r\n{HEADER_LENGTH}: {len(head)}\r\n"
    return request_bytes("POST", target, head + b"".join(blobs), headers)


def _filled(spec: TensorSpec) -> tuple[dict[str, Any], bytes]:
    """One row of an input; variable sizes are 1."""
    if spec.datatype not in _FILLS:
        raise TuningError(f"input '{spec.name}' of {spec.datatype} cannot be made up: give a call with --request")
    shape = [1, *(1 if size == -1 else size for size in spec.dims)]
    count = 1
    for size in shape:
        count *= size
    letter, value = _FILLS[spec.datatype]
    blob = struct.pack(f"<{letter}", value) * count
    parameters = {"binary_data_size": len(blob)}
    return {"name": spec.name, "datatype": spec.datatype, "shape": shape, "parameters": parameters}, blob


@contextmanager
def _measuring(
    folder: Path, text: str, call: bytes, *, concurrency: int, seconds: float, threads: int
) -> Iterator[Callable[[Candidate], Measured]]:
    """A function that measures a candidate in an engine that serves nothing else."""
    with tempfile.TemporaryDirectory(prefix="tollway-tune-") as name:

        async def load_candidate(path: Path, candidate: Candidate) -> Measured:
            await wait_ready(path, folder.name)
            return summarise(candidate, *await load(path, call, concurrency, seconds))

        def measure(candidate: Candidate) -> Measured:
            repository = Path(name) / f"{candidate.rows}-{candidate.delay_us}"
            copy_model(folder, repository / folder.name, with_batching(text, candidate.rows, candidate.delay_us))
            with running_engine(repository, ["--threads", str(threads)]) as path:
                return asyncio.run(load_candidate(path, candidate))

        yield measure


def _run(
    measure: Callable[[Candidate], Measured], config: ModelConfig, target_ms: float, *, is_quiet: bool
) -> tuple[list[Measured], Measured | None]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True, quiet=is_quiet)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"measuring {config.name}", total=None)

        def report(one: Measured, done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, description=f"measured {_words(one.candidate)}")

        return tune(measure, config.batch_rows_max, target_ms, report)


def _words(candidate: Candidate) -> str:
    if not candidate.rows:
        return "no batching"
    return f"batches of {candidate.rows}" + (f", {candidate.delay_us} µs" if candidate.delay_us else "")


def _write(path: Path, text: str) -> None:
    """Beside, then renamed: an engine that reloads never reads half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        fail(f"{path}: {error.strerror or error}")


def _show(found: Sequence[Measured], best: Measured | None, path: Path, *, is_written: bool, as_json: bool) -> None:
    if as_json:
        chosen = asdict(best.candidate) if best is not None else None
        answer = {"measured": [asdict(one) for one in found], "chosen": chosen, "written": is_written}
        print_json(answer)
        return
    rows = [
        (
            one.candidate.rows or "none",
            one.candidate.delay_us,
            f"{one.calls_per_s:.0f}",
            f"{one.p50_ms:.2f}",
            f"{one.p99_ms:.2f}",
            "chosen" if one is best else f"{one.failed} failed" if one.failed else "",
        )
        for one in found
    ]
    print_table(_COLUMNS, rows, right=frozenset(_COLUMNS[:5]))
    if is_written:
        typer.echo(f"{path} is written; it holds from the next load of the model")
    elif best is not None:
        typer.echo(f"{path} stays as it is")
