"""C7: a version meets only hosts that it fits; a refusal names what it needs and what is there."""

import pytest

from model_repo.errors import RepositoryError
from model_repo.host import Gpu, HostFacts, parse_gpus, read_host
from model_repo.target import Target, find_misfit, parse_target

A10 = Gpu(name="A10", compute_capability="8.6", driver="580.95.05")
T4 = Gpu(name="T4", compute_capability="7.5", driver="580.95.05")
L4 = Gpu(name="L4", compute_capability="8.9", driver="570.10")


def host(
    *,
    arch: str = "x86_64",
    os: str = "linux",
    glibc: str = "2.36",
    isa: tuple[str, ...] = ("avx2", "fma"),
    ort: str = "1.32.0",
    trt: str = "11.4.0.106",
    gpu: Gpu | None = None,
) -> HostFacts:
    runtimes = {name: version for name, version in (("onnxruntime", ort), ("tensorrt", trt)) if version}
    return HostFacts(arch=arch, os=os, glibc=glibc, isa=isa, runtimes=runtimes, gpus=(gpu,) if gpu else ())


ORT = Target(arch="x86_64", isa=("avx2",), runtime="onnxruntime", runtime_version="1.32.0")
INT8 = Target(arch="x86_64", isa=("avx2", "avx512_vnni"), runtime="onnxruntime", runtime_version="1.32.0")
ORT_ALL = Target(arch="x86_64", isa=("avx512f",), runtime="onnxruntime", runtime_version="1.32.0", runtime_rule="exact")
OPENVINO = Target(arch="x86_64", isa=("avx512_bf16",), runtime="openvino", runtime_version="2026.4.1")
PLAN = Target(
    arch="x86_64",
    runtime="tensorrt",
    runtime_version="11.4.0.106",
    runtime_rule="exact",
    gpu_rule="exact",
    gpu="A10",
    compute_capability="8.6",
)
SAME_SM = Target(
    runtime="tensorrt",
    runtime_version="11.4.0.106",
    runtime_rule="exact",
    gpu_rule="same_compute_capability",
    gpu="A10",
    compute_capability="8.6",
    driver_min="575",
)
FORWARD = Target(
    runtime="tensorrt", runtime_version="11.4.0.106", gpu_rule="ampere_plus", gpu="A10", runs_host_code=True
)
GLIBC = Target(os="linux", glibc_min="2.38")

MATRIX: list[tuple[Target, HostFacts, bool, tuple[str, ...]]] = [
    (Target(), host(arch="riscv64", ort="", trt=""), False, ()),
    (ORT, host(), False, ()),
    (ORT, host(ort="1.33.1"), False, ()),
    (ORT, host(ort="2.0"), False, ()),
    (ORT, host(ort="1.32.0+cpu"), False, ()),
    (ORT, host(ort="1.31.9"), False, ("onnxruntime 1.32.0", "1.31.9")),
    (ORT, host(ort=""), False, ("onnxruntime 1.32.0", "not installed")),
    (ORT, host(arch="aarch64"), False, ("x86_64", "aarch64")),
    (ORT, host(isa=("fma",)), False, ("avx2", "fma", "lacks avx2")),
    (ORT, host(isa=()), False, ("avx2", "none of those known")),
    (INT8, host(), False, ("avx512_vnni", "avx2, fma", "lacks avx512_vnni")),
    (INT8, host(isa=("avx2", "avx512_vnni")), False, ()),
    (ORT_ALL, host(), False, ("avx512f", "lacks avx512f")),
    (ORT_ALL, host(isa=("avx512f",), ort="1.32.1"), False, ("onnxruntime 1.32.0", "1.32.1")),
    (ORT_ALL, host(isa=("avx512f",)), False, ()),
    (OPENVINO, host(isa=("avx512_bf16",)), False, ("openvino 2026.4.1", "not installed")),
    (OPENVINO, host(), False, ("avx512_bf16", "avx2")),
    (GLIBC, host(), False, ("2.38", "2.36")),
    (GLIBC, host(glibc="2.38"), False, ()),
    (GLIBC, host(glibc=""), False, ("2.38", "none")),
    (GLIBC, host(os="darwin", glibc=""), False, ("linux", "darwin")),
    (PLAN, host(gpu=A10), False, ()),
    (PLAN, host(gpu=A10, trt="10.16.0"), False, ("11.4.0.106", "10.16.0")),
    (PLAN, host(gpu=A10, trt="11.3.0.9"), False, ("11.4.0.106", "11.3.0.9")),
    (PLAN, host(gpu=L4), False, ("A10", "8.6", "L4", "8.9")),
    (PLAN, host(gpu=Gpu(name="A2", compute_capability="8.6")), False, ("A10", "A2")),
    (PLAN, host(), False, ("A10", "none")),
    (SAME_SM, host(gpu=Gpu(name="A2", compute_capability="8.6", driver="580.1")), False, ()),
    (SAME_SM, host(gpu=Gpu(name="A2", compute_capability="8.6", driver="570.1")), False, ("575", "570.1")),
    (SAME_SM, host(gpu=T4), False, ("8.6", "7.5")),
    (FORWARD, host(gpu=A10, trt="12.0.1"), True, ()),
    (FORWARD, host(gpu=A10, trt="11.3.1"), True, ("11.4.0.106", "11.3.1")),
    (FORWARD, host(gpu=T4), True, ("8.0", "7.5")),
    (FORWARD, host(gpu=L4), False, ("code", "no trusted key")),
]


@pytest.mark.parametrize(("target", "facts", "is_signed", "said"), MATRIX)
def test_a_host_that_does_not_fit_is_told_both_values(
    target: Target, facts: HostFacts, is_signed: bool, said: tuple[str, ...]
) -> None:
    found = find_misfit(target, facts, is_signed=is_signed)
    assert (found is None) == (not said), found
    for word in said:
        assert word in (found or "")


@pytest.mark.parametrize("target", [ORT, PLAN, SAME_SM, FORWARD, GLIBC, Target()])
def test_a_target_survives_the_round_trip(target: Target) -> None:
    assert parse_target(target.to_json()) == target


def test_a_plain_target_is_written_as_ever() -> None:
    assert ORT.to_json() == {
        "arch": "x86_64",
        "isa": ["avx2"],
        "runtime": "onnxruntime",
        "runtime_version": "1.32.0",
    }


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"arch": 1},
        {"isa": "avx2"},
        {"isa": [1]},
        {"quantum": True},
        {"runtime_rule": "any"},
        {"gpu_rule": "some"},
        {"glibc_min": "new"},
        {"runs_host_code": 1},
        {"compute_capability": "8.x"},
    ],
)
def test_a_target_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(RepositoryError, match="target"):
        parse_target(value)


def test_this_host_fits_a_version_made_here() -> None:
    facts = read_host()
    own = Target(
        arch=facts.arch,
        os=facts.os,
        isa=facts.isa,
        runtime="onnxruntime",
        runtime_version=facts.runtimes["onnxruntime"],
        runtime_rule="exact",
        glibc_min=facts.glibc,
    )
    assert find_misfit(own, facts) is None


def test_what_the_driver_lists_is_read_and_what_it_complains_of_is_not() -> None:
    told = "NVIDIA A10, 8.6, 580.95.05\nFailed to initialise\n, ,\n"
    assert parse_gpus(told) == (Gpu(name="NVIDIA A10", compute_capability="8.6", driver="580.95.05"),)
    assert parse_gpus("") == ()
