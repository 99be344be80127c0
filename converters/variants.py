"""Owns building one variant: a folder with the files that the engine loads, and the ONNX graph it was made from."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx

from converters.engines import Engine, first_line, import_openvino, open_onnx, open_openvino
from converters.errors import ConvertError, ToolFailed
from converters.normalise import INLINE_BYTES_MAX, save_model
from converters.quantise import quantise_dynamic, quantise_static, quantise_weights
from converters.samples import Data

FILES: Final = {"onnxruntime": "model.onnx", "openvino": "model.xml"}
#: (normal form, folder to fill, real inputs, are they a batch, factor on the error budget) → (graph, what was done)
Builder = Callable[[Any, Path, Data | None, bool, float], tuple[Any, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """`origin`: the ONNX graph that the engine was given; where it is wrong, the fault is looked for in it."""

    engine: str
    precision: str
    folder: Path
    origin: Any
    method: str

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
    return open_onnx(path, threads=threads)


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
    from onnxruntime.transformers.float16 import convert_float_to_float16

    typed = onnx.ModelProto()
    typed.CopyFrom(normal)
    typed = convert_float_to_float16(typed, keep_io_types=True)
    save_model(typed, folder / "model.onnx")
    return typed, "weights and operators in float16, inputs and outputs as before"


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
    ("openvino", "fp32"): _openvino("fp32"),
    ("openvino", "fp16"): _openvino("fp16"),
}
