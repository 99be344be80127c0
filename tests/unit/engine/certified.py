"""Versions with manifest, certificate and golden answers, as a conversion publishes them, for models y = factor · x."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model_repo.certificate import CERTIFICATE, Certificate, write_golden
from model_repo.host import read_host
from model_repo.manifest import MANIFEST, VARIANTS, Manifest, Variant, describe_files
from model_repo.onnx_builder import Node, Value, Weight, encode_model
from model_repo.release import Approval, Release
from model_repo.signing import SigningKey
from model_repo.store import Published, change_release, publish
from model_repo.target import Target
from tests.unit.engine.making import config_text

CONFIG = config_text("m", [("x", "FP32", (2,))], [("y", "FP32", (2,))], rows_max=8)
FACTS = replace(read_host(), arch="x86_64", isa=("avx2",))
HERE = Target(arch="x86_64", isa=("avx2",), runtime="onnxruntime", runtime_version=FACTS.runtimes["onnxruntime"])
VNNI = replace(HERE, isa=("avx2", "avx512_vnni"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """`golden`: the factor of the certified answers; None: no certificate. `is_readable` False: no runtime takes it."""

    factor: float = 2.0
    golden: float | None = 2.0
    target: Target = HERE
    cases: int = 2
    is_readable: bool = True


def scale_onnx(factor: float) -> bytes:
    """y = factor · x, x: float32[batch, 2]."""
    shape = ("batch", 2)
    return encode_model(
        [Node(op="Mul", inputs=("x", "w"), outputs=("y",))],
        [Value(name="x", datatype="FP32", shape=shape)],
        [Value(name="y", datatype="FP32", shape=shape)],
        [Weight(name="w", datatype="FP32", shape=(1,), data=np.float32(factor).tobytes())],
    )


def fill(folder: Path, build: Build) -> None:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(scale_onnx(build.factor) if build.is_readable else b"no model")
    if build.golden is None:
        return
    xs = [np.full((rows, 2), rows, np.float32) for rows in range(1, build.cases + 1)]
    write_golden(folder, [({"x": x}, {"y": x * np.float32(build.golden)}) for x in xs])
    certificate = Certificate(
        created="2026-11-24T00:00:00+00:00",
        source={"sha256": "0" * 64},
        tools={"onnx": "1.23.2"},
        host={},
        variant={},
        calibration=None,
        evidence="generated",
        parity={},
        speed={},
        golden={"cases": build.cases, "tolerance": {"y": 1e-3}},
    )
    (folder / CERTIFICATE).write_bytes(certificate.to_bytes())


def stage(
    folder: Path, own: Build, variants: Mapping[str, Build] | None = None, files: Mapping[str, bytes] | None = None
) -> Path:
    """A version's folder with its manifest; `files` come beside."""
    fill(folder, own)
    for name, variant in (variants or {}).items():
        fill(folder / VARIANTS / name, variant)
    for path, data in (files or {}).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(data)
    manifest = Manifest(
        engine="onnxruntime",
        precision="fp32",
        method="test",
        files=describe_files(folder),
        target=own.target,
        variants=tuple(
            Variant(name=name, engine="onnxruntime", precision="fp32", method="test", target=variant.target)
            for name, variant in (variants or {}).items()
        ),
    )
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return folder


def publish_build(root: Path, own: Build, *, signer: SigningKey | None = None, **variants: Build) -> Published:
    """The next version of model `m` in `root`."""
    staged = stage(root.parent / f"staged-{len(list(root.parent.iterdir()))}", own, variants)
    return publish(root, "m", staged, CONFIG, signer=signer)


def approve(root: Path, number: int, sha256: str) -> Release:
    approval = Approval(by="test", at="2026-11-24T00:00:00+00:00", manifest_sha256=sha256)
    return change_release(root, "m", lambda release: release.with_approval(number, approval))
