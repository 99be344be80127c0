"""Owns bringing a framework's model in: its environment is started twice, to export the source and to answer our cases.

The trusted side: it reads bytes and digests only. Export → cases (our child) → the framework's answers.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from converters.child import Event, Limits, Program, run_child
from converters.formats import source_files, tree_sha256
from converters.importers.protocol import parse_inputs
from converters.job import Job
from converters.toolchains.specs import toolchain_of
from converters.toolchains.store import Installed, get_installed

_SYSTEM: Final = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/sys", "/dev", "/run/systemd/resolve")
#: Frameworks look for accelerators, talk, and start as many threads as there are cores.
_ENVIRONMENT: Final = {
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "JAX_PLATFORMS": "cpu",
    "KERAS_BACKEND": "tensorflow",
    "GLOG_minloglevel": "3",
    "GLOG_v": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """A source of a framework. `code`: the Python file that builds the model; `inputs`: as `--input` states them."""

    format: str
    source: Path
    code: Path | None
    inputs: tuple[str, ...]
    installed: Installed

    @property
    def sha256(self) -> str:
        """Of the source's files and the code."""
        return tree_sha256(self.source, *(() if self.code is None else (self.code,)))

    def key_parts(self) -> dict[str, str]:
        """What the export depends on, beside the source: for the cache's key."""
        toolchain = f"{self.installed.toolchain.name} {self.installed.build} {self.installed.lock_sha256}"
        return {"format": self.format, "toolchain": toolchain, "inputs": " ".join(self.inputs)}


def open_foreign(
    format_name: str, source: Path, code: Path | None, inputs: tuple[str, ...], toolchains: Path
) -> Foreign:
    """Raises: ToolFailed: the format's toolchain is not installed; UsageFault: inputs of another form."""
    parse_inputs(list(inputs))
    installed = get_installed(toolchain_of(format_name), toolchains)
    return Foreign(format=format_name, source=source, code=code, inputs=inputs, installed=installed)


def bring_in(
    foreign: Foreign,
    job: Job,
    data: Path | None,
    work: Path,
    *,
    limits: Limits,
    on_event: Callable[[Event], None],
) -> tuple[Path, dict[str, Any]]:
    """Export into `work` and have the framework answer every case. Returns the ONNX file and the facts of its origin.

    Raises:
        ConvertError: refused, or a tool failed; nothing but `work` was written.
    """
    program = _program(foreign, work)
    on_event({"ev": "progress", "step": f"export by {foreign.installed.toolchain.title}", "done": 0, "total": 1})
    made = run_child(_request("export", foreign), work, limits, on_event, program)
    model = work / "export" / "model.onnx"
    asked = {
        "verb": "cases",
        "source": str(model.absolute()),
        "data": str(data.absolute()) if data is not None else "",
        "job": job.to_json(),
    }
    run_child(asked, work, limits, on_event)
    answered = run_child(_request("answer", foreign), work, limits, on_event, program)
    return model, _facts(foreign, made, answered)


def _request(verb: str, foreign: Foreign) -> dict[str, Any]:
    return {
        "verb": verb,
        "format": foreign.format,
        "source": str(foreign.source.absolute()),
        "code": str(foreign.code.absolute()) if foreign.code is not None else "",
        "inputs": list(foreign.inputs),
    }


def _facts(foreign: Foreign, made: Mapping[str, Any], answered: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": foreign.format,
        "framework": foreign.installed.toolchain.title,
        "toolchain": {
            "name": foreign.installed.toolchain.name,
            "build": foreign.installed.build,
            "lock_sha256": foreign.installed.lock_sha256,
            "versions": made["versions"],
        },
        "method": made["method"],
        "notes": made["notes"],
        "classes": made["classes"],
        "answers": dict(answered),
        "import_sandbox_gaps": made["sandbox_gaps"],
    }


def _program(foreign: Foreign, work: Path) -> Program:
    child = Path(__file__).parent / "importers" / "child.py"
    python = foreign.installed.python
    paths = [*(Path(path) for path in _SYSTEM), foreign.installed.folder, Path(sys.base_prefix), Path(__file__).parent]
    paths += [foreign.source.absolute(), *(file.absolute() for file in source_files(foreign.source))]
    if foreign.code is not None:
        paths.append(foreign.code.absolute())
    return Program(command=(str(python), "-I", "-B", str(child)), environment=_ENVIRONMENT, read_paths=tuple(paths))
