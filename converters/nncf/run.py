"""Owns starting the quantiser: our child writes what it is given, the toolchain's child quantises. The trusted side.

Its failures refuse one variant with a reason; the others go on.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from converters.child import Event, Limits, Program, run_child
from converters.errors import ConvertError, ToolFailed
from converters.host import has_vnni
from converters.job import Job
from converters.toolchains.specs import get_toolchain
from converters.toolchains.store import Installed, find_installed, missing

ENGINE: Final = "openvino"
PRECISION: Final = "int8"
KEY: Final = f"{ENGINE}-{PRECISION}"
_SYSTEM: Final = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/sys", "/dev")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiser:
    """`installed` None: the toolchain is not there, and `absent` says so."""

    installed: Installed | None
    absent: ToolFailed

    def key_parts(self) -> dict[str, str]:
        """What the variant depends on, beside source, data and job: for the cache's key."""
        return {"toolchain nncf": self.installed.lock_sha256 if self.installed else "absent"}


def find_quantiser(job: Job, toolchains: Path) -> Quantiser | None:
    """None: no variant that needs one is asked for.

    Raises:
        ToolFailed: nothing else is asked for, and the toolchain is not installed.
    """
    if ENGINE not in job.engines or PRECISION not in job.precisions:
        return None
    toolchain = get_toolchain("nncf")
    found = Quantiser(installed=find_installed(toolchain, toolchains), absent=missing(toolchain, toolchains))
    if found.installed is None and job.engines == (ENGINE,) and job.precisions == (PRECISION,):
        raise found.absent
    return found


def quantise(
    quantiser: Quantiser,
    asked: Mapping[str, Any],
    work: Path,
    *,
    limits: Limits,
    on_event: Callable[[Event], None],
) -> dict[str, Any]:
    """The variant as `converters.variants.Made` reads it: its folder and method, or the reason why there is none.

    `asked`: source, data and job. The child is over when this returns; it wrote below `work` only.
    """
    if quantiser.installed is None:
        return _none(quantiser.absent)
    if not asked["data"]:
        text = "int8 needs real inputs, and none were given"
        return {"reason": text, "next_step": "give real inputs with --data FILE.npz, or leave int8 out"}
    on_event({"ev": "progress", "step": "quantise by NNCF", "done": 0, "total": 1})
    try:
        run_child({**asked, "verb": "given"}, work, limits, on_event)
        request = {"verb": "quantise", "has_vnni": has_vnni()}
        made = run_child(request, work, limits, on_event, _program(quantiser.installed))
    except ConvertError as error:
        return _none(error)
    return {
        "folder": str((work / "quantise" / "made").absolute()),
        "method": made["method"],
        "tools": {"nncf": made["versions"]["nncf"], "nncf_lock": quantiser.installed.lock_sha256},
        "sandbox_gaps": made["sandbox_gaps"],
    }


def _none(error: ConvertError) -> dict[str, Any]:
    return {"reason": str(error), "next_step": error.next_step}


def _program(installed: Installed) -> Program:
    """Reads the toolchain, our code and the system's libraries; of the model only what lies in the work folder."""
    root = Path(__file__).parents[1]
    paths = (*(Path(path) for path in _SYSTEM), installed.folder, Path(sys.base_prefix), root)
    command = (str(installed.python), "-I", "-B", str(root / "importers" / "child.py"))
    return Program(command=command, environment={"CUDA_VISIBLE_DEVICES": ""}, read_paths=paths)
