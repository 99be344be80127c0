"""Owns reproduce.sh: the command and the tool versions that gave a result, for another day or another machine."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converters.job import LABELS, Job


def render_script(
    source: str, data: Path | None, job: Job, report: Mapping[str, Any], further: Sequence[str] = ()
) -> str:
    """`further`: options of the import.

    A shell script; run beside the source (and the data), with the repository as its argument."""
    sha256 = report.get("source", {}).get("sha256", "")
    tools = " ".join(f"{name}=={version}" for name, version in report.get("tools", {}).items())
    lines = [
        "#!/bin/sh",
        "# Repeats a conversion. Usage: reproduce.sh REPOSITORY",
        f"# tools: {tools or 'unknown: the source was refused before they ran'}",
        f"# source: {shlex.quote(source)} digest {sha256 or 'unknown'} (model file and weights together)",
        "set -eu",
        "repository=${1:?usage: reproduce.sh REPOSITORY}",
        " ".join([*_words(source, data, job), *(shlex.quote(word) for word in further)])
        + ' --repository "$repository"',
    ]
    return "\n".join(lines) + "\n"


def _words(source: str, data: Path | None, job: Job) -> list[str]:
    words = ["tollway", "convert", source, "--name", job.name]
    words += ["--to", ",".join(job.engines), "--precision", ",".join(job.precisions)]
    words += ["--gpu", ",".join(job.gpus)] if job.gpus else []
    words += ["--plan", ",".join(job.plan)] if job.plan else []
    for name, (low, high) in job.dims.items():
        words += ["--dim", f"{name}={low}..{high}"]
    for name, (low, high) in job.values.items():
        words += ["--values", f"{name}={low}..{high}"]
    for name, factor in job.budgets.items():
        words += ["--budget", f"{name}={factor}"]
    if data is not None:
        words += ["--data", data.name]
    if job.labels:
        words += ["--labels", job.labels, "--metric-drop", str(job.metric_drop)]
    if job.label_output:
        words += ["--label-output", job.label_output]
    if job.class_names:
        words += ["--class-names", LABELS]
    words += ["--optimize", job.optimize, "--batch-max", str(job.batch_rows_max), "--threads", str(job.threads)]
    words += ["--rounds", str(job.rounds), "--seed", str(job.seed)]
    return [shlex.quote(word) for word in words]
