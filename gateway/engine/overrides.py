"""Owns what a load brings with itself instead of the repository's files: a configuration, and files of the model.

Code never comes this way: a Python model, a shared library or a plan (which holds compiled code) is refused. The files
lie in a folder of their own, of mode 700, as long as the model is loaded.
"""

import base64
import binascii
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from gateway.errors import Code, TollwayError
from model_repo.config import PLATFORMS
from model_repo.errors import ConfigError
from model_repo.repository import ModelFolder, member_parts, version_number

FILES_MAX: Final = 64
#: Below `<version>/` for files of a version, else labels and the like.
_PARTS_MAX: Final = 2
_CONFIG_CHARS_MAX: Final = 1 << 20
_FILE: Final = "file:"
#: Model files that are data alone. `.plan` is not: it is compiled code.
_SUFFIXES: Final = frozenset({".onnx", ".xml", ".bin", ".data", ".tflite", ".pb", ".txt", ".labels", ".json", ".csv"})
_DATA_PLATFORMS: Final = frozenset({"onnxruntime", "openvino", "ensemble"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """`config`: text of config.pbtxt, "" for the repository's. `files`: path below the model's folder → bytes."""

    config: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)


def read_override(name: str, parameters: Mapping[str, Any]) -> Override:
    """From the parameters of a load, JSON's (files in base64) or gRPC's (files as bytes).

    Raises:
        TollwayError: bad_request, for an unknown parameter, a malformed one, or files without a configuration.
    """
    files = {}
    config = ""
    for key, value in parameters.items():
        if key == "config":
            config = _config(name, value)
        elif key.startswith(_FILE):
            path = key.removeprefix(_FILE)
            _check_path(path)
            files[path] = _content(path, value)
        else:
            raise _bad(f"parameter '{key[:200]}' of a load is unknown; known are 'config' and '{_FILE}<path>'")
    if files and not config:
        raise _bad("files of a load need 'config' with them: the repository's files are not looked at then")
    if len(files) > FILES_MAX:
        raise _bad(f"more than {FILES_MAX} files")
    return Override(config=config, files=files)


def _config(name: str, value: Any) -> str:
    if type(value) is not str or len(value) > _CONFIG_CHARS_MAX:
        raise _bad(f"parameter 'config' must be JSON text of at most {_CONFIG_CHARS_MAX} characters")
    message = model_config_pb2.ModelConfig()
    try:
        json_format.Parse(value, message)
    except (json_format.ParseError, RecursionError) as error:
        raise _bad(f"parameter 'config' is not a model configuration: {str(error)[:300]}") from error
    if message.name not in ("", name):
        raise _bad(f"parameter 'config': name '{message.name[:200]}' differs from the model's, '{name}'")
    message.name = name
    # Shown by the config endpoint, never a setting: what was read from there may be sent back.
    message.parameters.pop("tollway_runtime", None)
    message.parameters.pop("tollway_aliases", None)
    return str(text_format.MessageToString(message))


def _check_path(path: str) -> None:
    parts = path.split("/")
    try:
        member_parts(tuple(parts))
    except ConfigError as error:
        raise _bad(str(error)) from error
    if len(parts) > _PARTS_MAX:
        raise _bad(f"file '{path[:200]}': at most one folder, as in '1/model.onnx'")
    suffix = Path(parts[-1]).suffix
    if suffix not in _SUFFIXES:
        raise _bad(f"file '{path[:200]}': only data comes with a load, never code; {', '.join(sorted(_SUFFIXES))}")


def _content(path: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise _bad(f"file '{path[:200]}': its content must be base64 text") from error


def write_files(name: str, override: Override) -> ModelFolder:
    """A folder with the files of `override`. Blocks; `remove_files` takes it away.

    Raises:
        TollwayError: bad_request, for a model that would be code, or a path that is a file and a folder at once.
    """
    message = model_config_pb2.ModelConfig()
    text_format.Parse(override.config, message)
    platform = PLATFORMS.get(message.platform or message.backend)
    if platform not in _DATA_PLATFORMS:
        raise _bad(f"a load brings no files for '{message.platform or message.backend}': they would be code")
    root = Path(tempfile.mkdtemp(prefix="tollway-model-"))
    try:
        versions = _fill(root, override.files)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    return ModelFolder(name=name, path=root, versions=tuple(sorted(versions)))


def _fill(root: Path, files: Mapping[str, bytes]) -> set[int]:
    """Write `files` below `root`; the versions among them."""
    versions = set()
    for path, data in files.items():
        parts = path.split("/")
        number = version_number(parts[0]) if len(parts) > 1 else None
        if number is not None:
            versions.add(number)
        target = root.joinpath(*parts)
        try:
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(data)
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise _bad(f"file '{path[:200]}': one path of a load is a file and a folder at once") from error
    return versions


def remove_files(folder: ModelFolder) -> None:
    """Idempotent. Blocks."""
    shutil.rmtree(folder.path, ignore_errors=True)


def read_parameters(body: Any) -> dict[str, Any]:
    """The `parameters` of a repository call's JSON body; an empty body has none.

    Raises:
        TollwayError: bad_request.
    """
    try:
        whole = msgspec.json.decode(body, type=dict[str, Any]) if len(body) else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(f"malformed JSON: {error}") from error
    parameters = whole.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise _bad("'parameters' must be an object")
    return parameters


def _bad(message: str) -> TollwayError:
    return TollwayError(Code.BAD_REQUEST, message)
