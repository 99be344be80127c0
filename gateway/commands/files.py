"""Owns how the verbs send a catalogue or price book: the file as it is, so that control's errors name its fields."""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gateway.commands.client import fail

#: What control takes (docs/plans-and-prices.md); told here, because a larger body is refused without a look.
CHARS_MAX: Final = 900_000
File = Annotated[Path, typer.Argument(help="TOML or JSON file (docs/plans-and-prices.md).", show_default=False)]


def file_body(file: Path) -> dict[str, Any]:
    """The request body that carries `file`. Ends the command when it cannot be read as text."""
    try:
        text = file.read_bytes().decode()
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    except UnicodeDecodeError as error:
        fail(f"{file}: is not UTF-8 text: {error.reason} at byte {error.start}")
    if len(text) > CHARS_MAX:
        fail(f"{file}: {len(text)} characters are more than the {CHARS_MAX} allowed: split the file")
    return {"name": file.name, "format": "json" if file.suffix.lower() == ".json" else "toml", "text": text}
