"""Owns `tollway convert toolchain`: the frameworks' environments, listed, installed and locked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.commands.convert_run import run_converters
from gateway.commands.output import print_json, print_table

app = typer.Typer(help="Environments of the frameworks that models come from.", no_args_is_help=True)
Toolchains = Annotated[
    Path | None,
    typer.Option(envvar="TOLLWAY_TOOLCHAINS", help="Folder of the environments; the user's cache if not given."),
]
_Names = Annotated[list[str] | None, typer.Argument(help="Toolchains; all if none is named.")]
_COLUMNS = ("toolchain", "framework", "formats", "state", "MiB", "folder")


@app.command("ls")
def ls(
    names: _Names = None,
    *,
    toolchains: Toolchains = None,
    as_json: Annotated[bool, typer.Option("--json", help="With the locked version of every package.")] = False,
) -> None:
    """Toolchains, what they read, and whether they are installed."""
    value = _ask("ls", names, toolchains)
    if as_json:
        print_json(value)
        return
    rows = [
        (one["name"], one["framework"], ", ".join(one["formats"]), one["state"], one["installed_mib"], one["folder"])
        for one in value["toolchains"]
    ]
    print_table(_COLUMNS, rows, right=frozenset({"MiB"}))


@app.command("install")
def install(
    names: Annotated[list[str], typer.Argument(help="Toolchains to install.")], *, toolchains: Toolchains = None
) -> None:
    """Install, from built packages with the locked hashes; what is there is left."""
    value = _ask("install", names, toolchains)
    for name, made in value["installed"].items():
        print(f"{name} is installed in {made['folder']}" + (f" ({made['build']} build)" if made["build"] else ""))


@app.command("lock")
def lock(names: _Names = None) -> None:
    """Resolve versions and hashes anew, in a checkout; needs uv."""
    for name, versions in _ask("lock", names, None)["locked"].items():
        print(f"{name}: {len(versions)} packages locked")


def _ask(action: str, names: Sequence[str] | None, root: Path | None) -> Mapping[str, Any]:
    request = {"action": action, "names": list(names or ()), "root": str(root.absolute()) if root else ""}
    answer = run_converters("toolchain", request)
    if answer["ev"] == "error":
        typer.echo(f"{answer['rule']}: {answer['message']}", err=True)
        typer.echo(f"next: {answer['next_step']}", err=True)
        raise typer.Exit(answer["exit_code"])
    found: Mapping[str, Any] = answer["value"]
    return found
