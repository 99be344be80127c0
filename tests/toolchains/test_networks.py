"""PyTorch, TensorFlow, Keras, PaddlePaddle, JAX and MindSpore: exported, and answered by the framework itself."""

from pathlib import Path

import pytest

from converters.errors import ConvertError, UnsafeModel, VerificationFailed
from tests.toolchains.conftest import Convert, Make

pytestmark = [pytest.mark.toolchains, pytest.mark.timeout(1800)]
NET = """
import torch
from torch import nn
INPUTS = ["x=FP32[batch,3,seq]"]
OUTPUTS = ["embedding"]
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.n, self.f = nn.Conv1d(3, 8, 3, padding=1), nn.LayerNorm(8), nn.Linear(8, 5)
        nn.init.normal_(self.n.weight)
    def forward(self, x):
        return self.f(self.n(torch.relu(self.c(x)).transpose(1, 2)).mean(1))
def build(weights):
    torch.manual_seed(1)
    net = Net()
    if weights is not None:
        net.load_state_dict(weights)
    return net
"""
FROZEN = """
import torch
INPUTS = ["x=FP32[batch,4]"]
class Net(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[0] == 2 else x * 3
def build(weights):
    return Net()
"""
SNOOP = """
import torch
INPUTS = ["x=FP32[batch,4]"]
print(open(SECRET).read())
def build(weights):
    return torch.nn.Identity()
"""
TORCH = """
import torch, net
from safetensors.torch import save_file
module = net.build(None).eval()
save_file(module.state_dict(), "net.safetensors")
torch.save(module.state_dict(), "net.pth")
torch.save(module.state_dict(), "old.pth", _use_new_zipfile_serialization=False)
torch.save(module, "whole.pth")
shape = {0: torch.export.Dim("rows"), 2: torch.export.Dim("length")}
torch.export.save(torch.export.export(module, (torch.randn(2, 3, 5),), dynamic_shapes=(shape,)), "net.pt2")
torch.jit.script(module).save("net.pt")
class Files(torch.nn.Module):
    def forward(self, x):
        return x + torch.from_file("canary", shared=True, size=4)
torch.jit.script(Files()).save("files.pt")
"""


@pytest.fixture(scope="module")
def torch(make: Make) -> Path:
    text = "from pathlib import Path\n"
    for name, code in (("net", NET), ("frozen", FROZEN), ("snoop", SNOOP)):
        text += f"Path('{name}.py').write_text({code!r}.replace('SECRET', repr(str(Path('secret').resolve()))))\n"
    return make("torch", text + "Path('secret').write_text('secret')\nimport sys; sys.path.insert(0, '.')\n" + TORCH)


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth", "old.pth", "net.py"])
def test_weights_and_code_answer_as_pytorch_does(name: str, torch: Path, to_version: Convert) -> None:
    code = None if name == "net.py" else torch / "net.py"
    report = to_version(torch / name, code=code, dims={"seq": (3, 40)})
    assert report["interface"]["inputs"] == [["x", "FP32", ["batch", 3, "seq"]]]
    # A name that an inner tensor of the exporter has, too.
    assert [one[0] for one in report["interface"]["outputs"]] == ["embedding"]
    assert report["source"]["method"] == "torch.onnx by torch.export"
    assert report["source"]["export"]["cases"] == 60


def test_an_exported_program_answers_as_pytorch_does(torch: Path, to_version: Convert) -> None:
    report = to_version(torch / "net.pt2")
    assert report["interface"]["batch"] == "batch"
    assert report["source"]["answers"] == {"answered": 60, "refused": 0}


def test_torchscript_answers_as_pytorch_does(torch: Path, to_version: Convert) -> None:
    report = to_version(torch / "net.pt", inputs=("x=FP32[batch,3,seq]",))
    assert report["interface"]["batch"] == "batch"
    assert report["source"]["answers"] == {"answered": 60, "refused": 0}


