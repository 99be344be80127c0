"""Owns `convert`: look at the source, find or build the bundle, publish it, write the reports. The trusted side.

It reads bytes and digests; the libraries that parse models run in the child only. Steps: sniff → probe (child) → key →
cache, or build (child) → publish → reports.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from converters.cache import cache_key, find_entry, keep_entry, locked_entry, source_digest
from converters.child import Event, Limits, run_child
from converters.errors import ConvertError, UnfitTarget, UsageFault
from converters.formats import ONNX, recognise
from converters.host import host_facts, tool_versions
from converters.imports import Foreign, bring_in, open_foreign
from converters.job import LABELS, Job
from converters.keeping import with_source
from converters.nncf.run import KEY as MADE_KEY
from converters.nncf.run import find_quantiser, quantise
from converters.plans.run import Compiler, build_plans, open_compilers
from converters.report_html import render_report
from converters.script import render_script
from converters.toolchains.store import default_root
from model_repo.config import NAME
from model_repo.errors import RepositoryError
from model_repo.store import Published, publish


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`out`: folder for report.json, report.html, reproduce.sh and the repros of failures.

    Of a framework's source only: `framework` where several read its format, `code` and `inputs` where the file does not
    say all (docs/converters.md), `toolchains`: where the environments lie, the user's cache if None.
    `keeps_source`: the version carries its ONNX source, to be made anew elsewhere.
    """

    source: Path
    job: Job
    data: Path | None
    repository: Path
    cache: Path
    out: Path
    limits: Limits = field(default_factory=Limits)
    framework: str = ""
    code: Path | None = None
    inputs: tuple[str, ...] = ()
    toolchains: Path | None = None
    keeps_source: bool = False


def convert(request: Request, on_event: Callable[[Event], None]) -> dict[str, Any]:
    """Returns the report, with `published` and `is_cached`. Blocks for as long as it takes.

    Raises:
        ConvertError: nothing was published; what is known is in `out`.
    """
    job = request.job
    if NAME.fullmatch(job.name) is None:
        raise UsageFault("name", f"--name '{job.name[:140]}' must match {NAME.pattern}", next_step="choose another")
    foreign = _open_foreign(request)
    if request.data is not None and not request.data.is_file():
        raise UsageFault("data", f"{request.data} is not there", next_step="give an npz file")
    if job.labels and request.data is None:
        raise UsageFault("labels", f"--labels '{job.labels}' is an array of --data", next_step="give --data too")
    compilers = open_compilers(job, request.toolchains or default_root())
    request.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=request.cache) as folder:
        work = Path(folder)
        sha256 = foreign.sha256 if foreign else source_digest(request.source, ())
        key = _key(request, sha256, foreign, compilers)
        external: list[str] = []
        # What was built under this key was looked at then, by the same code; its weights are all in the file, since
        # with weights outside the digest, and so the key, is another.
        if foreign is None and not (request.cache / key).is_dir():
            external = _probe(request, work, on_event)
            sha256 = source_digest(request.source, external)
            key = _key(request, sha256, foreign, compilers)
        with locked_entry(request.cache, key) as entry:
            report = find_entry(entry)
            is_cached = report is not None
            if report is None:
                report = _build(request, sha256, work, on_event, foreign=foreign, compilers=compilers)
                keep_entry(entry, work)
            published = _publish(request, entry, external, work)
    report = {
        **report,
        "name": published.name,
        "published": {"version": published.version, "path": str(published.path), "is_new": published.is_new},
        "is_cached": is_cached,
        "cache_key": key,
    }
    _write_reports(request, report)
    return report


def _key(request: Request, sha256: str, foreign: Foreign | None, compilers: Sequence[Compiler]) -> str:
    tools = {**tool_versions(), **(foreign.key_parts() if foreign else {})}
    for compiler in compilers:
        tools.update(compiler.key_parts())
    quantiser = find_quantiser(request.job, request.toolchains or default_root())
    tools.update(quantiser.key_parts() if quantiser is not None else {})
    return cache_key(request.job, sha256, request.data, tools=tools, host=host_facts())


def _probe(request: Request, work: Path, on_event: Callable[[Event], None]) -> list[str]:
    """Refuses what is not safe; the names of the files that the weights lie in."""
    asked = {"verb": "probe", "source": str(request.source.absolute())}
    found: list[str] = run_child(asked, work, request.limits, on_event)["external"]
    return found


