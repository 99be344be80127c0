"""Owns the quantisation itself: runs in the toolchain's environment, behind the limits, and imports NNCF there only."""

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from converters.errors import ConvertError, ToolFailed
from converters.importers.exchange import Array, read_arrays, read_index

#: Below the work folder, and what lies in it.
FOLDER: Final = "quantise"
MODEL: Final = "model.onnx"
ROWS: Final = "rows.npz"
MADE: Final = "made"
#: The calibration that the method is known to need; more rows cost time and change little.
ROWS_MAX: Final = 300


def serve_quantise(request: Mapping[str, Any], progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """From `work/quantise/` make `work/quantise/made/model.xml`. `has_vnni`: of the host that will run it.

    Raises:
        ToolFailed: NNCF failed, or found nothing to quantise.
    """
    folder = Path(request["work"]) / FOLDER
    try:
        return _quantise(folder, has_vnni=bool(request["has_vnni"]), progress=progress)
    except (ConvertError, MemoryError):
        raise
    except Exception as error:
        # The library raises whatever its passes meet.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = f"NNCF: {type(error).__name__}: {(lines or ['no message'])[0][:300]}"
        raise ToolFailed("quantise", text, next_step="leave int8 out for openvino") from error


def _quantise(folder: Path, *, has_vnni: bool, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    # The companion would report to its maker; there is no network here, and it is not asked.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    openvino, nncf = importlib.import_module("openvino"), importlib.import_module("nncf")
    index = read_index(folder)
    arrays = read_arrays(folder / ROWS, index["inputs"])
    rows = min(int(index["rows"]), ROWS_MAX)
    parts = [_row(arrays, row, is_batched=bool(index["is_batched"])) for row in range(rows)]
    model = openvino.Core().read_model(str(folder / MODEL))
    progress(f"NNCF, {rows} rows", 0, 1)
    kind = nncf.ModelType.TRANSFORMER if has_attention(model) else None
    advanced = importlib.import_module("nncf.quantization.advanced_parameters")
    # Without VNNI sums of products saturate at 16 bits: weights then keep to half of the range.
    fix = advanced.OverflowFix.DISABLE if has_vnni else advanced.OverflowFix.ENABLE
    made = nncf.quantize(
        model,
        nncf.Dataset(parts),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=rows,
        model_type=kind,
        advanced_parameters=advanced.AdvancedQuantizationParameters(overflow_fix=fix),
    )
    count = sum(op.get_type_name() == "FakeQuantize" for op in made.get_ops())
    if not count:
        text = "NNCF found nothing in the model to quantise"
        raise ToolFailed("quantise", text, next_step="leave int8 out for openvino")
    (folder / MADE).mkdir()
    openvino.save_model(made, str(folder / MADE / "model.xml"), compress_to_fp16=False)
    names = ("nncf", "openvino")
    versions = {name: importlib.metadata.version(name) for name in names}
    words = [f"NNCF {versions['nncf']} after training, mixed preset, {count} quantisers over {rows} rows"]
    words += ["attention"] * (kind is not None) + ["7 bits"] * (not has_vnni)
    return {"method": ", ".join(words), "versions": versions, "rows": rows}


def _row(arrays: Mapping[str, Array], row: int, *, is_batched: bool) -> dict[str, Array]:
    """One input of the model: a batch of one row, or the row as it is."""
    return {name: array[row : row + 1] if is_batched else array[row] for name, array in arrays.items()}


def has_attention(model: Any) -> bool:
    """Whether a product is made with the answer of a softmax: such models want NNCF's treatment of transformers."""
    softmaxes = [op for op in model.get_ops() if op.get_type_name() == "Softmax"]
    users = [target.get_node() for op in softmaxes for port in op.outputs() for target in port.get_target_inputs()]
    return any(user.get_type_name() == "MatMul" for user in users)
