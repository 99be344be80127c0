"""Owns asking a Python model to complete its own configuration (`auto_complete_config`) before it is loaded.

Asked once per load, of the newest version, in a process of its own that ends with its answer. The completed
configuration is checked like a written one.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from gateway.engine.messages import message_json
from gateway.engine.python_process import PythonLimits, PythonProcess
from model_repo.config import ModelConfig, check_config
from model_repo.errors import ConfigError, RepositoryError
from model_repo.repository import ModelFolder, find_member

_METHOD: Final = b"auto_complete_config"
_SOURCE_BYTES_MAX: Final = 16 << 20


class _Silent:
    """A process that completes a configuration says nothing else."""

    def on_frame(self, process: PythonProcess, head: dict[str, Any], blob: memoryview) -> None:
        raise ValueError("a frame that was not asked for")

    def on_end(self, process: PythonProcess, reason: str) -> None:
        """Its answer has been read."""


def complete_config(
    text: str, folder: ModelFolder, allowed: tuple[Path, ...], limits: PythonLimits
) -> ModelConfig | None:
    """The completed configuration of a Python model whose file defines `auto_complete_config`; None of any other model.

    Blocks.

    Raises:
        ConfigError: what the model made of it is no configuration.
        RepositoryError: the model's code may not run here, or fails.
    """
    message = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, message)
    except (text_format.ParseError, ValueError):
        return None  # Told where it is read for good.
    if "python" not in (message.backend, message.platform) or not folder.versions:
        return None
    filename = message.default_model_filename or "model.py"
    path = find_member(folder, str(max(folder.versions)), filename)
    if path is None or _METHOD not in path.read_bytes()[:_SOURCE_BYTES_MAX]:
        return None
    if not any(folder.path.resolve().is_relative_to(root) for root in allowed):
        raise RepositoryError("backend 'python': this repository is not listed in python_models_allowed")
    if not message.name:
        message.name = folder.name
    completed = _ask(path, message, limits)
    return None if completed is None else check_config(_parse(completed, folder.name))


def _ask(path: Path, message: Any, limits: PythonLimits) -> dict[str, Any] | None:
    with ThreadPoolExecutor(1) as executor:
        # The process dies with the thread that starts it: this one, which waits.
        process = PythonProcess(path, message.name, limits, _Silent(), executor)
        answer = process.start({"complete": message_json(message)}, is_brief=True)
        process.close()
    config = answer.get("config")
    return config if isinstance(config, dict) else None


def _parse(completed: dict[str, Any], name: str) -> Any:
    message = model_config_pb2.ModelConfig()
    try:
        json_format.ParseDict(completed, message)
    except json_format.ParseError as error:
        raise ConfigError(f"auto_complete_config: not a model configuration: {error}") from error
    if message.name != name:
        raise ConfigError(f"auto_complete_config: name '{message.name}' differs from the model's folder '{name}'")
    return message
