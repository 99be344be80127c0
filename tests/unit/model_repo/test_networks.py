"""Weights are read without the framework that wrote them, and nothing of a file's choosing is called."""

import json
import struct
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from model_repo.checkpoints import CheckpointError, read_safetensors, read_torch
from model_repo.efficientnet import _STRIDES, image_network
from model_repo.makers import class_names
from model_repo.minilm import HEADS, LAYERS, POSITIONS, WIDTH, text_network
from model_repo.onnx_graft import GraftError

Tensors = dict[str, Any]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def tensor(key: str, array: Any, strides: tuple[int, ...] | None = None, name: str = "FloatStorage") -> bytes:
    """The opcodes that PyTorch writes for one tensor."""
    own = tuple(step // array.itemsize for step in array.strides) if strides is None else strides
    storage = b"(" + text("storage") + f"ctorch\n{name}\n".encode() + text(key) + text("cpu") + number(array.size)
    storage += b"NtQ"
    arguments = b"(" + storage + number(0) + numbers(*array.shape) + numbers(*own) + b"\x89" + b"N" + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def dictionary(items: dict[str, bytes]) -> bytes:
    pairs = b"".join(text(name) + value for name, value in items.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + pairs + b"u."


def checkpoint(tensors: Tensors, body: bytes | None = None) -> bytes:
    """A file of PyTorch's old form."""
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    head = magic + b"\x80\x02M\xe9\x03." + b"\x80\x02}" + text("little_endian") + b"\x88s."
    names = {name: str(place) for place, name in enumerate(tensors)}
    kinds = {name: "LongStorage" if array.dtype == np.int64 else "FloatStorage" for name, array in tensors.items()}
    own = {name: tensor(names[name], array, name=kinds[name]) for name, array in tensors.items()}
    keys = b"\x80\x02](" + b"".join(text(key) for key in names.values()) + b"e."
    data = b"".join(struct.pack("<q", array.size) + array.tobytes("A") for array in tensors.values())
    return head + (dictionary(own) if body is None else body) + keys + data


def test_tensors_of_a_checkpoint_are_read_by_name_whatever_their_order() -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    turned = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    count = np.asarray([7], np.int64)
    found = read_torch(checkpoint({"a": matrix, "b": turned, "n": count}))
    np.testing.assert_array_equal(found["a"], matrix)
    np.testing.assert_array_equal(found["b"], turned)
    np.testing.assert_array_equal(found["n"], count)


@pytest.mark.parametrize("name", ["os\nsystem", "builtins\neval", "torch\nload", "collections\ndeque"])
def test_a_name_that_weights_do_not_need_is_refused_before_it_is_called(name: str, tmp_path: Any) -> None:
    canary = tmp_path / "canary"
    call = f"c{name}\n".encode() + b"(" + text(f"touch {canary}") + b"tR."
    with pytest.raises(CheckpointError, match="names"):
        read_torch(checkpoint({}, body=b"\x80\x02" + call))
    assert not canary.exists()


def test_a_view_that_leaves_its_storage_is_refused() -> None:
    array = np.zeros((2, 3), np.float32)
    wide = dictionary({"a": tensor("0", array, strides=(30, 1))})
    with pytest.raises(CheckpointError, match="beyond"):
        read_torch(checkpoint({"a": array}, body=wide))


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_what_is_cut_short_or_something_else_is_refused(cut: int) -> None:
    whole = checkpoint({"a": np.zeros(4, np.float32)})
    with pytest.raises(CheckpointError):
        read_torch(whole[:cut])
    with pytest.raises(CheckpointError):
        read_torch(b"PK\x03\x04" + whole)


def safetensors(tensors: Tensors, **change: Any) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        kind = "I64" if array.dtype == np.int64 else "F32"
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        header[name].update(change)
        data += array.tobytes()
    text_ = json.dumps(header).encode()
    return struct.pack("<Q", len(text_)) + text_ + data


def test_safetensors_are_read_by_name() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = read_safetensors(safetensors({"a": array, "n": np.asarray([3], np.int64)}))
    np.testing.assert_array_equal(found["a"], array)
    assert found["n"].dtype == np.int64


@pytest.mark.parametrize(
    "change",
    [{"data_offsets": [0, 240]}, {"data_offsets": [-8, 16]}, {"shape": [7]}, {"dtype": "F8"}, {"data_offsets": "no"}],
    ids=str,
)
def test_safetensors_that_lie_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        read_safetensors(safetensors({"a": np.zeros(6, np.float32)}, **change))


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, struct.pack("<Q", 4) + b"null", struct.pack("<Q", 1 << 40)])
def test_what_is_no_safetensors_file_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        read_safetensors(data)


#: (channels in, channels out, widening, kernel) of each block of EfficientNet-lite0.
BLOCKS = (
    (32, 16, 1, 3), (16, 24, 6, 3), (24, 24, 6, 3), (24, 40, 6, 5), (40, 40, 6, 5), (40, 80, 6, 3), (80, 80, 6, 3),
    (80, 80, 6, 3), (80, 112, 6, 5), (112, 112, 6, 5), (112, 112, 6, 5), (112, 192, 6, 5), (192, 192, 6, 5),
    (192, 192, 6, 5), (192, 192, 6, 5), (192, 320, 6, 3),
)  # fmt: skip


