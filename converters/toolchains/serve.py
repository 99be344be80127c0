"""Owns `python -m converters toolchain`: a JSON request on standard input, JSON lines out, as of a conversion."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from converters.errors import UsageFault
from converters.toolchains.lock import lock
from converters.toolchains.specs import TOOLCHAINS, get_toolchain
from converters.toolchains.store import default_root, install, list_toolchains

Emit = Callable[[Mapping[str, Any]], None]


def serve(value: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    """Do `action` (ls, install or lock) on the toolchains `names`, all if there are none.

    Raises:
        ConvertError: no such toolchain, or it cannot be installed or locked.
    """
    action, root = value.get("action"), Path(value["root"]) if value.get("root") else default_root()
    chosen = [get_toolchain(str(name)) for name in value.get("names", ())] or list(TOOLCHAINS)
    if action == "ls":
        rows = list_toolchains(root)
        return {"root": str(root), "toolchains": [row for row in rows if row["name"] in {one.name for one in chosen}]}
    if action == "lock":
        return {"locked": {one.name: lock(one) for one in chosen}}
    if action != "install":
        raise UsageFault("action", f"there is no action {action!r}", next_step="ls, install or lock")
    made = {}
    for one in chosen:

        def progress(step: str, done: int, total: int, name: str = one.name) -> None:
            emit({"ev": "progress", "step": f"{name}: {step}", "done": done, "total": total})

        found = install(one, root, progress)
        made[one.name] = {"folder": str(found.folder), "build": found.build}
    return {"root": str(root), "installed": made}
