"""Owns `tollway models`: what the backends hold, and what lies in a repository."""

from typing import Annotated

import typer

from gateway.commands import models_repository
from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, fail, open_api
from gateway.commands.models_build import build
from gateway.commands.models_rebuild import rebuild
from gateway.commands.models_tune import tune_
from gateway.commands.output import print_json, print_table

app = typer.Typer(help="Models: what backends hold, and what lies in a repository.", no_args_is_help=True)
COLUMNS = ("name", "version", "state", "reason", "backend")

app.command("tune")(tune_)
for verb in ("publish", "diff", "verify", "approve", "alias", "sign", "keygen", "gc"):
    app.command(verb)(getattr(models_repository, verb))
app.command("pull")(models_repository.pull_)
app.command("rebuild")(rebuild)
app.command("build")(build)


@app.command("list")
def list_(
    model: Annotated[str | None, typer.Argument(help="With --repository: one model.", show_default=False)] = None,
    *,
    repository: Annotated[
        str | None, typer.Option(help="Look into a repository instead: a folder, file:///PATH or s3://BUCKET/PREFIX.")
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """List models; backends that do not answer are named on stderr."""
    if repository is not None:
        models_repository.show(repository, model, as_json=as_json)
        return
    if model is not None:
        fail("a model is named with --repository only: backends are asked for all")
    with open_api(data_dir, api) as control:
        answer = control.get("/admin/models")
    if as_json:
        print_json(answer)
        return
    print_table(COLUMNS, ([model[column] for column in COLUMNS] for model in answer["models"]))
    for backend in answer["backends"]:
        if backend["problem"] is not None:
            typer.echo(f"backend {backend['name']} {backend['problem']}", err=True)
