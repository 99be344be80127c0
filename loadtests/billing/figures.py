"""Owns figures that other measurements bring in, each by one function, found by name or told as missing."""

import importlib
import importlib.util
from typing import Final, NamedTuple

from loadtests.processes import BenchError

#: key → (module, function () → float).
SOURCES: Final = {
    "prepaid_us_per_call": ("loadtests.billing.prepaid", "measure_prepaid_us"),
    "lease_refill_commands": ("loadtests.billing.leases", "measure_lease_refill_commands"),
}


class Figure(NamedTuple):
    """A measured value, or why there is none."""

    value: float | None
    reason: str = ""


def measure(key: str, sources: dict[str, tuple[str, str]] = SOURCES) -> Figure:
    """The figure of `key`; a missing module is a reason, a failing measurement a BenchError."""
    module_name, function_name = sources[key]
    if importlib.util.find_spec(module_name) is None:
        return Figure(None, f"{module_name} is not in this release")
    function = getattr(importlib.import_module(module_name), function_name, None)
    if function is None:
        return Figure(None, f"{module_name} has no {function_name}")
    value = function()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BenchError(f"{module_name}.{function_name} gave {type(value).__name__} instead of a number")
    return Figure(float(value))
