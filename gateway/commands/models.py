"""Owns `tollway models`: what the backends hold."""

import typer

from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, open_api
from gateway.commands.models_tune import tune_
from gateway.commands.output import print_json, print_table

app = typer.Typer(help="Models, as their backends report them.", no_args_is_help=True)
COLUMNS = ("name", "version", "state", "reason", "backend")

app.command("tune")(tune_)


@app.command("list")
def list_(*, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False) -> None:
    """List models; backends that do not answer are named on stderr."""
    with open_api(data_dir, api) as control:
        answer = control.get("/admin/models")
    if as_json:
        print_json(answer)
        return
    print_table(COLUMNS, ([model[column] for column in COLUMNS] for model in answer["models"]))
    for backend in answer["backends"]:
        if backend["problem"] is not None:
            typer.echo(f"backend {backend['name']} {backend['problem']}", err=True)
