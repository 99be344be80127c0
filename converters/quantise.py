"""Owns making a graph of less precision: static and dynamic int8, and weights alone in 8 or 4 bits.

All want real inputs: what a quantisation costs on noise says nothing of what it costs on what callers send.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.budgets import BUDGETS, compare, judge_together
from converters.engines import Array, Feeds, open_onnx
from converters.errors import ToolFailed, UsageFault
from converters.host import has_vnni
from converters.normalise import save_model
from converters.samples import Data

#: One calibration run takes so many rows.
_CALIBRATION_ROWS: Final = 8
#: Rows of the calibration part that the choice of what stays in float is made on.
_CHOICE_ROWS: Final = 32
#: Beyond it the search for what stays in float would take longer than it is worth.
SEARCHED_NODES_MAX: Final = 96
#: At least so many of the products must be quantised, or the variant is given up.
_KEPT_SHARE_MAX: Final = 0.5
BLOCK: Final = 32
#: `accuracy_level` of MatMulNBits: activations in blocks of int8 too.
_COMPUTE_INT8: Final = 4
#: Rows that were not seen may cost a little more than those that the choice is made on.
_MARGIN: Final = 0.9


def quantise_static(normal: Any, folder: Path, data: Data | None, batched: bool, factor: float) -> tuple[Any, str]:
    """QDQ: ranges of activations are taken from the calibration rows."""
    # Without VNNI, sums of unsigned times signed bytes saturate at 16 bits: one bit less keeps them in range.
    is_reduced = not has_vnni()
    rows = _write_static(normal, folder / "model.onnx", _require(data, "int8"), batched, is_reduced=is_reduced)
    method = f"static QDQ, per channel, min-max over {rows} rows{', 7 bits' if is_reduced else ''}"
    return onnx.load(str(folder / "model.onnx")), method


def quantise_typed(normal: Any, folder: Path, data: Data | None, batched: bool, factor: float) -> tuple[Any, str]:
    """QDQ as GPU compilers take it: symmetric on both sides, and biases stay in float."""
    path = folder / "typed.onnx"
    rows = _write_static(normal, path, _require(data, "int8"), batched, is_symmetric=True)
    return onnx.load(str(path)), f"static QDQ, symmetric, per channel, min-max over {rows} rows"


def _write_static(
    normal: Any, path: Path, data: Data, batched: bool, *, is_reduced: bool = False, is_symmetric: bool = False
) -> int:
    """Returns the rows it was calibrated on."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    CalibrationDataReader.register(_Reader)
    model = onnx.ModelProto()
    model.CopyFrom(normal)
    step = _CALIBRATION_ROWS if batched else 1
    options: dict[str, Any] = {"CalibMaxIntermediateOutputs": inner_outputs_max(-(-data.rows_calibration // step))}
    if is_symmetric:
        options.update(ActivationSymmetric=True, WeightSymmetric=True, QuantizeBias=False)
    quantize_static(
        model,
        str(path),
        _Reader(data.calibration, data.rows_calibration, batched),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=is_reduced,
        activation_type=QuantType.QInt8 if is_symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options=options,
    )
    return data.rows_calibration


def inner_outputs_max(runs: int) -> int:
    """Of how many calibration runs the inner tensors are held at once: without a bound, of all until the last.

    No divisor of the number of runs, as the library then finds nothing left at the end and gives up.
    """
    return next(count for count in range(2, runs + 2) if runs % count)


def quantise_dynamic(normal: Any, folder: Path, data: Data | None, batched: bool, factor: float) -> tuple[Any, str]:
    """Products by constant matrices in int8, activations scaled as they come; those that cost most stay in float.

    Which stay is decided on calibration rows, so that the judged rows remain unseen.
    """
    data = _require(data, "int8_dynamic")
    named = _with_names(_with_products(normal))
    products = constant_products(named)
    path = folder / "model.onnx"
    feeds = _choice_feeds(data, batched)
    wanted = open_onnx(bytes(named.SerializeToString())).run(feeds)

    def try_without(kept: Sequence[str]) -> tuple[float, bool]:
        _write_dynamic(named, path, kept)
        found = open_onnx(path).run(feeds)
        return _loss(wanted, found, "int8_dynamic", factor)

    kept = choose_kept(products, try_without)
    _write_dynamic(named, path, kept)
    bits = "" if has_vnni() else ", 7 bits"
    method = f"dynamic, per channel, {len(products) - len(kept)} of {len(products)} products in int8{bits}"
    return onnx.load(str(path)), method


def choose_kept(products: Sequence[str], try_without: Callable[[Sequence[str]], tuple[float, bool]]) -> list[str]:
    """The fewest products, of those that cost most alone, that have to stay in float for the budget to hold.

    `try_without(kept)` → (error, is it within the budget). Where even half of them do not suffice, half stay: the gate
    then refuses the variant, with figures.
    """
    if len(products) > SEARCHED_NODES_MAX or try_without([])[1]:
        return []
    costs = {name: try_without([one for one in products if one != name])[0] for name in products}
    order = sorted(products, key=lambda name: -costs[name])
    low, high = 0, max(1, int(len(products) * _KEPT_SHARE_MAX))
    while high - low > 1:
        middle = (low + high) // 2
        if try_without(order[:middle])[1]:
            high = middle
        else:
            low = middle
    return order[:high]


def quantise_weights(bits: int) -> Callable[[Any, Path, Data | None, bool, float], tuple[Any, str]]:
    """Matrices in blocks of `BLOCK` by `bits`; activations stay in float, products are made in int8."""

    def build(normal: Any, folder: Path, data: Data | None, batched: bool, factor: float) -> tuple[Any, str]:
        _require(data, f"int{bits}_weights")
        made = _with_products(normal)
        count = _pack_products(made, bits)
        if all(entry.domain != "com.microsoft" for entry in made.opset_import):
            made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        save_model(made, folder / "model.onnx")
        return made, f"weights of {count} products in {bits} bits, blocks of {BLOCK}"

    return build


def _pack_products(model: Any, bits: int) -> int:
    """Put MatMulNBits (ONNX Runtime's contributed operator) in the place of products by constant matrices."""
    names = set(constant_products(model))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes, done = [], set()
    for node in model.graph.node:
        matrix = weights.get(node.input[1]) if node.op_type == "MatMul" and len(node.input) > 1 else None
        if matrix is None or node.name not in names or len(matrix.dims) != 2:
            nodes.append(node)
            continue
        name = matrix.name
        if name not in done:
            packed, scales = pack_blocks(numpy_helper.to_array(matrix), bits)
            model.graph.initializer.append(numpy_helper.from_array(packed, f"{name}.packed"))
            model.graph.initializer.append(numpy_helper.from_array(scales, f"{name}.scales"))
            done.add(name)
        rows, columns = matrix.dims
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                [node.input[0], f"{name}.packed", f"{name}.scales"],
                list(node.output),
                name=node.name,
                domain="com.microsoft",
                K=rows,
                N=columns,
                bits=bits,
                block_size=BLOCK,
                accuracy_level=_COMPUTE_INT8,
            )
        )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_unused(model)
    return sum(node.op_type == "MatMulNBits" for node in nodes)


def pack_blocks(matrix: Array, bits: int) -> tuple[Array, Array]:
    """`matrix: float32[rows, columns]` → codes `uint8[columns, blocks, bytes]`, scales `float32[columns · blocks]`.

    Each block of `BLOCK` rows of a column has one scale, so that its greatest value, with its sign, takes the lowest
    code; code 2^(bits-1) is zero. Of two codes in a byte the first is in the lower half.
    """
    rows, columns = matrix.shape
    count = -(-rows // BLOCK)
    padded = np.zeros((columns, count * BLOCK), np.float32)
    padded[:, :rows] = matrix.T
    blocks = padded.reshape(columns, count, BLOCK)
    place = np.abs(blocks).argmax(axis=2)[..., None]
    zero = 1 << (bits - 1)
    scales = np.take_along_axis(blocks, place, axis=2)[..., 0] / -zero
    safe = np.where(scales == 0, np.float32(1), scales)
    codes = np.clip(np.rint(blocks / safe[..., None]) + zero, 0, 2 * zero - 1).astype(np.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return np.ascontiguousarray(codes), np.ascontiguousarray(scales.reshape(-1).astype(np.float32))


def _drop_unused(model: Any) -> None:
    used = {name for node in model.graph.node for name in node.input}
    used |= {output.name for output in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def constant_products(model: Any) -> list[str]:
    """Names of the MatMul nodes whose second factor is a weight. Raises: ToolFailed: there is none."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    if not found:
        text = "the model has no product by a constant matrix: nothing would be quantised"
        raise ToolFailed("build", text, next_step="leave the precision out")
    return found


def _require(data: Data | None, precision: str) -> Data:
    if data is None:
        step = f"give real inputs with --data FILE.npz, or leave {precision} out"
        raise UsageFault("no_calibration", f"{precision} needs real inputs, and none were given", next_step=step)
    return data


def _with_products(model: Any) -> Any:
    """A copy in which `Gemm` with plain factors is `MatMul` and `Add`: the quantisers pass over the former."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in copy.graph.initializer}
    nodes: list[Any] = []
    for node in copy.graph.node:
        values = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        is_plain = values.get("alpha", 1.0) == 1.0 and values.get("beta", 1.0) == 1.0 and not values.get("transA", 0)
        if node.op_type != "Gemm" or not is_plain or node.input[1] not in weights:
            nodes.append(node)
            continue
        nodes += _split_gemm(copy, node, weights[node.input[1]], is_turned=bool(values.get("transB", 0)))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _split_gemm(model: Any, node: Any, matrix: Any, *, is_turned: bool) -> list[Any]:
    name = matrix.name
    if is_turned:
        name = f"{node.output[0]}.turned"
        turned = np.ascontiguousarray(numpy_helper.to_array(matrix).T)
        model.graph.initializer.append(numpy_helper.from_array(turned, name))
    has_bias = len(node.input) > 2 and bool(node.input[2])
    product = f"{node.output[0]}.product" if has_bias else node.output[0]
    made = [helper.make_node("MatMul", [node.input[0], name], [product], name=f"{node.name}.product")]
    if has_bias:
        made.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=node.name))
    return made


def _with_names(model: Any) -> Any:
    """Every node by a name of its own, as the quantiser excludes by name."""
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in seen:
            node.name = f"node.{node.output[0]}"
        seen.add(node.name)
    return model


def _write_dynamic(model: Any, path: Path, kept: Sequence[str]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    quantize_dynamic(
        copy,
        str(path),
        per_channel=True,
        reduce_range=not has_vnni(),
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=list(kept),
        extra_options={"MatMulConstBOnly": True},
    )


def _choice_feeds(data: Data, batched: bool) -> Feeds:
    if batched:
        return {name: array[:_CHOICE_ROWS] for name, array in data.calibration.items()}
    return {name: array[0] for name, array in data.calibration.items()}


def _loss(wanted: Feeds, found: Feeds, precision: str, factor: float) -> tuple[float, bool]:
    """Greatest relative RMS error of any float output, and whether all are well within the budget."""
    budget = BUDGETS[precision]
    errors, is_good = [0.0], True
    for name, array in wanted.items():
        figures, fault = judge_together([compare(array, array, found[name], budget, factor)], budget, factor * _MARGIN)
        errors.append(figures["rms_rel"])
        is_good = is_good and not fault
    return max(errors), is_good


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
