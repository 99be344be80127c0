"""Owns which environments there are: the packages each is resolved from, and the formats it reads."""

from dataclasses import dataclass
from typing import Final

from converters.errors import UsageFault


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """`requirements`: what the lock is resolved from. `framework`: the package whose version names it.

    `apart`: beginnings of names of packages that lie in a lock of their own, `<name>.full.lock`, since they come in two
    builds. `small_build`: the other, by `name==version` and digest, in `<name>.small.lock`; tried first.
    """

    name: str
    title: str
    framework: str
    formats: tuple[str, ...]
    requirements: tuple[str, ...]
    installed_mib: int
    apart: tuple[str, ...] = ()
    small_build: tuple[str, str] | None = None

    @property
    def builds(self) -> tuple[str, ...]:
        """Of which the first that is to be had is installed, beside the common lock."""
        return ("small", "full") if self.small_build else ()


#: The makers' CPU build of PyTorch has no CUDA libraries; where it is at hand it is taken, being the same release.
_TORCH_CPU_SHA256: Final = "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"

TOOLCHAINS: Final = (
    Toolchain(
        name="sklearn",
        title="scikit-learn",
        framework="scikit-learn",
        formats=("skops",),
        requirements=("scikit-learn>=1.8", "skl2onnx>=1.19", "skops>=0.13", "onnx>=1.21"),
        installed_mib=400,
    ),
    Toolchain(
        name="torch",
        title="PyTorch",
        framework="torch",
        formats=("pt2", "torchscript", "torch_weights", "torch_code"),
        requirements=("torch==2.13.0", "onnx>=1.21", "onnxscript>=0.7.2", "safetensors", "numpy"),
        installed_mib=1100,
        apart=("torch==", "nvidia-", "cuda-", "triton=="),
        small_build=("torch==2.13.0+cpu", _TORCH_CPU_SHA256),
    ),
    Toolchain(
        name="xgboost",
        title="XGBoost",
        framework="xgboost-cpu",
        formats=("xgboost",),
        requirements=("xgboost-cpu>=3.2", "onnx>=1.21"),
        installed_mib=300,
    ),
    Toolchain(
        name="lightgbm",
        title="LightGBM",
        framework="lightgbm",
        formats=("lightgbm",),
        requirements=("lightgbm>=4.6", "onnx>=1.21"),
        installed_mib=300,
    ),
    Toolchain(
        name="tensorflow",
        title="TensorFlow",
        framework="tensorflow-cpu",
        formats=("savedmodel", "tflite", "keras"),
        requirements=("tensorflow-cpu==2.21.0", "tf2onnx==1.17.0", "keras>=3.13.2", "onnx"),
        installed_mib=1600,
    ),
    Toolchain(
        name="paddle",
        title="PaddlePaddle",
        framework="paddlepaddle",
        formats=("paddle",),
        # paddle2onnx asks for an onnx with known faults of reading external data; it reads only what it wrote itself.
        # It would install sympy and onnxruntime while it runs, were they not there.
        requirements=("paddlepaddle==3.3.1", "paddle2onnx==2.1.0", "sympy", "onnxruntime", "setuptools"),
        installed_mib=1150,
    ),
    Toolchain(
        name="jax",
        title="JAX",
        framework="jax",
        formats=("jax_weights", "jax_code"),
        requirements=("jax==0.10.2", "jax2onnx==0.17.1", "safetensors"),
        installed_mib=1050,
    ),
    Toolchain(
        name="mindspore",
        title="MindSpore",
        framework="mindspore",
        formats=("mindspore_weights", "mindspore_code"),
        # With NumPy 2 it fails in its own C++ part.
        requirements=("mindspore==2.10.0", "numpy<2", "onnx"),
        installed_mib=2900,
    ),
    Toolchain(
        name="nncf",
        title="NNCF",
        framework="nncf",
        # It reads no models of others: it quantises ours for OpenVINO.
        formats=(),
        requirements=("nncf==3.4.0", "openvino==2026.4.1", "onnx>=1.21"),
        installed_mib=550,
    ),
    Toolchain(
        name="tensorrt_rtx",
        title="TensorRT-RTX",
        framework="tensorrt-rtx-cu12-bindings",
        formats=(),
        # The package of the plain name is built while it is installed; these two are what it brings.
        requirements=("tensorrt-rtx-cu12-bindings==1.7.1.116", "tensorrt-rtx-cu12-libs==1.7.1.116"),
        installed_mib=280,
    ),
    Toolchain(
        name="tensorrt",
        title="TensorRT",
        framework="tensorrt-cu13-bindings",
        formats=(),
        # The binding alone: its libraries are in no package index that is reached here, and belong to the host.
        requirements=("tensorrt-cu13-bindings==11.4.0.106",),
        installed_mib=60,
    ),
)


def get_toolchain(name: str) -> Toolchain:
    """Raises: UsageFault."""
    for one in TOOLCHAINS:
        if one.name == name:
            return one
    known = ", ".join(one.name for one in TOOLCHAINS)
    raise UsageFault("toolchain", f"there is no toolchain {name[:60]!r}", next_step=f"one of {known}")


def toolchain_of(format_name: str) -> Toolchain:
    """The one that reads a format."""
    return next(one for one in TOOLCHAINS if format_name in one.formats)