def test_a_module_that_fixes_the_batch_is_refused_with_the_guard_s_words(torch: Path, to_version: Convert) -> None:
    with pytest.raises(VerificationFailed) as refused:
        to_version(torch / "frozen.py")
    assert refused.value.rule == "frozen_axis"
    assert "batch" in str(refused.value)


@pytest.mark.parametrize(("name", "rule"), [("whole.pth", "pickle"), ("files.pt", "torchscript_files")])
def test_hostile_torch_files_are_refused(name: str, rule: str, torch: Path, to_version: Convert) -> None:
    more = {"code": torch / "net.py"} if name == "whole.pth" else {"inputs": ("x=FP32[4]",)}
    with pytest.raises(UnsafeModel) as refused:
        to_version(torch / name, **more)
    assert refused.value.rule == rule
    assert not list(torch.rglob("canary"))


def test_a_person_s_code_reads_no_other_files(torch: Path, to_version: Convert) -> None:
    with pytest.raises(ConvertError) as failed:
        to_version(torch / "snoop.py")
    assert "PermissionError" in str(failed.value)


TENSORFLOW = """
import keras, numpy as np, tensorflow as tf
keras.utils.set_random_seed(0)
layers = keras.layers
model = keras.Sequential([
    keras.Input((8, 8, 3), name="image"),
    layers.Conv2D(4, 3, padding="same", activation="relu"),
    layers.BatchNormalization(),
    layers.GlobalAveragePooling2D(),
    layers.Dense(5, activation="softmax"),
])
model.save("net.keras")
first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
joined = layers.Concatenate()([first, second])
keras.Model([first, second], [layers.Dense(3)(joined), layers.Dense(2)(joined)]).save("two.keras")
keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: x * 2)]).save("lambda.keras")
model.export("exported", verbose=False)
class Module(tf.Module):
    def __init__(self):
        self.w = tf.Variable(np.random.default_rng(0).standard_normal((6, 4)).astype("f"))
    @tf.function(input_signature=[tf.TensorSpec([None, 6], tf.float32, name="x")])
    def __call__(self, x):
        return {"y": tf.nn.tanh(x @ self.w), "sum": tf.reduce_sum(x, 1)}
class Reading(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 6], tf.float32, name="x")])
    def __call__(self, x):
        return {"y": x + tf.cast(tf.strings.length(tf.io.read_file("secret")), tf.float32)}
for name, module in (("saved", Module()), ("reading", Reading())):
    tf.saved_model.save(module, name, signatures=module.__call__)
open("net.tflite", "wb").write(tf.lite.TFLiteConverter.from_keras_model(model).convert())
"""


@pytest.fixture(scope="module")
def tensorflow(make: Make) -> Path:
    return make("tensorflow", TENSORFLOW)


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("saved", ["sum", "y"]),
        ("exported", ["output_0"]),
        ("net.keras", ["output"]),
        ("two.keras", ["output_0", "output_1"]),
        ("net.tflite", ["output"]),
    ],
)
def test_tensorflow_s_forms_answer_as_tensorflow_does(
    name: str, outputs: list[str], tensorflow: Path, to_version: Convert
) -> None:
    report = to_version(tensorflow / name)
    assert report["interface"]["batch"] == "batch"
    assert sorted(one[0] for one in report["interface"]["outputs"]) == outputs
    assert report["source"]["answers"] == {"answered": 12, "refused": 0}


@pytest.mark.parametrize(("name", "rule"), [("lambda.keras", "keras_code"), ("reading", "operator")])
def test_hostile_tensorflow_models_are_refused(name: str, rule: str, tensorflow: Path, to_version: Convert) -> None:
    with pytest.raises(UnsafeModel) as refused:
        to_version(tensorflow / name)
    assert refused.value.rule == rule