def _open_foreign(request: Request) -> Foreign | None:
    """None: it is ONNX. Raises: ConvertError: of no format that is read, or its toolchain is not installed."""
    found = recognise(request.source, request.code, request.framework)
    if found == ONNX:
        if request.inputs:
            raise UsageFault(
                "input", "--input does not go with ONNX, which states its inputs", next_step="leave it out"
            )
        return None
    if request.keeps_source:
        text = "--keep-source is for ONNX: what another framework reads cannot be made anew without its toolchain"
        raise UsageFault("keep_source", text, next_step="leave it out")
    return open_foreign(found, request.source, request.code, request.inputs, request.toolchains or default_root())


def _build(
    request: Request,
    sha256: str,
    work: Path,
    on_event: Callable[[Event], None],
    *,
    foreign: Foreign | None,
    compilers: Sequence[Compiler],
) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "verb": "build",
        "source": str(request.source.absolute()),
        "sha256": sha256,
        "data": str(request.data.absolute()) if request.data is not None else "",
        "job": request.job.to_json(),
        "facts": {},
    }
    try:
        if foreign is not None:
            model, asked["facts"] = bring_in(
                foreign, request.job, request.data, work, limits=request.limits, on_event=on_event
            )
            asked["source"] = str(model.absolute())
        report = _build_own(request, asked, work, on_event) if request.job.own_engines else None
        if compilers:
            report = build_plans(
                asked,
                request.job,
                compilers,
                work,
                timing=request.cache / "timing",
                limits=request.limits,
                on_event=on_event,
                own=report,
            )
    except ConvertError as error:
        _keep_failure(request, work, error)
        raise
    if (work / "failures").is_dir():
        _copy_failures(request.out, work)
    assert report is not None
    (work / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _build_own(
    request: Request, asked: Mapping[str, Any], work: Path, on_event: Callable[[Event], None]
) -> dict[str, Any]:
    """The variants that run here."""
    job = replace(request.job, engines=request.job.own_engines, gpus=(), plan=())
    full = {**asked, "job": job.to_json(), "made": {}}
    quantiser = find_quantiser(job, request.toolchains or default_root())
    if quantiser is not None:
        full["made"][MADE_KEY] = quantise(quantiser, full, work, limits=request.limits, on_event=on_event)
    found = run_child(full, work, request.limits, on_event)
    gaps = [*found["sandbox_gaps"], *(gap for made in full["made"].values() for gap in made.get("sandbox_gaps", ()))]
    report: dict[str, Any] = {**found["report"], "sandbox_gaps": list(dict.fromkeys(gaps))}
    return report


def _keep_failure(request: Request, work: Path, error: ConvertError) -> None:
    """What is known of a conversion that failed, for its reader."""
    path = work / "report.json"
    report: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {"schema": 1, "variants": []}
    report.update(
        name=request.job.name,
        published=None,
        error={"rule": error.rule, "message": str(error), "next_step": error.next_step, "exit_code": error.exit_code},
    )
    _copy_failures(request.out, work)
    _write_reports(request, report)


def _copy_failures(out: Path, work: Path) -> None:
    if (work / "failures").is_dir():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copytree(work / "failures", out / "failures", dirs_exist_ok=True)


def _publish(request: Request, entry: Path, external: list[str], work: Path) -> Published:
    """Raises: UnfitTarget: the repository does not take it."""
    message = model_config_pb2.ModelConfig()
    text_format.Parse((entry / "config.pbtxt").read_text(), message)
    message.name = request.job.name
    try:
        names = request.job.class_names
        shared = {LABELS: "".join(f"{name}\n" for name in names).encode()} if names else None
        text = text_format.MessageToString(message)
        bundle = entry / "bundle"
        if request.keeps_source:
            bundle = with_source(bundle, request.source, external, request.job, work / "with-source")
        return publish(request.repository, request.job.name, bundle, text, shared=shared)
    except RepositoryError as error:
        raise UnfitTarget("publish", str(error), next_step="choose another --name or --repository") from error


def _write_reports(request: Request, report: Mapping[str, Any]) -> None:
    out = request.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (out / "report.html").write_text(render_report(report))
    script = out / "reproduce.sh"
    script.write_text(render_script(request.source.name, request.data, request.job, report, _import_words(request)))
    script.chmod(0o755)


def _import_words(request: Request) -> list[str]:
    """The options of a framework's source, as they were given."""
    words = ["--from", request.framework] if request.framework else []
    words += ["--code", request.code.name] if request.code is not None else []
    return words + [word for text in request.inputs for word in ("--input", text)]
