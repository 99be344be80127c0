"""Owns what is published of plans: manifest, certificates, configuration, and what the report says. Trusted; no tool.

Nothing of a plan was run, and everything that says so says it: `measured` is false, parity is that of the typed graph.
The version's own file is the first plan; the others, and the variants that run here where they were asked for, follow.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from converters.host import host_facts, tool_versions
from converters.plans.recipe import Recipe
from model_repo.certificate import CERTIFICATE, Certificate
from model_repo.host import Gpu
from model_repo.manifest import MANIFEST, VARIANTS, Manifest, Variant, describe_files, read_manifest
from model_repo.target import Target

NOT_RUN: Final = "not run: needs a GPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One that was compiled. `folder`: its file, and the golden answers of its graph. `golden`: of the certificate.

    `version`: of the library, `lock_sha256`: of its toolchain. `gpu`: of this host, where the plan is for that one.
    `typed`: what the report says of its graph.
    """

    recipe: Recipe
    folder: Path
    golden: Mapping[str, Any]
    version: str
    lock_sha256: str
    typed: Mapping[str, Any]
    gpu: Gpu | None = None


def target_of(plan: Plan) -> Target:
    """What it may run on. Plans of TensorRT-RTX are for a compute capability, of TensorRT for this GPU at first."""
    recipe, facts = plan.recipe, host_facts()
    rule = {"": "exact", "ampere_plus": "ampere_plus"}.get(recipe.compatibility, "same_compute_capability")
    return Target(
        arch=str(facts["arch"]),
        os=str(facts["os"]).lower(),
        runtime=recipe.engine,
        runtime_version=plan.version,
        runtime_rule="newer" if recipe.is_version_compatible else "exact",
        gpu_rule="same_compute_capability" if plan.gpu is None else rule,
        gpu=plan.gpu.name if plan.gpu is not None else "",
        compute_capability=recipe.compute_capability or (plan.gpu.compute_capability if plan.gpu is not None else ""),
        runs_host_code=recipe.is_version_compatible,
    )


def describe_plan(
    recipe: Recipe, typed: Mapping[str, Any], made: Mapping[str, Any] | None, version: str
) -> dict[str, Any]:
    """The report's row. `made` None: its graph was refused, and `typed` says why."""
    reason = typed["reason"] if made is None else made["reason"]
    return {
        **typed,
        "engine": recipe.engine,
        "compute_capability": recipe.compute_capability,
        "runtime_version": version,
        "status": "refused" if reason else "accepted",
        "reason": reason,
        "next_step": typed["next_step"] if made is None else made["next_step"],
        "method": f"{recipe.method}; {typed['method']}",
        "size_bytes": 0 if made is None or reason else made["size_bytes"],
        "measured": False,
        "parity": NOT_RUN,
    }


def write_plan_bundle(
    plans: Sequence[Plan], config: str, report: Mapping[str, Any], work: Path, *, has_own: bool
) -> None:
    """Make `work/bundle` and `work/config.pbtxt`. `has_own`: they are there, of variants that run here, and join."""
    own = work / "own-bundle"
    if has_own:
        (work / "bundle").rename(own)
    first, *others = plans
    bundle = work / "bundle"
    _write_plan(bundle, first, report)
    for plan in others:
        (bundle / VARIANTS).mkdir(exist_ok=True)
        _write_plan(bundle / VARIANTS / plan.recipe.key, plan, report)
    variants = [_variant(plan) for plan in others]
    if has_own:
        variants += _join(own, bundle)
        config = _with_backend((work / "config.pbtxt").read_text(), first.recipe.engine)
    manifest = Manifest(
        engine=first.recipe.engine,
        precision=first.recipe.precision,
        method=first.recipe.method,
        files=describe_files(bundle),
        target=target_of(first),
        variants=tuple(variants),
    )
    (bundle / MANIFEST).write_bytes(manifest.to_bytes())
    (work / "config.pbtxt").write_text(config)


def _variant(plan: Plan) -> Variant:
    recipe = plan.recipe
    return Variant(
        name=recipe.key,
        engine=recipe.engine,
        precision=recipe.precision,
        method=recipe.method,
        target=target_of(plan),
    )


def _write_plan(folder: Path, plan: Plan, report: Mapping[str, Any]) -> None:
    folder.mkdir()
    for path in plan.folder.iterdir():
        shutil.copyfile(path, folder / path.name)
    (folder / CERTIFICATE).write_bytes(_certificate(plan, report).to_bytes())


def _certificate(plan: Plan, report: Mapping[str, Any]) -> Certificate:
    recipe, target = plan.recipe, target_of(plan)
    needs = f"compute capability {target.compute_capability}"
    return Certificate(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=report["source"],
        tools={**tool_versions(), recipe.engine: plan.version, f"{recipe.engine}_lock": plan.lock_sha256},
        host=host_facts(),
        variant={
            "engine": recipe.engine,
            "precision": recipe.precision,
            "method": recipe.method,
            "compute_capability": target.compute_capability,
            "runtime_version": plan.version,
        },
        calibration=report["evidence"] if recipe.precision == "int8" else None,
        evidence=report["evidence"]["kind"],
        parity={
            "plan": NOT_RUN,
            "typed_graph": {key: plan.typed[key] for key in ("per_output", "task")},
            "cases": plan.typed["cases_judged"],
        },
        speed={"measured": False, "reason": f"{NOT_RUN} of {needs}"},
        golden=plan.golden,
    )


def _join(own: Path, bundle: Path) -> list[Variant]:
    """Move the builds that run here into `variants/` of the plans' bundle, in their own order."""
    manifest = read_manifest(own)
    if manifest is None:
        raise ValueError(f"{own} has no manifest")
    folders = bundle / VARIANTS
    folders.mkdir(exist_ok=True)
    key = f"{manifest.engine}-{manifest.precision}"
    found = [
        Variant(
            name=key,
            engine=manifest.engine,
            precision=manifest.precision,
            method=manifest.method,
            target=manifest.target,
        )
    ]
    if (own / VARIANTS).is_dir():
        for path in sorted((own / VARIANTS).iterdir()):
            path.rename(folders / path.name)
        (own / VARIANTS).rmdir()
    (own / MANIFEST).unlink()
    own.rename(folders / key)
    return [*found, *manifest.variants]


def _with_backend(text: str, engine: str) -> str:
    message = model_config_pb2.ModelConfig()
    text_format.Parse(text, message)
    message.backend = engine
    return str(text_format.MessageToString(message))
