"""The interface that is published is that of the source, narrowed by what the engine's own file knows."""

from pathlib import Path
from typing import Any

import onnx
import pytest

from converters.config_text import make_config
from converters.errors import UsageFault
from converters.job import Job
from converters.normalise import normalise
from converters.samples import axis_sizes
from converters.selftest.models import attention, embedding, fixed, model_of, node, pooled, two_outputs, weight
from converters.signature import Signature, Tensor, read_signature
from converters.variants import build_variant
from gateway.engine.runtimes import load_runtime
from model_repo.config import parse_config


def test_the_batch_is_the_first_axis_that_all_share() -> None:
    found = read_signature(attention())
    assert (found.batch_axis, found.variable_axes) == ("batch", ("seq",))
    assert read_signature(fixed()).batch_axis is None


def test_axes_that_a_graph_only_marks_as_unknown_get_names_of_their_own() -> None:
    model = attention()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "?"
        value.type.tensor_type.shape.dim[1].dim_param = "?"
    found = read_signature(model)
    assert found.inputs[0].shape == ("batch", "x.1", 8)
    assert found.batch_axis == "batch"


def test_an_input_of_strings_is_refused_by_name() -> None:
    model = two_outputs()
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.STRING
    with pytest.raises(UsageFault, match="'x': inputs of strings are not converted"):
        read_signature(model)


def test_sizes_go_from_the_least_to_the_greatest_of_a_range() -> None:
    signature = read_signature(attention())
    sizes = axis_sizes(signature, Job(name="m", dims={"seq": (4, 12)}))
    assert [one["seq"] for one in sizes] == [4, 6, 8, 10, 12]
    with pytest.raises(UsageFault, match="no such variable axis; it has seq"):
        axis_sizes(signature, Job(name="m", dims={"width": (1, 2)}))


def test_a_tensor_without_axes_is_configured_as_one_reshaped_element() -> None:
    config = parse_config(make_config("m", "onnxruntime", read_signature(pooled()), rows_max=8, rows_best=4), name="m")
    label = config.outputs[1]
    assert (label.name, label.dims, label.reshape) == ("label", (1,), ())
    assert config.batching is not None
    assert config.batching.preferred_rows == (4,)
    assert config.inputs[0].dims == (-1, 6)
    assert not config.warmups


def loose() -> Any:
    """y is declared float32[batch, wide], and is always float32[batch, 6]."""
    return model_of(
        [node("MatMul", ["x", "w"], ["y"])], {"x": ("batch", 8)}, {"y": ("batch", "wide")}, {"w": weight(8, 6)}
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("make", [loose, attention, pooled, embedding, fixed])
def test_the_serving_engine_takes_every_configuration_that_is_made(engine: str, make: Any, tmp_path: Path) -> None:
    model = make()
    signature = read_signature(model)
    batched = signature.batch_axis is not None
    variant = build_variant(engine, "fp32", normalise(model), tmp_path / "v", None, batched=batched)
    shapes = variant.open(tuple(one.name for one in signature.outputs), 1).output_shapes()
    text = make_config("m", engine, signature.narrowed(shapes), rows_max=4 if batched else 0, rows_best=2)
    runtime = load_runtime(variant.file, parse_config(text, name="m"), threads=1)
    runtime.close()


def test_narrowing_leaves_what_the_file_does_not_know() -> None:
    tensor = Tensor(name="y", datatype="FP32", shape=("batch", "wide", 3))
    signature = Signature(inputs=(tensor,), outputs=(tensor,))
    assert signature.narrowed({"y": (None, 7, 3)}).outputs[0].shape == ("batch", 7, 3)
    assert signature.narrowed({"y": (None,)}).outputs[0].shape == tensor.shape
    assert signature.narrowed({}).outputs[0].shape == tensor.shape
