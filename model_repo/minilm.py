"""Owns all-MiniLM-L6-v2 as an ONNX graph, from its published safetensors: token numbers to a vector of length 1."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from model_repo.checkpoints import Array, read_safetensors
from model_repo.onnx_builder import Attribute, Node, Value, Weight, encode_model
from model_repo.onnx_graft import GraftError, integers

LAYERS: Final = 6
HEADS: Final = 12
WIDTH: Final = 384
POSITIONS: Final = 512
_EPSILON: Final = 1e-12
#: Added to the scores of tokens that are padding; the least that the softmax of float16 variants still holds.
_MASKED: Final = -10_000.0


def text_network(members: Mapping[str, bytes]) -> bytes:
    """`IDS: int64[batch, tokens]`, `MASK: int64[batch, tokens]` (0: padding) → `EMBEDDING: float32[batch, 384]`.

    The mean of the tokens that are not padding, brought to length 1.

    Raises:
        GraftError: the weights are not this network's.
    """
    (data,) = members.values()
    graph = _Graph(read_safetensors(data))
    try:
        graph.build()
    except KeyError as error:
        raise GraftError(f"the weights lack {error.args[0]}: they are not MiniLM's") from error
    return encode_model(
        graph.nodes,
        [Value(name=name, datatype="INT64", shape=("batch", "tokens")) for name in ("IDS", "MASK")],
        [Value(name="EMBEDDING", datatype="FP32", shape=("batch", WIDTH))],
        graph.weights,
        name="all_minilm_l6_v2",
    )


class _Graph:
    """Nodes and weights as they are added. Tensors between are `float32[batch, tokens, 384]` unless said."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._tensors = tensors
        self.nodes: list[Node] = []
        self.weights: list[Weight] = [
            integers("zero", (1,), 0),
            integers("one", (1,), 1),
            integers("axis_tokens", (), 1),
            integers("axes_mask", (2,), 1, 2),
            integers("axes_tokens", (1,), 1),
            integers("axis_last", (1,), 2),
            integers("heads", (4,), 0, 0, HEADS, WIDTH // HEADS),
            integers("joined", (3,), 0, 0, WIDTH),
        ]
        for name, value in (
            ("unit", 1.0), ("masked", _MASKED), ("shrink", (WIDTH // HEADS) ** 0.5), ("half", 0.5),
            ("root_two", 2.0**0.5), ("least", 1e-9), ("least_length", 1e-12),
        ):  # fmt: skip
            self._weight(name, np.float32(value))

    def build(self) -> None:
        last = self._embed()
        self._mask()
        for number in range(LAYERS):
            last = self._layer(last, f"encoder.layer.{number}.")
        self._pool(last)

    def _add(self, op: str, inputs: tuple[str, ...], output: str, **attributes: Attribute) -> str:
        self.nodes.append(Node(op=op, inputs=inputs, outputs=(output,), attributes=attributes))
        return output

    def _weight(self, name: str, array: "Array | np.float32") -> str:
        plain = np.ascontiguousarray(array, dtype="<f4")
        self.weights.append(Weight(name=name, datatype="FP32", shape=np.shape(array), data=plain.tobytes()))
        return name

    def _embed(self) -> str:
        """Word + position + kind, where the kind is always the first."""
        words = self._weight("words", self._tensors["embeddings.word_embeddings.weight"])
        places = self._tensors["embeddings.position_embeddings.weight"]
        kinds = self._tensors["embeddings.token_type_embeddings.weight"]
        self._weight("places", places + kinds[0])
        self._add("Gather", (words, "IDS"), "word_vectors", axis=0)
        self._add("Shape", ("IDS",), "shape")
        self._add("Gather", ("shape", "axes_tokens"), "count", axis=0)
        self._add("Slice", ("places", "zero", "count", "zero"), "place_vectors")
        self._add("Add", ("word_vectors", "place_vectors"), "embedded")
        return self._normalise("embedded", "embeddings.LayerNorm")

    def _mask(self) -> None:
        """`mask_scores: float32[batch, 1, 1, tokens]`: 0 for tokens, much below it for padding."""
        self._add("Cast", ("MASK",), "mask_float", to=1)
        self._add("Unsqueeze", ("mask_float", "axes_mask"), "mask_wide")
        self._add("Sub", ("unit", "mask_wide"), "mask_padding")
        self._add("Mul", ("mask_padding", "masked"), "mask_scores")

    def _linear(self, source: str, name: str) -> str:
        self._weight(f"{name}.matrix", self._tensors[f"{name}.weight"].T)
        self._weight(f"{name}.bias", self._tensors[f"{name}.bias"])
        product = self._add("MatMul", (source, f"{name}.matrix"), f"{name}.product")
        return self._add("Add", (product, f"{name}.bias"), f"{name}.y")

    def _normalise(self, source: str, name: str) -> str:
        scale = self._weight(f"{name}.scale", self._tensors[f"{name}.weight"])
        bias = self._weight(f"{name}.shift", self._tensors[f"{name}.bias"])
        return self._add("LayerNormalization", (source, scale, bias), f"{name}.y", axis=-1, epsilon=_EPSILON)

    def _split(self, source: str, *, is_key: bool = False) -> str:
        """→ float32[batch, heads, tokens, 32]; of the keys the last two axes change places."""
        parts = self._add("Reshape", (source, "heads"), f"{source}.parts")
        return self._add("Transpose", (parts,), f"{source}.heads", perm=(0, 2, 3, 1) if is_key else (0, 2, 1, 3))

    def _layer(self, source: str, prefix: str) -> str:
        own = f"{prefix}attention.self."
        query, key, value = (self._linear(source, f"{own}{name}") for name in ("query", "key", "value"))
        scores = self._add("MatMul", (self._split(query), self._split(key, is_key=True)), f"{own}scores")
        scaled = self._add("Div", (scores, "shrink"), f"{own}scaled")
        masked = self._add("Add", (scaled, "mask_scores"), f"{own}masked")
        shares = self._add("Softmax", (masked,), f"{own}shares", axis=-1)
        mixed = self._add("MatMul", (shares, self._split(value)), f"{own}mixed")
        back = self._add("Transpose", (mixed,), f"{own}back", perm=(0, 2, 1, 3))
        joined = self._add("Reshape", (back, "joined"), f"{own}joined")
        attended = self._linear(joined, f"{prefix}attention.output.dense")
        first = self._add("Add", (attended, source), f"{prefix}first")
        middle = self._normalise(first, f"{prefix}attention.output.LayerNorm")
        wide = self._gelu(self._linear(middle, f"{prefix}intermediate.dense"))
        narrow = self._linear(wide, f"{prefix}output.dense")
        second = self._add("Add", (narrow, middle), f"{prefix}second")
        return self._normalise(second, f"{prefix}output.LayerNorm")

    def _gelu(self, source: str) -> str:
        share = self._add("Div", (source, "root_two"), f"{source}.share")
        bell = self._add("Erf", (share,), f"{source}.erf")
        above = self._add("Add", (bell, "unit"), f"{source}.above")
        product = self._add("Mul", (source, above), f"{source}.product")
        return self._add("Mul", (product, "half"), f"{source}.gelu")

    def _pool(self, source: str) -> None:
        self._add("Unsqueeze", ("mask_float", "axis_last"), "mask_rows")
        self._add("Mul", (source, "mask_rows"), "kept")
        self._add("ReduceSum", ("kept", "axes_tokens"), "sum", keepdims=0)
        self._add("ReduceSum", ("mask_rows", "axes_tokens"), "tokens_kept", keepdims=0)
        self._add("Max", ("tokens_kept", "least"), "tokens_counted")
        self._add("Div", ("sum", "tokens_counted"), "mean")
        self._add("ReduceL2", ("mean",), "length", axes=(1,), keepdims=1)
        self._add("Max", ("length", "least_length"), "length_counted")
        self._add("Div", ("mean", "length_counted"), "EMBEDDING")
