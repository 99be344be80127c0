"""Owns building one variant: a folder with the files that the engine loads, and the ONNX graph it was made from."""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx

from converters.engines import Engine, Feeds, first_line, import_openvino, open_onnx, open_openvino
from converters.errors import ConvertError, ToolFailed, UsageFault
from converters.host import has_vnni
from converters.normalise import INLINE_BYTES_MAX, save_model
from converters.samples import Data

FILES: Final = {"onnxruntime": "model.onnx", "openvino": "model.xml"}
#: One calibration run takes so many rows.
_CALIBRATION_ROWS: Final = 8


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
    engine: str, precision: str, normal: Any, folder: Path, data: Data | None, *, batched: bool
) -> Variant:
    """Make `folder` with the files of one variant.

    Raises:
        UsageFault: int8 without calibration data.
        ToolFailed: a library failed; the message is its first line.
    """
    folder.mkdir()
    try:
        # The libraries print progress and advice.
        with contextlib.redirect_stdout(io.StringIO()):
            origin, method = _BUILDERS[engine, precision](normal, folder, data, batched)
    except ConvertError:
        raise
    except Exception as error:
        # Quantiser and converters raise whatever they meet.
        raise ToolFailed("build", f"{engine} {precision}: {first_line(error)}", next_step="leave it out") from error
    return Variant(engine=engine, precision=precision, folder=folder, origin=origin, method=method)


def _onnx_fp32(normal: Any, folder: Path, data: Data | None, batched: bool) -> tuple[Any, str]:
    if normal.ByteSize() >= INLINE_BYTES_MAX:
        save_model(normal, folder / "model.onnx")
        return normal, "simplified graph; optimised at load, as it is too large to be saved in one piece"
    source = folder / "source.onnx"
    save_model(normal, source)
    open_onnx(source, save_to=folder / "model.onnx")
    source.unlink()
    return normal, "ONNX Runtime graph optimisation, basic level, saved"


def _onnx_fp16(normal: Any, folder: Path, data: Data | None, batched: bool) -> tuple[Any, str]:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    typed = onnx.ModelProto()
    typed.CopyFrom(normal)
    typed = convert_float_to_float16(typed, keep_io_types=True)
    save_model(typed, folder / "model.onnx")
    return typed, "weights and operators in float16, inputs and outputs as before"


class _Reader:
    """Calibration rows as the quantiser asks for them: a dictionary a call, then None."""

    def __init__(self, feeds: Feeds, rows: int, batched: bool) -> None:
        self._parts = self._cut(feeds, rows, batched)

    @staticmethod
    def _cut(feeds: Feeds, rows: int, batched: bool) -> Iterator[dict[str, Any]]:
        step = _CALIBRATION_ROWS if batched else 1
        for start in range(0, rows, step):
            part = {name: array[start : start + step] for name, array in feeds.items()}
            yield part if batched else {name: array[0] for name, array in part.items()}

    def get_next(self) -> dict[str, Any] | None:
        return next(self._parts, None)


def _onnx_int8(normal: Any, folder: Path, data: Data | None, batched: bool) -> tuple[Any, str]:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    if data is None:
        step = "give real inputs with --data FILE.npz, or leave int8 out"
        raise UsageFault("no_calibration", "int8 needs calibration data, and none was given", next_step=step)
    CalibrationDataReader.register(_Reader)
    model = onnx.ModelProto()
    model.CopyFrom(normal)
    # Without VNNI, sums of unsigned times signed bytes saturate at 16 bits: one bit less keeps them in range.
    is_reduced = not has_vnni()
    quantize_static(
        model,
        str(folder / "model.onnx"),
        _Reader(data.calibration, data.rows_calibration, batched),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=is_reduced,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    method = f"static QDQ, per channel, min-max over {data.rows_calibration} rows{', 7 bits' if is_reduced else ''}"
    return onnx.load(str(folder / "model.onnx")), method


def _openvino(precision: str) -> Callable[[Any, Path, Data | None, bool], tuple[Any, str]]:
    def build(normal: Any, folder: Path, data: Data | None, batched: bool) -> tuple[Any, str]:
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


_BUILDERS: Final[dict[tuple[str, str], Callable[[Any, Path, Data | None, bool], tuple[Any, str]]]] = {
    ("onnxruntime", "fp32"): _onnx_fp32,
    ("onnxruntime", "fp16"): _onnx_fp16,
    ("onnxruntime", "int8"): _onnx_int8,
    ("openvino", "fp32"): _openvino("fp32"),
    ("openvino", "fp16"): _openvino("fp16"),
}
