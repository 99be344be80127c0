"""Loads the sources of Python steps as the engine does: with its stub of Triton's module beside them."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

PYSTUB = Path(__file__).parents[3] / "gateway" / "engine" / "pystub"


def load_step(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of step `name`, fresh, with the engine's `triton_python_backend_utils`."""
    # In a step's process the stub's folder is on the path; what lies there imports its neighbours by plain names.
    monkeypatch.syspath_prepend(str(PYSTUB))
    stub = importlib.import_module("gateway.engine.pystub.triton_python_backend_utils")
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    full_name = f"model_repo.showcases.steps.{name}"
    monkeypatch.delitem(sys.modules, full_name, raising=False)
    return importlib.import_module(full_name)


def execute(step: Any, **tensors: Any) -> Any:
    """The answer of a loaded step's model to one request."""
    stub = sys.modules["triton_python_backend_utils"]
    inputs = [stub.Tensor(name, array) for name, array in tensors.items()]
    (response,) = step.execute([stub.InferenceRequest(inputs=inputs, requested_output_names=[])])
    return response


def outputs(response: Any) -> dict[str, Any]:
    assert not response.has_error(), response.error().message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def texts(*items: bytes) -> Any:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array
