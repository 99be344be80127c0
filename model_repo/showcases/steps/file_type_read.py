"""First step of `file_type`: contents of files to magika's features.

`CONTENT: bytes[items]` → `FEATURES: int32[items, 2048]` (bytes of the beginning and of the end, white space around them
stripped, 256 where there are none) and `KINDS: int64[items]`: 0 where the network decides, else the index of `empty`,
`txt` or `unknown`, which hold for contents too short for it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]

Array = npt.NDArray[Any]

ITEMS_MAX: Final = 256
NETWORK: Final = 0
EMPTY: Final = 1
TEXT: Final = 2
UNKNOWN: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What of magika's configuration the features depend on; all but the padding are bytes."""

    beginning: int
    end: int
    padding: int
    block: int
    least: int


def read_rules(path: Path) -> Rules:
    """The rules in magika's config.min.json.

    Raises:
        ValueError: it asks for features that this step does not make.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    if config["mid_size"] or config["use_inputs_at_offsets"]:
        raise ValueError("features from the middle or at offsets are not made here")
    return Rules(
        beginning=config["beg_size"],
        end=config["end_size"],
        padding=config["padding_token"],
        block=config["block_size"],
        least=config["min_file_size_for_dl"],
    )


def extract(content: bytes, features: Array, rules: Rules) -> int:
    """Write the features of one content into the row `features: int32[2048]`, all padding before; returns its kind."""
    if not content:
        return EMPTY
    head = content[: rules.block].lstrip()[: rules.beginning]
    if len(content) < rules.least or len(head) < rules.least:
        return _kind_of_few(content[: rules.block])
    tail = content[-rules.block :].rstrip()[-rules.end :]
    features[: len(head)] = np.frombuffer(head, np.uint8)
    features[len(features) - len(tail) :] = np.frombuffer(tail, np.uint8)
    return NETWORK


def _kind_of_few(content: bytes) -> int:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return UNKNOWN
    return TEXT


def extract_all(contents: list[bytes], rules: Rules) -> dict[str, Array]:
    """All outputs of the step by name."""
    features = np.full((len(contents), rules.beginning + rules.end), rules.padding, dtype=np.int32)
    kinds = [extract(content, features[row], rules) for row, content in enumerate(contents)]
    return {"FEATURES": features, "KINDS": np.array(kinds, dtype=np.int64)}


class TritonPythonModel:
    """Some contents a request; magika's configuration lies beside this file."""

    def initialize(self, args: dict[str, str]) -> None:
        self._rules = read_rules(Path(__file__).with_name("config.min.json"))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        contents = list(pb_utils.get_input_tensor_by_name(request, "CONTENT").as_numpy().ravel())
        if not 1 <= len(contents) <= ITEMS_MAX:
            text = f"CONTENT holds {len(contents)} items; one call takes 1 to {ITEMS_MAX}"
            return pb_utils.InferenceResponse([], pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG))
        outputs = extract_all(contents, self._rules)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