PADDLE = """
import paddle
class Net(paddle.nn.Layer):
    def __init__(self, with_norm):
        super().__init__()
        self.c, self.f = paddle.nn.Conv2D(3, 4, 3, padding=1), paddle.nn.Linear(4, 5)
        self.n = paddle.nn.LayerNorm(4) if with_norm else None
        if with_norm:
            self.n.weight.set_value(paddle.to_tensor([0.5, 2.0, -1.0, 3.0]))
            self.n.bias.set_value(paddle.to_tensor([1.0, -1.0, 0.5, 0.0]))
    def forward(self, x):
        h = paddle.nn.functional.relu(self.c(x)).mean([2, 3])
        return self.f(h if self.n is None else self.n(h))
paddle.seed(0)
for name in ("plain", "norm"):
    net = Net(name == "norm")
    net.eval()
    spec = [paddle.static.InputSpec([None, 3, 8, 8], "float32", name="x")]
    paddle.jit.save(net, f"{name}/model", input_spec=spec)
"""


@pytest.fixture(scope="module")
def paddle(make: Make) -> Path:
    return make("paddle", PADDLE)


@pytest.mark.parametrize("source", ["plain", "plain/model.json"])
def test_a_paddle_model_answers_as_paddle_does(source: str, paddle: Path, to_version: Convert) -> None:
    report = to_version(paddle / source)
    assert report["interface"]["batch"] == "batch"
    assert report["source"]["answers"] == {"answered": 12, "refused": 0}


def test_a_paddle_export_is_published_right_or_not_at_all(paddle: Path, to_version: Convert) -> None:
    """Layer norms with scale and bias are where paddle2onnx was seen to write other numbers."""
    try:
        report = to_version(paddle / "norm")
    except VerificationFailed as refused:
        assert refused.rule == "export_differs"
        return
    assert report["source"]["export"]["budget_used"]["output"] <= 1


JAX = """
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
save_file({"w": np.random.default_rng(0).standard_normal((6, 4)).astype("f")}, "net.safetensors")
Path("net.py").write_text('''
import jax, jax.numpy as jnp, numpy as np
INPUTS = ["x=FP32[batch,6]"]
OUTPUTS = ["y"]
def build(weights):
    w = np.ones((6, 4), "f") if weights is None else weights["w"]
    return lambda x: jax.nn.softmax(jnp.tanh(x @ w))
''')
"""


@pytest.mark.parametrize("name", ["net.safetensors", "net.py"])
def test_a_jax_function_answers_as_jax_does(name: str, make: Make, to_version: Convert) -> None:
    folder = make("jax", JAX)
    code = None if name == "net.py" else folder / "net.py"
    report = to_version(folder / name, code=code, framework="jax")
    assert report["interface"]["outputs"] == [["y", "FP32", ["batch", 4]]]
    assert report["source"]["answers"] == {"answered": 12, "refused": 0}


MINDSPORE = """
from pathlib import Path
Path("net.py").write_text('''
import mindspore, numpy as np
from mindspore import nn
INPUTS = ["x=FP32[2,6]"]
OUTPUTS = ["y"]
class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.a, self.r, self.b = nn.Dense(6, 8), nn.ReLU(), nn.Dense(8, 4)
    def construct(self, x):
        return self.b(self.r(self.a(x)))
def build(weights):
    net = Net()
    if weights is not None:
        mindspore.load_param_into_net(net, weights)
    return net
''')
import sys; sys.path.insert(0, ".")
import mindspore, net
mindspore.save_checkpoint(net.build(None), "net.ckpt")
"""


def test_a_mindspore_cell_answers_as_mindspore_does_in_its_fixed_shape(make: Make, to_version: Convert) -> None:
    folder = make("mindspore", MINDSPORE)
    report = to_version(folder / "net.ckpt", code=folder / "net.py", framework="mindspore")
    assert report["interface"]["outputs"] == [["y", "FP32", [2, 4]]]
    assert report["interface"]["batch"] is None
    with pytest.raises(ConvertError) as refused:
        to_version(folder / "net.ckpt", code=folder / "net.py", framework="mindspore", inputs=("x=FP32[batch,6]",))
    assert refused.value.rule == "frozen_axis"
