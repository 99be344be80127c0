"""Owns how each showcase's network is converted: what of it varies, on what data it is judged, what is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """`data`: a maker of real inputs in `converters.showcases.data`; empty: generated cases alone.

    Nothing has a batch for the engine to fill: the callers' own requests hold many items.
    """

    precisions: tuple[str, ...] = ("fp32", "fp16")
    engines: tuple[str, ...] = ("onnxruntime", "openvino")
    dims: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    values: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    budgets: Mapping[str, float] = field(default_factory=dict)
    optimize: str = "latency"
    data: str = ""
    file: str = "model.onnx"
    #: Of a source that is not ONNX: reads it; where it is not installed the model is served as it was made.
    toolchain: str = ""
    rounds: int = 9


#: By name of the model in its recipe.
NETWORKS: Final[Mapping[str, Network]] = {
    "voice_network": Network(dims={"sequence_length": (16, 128)}),
    # Lines of a page come together.
    "ocr_angle": Network(dims={"x.2": (48, 48), "x.3": (192, 192)}, optimize="throughput"),
    # Sides are multiples of 32 at all five sizes, and the middle one is near a page's.
    "ocr_detect": Network(dims={"height": (352, 864), "width": (352, 864)}, values={"IMAGE": (0, 255)}),
    # A Scan over lines, each cut to its own width, which OpenVINO does not take.
    "ocr_recognise": Network(
        precisions=("fp32",),
        engines=("onnxruntime",),
        dims={"width": (48, 160)},
        values={"LINES": (0, 255), "WIDTHS": (16, 48)},
        rounds=5,
    ),
    "face_detect": Network(file="model.tflite", toolchain="tensorflow"),
    # OpenVINO loses the axis of its labels; they are texts, which have to be equal.
    "file_type_name": Network(
        precisions=("fp32",),
        engines=("onnxruntime",),
        dims={"items": (1, 32)},
        values={"FEATURES": (0, 256), "KINDS": (0, 3)},
    ),
    # In int8 it is 1.5 times as fast here and answers otherwise on one image in seven: not asked for.
    "image_network": Network(precisions=("fp32",)),
    "text_network": Network(
        precisions=("fp32", "int8_dynamic"),
        engines=("onnxruntime",),
        dims={"tokens": (8, 64)},
        values={"IDS": (0, 30_521)},
        budgets={"int8_dynamic": 1.5},
        data="sentences",
    ),
}
