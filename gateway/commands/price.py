"""Owns `tollway price`: the mount of `quote`."""

import typer

from gateway.commands.prices import quote

app = typer.Typer(help="What calls would cost.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """What calls would cost."""


app.command("quote")(quote)
