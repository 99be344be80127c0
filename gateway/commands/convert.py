"""Owns `tollway convert`: a model file to a verified version in a repository. The work is done by a child process."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.commands.output import print_json, print_table

_COLUMNS = ("variant", "result", "ms", "rows/s", "bytes", "why")


def convert(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    *,
    name: Annotated[str, typer.Option(help="Name of the model in the repository.")],
    repository: Annotated[Path, typer.Option(help="Model repository in Triton's layout.")] = Path("model_repository"),
    to: Annotated[str, typer.Option(help="Engines: onnxruntime, openvino.")] = "onnxruntime,openvino",
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8 (needs --data).")] = "fp32,fp16",
    data: Annotated[Path | None, typer.Option(help="npz file of real inputs, rows first.")] = None,
    dim: Annotated[list[str] | None, typer.Option(help="Sizes of a variable axis: NAME=LOW..HIGH.")] = None,
    budget: Annotated[list[str] | None, typer.Option(help="PRECISION=FACTOR on the allowed error.")] = None,
    optimize: Annotated[str, typer.Option(help="latency or throughput.")] = "latency",
    batch_max: Annotated[int, typer.Option(help="Rows of the largest batch.")] = 32,
    threads: Annotated[int, typer.Option(help="Threads of one run.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds of measurement.")] = 9,
    seed: Annotated[int, typer.Option(help="Of generated inputs and of the split of the data.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the reports; NAME-conversion if not given.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder of finished conversions.")] = Path(".tollway-convert-cache"),
    memory_bytes: Annotated[int, typer.Option(help="Address space of the child.", min=1 << 28)] = 8 << 30,
    time_s: Annotated[int, typer.Option(help="Seconds that the child may take.", min=1)] = 1_800,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Convert, verify, measure and publish; exit 2 usage, 3 verification, 4 unsafe input, 5 unfit target, 6 tool."""
    folder = out or Path(f"{name}-conversion")
    request = {
        "source": str(model),
        "data": str(data) if data is not None else "",
        "repository": str(repository),
        "cache": str(cache),
        "out": str(folder),
        "dims": dim or [],
        "budgets": budget or [],
        "limits": {"memory_bytes_max": memory_bytes, "time_s_max": time_s},
        "job": {
            "name": name,
            "engines": [word for word in to.split(",") if word],
            "precisions": [word for word in precision.split(",") if word],
            "optimize": optimize,
            "batch_rows_max": batch_max,
            "threads": threads,
            "rounds": rounds,
            "seed": seed,
        },
    }
    answer = _run_with_bar(request) if Console(stderr=True).is_terminal else _run(request, lambda event: None)
    _print(answer, folder, as_json=as_json)
    if answer["ev"] == "error":
        raise typer.Exit(answer["exit_code"])


def _run_with_bar(request: Mapping[str, Any]) -> Mapping[str, Any]:
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("start", total=None)

        def show(event: Mapping[str, Any]) -> None:
            if event["ev"] == "progress":
                bar.update(task, description=event["step"], completed=event["done"], total=event["total"])

        return _run(request, show)


def _run(request: Mapping[str, Any], on_event: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
    """The last event, `result` or `error`."""
    # -P: a folder called converters where the user stands must not be taken for ours.
    command = [sys.executable, "-P", "-m", "converters", "convert"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:
            raise typer.Exit(6)
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        for line in process.stdout:
            event: Mapping[str, Any] = json.loads(line)
            if event["ev"] in {"result", "error"}:
                return event
            on_event(event)
            if event["ev"] == "log":
                typer.echo(event["text"], err=True)
    code = process.returncode
    return {
        "ev": "error",
        "rule": "child",
        "message": f"the conversion ended with {code} and no result",
        "next_step": "see the messages above",
        "exit_code": 6,
    }


def _print(answer: Mapping[str, Any], out: Path, *, as_json: bool) -> None:
    if answer["ev"] == "error":
        path = out / "report.json"
        known = json.loads(path.read_bytes()) if path.is_file() else {}
        # A report of an earlier run at this place is not of this failure.
        report = known if known.get("error", {}).get("message") == answer["message"] else {}
        error = {key: answer[key] for key in ("rule", "message", "next_step", "exit_code")}
        if as_json:
            print_json({**report, "error": error})
            return
        _print_variants(report)
        typer.echo(f"{answer['rule']}: {answer['message']}", err=True)
        typer.echo(f"next: {answer['next_step']}", err=True)
        return
    report = answer["value"]
    if as_json:
        print_json(report)
        return
    _print_variants(report)
    published = report["published"]
    said = "published" if published["is_new"] else "was already published"
    cached = " (from the cache)" if report["is_cached"] else ""
    print(f"{report['selected']} {said} as {report['name']} version {published['version']}{cached}")
    print(f"{report['speedup']:.2f} times as fast as the plain source; report: {out / 'report.html'}")


def _print_variants(report: Mapping[str, Any]) -> None:
    rows = [
        (
            f"{one['engine']} {one['precision']}",
            one["status"],
            f"{one['speeds'][0]['median_ns'] / 1e6:.3f}" if one["speeds"] else None,
            f"{max(speed['rows_per_s'] for speed in one['speeds']):,.0f}" if one["speeds"] else None,
            one["size_bytes"] or None,
            one["reason"] or one["method"],
        )
        for one in report.get("variants", [])
    ]
    if rows:
        print_table(_COLUMNS, rows, right=frozenset({"ms", "rows/s", "bytes"}))
