"""Owns `python -m converters convert` and `toolchain`: a JSON request on standard input, JSON lines out
(docs/converters.md).

`child` is the same program behind its limits; it is started by the former and by nothing else.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from converters.errors import ConvertError, ToolFailed, UsageFault
from converters.sandbox import die_with


def main() -> int:
    verb = sys.argv[1] if len(sys.argv) == 2 else ""
    if verb == "child":
        from converters.child import main_child

        return main_child()
    if verb == "selftest":
        return _selftest()
    verbs = {"convert": _run, "toolchain": _toolchain, "showcases": _showcases}
    if verb not in verbs:
        usage = f"usage: python -m converters {'|'.join(verbs)} < request.json, or: python -m converters selftest\n"
        sys.stderr.write(usage)
        return 2
    return _answer(verbs[verb])


def _emit(event: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def _selftest() -> int:
    """1: the gate missed a fault or raised a false alarm."""
    from converters.selftest.run import selftest

    value = selftest(_emit)
    _emit({"ev": "result", "value": value})
    return 1 if value["caught"] < len(value["faults"]) or value["false_alarms"] else 0


def _answer(run: Callable[[Mapping[str, Any], Callable[[Mapping[str, Any]], None]], dict[str, Any]]) -> int:
    # Who asked and is gone has no use for the answer; what is started here goes with this process in turn.
    die_with(os.getppid())
    try:
        _emit({"ev": "result", "value": run(json.loads(sys.stdin.buffer.read()), _emit)})
    except ConvertError as error:
        _emit(
            {
                "ev": "error",
                "rule": error.rule,
                "message": str(error),
                "next_step": error.next_step,
                "exit_code": error.exit_code,
            }
        )
        return error.exit_code
    return 0


def _toolchain(value: Mapping[str, Any], emit: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    from converters.toolchains.serve import serve

    return serve(value, emit)


def _showcases(value: Mapping[str, Any], emit: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    from converters.showcases.run import serve

    return serve(value, emit)


def _run(value: Mapping[str, Any], emit: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    from converters.child import Limits
    from converters.flow import Request, convert
    from converters.job import Job, parse_budgets, parse_dims, parse_values

    try:
        job = Job.from_json(
            {
                **value["job"],
                "dims": parse_dims(value["dims"]),
                "values": parse_values(value.get("values", [])),
                "budgets": parse_budgets(value["budgets"]),
            }
        )
        request = Request(
            source=Path(value["source"]),
            job=job,
            data=Path(value["data"]) if value["data"] else None,
            repository=Path(value["repository"]),
            cache=Path(value["cache"]),
            out=Path(value["out"]),
            limits=Limits(**value["limits"]),
            framework=value.get("framework", ""),
            code=Path(value["code"]) if value.get("code") else None,
            inputs=tuple(value.get("inputs", ())),
            toolchains=Path(value["toolchains"]) if value.get("toolchains") else None,
            keeps_source=bool(value.get("keep_source")),
        )
    except (KeyError, TypeError) as error:
        raise UsageFault("request", f"not a request: {error}", next_step="see docs/converters.md") from error
    try:
        return convert(request, emit)
    except OSError as error:
        step = "choose folders for --repository, --cache and --out that can be written, with room on the disk"
        raise ToolFailed("disk", f"{error.filename}: {error.strerror}", next_step=step) from error


if __name__ == "__main__":
    sys.exit(main())
