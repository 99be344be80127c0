"""Owns how the verbs of conversion run the converters: a child process, JSON in, JSON lines out, a bar for people."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from typer.core import TyperGroup


class FirstWordGroup(TyperGroup):
    """A first word that is none of the group's verbs is the argument of its first verb: `convert MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["model", *(args or ["--help"])]
        return super().parse_args(ctx, args)


def run_converters(verb: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The last event of `python -m converters VERB`, `result` or `error`; what it logs goes to standard error."""
    if Console(stderr=True).is_terminal:
        return _run_with_bar(verb, request)
    return _run(verb, request, lambda event: None)


def _run_with_bar(verb: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("start", total=None)

        def show(event: Mapping[str, Any]) -> None:
            if event["ev"] == "progress":
                bar.update(task, description=event["step"], completed=event["done"], total=event["total"])

        return _run(verb, request, show)


def _run(verb: str, request: Mapping[str, Any], on_event: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
    # -P: a folder called converters where the user stands must not be taken for ours.
    command = [sys.executable, "-P", "-m", "converters", verb]
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
    return {
        "ev": "error",
        "rule": "child",
        "message": f"the converters ended with {process.returncode} and no result",
        "next_step": "see the messages above",
        "exit_code": 6,
    }
