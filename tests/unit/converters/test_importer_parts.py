"""The parts every importer shares: stated inputs, the person's code, names of a graph's inputs, outputs and axes."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from converters.errors import ToolFailed, UsageFault
from converters.importers.code import Code, examples, name_outputs
from converters.importers.graphs import keep_outputs, name_axes, rename_inputs
from converters.importers.protocol import INPUTS_MAX, RANK_MAX, Asked, parse_inputs


def test_inputs_are_stated_by_name_type_and_axes() -> None:
    (one,) = parse_inputs(["x=FP32[batch,3,seq]"])
    assert (one.name, one.datatype, one.shape) == ("x", "FP32", ("batch", 3, "seq"))


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "x=FP32", "x=FP32[]", "x=FP32[,]", "x=FP32[0]", "x=FP32[-1]", "x=BYTES[3]", "x=fp32[3]", "1x=FP32[3]",
        "x=FP32[3] ", "x=FP32[3]\n", "x=FP32[3,,2]", "x=FP32[1a]", "x y=FP32[3]", "x=FP32[" + "1," * RANK_MAX + "1]",
    ],
)  # fmt: skip
def test_other_forms_of_an_input_are_refused(text: str) -> None:
    with pytest.raises(UsageFault) as refused:
        parse_inputs([text])
    assert refused.value.rule == "input"


def test_inputs_are_counted_up_to_the_limit_and_named_once() -> None:
    texts = [f"x{n}=FP32[2]" for n in range(INPUTS_MAX)]
    assert len(parse_inputs(texts)) == INPUTS_MAX
    for more in ([*texts, "y=FP32[2]"], ["x=FP32[2]", "x=FP32[3]"]):
        with pytest.raises(UsageFault):
            parse_inputs(more)
    assert len(parse_inputs(["x=FP32[" + "1," * (RANK_MAX - 1) + "1]"])[0].shape) == RANK_MAX


def test_examples_have_different_sizes_for_different_axes() -> None:
    found = examples(parse_inputs(["x=FP32[batch,seq,4]", "mask=INT64[batch,seq]"]))
    assert found["x"].shape[:2] == found["mask"].shape
    assert len({*found["x"].shape}) == 3
    assert found["mask"].dtype == np.int64
    assert set(np.unique(found["mask"])) <= {0, 1}


def code(tmp_path: Path, text: str, *inputs: str) -> Code:
    path = tmp_path / "net.py"
    path.write_text(text)
    return Code(Asked(format="torch_code", source=path, inputs=parse_inputs(list(inputs))))


FULL = """
import numpy as np
INPUTS = ["x=FP32[batch,2]"]
OUTPUTS = ["y"]
def build(weights):
    return ("built", weights)
def example():
    return {"x": np.full((4, 2), 7, np.float32)}
"""


def test_code_states_inputs_outputs_and_an_example(tmp_path: Path) -> None:
    found = code(tmp_path, FULL)
    assert (found.inputs[0].name, found.outputs) == ("x", ("y",))
    assert found.build({"w": 1}) == ("built", {"w": 1})
    assert found.example()["x"].tolist() == [[7.0, 7.0]] * 4


def test_inputs_of_the_command_line_go_before_those_of_the_file(tmp_path: Path) -> None:
    assert code(tmp_path, FULL, "z=INT64[n]").inputs[0].name == "z"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("INPUTS = ['x=FP32[2]']", "code"),
        ("def build(weights): ...", "input"),
        ("raise OSError('no')", "code"),
        ("def build(", "code"),
        ("INPUTS = ['x']\ndef build(weights): ...", "input"),
        ("build = 3", "code"),
    ],
)
def test_code_of_another_form_is_a_usage_fault(text: str, rule: str, tmp_path: Path) -> None:
    with pytest.raises(UsageFault) as refused:
        code(tmp_path, text)
    assert refused.value.rule == rule


def test_an_example_has_to_give_every_input(tmp_path: Path) -> None:
    found = code(tmp_path, FULL, "x=FP32[2]", "more=FP32[2]")
    with pytest.raises(UsageFault, match="more"):
        found.example()


def test_outputs_get_names() -> None:
    one, two = np.zeros(1), np.zeros(2)
    assert list(name_outputs(one, ())) == ["output"]
    assert list(name_outputs((one, two), ())) == ["output_0", "output_1"]
    assert list(name_outputs([one], ("y",))) == ["y"]
    assert list(name_outputs({"b": one, "a": two, "none": None}, ("y",))) == ["b", "a"]
    for outputs, names in (((one, two), ("y",)), ({"a": 3}, ()), ("text", ())):
        with pytest.raises(UsageFault):
            name_outputs(outputs, names)


def graph() -> Any:
    """in → (x: 2·in, y: x + 1); the inner tensors are called as the wanted names are."""
    nodes = [helper.make_node("Add", ["in", "in"], ["x"]), helper.make_node("Add", ["x", "one"], ["y"])]
    value = helper.make_tensor_value_info
    outputs = [value("x", TensorProto.FLOAT, ["s1", 2]), value("y", TensorProto.FLOAT, ["s1", 2])]
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    made = helper.make_graph(nodes, "g", [value("in", TensorProto.FLOAT, ["s1", 2])], outputs, [one])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def answers(model: Any, name: str) -> dict[str, list[float]]:
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {name: np.asarray([[1, 2]], np.float32)})
    return {key: value[0].tolist() for key, value in zip(names, found, strict=True)}


def test_outputs_are_kept_in_order_under_new_names() -> None:
    model = graph()
    keep_outputs(model, {"y": "second", "x": "first"})
    assert answers(model, "in") == {"second": [3.0, 5.0], "first": [2.0, 4.0]}
    keep_outputs(model, {"second": "only"})
    assert answers(model, "in") == {"only": [3.0, 5.0]}


def test_a_wanted_name_that_an_inner_tensor_has_is_freed() -> None:
    model = graph()
    keep_outputs(model, {"y": "one"})
    assert answers(model, "in") == {"one": [3.0, 5.0]}
    model = graph()
    rename_inputs(model, {"in": "one"})
    assert answers(model, "one")["y"] == [3.0, 5.0]


def test_outputs_can_change_places() -> None:
    model = graph()
    keep_outputs(model, {"x": "y_", "y": "x_"})
    keep_outputs(model, {"x_": "x", "y_": "y"})
    assert answers(model, "in") == {"x": [3.0, 5.0], "y": [2.0, 4.0]}


def test_an_output_that_is_not_there_is_a_tool_s_fault() -> None:
    with pytest.raises(ToolFailed, match="nothing"):
        keep_outputs(graph(), {"nothing": "y"})


def test_axes_get_the_stated_names_in_every_tensor() -> None:
    model = graph()
    name_axes(model, {"in": ("batch", 2)})
    dims = [value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output)]
    assert dims == ["batch"] * 3


def test_fixed_axes_stay_fixed() -> None:
    model = graph()
    name_axes(model, {"in": ("batch", "width")})
    assert model.graph.input[0].type.tensor_type.shape.dim[1].dim_value == 2
