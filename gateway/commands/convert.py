"""Owns `tollway convert`: a model file to a verified version in a repository. The work is done by a child process."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.commands.convert_run import FirstWordGroup, run_converters
from gateway.commands.convert_toolchain import Toolchains
from gateway.commands.convert_toolchain import app as toolchain_app
from gateway.commands.output import print_json, print_table

app = typer.Typer(cls=FirstWordGroup, help="Convert a model, verified and measured, into a repository.")
app.add_typer(toolchain_app, name="toolchain")
NAMES_BYTES_MAX = 1 << 20
_COLUMNS = ("variant", "result", "ms", "rows/s", "bytes", "why")


@app.command("model")
def convert(
    model: Annotated[Path, typer.Argument(help="A model file or folder: ONNX, or of a framework's toolchain.")],
    *,
    name: Annotated[str, typer.Option(help="Name of the model in the repository.")],
    repository: Annotated[Path, typer.Option(help="Model repository in Triton's layout.")] = Path("model_repository"),
    to: Annotated[
        str, typer.Option(help="Engines: onnxruntime, openvino; plans for GPUs: tensorrt_rtx, tensorrt.")
    ] = "onnxruntime,openvino",
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8 (needs --data).")] = "fp32,fp16",
    gpu: Annotated[
        str, typer.Option(help="Compute capabilities that tensorrt_rtx compiles for, such as 8.6,8.9.")
    ] = "",
    plan: Annotated[str, typer.Option(help="How plans are built, such as tf32,batch_invariant (docs/plans.md).")] = "",
    data: Annotated[Path | None, typer.Option(help="npz file of real inputs, rows first.")] = None,
    dim: Annotated[list[str] | None, typer.Option(help="Sizes of a variable axis: NAME=LOW..HIGH.")] = None,
    values: Annotated[list[str] | None, typer.Option(help="What an integer input holds: NAME=LOW..HIGH.")] = None,
    budget: Annotated[list[str] | None, typer.Option(help="PRECISION=FACTOR on the allowed error.")] = None,
    optimize: Annotated[str, typer.Option(help="latency or throughput.")] = "latency",
    batch_max: Annotated[int, typer.Option(help="Rows of the largest batch; 0: the engine makes none.")] = 32,
    threads: Annotated[int, typer.Option(help="Threads of one run.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds of measurement.")] = 9,
    seed: Annotated[int, typer.Option(help="Of generated inputs and of the split of the data.")] = 0,
    labels: Annotated[str, typer.Option(help="Array of --data with a label a row: classes, or wanted outputs.")] = "",
    label_output: Annotated[str, typer.Option(help="The output that labels and class names are of.")] = "",
    metric_drop: Annotated[float, typer.Option(help="How much of the task metric may be lost, as a share.")] = 0.01,
    class_names: Annotated[Path | None, typer.Option(help="Text file, a class a line: labels.txt.")] = None,
    framework: Annotated[str, typer.Option("--from", help="Framework of weights or code; torch if not given.")] = "",
    code: Annotated[Path | None, typer.Option(help="Python file that builds the model around the weights.")] = None,
    model_input: Annotated[
        list[str] | None, typer.Option("--input", help="Of a source that does not say: NAME=TYPE[AXIS,AXIS].")
    ] = None,
    toolchains: Toolchains = None,
    keep_source: Annotated[
        bool, typer.Option("--keep-source", help="Publish the ONNX source too: `tollway models rebuild` needs it.")
    ] = False,
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
        "values": values or [],
        "budgets": budget or [],
        "framework": framework,
        "code": str(code) if code is not None else "",
        "inputs": model_input or [],
        "toolchains": str(toolchains) if toolchains is not None else "",
        "keep_source": keep_source,
        "limits": {"memory_bytes_max": memory_bytes, "time_s_max": time_s},
        "job": {
            "name": name,
            "engines": [word for word in to.split(",") if word],
            "precisions": [word for word in precision.split(",") if word],
            "gpus": [word for word in gpu.split(",") if word],
            "plan": [word for word in plan.split(",") if word],
            "optimize": optimize,
            "batch_rows_max": batch_max,
            "threads": threads,
            "rounds": rounds,
            "seed": seed,
            "labels": labels,
            "label_output": label_output,
            "metric_drop": metric_drop,
            "class_names": _read_names(class_names),
        },
    }
    answer = run_converters("convert", request)
    _print(answer, folder, as_json=as_json)
    if answer["ev"] == "error":
        raise typer.Exit(answer["exit_code"])


def _read_names(path: Path | None) -> list[str]:
    """Exit 2: no text file of a bearable size."""
    if path is None:
        return []
    try:
        if path.stat().st_size > NAMES_BYTES_MAX:
            raise ValueError(f"more than {NAMES_BYTES_MAX} bytes")
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        typer.echo(f"--class-names {path}: {getattr(error, 'strerror', None) or error}", err=True)
        raise typer.Exit(2) from error


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
    ratio = report["speedup"]
    speed = "not measured: it needs a GPU" if ratio is None else f"{ratio:.2f} times as fast as the plain source"
    print(f"{speed}; report: {out / 'report.html'}")


def _print_variants(report: Mapping[str, Any]) -> None:
    rows = [
        (
            " ".join(word for word in (one["engine"], one["precision"], one.get("compute_capability")) if word),
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
