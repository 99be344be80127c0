"""Owns the program that runs in a framework's environment: JSON request in, JSON lines out, behind the limits.

Started by path with that environment's Python and `-I`; only the package `converters` is added to what it can import,
so that nothing of our own environment meets the framework's.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: Format → module with `open_source(asked)`.
OPENERS = {
    "skops": "converters.importers.sklearn_models",
    "savedmodel": "converters.importers.tensorflow_models",
    "tflite": "converters.importers.tensorflow_models",
    "keras": "converters.importers.tensorflow_models",
    "paddle": "converters.importers.paddle_models",
    "jax_weights": "converters.importers.jax_models",
    "jax_code": "converters.importers.jax_models",
    "mindspore_weights": "converters.importers.mindspore_models",
    "mindspore_code": "converters.importers.mindspore_models",
    "xgboost": "converters.importers.xgboost_models",
    "lightgbm": "converters.importers.lightgbm_models",
    "pt2": "converters.importers.torch_models",
    "torchscript": "converters.importers.torch_models",
    "torch_weights": "converters.importers.torch_models",
    "torch_code": "converters.importers.torch_models",
}


def _mount() -> None:
    """Make `converters` importable from where this file lies, and nothing beside it."""
    root = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        "converters", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{root} is no package")
    module = importlib.util.module_from_spec(spec)
    sys.modules["converters"] = module
    spec.loader.exec_module(module)


def run(request: Mapping[str, Any], gaps: list[str], emit: Callable[[Mapping[str, Any]], None]) -> Any:
    """Do `verb` export or answer, plan or quantise. Imported behind the limits: these load the frameworks."""
    if request["verb"] == "quantise":
        return _quantise(request, gaps, emit)
    if request["verb"] == "plan":
        from converters.plans.serve import serve_plans

        return {**serve_plans(request, emit), "sandbox_gaps": gaps}
    from converters.errors import ConvertError, ToolFailed
    from converters.importers.protocol import Asked, parse_inputs
    from converters.importers.steps import answer_cases, export_source, first_line

    asked = Asked(
        format=request["format"],
        source=Path(request["source"]),
        code=Path(request["code"]) if request["code"] else None,
        inputs=parse_inputs(request["inputs"]),
    )
    work = Path(request["work"])

    def progress(step: str, done: int, total: int) -> None:
        emit({"ev": "progress", "step": step, "done": done, "total": total})

    try:
        source = importlib.import_module(OPENERS[asked.format]).open_source(asked)
        if request["verb"] == "export":
            return {**export_source(source, work), "sandbox_gaps": gaps}
        return answer_cases(source, work, progress)
    except (ConvertError, MemoryError):
        raise
    except Exception as error:
        # Frameworks raise whatever they meet in a file.
        text = f"{asked.format}: {type(error).__name__}: {first_line(error)}"
        raise ToolFailed("import", text, next_step="check that the file loads in its own framework") from error


def _quantise(request: Mapping[str, Any], gaps: list[str], emit: Callable[[Mapping[str, Any]], None]) -> Any:
    from converters.nncf.quantise import serve_quantise

    def progress(step: str, done: int, total: int) -> None:
        emit({"ev": "progress", "step": step, "done": done, "total": total})

    return {**serve_quantise(request, progress), "sandbox_gaps": gaps}


if __name__ == "__main__":
    _mount()
    from converters.child import main_child

    sys.exit(main_child(run))