def image_weights() -> Tensors:
    noise = np.random.default_rng(0)
    found: Tensors = {}

    def add(name: str, *shape: int) -> None:
        fan = int(np.prod(shape[1:]))
        found[f"{name}.weight"] = (noise.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)

    def norm(name: str, size: int) -> None:
        for part, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            found[f"{name}.{part}"] = np.full(size, value, np.float32)

    add("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    for place, (inside, outside, widening, width) in enumerate(BLOCKS):
        prefix, wide = f"_blocks.{place}.", inside * widening
        if widening > 1:
            add(f"{prefix}_expand_conv", wide, inside, 1, 1)
            norm(f"{prefix}_bn0", wide)
        add(f"{prefix}_depthwise_conv", wide, 1, width, width)
        norm(f"{prefix}_bn1", wide)
        add(f"{prefix}_project_conv", outside, wide, 1, 1)
        norm(f"{prefix}_bn2", outside)
    add("_conv_head", 1280, 320, 1, 1)
    norm("_bn1", 1280)
    add("_fc", 1000, 1280)
    found["_fc.bias"] = np.zeros(1000, np.float32)
    return found


def test_the_image_network_is_built_from_its_weights_and_runs() -> None:
    weights = image_weights()
    assert len(BLOCKS) == len(_STRIDES)
    session = ort.InferenceSession(image_network({"w": checkpoint(weights)}), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(1).standard_normal((2, 3, 224, 224)).astype(np.float32)
    (scores,) = session.run(None, {"PIXELS": pixels})
    assert scores.shape == (2, 1000)
    assert np.isfinite(scores).all()
    assert float(np.abs(scores[0] - scores[1]).max()) > 1e-3
    del weights["_blocks.3._project_conv.weight"]
    with pytest.raises(GraftError, match=r"_blocks\.3\._project_conv"):
        image_network({"w": checkpoint(weights)})


def text_weights() -> Tensors:
    noise = np.random.default_rng(3)

    def draw(*shape: int) -> Any:
        return (noise.standard_normal(shape) * 0.05).astype(np.float32)

    found: Tensors = {
        "embeddings.word_embeddings.weight": draw(40, WIDTH),
        "embeddings.position_embeddings.weight": draw(POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": draw(2, WIDTH),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
        square = [f"attention.self.{name}" for name in ("query", "key", "value")] + ["attention.output.dense"]
        sizes = {f"{prefix}{name}": (WIDTH, WIDTH) for name in square}
        sizes |= {f"{prefix}intermediate.dense": (4 * WIDTH, WIDTH), f"{prefix}output.dense": (WIDTH, 4 * WIDTH)}
        for name, size in sizes.items():
            found |= {f"{name}.weight": draw(*size), f"{name}.bias": draw(size[0])}
    for name in norms:
        found |= {f"{name}.weight": 1 + draw(WIDTH), f"{name}.bias": draw(WIDTH)}
    return found


def reference(weights: Tensors, ids: Any) -> Any:
    """The network in numpy for one text without padding, written from its definition."""

    def norm(x: Any, name: str) -> Any:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Any, name: str) -> Any:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def gelu(x: Any) -> Any:
        bell = np.vectorize(__import__("math").erf)(x / np.sqrt(2))
        return 0.5 * x * (1 + bell)

    x = weights["embeddings.word_embeddings.weight"][ids].astype(np.float64)
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        parts = [linear(x, f"{prefix}attention.self.{name}") for name in ("query", "key", "value")]
        query, key, value = (part.reshape(len(ids), HEADS, -1).transpose(1, 0, 2) for part in parts)
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(WIDTH // HEADS)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(len(ids), WIDTH)
        x = norm(x + linear(mixed, f"{prefix}attention.output.dense"), f"{prefix}attention.output.LayerNorm")
        wide = gelu(linear(x, f"{prefix}intermediate.dense"))
        x = norm(x + linear(wide, f"{prefix}output.dense"), f"{prefix}output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_the_text_network_is_its_definition_and_does_not_see_padding() -> None:
    weights = text_weights()
    session = ort.InferenceSession(text_network({"w": safetensors(weights)}), providers=["CPUExecutionProvider"])
    ids = np.asarray([[5, 9, 30, 2, 11, 0, 0]], np.int64)
    mask = np.asarray([[1, 1, 1, 1, 1, 0, 0]], np.int64)
    (padded,) = session.run(None, {"IDS": ids, "MASK": mask})
    (whole,) = session.run(None, {"IDS": ids[:, :5], "MASK": mask[:, :5]})
    np.testing.assert_allclose(padded, whole, atol=1e-5)
    np.testing.assert_allclose(whole[0], reference(weights, ids[0, :5]), atol=1e-4)
    assert np.linalg.norm(whole[0]) == pytest.approx(1, abs=1e-5)
    del weights["encoder.layer.2.output.dense.bias"]
    with pytest.raises(GraftError, match=r"encoder\.layer\.2\.output\.dense\.bias"):
        text_network({"w": safetensors(weights)})


def test_class_names_are_the_first_of_each_in_order() -> None:
    assert class_names({"m": b'{"1": "b", "0": "a, first"}'}) == b"a\nb\n"
    for data in (b'["a"]', b'{"1": "a"}', b'{"0": "a\\nb"}', b'{"0": ""}', b'{"0": 3}'):
        with pytest.raises(GraftError):
            class_names({"m": data})
