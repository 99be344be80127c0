"""Owns the source's normal form: weights inside, checked, simplified, its operator set stated.

The form must give what the source gives; `verify` proves that, it is not believed.
"""

import contextlib
import io
from pathlib import Path
from typing import Any, Final

import onnx
import onnxslim  # type: ignore[import-untyped]
from onnx.external_data_helper import load_external_data_for_model

from converters.engines import first_line
from converters.errors import ToolFailed, UnsafeModel
from converters.probe import Probe

#: Above it a message cannot be one file (protobuf's limit is 2 GiB); weights then lie in one file beside it.
INLINE_BYTES_MAX: Final = 1_800_000_000
WEIGHTS_FILE: Final = "weights.bin"
#: QDQ per channel and fp16 casts need it.
OPSET_FLOOR: Final = 17


def load_whole(probe: Probe, folder: Path) -> Any:
    """The probed model with its external weights read in. They were checked by the probe; onnx checks them again.

    Raises:
        UnsafeModel: the checker refuses the model.
    """
    model = onnx.ModelProto()
    model.CopyFrom(probe.model)
    if not model.graph.name:
        # The checker asks for a name that nothing reads; some exporters leave it out.
        model.graph.name = "graph"
    try:
        load_external_data_for_model(model, str(folder))
        _check(model)
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        text = f"the checker refuses the model: {first_line(error)}"
        raise UnsafeModel("checker", text, next_step="export the model again") from error
    return model


def _check(model: Any) -> None:
    # Beyond 2 GiB the checker works on files only; sizes and structure were checked by the probe.
    if model.ByteSize() < INLINE_BYTES_MAX:
        onnx.checker.check_model(model, full_check=True)


def normalise(model: Any) -> Any:
    """A simplified copy at operator set `OPSET_FLOOR` or above.

    Raises:
        ToolFailed: a tool failed or made what the checker refuses.
    """
    try:
        raised = _raise_opset(model)
        with contextlib.redirect_stdout(io.StringIO()):
            slim = onnxslim.slim(raised)
        slim = raised if slim is None else slim
        _check(slim)
    except Exception as error:
        # Both tools raise whatever their passes meet.
        raise ToolFailed(
            "normalise", f"simplifying failed: {first_line(error)}", next_step="report the model"
        ) from error
    return slim


def _raise_opset(model: Any) -> Any:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    version = versions.get("", versions.get("ai.onnx", OPSET_FLOOR))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if version >= OPSET_FLOOR or set(versions) - {"", "ai.onnx"}:
        return copy
    return onnx.version_converter.convert_version(copy, OPSET_FLOOR)


def opset_of(model: Any) -> int:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    return int(versions.get("", versions.get("ai.onnx", 0)))


def save_model(model: Any, path: Path) -> None:
    """Write `path`, with its weights in `WEIGHTS_FILE` beside it where one message could not hold them."""
    is_large = model.ByteSize() >= INLINE_BYTES_MAX
    onnx.save_model(model, str(path), save_as_external_data=is_large, location=WEIGHTS_FILE if is_large else None)
