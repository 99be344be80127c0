"""Owns building one variant: a folder with the files that the engine loads, and the ONNX graph it was made from."""

import contextlib
import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import onnx

from converters.engines import Engine, first_line, import_openvino, open_onnx, open_openvino
from converters.errors import ConvertError, ToolFailed
from converters.normalise import INLINE_BYTES_MAX, save_model
from converters.quantise import quantise_dynamic, quantise_static, quantise_typed, quantise_weights
from converters.samples import Data

#: `typed`: a graph with its types written in, which plans are compiled from.
FILES: Final = {"onnxruntime": "model.onnx", "openvino": "model.xml", "typed": "typed.onnx"}
#: (normal form, folder to fill, real inputs, are they a batch, factor on the error budget) → (graph, what was done)
Builder = Callable[[Any, Path, Data | None, bool, float], tuple[Any, str]]
_FLOAT16: Final = "weights and operators in float16, inputs and outputs as before"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A variant that a toolchain of its own made before: its files, or the reason why there are none."""

    folder: Path | None
    method: str
    tools: Mapping[str, str]
    reason: str
    next_step: str

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Made":
        return cls(
            folder=Path(value["folder"]) if "folder" in value else None,
            method=str(value.get("method", "")),
            tools=dict(value.get("tools", {})),
            reason=str(value.get("reason", "")),
            next_step=str(value.get("next_step", "")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """`origin`: the ONNX graph that the engine was given; where it is wrong, the fault is looked for in it."""

    engine: str
    precision: str
    folder: Path
    origin: Any
    method: str
    #: Versions of tools beyond those of every conversion, by name.
    tools: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.engine}-{self.precision}"

    @property
    def file(self) -> Path:
        return self.folder / FILES[self.engine]

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def open(self, outputs: tuple[str, ...], threads: int) -> Engine:
        """Raises: ToolFailed."""
        return open_variant(self.engine, self.file, outputs, threads)


def open_variant(engine: str, path: Path, outputs: tuple[str, ...], threads: int) -> Engine:
    if engine == "openvino":
        return open_openvino(path, outputs, threads=threads)
    # What a typed graph says, not what this CPU's integer kernels make of it (they may saturate).
    return open_onnx(path, threads=threads, is_optimised=engine != "typed")


def build_variant(
    engine: str, precision: str, normal: Any, folder: Path, data: Data | None, *, batched: bool, factor: float = 1.0
) -> Variant:
    """Make `folder` with the files of one variant. `factor`: on the error budget that the gate will hold it to.

    Raises:
        UsageFault: a precision that needs real inputs, and there are none.
        ToolFailed: a library failed; the message is its first line.
    """
    folder.mkdir()
    try:
        # The libraries print progress and advice.
        with contextlib.redirect_stdout(io.StringIO()):
            origin, method = _BUILDERS[engine, precision](normal, folder, data, batched, factor)
    except ConvertError:
        raise
    except Exception as error:
        # Quantiser and converters raise whatever they meet.
        raise ToolFailed("build", f"{engine} {precision}: {first_line(error)}", next_step="leave it out") from error
    return Variant(engine=engine, precision=precision, folder=folder, origin=origin, method=method)


def take_made(engine: str, precision: str, made: Made, normal: Any, folder: Path) -> Variant:
    """The variant of a toolchain, its files copied to the new `folder`. `normal`: the graph that it was made from.

    Raises:
        ToolFailed: the toolchain made none.
    """
    if made.folder is None:
        raise ToolFailed("build", made.reason, next_step=made.next_step)
    shutil.copytree(made.folder, folder)
    return Variant(
        engine=engine, precision=precision, folder=folder, origin=normal, method=made.method, tools=made.tools
    )


def _onnx_fp32(normal: Any, folder: Path, data: Data | None, batched: bool, factor: float) -> tuple[Any, str]:
    if normal.ByteSize() >= INLINE_BYTES_MAX:
        save_model(normal, folder / "model.onnx")
        return normal, "simplified graph; optimised at load, as it is too large to be saved in one piece"
    source = folder / "source.onnx"
    save_model(normal, source)
    open_onnx(source, save_to=folder / "model.onnx")
    source.unlink()
    return normal, "ONNX Runtime graph optimisation, basic level, saved"


def _onnx_fp16(normal: Any, folder: Path, data: Data | None, batched: bool, factor: float) -> tuple[Any, str]:
    typed = to_float16(normal)
    save_model(typed, folder / "model.onnx")
    return typed, _FLOAT16


def to_float16(normal: Any) -> Any:
    """A copy with weights and operators in float16; inputs and outputs stay as they are."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    typed = onnx.ModelProto()
    typed.CopyFrom(normal)
    return convert_float_to_float16(typed, keep_io_types=True)


def _typed_fp32(normal: Any, folder: Path, data: Data | None, batched: bool, factor: float) -> tuple[Any, str]:
    save_model(normal, folder / FILES["typed"])
    return normal, "the simplified graph in its own types"


def _typed_fp16(normal: Any, folder: Path, data: Data | None, batched: bool, factor: float) -> tuple[Any, str]:
    typed = to_float16(normal)
    save_model(typed, folder / FILES["typed"])
    return typed, _FLOAT16


def _openvino(precision: str) -> Builder:
    def build(normal: Any, folder: Path, data: Data | None, batched: bool, factor: float) -> tuple[Any, str]:
        library = import_openvino()
        source = folder / "source.onnx"
        save_model(normal, source)
        model = library.convert_model(str(source))
        library.save_model(model, str(folder / "model.xml"), compress_to_fp16=precision == "fp16")
        del model
        for path in (source, folder / "weights.bin"):
            path.unlink(missing_ok=True)
        return normal, "IR, weights in float16" if precision == "fp16" else "IR"

    return build


_BUILDERS: Final[dict[tuple[str, str], Builder]] = {
    ("onnxruntime", "fp32"): _onnx_fp32,
    ("onnxruntime", "fp16"): _onnx_fp16,
    ("onnxruntime", "int8"): quantise_static,
    ("onnxruntime", "int8_dynamic"): quantise_dynamic,
    ("onnxruntime", "int8_weights"): quantise_weights(8),
    ("onnxruntime", "int4_weights"): quantise_weights(4),
    ("typed", "fp32"): _typed_fp32,
    ("typed", "fp16"): _typed_fp16,
    ("typed", "int8"): quantise_typed,
    ("openvino", "fp32"): _openvino("fp32"),
    ("openvino", "fp16"): _openvino("fp16"),
}
