"""Owns what `pb_utils` says about configurations and types: lookups, type tables, and `ModelConfig` for completion."""

import functools
import json
from typing import Any, Final

import numpy as np
from triton_faults import TritonModelException  # type: ignore[import-not-found,unused-ignore]

#: Triton's type names in the order of its enumeration: a name's position is its number.
_NAMES: Final = (
    "TYPE_INVALID",
    "TYPE_BOOL",
    "TYPE_UINT8",
    "TYPE_UINT16",
    "TYPE_UINT32",
    "TYPE_UINT64",
    "TYPE_INT8",
    "TYPE_INT16",
    "TYPE_INT32",
    "TYPE_INT64",
    "TYPE_FP16",
    "TYPE_FP32",
    "TYPE_FP64",
    "TYPE_STRING",
)
_NUMPY: Final[dict[str, Any]] = {
    "TYPE_BOOL": np.bool_,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}


def get_input_config_by_name(model_config: Any, name: str) -> Any:
    return _by_name(model_config, "input", name)


def get_output_config_by_name(model_config: Any, name: str) -> Any:
    return _by_name(model_config, "output", name)


def _by_name(model_config: Any, field: str, name: str) -> Any:
    return next((item for item in _as_dict(model_config).get(field, ()) if item["name"] == name), None)


def _as_dict(model_config: Any) -> Any:
    return json.loads(model_config) if isinstance(model_config, str) else model_config


def using_decoupled_model_transaction_policy(model_config: Any) -> bool:
    return bool(_as_dict(model_config).get("model_transaction_policy", {}).get("decoupled", False))


def triton_to_numpy_type(data_type: str | int) -> Any:
    """From `TYPE_FP32` or its number in Triton's enumeration."""
    return _NUMPY[_NAMES[data_type] if isinstance(data_type, int) else data_type]


def triton_string_to_numpy(triton_type_string: str) -> Any:
    return _NUMPY[triton_type_string]


def numpy_to_triton_type(data_type: Any) -> int:
    """The number in Triton's enumeration."""
    return _triton_number(np.dtype(data_type))


@functools.lru_cache(maxsize=64)
def _triton_number(dtype: "np.dtype[Any]") -> int:
    if dtype.kind in "OSU":
        return _NAMES.index("TYPE_STRING")
    for name, numpy_type in _NUMPY.items():
        if np.dtype(numpy_type) == dtype:
            return _NAMES.index(name)
    raise TritonModelException(f"numpy type {dtype} has no Triton type")


class ModelConfig:
    """A configuration under completion. What is set already stays; contradictions to it are errors."""

    def __init__(self, model_config: str) -> None:
        self._config: dict[str, Any] = json.loads(model_config)

    def as_dict(self) -> dict[str, Any]:
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        set_already = self._config.get("max_batch_size", 0)
        if set_already > max_batch_size:
            raise ValueError(f"max_batch_size is configured as {set_already}, the model allows {max_batch_size}")
        if not set_already:
            self._config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        if "sequence_batching" in self._config or "ensemble_scheduling" in self._config:
            raise ValueError("the configuration names another scheduler than dynamic_batching")
        self._config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: dict[str, Any]) -> None:
        unknown = transaction_policy_dict.keys() - {"decoupled"}
        if unknown:
            raise ValueError(f"model_transaction_policy: unknown property '{min(unknown)}'")
        wanted = bool(transaction_policy_dict.get("decoupled", False))
        policy = self._config.setdefault("model_transaction_policy", {"decoupled": wanted})
        if bool(policy.get("decoupled", False)) != wanted:
            raise ValueError("model_transaction_policy: decoupled is configured otherwise")

    def add_input(self, input: dict[str, Any]) -> None:
        self._add("input", input, {"name", "data_type", "dims", "optional", "allow_ragged_batch"})

    def add_output(self, output: dict[str, Any]) -> None:
        self._add("output", output, {"name", "data_type", "dims"})

    def _add(self, field: str, tensor: dict[str, Any], known: set[str]) -> None:
        unknown = tensor.keys() - known
        if unknown:
            raise ValueError(f"{field}: unknown property '{min(unknown)}'")
        for name in ("name", "data_type", "dims"):
            if name not in tensor:
                raise ValueError(f"{field}: property '{name}' is missing")
        items = self._config.setdefault(field, [])
        for item in items:
            if item["name"] == tensor["name"]:
                _check_same(field, item, tensor)
                return
        items.append(dict(tensor))


def _check_same(field: str, item: dict[str, Any], tensor: dict[str, Any]) -> None:
    for name in ("data_type", "dims"):
        if item.get(name) and list_of(item[name]) != list_of(tensor[name]):
            raise ValueError(f"{field} '{item['name']}': {name} is configured as {item[name]}, not {tensor[name]}")
        item.setdefault(name, tensor[name])


def list_of(value: Any) -> Any:
    """Sizes may come as any sequence."""
    return value if isinstance(value, str) else [int(size) for size in value]
