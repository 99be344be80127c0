"""Owns the look into an archive without unpacking it: names and sizes, bounded; what kind of model it says it is."""

import json
import stat
import zipfile
from pathlib import Path
from typing import Final

from converters.errors import UnsafeModel

ENTRIES_MAX: Final = 100_000
UNPACKED_BYTES_MAX: Final = 64 << 30
#: A ratio beyond it is a bomb, not a model; weights hardly shrink at all.
RATIO_MAX: Final = 200
#: Ratios count from this size on, as small texts of one character do shrink.
_RATIO_FROM_BYTES: Final = 64 << 20
KERAS_CONFIG_BYTES_MAX: Final = 64 << 20
_NEXT: Final = "save the model again with its framework's current version"


def recognise_archive(path: Path) -> str:
    """skops, keras, pt2, torchscript, torch_weights; or zip if it is none of them.

    Raises:
        UnsafeModel: no whole archive, too many or too large entries, or names that lead out of a folder.
    """
    names = _checked_names(path)
    bases = {name.split("/", 1)[-1] for name in names}
    if "schema.json" in names:
        return "skops"
    if {"config.json", "metadata.json"} <= names:
        return "keras"
    if (
        any(base.startswith("models/") and base.endswith(".json") for base in bases)
        or "serialized_exported_program.json" in names
    ):
        return "pt2"
    if "data.pkl" in bases and any(base.startswith("code/") for base in bases):
        return "torchscript"
    return "torch_weights" if "data.pkl" in bases else "zip"


def _checked_names(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UnsafeModel("zip", f"{path.name} is no whole ZIP archive: {error}", next_step=_NEXT) from error
    if len(entries) > ENTRIES_MAX:
        raise UnsafeModel(
            "zip_entries", f"{path.name} has {len(entries)} entries, more than {ENTRIES_MAX}", next_step=_NEXT
        )
    if len({entry.filename for entry in entries}) != len(entries):
        raise UnsafeModel("zip_names", f"{path.name} names an entry twice", next_step=_NEXT)
    unpacked = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if unpacked > UNPACKED_BYTES_MAX or (unpacked > _RATIO_FROM_BYTES and unpacked > RATIO_MAX * max(1, packed)):
        raise UnsafeModel("zip_bomb", f"{path.name} unpacks to {unpacked} bytes from {packed}", next_step=_NEXT)
    for entry in entries:
        _check_entry(path.name, entry)
    return {entry.filename for entry in entries}


def _check_entry(archive: str, entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    parts = name.rstrip("/").split("/")
    if name.startswith("/") or "\\" in name or "\0" in name or {"", ".", ".."} & set(parts):
        raise UnsafeModel("zip_names", f"{archive}: entry '{name[:80]}' leads out of the folder", next_step=_NEXT)
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise UnsafeModel("zip_link", f"{archive}: entry '{name[:80]}' is a link", next_step=_NEXT)
    if entry.flag_bits & 0x1:
        raise UnsafeModel("zip_encrypted", f"{archive}: entry '{name[:80]}' is encrypted", next_step=_NEXT)


def check_keras_config(path: Path) -> None:
    """A Keras archive whose layers are all Keras's own: none that carries code or leads to another file.

    Raises:
        UnsafeModel: it has such a layer, or a configuration that cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo("config.json").file_size
            if size > KERAS_CONFIG_BYTES_MAX:
                raise UnsafeModel("keras_config", f"{path.name}: config.json of {size} bytes", next_step=_NEXT)
            config = json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, RecursionError) as error:
        raise UnsafeModel("keras_config", f"{path.name}: no readable config.json: {error}", next_step=_NEXT) from error
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            _check_layer(path.name, value)
            pending.extend(value.values())


def _check_layer(archive: str, value: dict[str, object]) -> None:
    kind = value.get("class_name")
    if kind in {"Lambda", "TFSMLayer", "__lambda__", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}:
        text = f"{archive}: a {kind} layer carries code or leads to another file"
        raise UnsafeModel("keras_code", text, next_step="build the model of Keras's own layers")
    module = value.get("module")
    if kind is not None and isinstance(module, str) and module.split(".")[0] not in {"keras", "builtins"}:
        text = f"{archive}: '{kind}' of module '{module[:60]}' is not Keras's own"
        raise UnsafeModel("keras_code", text, next_step="build the model of Keras's own layers")
    if isinstance(value.get("registered_name"), str) and ">" in str(value["registered_name"]):
        text = f"{archive}: '{str(value['registered_name'])[:60]}' is registered by code that is not here"
        raise UnsafeModel("keras_code", text, next_step="build the model of Keras's own layers")
