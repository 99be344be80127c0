"""Owns which format a source is, of all that are read: by its bytes, never by running it. The trusted side.

ONNX is judged by `sniff`; all else goes to a framework's own environment (docs/converters.md).
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from converters.archives import check_keras_config, recognise_archive
from converters.errors import UnsafeModel, UsageFault
from converters.sniff import sniff
from converters.toolchains.specs import TOOLCHAINS
from model_repo.manifest import file_sha256

ONNX: Final = "onnx"
FOLDER_FILES_MAX: Final = 10_000
CODE_BYTES_MAX: Final = 1 << 20
SOURCE_BYTES_MAX: Final = 64 << 30
#: Formats that hold weights without a graph, by the framework that is asked for.
_BY_CODE: Final = {"torch": "torch_weights", "jax": "jax_weights"}
_CODE_ALONE: Final = {"torch": "torch_code", "jax": "jax_code", "mindspore": "mindspore_code"}
_CHECKPOINT: Final = "mindspore_weights"
_HEAD_BYTES: Final = 512
_CODE_NEXT: Final = "name the Python file that builds the model: --code FILE.py"


def recognise(path: Path, code: Path | None = None, framework: str = "") -> str:
    """The format of `path`. `framework`: of sources that several read (weights, code); `torch` if not given.

    Raises:
        UsageFault: there is no such file, or it needs code that was not named.
        UnsafeModel: a link, a pickle, or of no format that is read.
    """
    if framework and framework not in {one.name for one in TOOLCHAINS}:
        known = ", ".join(one.name for one in TOOLCHAINS)
        raise UsageFault("framework", f"--from {framework[:60]!r} is none of {known}", next_step="leave it out")
    if code is not None:
        _check_code(code)
    if path.is_symlink():
        raise UnsafeModel("link", f"{path.name} is a link", next_step="name the file itself")
    if path.is_dir():
        return _folder_format(path)
    found = _file_format(path, framework or "torch")
    if found in {_CHECKPOINT, *_BY_CODE.values()} and code is None:
        text = f"{path.name} holds weights without a graph"
        raise UnsafeModel("weights_only", text, next_step=_CODE_NEXT)
    if code is not None and found not in {_CHECKPOINT, *_BY_CODE.values()}:
        raise UsageFault("code", f"--code does not go with a source of format {found}", next_step="leave it out")
    return found


def _file_format(path: Path, framework: str) -> str:
    head = _read_head(path)
    if head.startswith(b"PK\x03\x04"):
        kind = recognise_archive(path)
        if kind == "keras":
            check_keras_config(path)
        return sniff(path) if kind == "zip" else kind
    if head[:2] in {b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"} and path.suffix in {".pt", ".pth"}:
        return "torch_weights"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < SOURCE_BYTES_MAX and len(head) > 9:
        return _of_framework(_BY_CODE, framework, "weights")
    if head.startswith((b"tree\n", b"tree\r\n")):
        return "lightgbm"
    if path.suffix in {".json", ".ubj"} and b"learner" in head[:64]:
        return "xgboost"
    if head[4:8] == b"TFL3":
        return "tflite"
    if path.suffix in {".json", ".pdmodel"} and path.with_suffix(".pdiparams").is_file():
        return "paddle"
    if path.suffix == ".ckpt" and framework == "mindspore":
        return _CHECKPOINT
    if path.suffix == ".py":
        _check_code(path)
        return _of_framework(_CODE_ALONE, framework, "code")
    return sniff(path)


def _of_framework(table: dict[str, str], framework: str, what: str) -> str:
    if framework not in table:
        text = f"--from {framework}: {what} of that framework is not read"
        raise UsageFault("framework", text, next_step=f"one of {', '.join(table)}")
    return table[framework]


def _folder_format(path: Path) -> str:
    source_files(path)
    if (path / "saved_model.pb").is_file():
        return "savedmodel"
    graphs = [one for one in sorted(path.iterdir()) if one.suffix in {".json", ".pdmodel"}]
    if len(graphs) == 1 and graphs[0].with_suffix(".pdiparams").is_file():
        return "paddle"
    text = f"{path.name} is a folder of no format that is read"
    raise UnsafeModel("folder", text, next_step="name a model file")


def _check_code(path: Path) -> None:
    if path.is_symlink() or not path.is_file():
        raise UsageFault("code", f"{path} is no regular file", next_step=_CODE_NEXT)
    if path.stat().st_size > CODE_BYTES_MAX:
        raise UsageFault("code", f"{path.name} is larger than {CODE_BYTES_MAX} bytes", next_step=_CODE_NEXT)


def _read_head(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise UsageFault("missing", f"{path} is not there", next_step="name a model file") from error
    except OSError as error:
        raise UnsafeModel("link", f"{path.name} is a link or cannot be opened", next_step="name the file") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UnsafeModel("not_regular", f"{path.name} is no regular file", next_step="name a model file")
        return file.read(_HEAD_BYTES)


def source_files(path: Path) -> list[Path]:
    """All files of a source, sorted; of a folder every regular file below it.

    Raises:
        UnsafeModel: links, other kinds of files, too many, or too large.
    """
    if not path.is_dir():
        parameters = path.with_suffix(".pdiparams")
        is_pair = path.suffix in {".json", ".pdmodel"} and parameters.is_file() and not parameters.is_symlink()
        return [path, parameters] if is_pair else [path]
    found = sorted(_walk(path))
    if len(found) > FOLDER_FILES_MAX:
        text = f"{path.name} has more than {FOLDER_FILES_MAX} files"
        raise UnsafeModel("folder", text, next_step="name the model's own folder")
    if sum(file.stat().st_size for file in found) > SOURCE_BYTES_MAX:
        raise UnsafeModel("too_large", f"{path.name} has more than {SOURCE_BYTES_MAX} bytes", next_step="split it")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    count = 0
    for root, names, files in os.walk(folder):
        for name in (*names, *files):
            one = Path(root) / name
            mode = one.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UnsafeModel(
                    "link", f"'{one.name}' in the folder is a link or no file", next_step="copy the files"
                )
            count += 1
            if count > 2 * FOLDER_FILES_MAX:
                raise UnsafeModel(
                    "folder", f"{folder.name} has too many files", next_step="name the model's own folder"
                )
            if stat.S_ISREG(mode):
                yield one


def tree_sha256(path: Path, *others: Path) -> str:
    """Of all files of a source by their names, and of `others` in order."""
    base = path if path.is_dir() else path.parent
    digest = hashlib.sha256()
    for file in source_files(path):
        digest.update(f"{file.relative_to(base).as_posix()} {file_sha256(file)}\n".encode())
    for other in others:
        digest.update(f"code {file_sha256(other)}\n".encode())
    return digest.hexdigest()
