"""Owns the look at a pickle before anything reads it: which names it would import, by its opcodes alone.

PyTorch's own reader of weights refuses other names too; it has been broken before, so that both have to agree.
"""

import io
import pickletools
import zipfile
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, Final

from converters.errors import UnsafeModel

PICKLE_BYTES_MAX: Final = 256 << 20
#: Magic number, protocol, system, the object, and the keys of the storages.
_LEADING: Final = 5
#: What files of weights are made of: rebuilt tensors, storages, types, ordered dictionaries.
_ALLOWED: Final = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch._tensor _rebuild_from_type_v2",
        "torch.serialization _get_layout",
        "torch Size",
        "torch.nn.parameter Parameter",
        "_codecs encode",
    }
)
_TYPES: Final = ("Storage", "float", "int", "uint", "bool", "bfloat", "complex")
_NEXT: Final = "save the model's state_dict, or better as safetensors"


def check_weights(file: BinaryIO, where: str) -> None:
    """A file of `torch.save` that holds weights and nothing else.

    Raises:
        UnsafeModel: it would import anything else, or cannot be read as a pickle.
    """
    for name, data in _pickles(file, where):
        for found in _imports(name, data):
            if found not in _ALLOWED and not _is_type(found):
                text = (
                    f"{where}: {name} would run '{found.replace(' ', '.')[:100]}': only weights are read from pickles"
                )
                raise UnsafeModel("pickle", text, next_step=_NEXT)


def _is_type(found: str) -> bool:
    module, _, name = found.partition(" ")
    return module in {"torch", "torch.storage"} and (name.endswith(_TYPES[0]) or name.startswith(_TYPES[1:]))


def _pickles(file: BinaryIO, where: str) -> Iterator[tuple[str, bytes]]:
    """Of an archive every entry that is one; of the older form the pickles at the beginning of the file."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        yield "the file", _leading(file, where)
        return
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".pkl"):
                if entry.file_size > PICKLE_BYTES_MAX:
                    text = f"{where}: {entry.filename} has {entry.file_size} bytes"
                    raise UnsafeModel("pickle_size", text, next_step=_NEXT)
                yield entry.filename, archive.read(entry)


def _leading(file: BinaryIO, where: str) -> bytes:
    """The older form begins with five pickles; the raw weights after them are read by their lengths."""
    data = file.read(PICKLE_BYTES_MAX)
    stream = io.BytesIO(data)
    try:
        for _ in range(_LEADING):
            deque(pickletools.genops(stream), maxlen=0)
    except ValueError as error:
        raise UnsafeModel("pickle", f"{where} is no file of torch.save: {error}", next_step=_NEXT) from error
    return data[: stream.tell()]


def _imports(name: str, data: bytes) -> Iterator[str]:
    """`module name` of every import of one or more pickles in a row; what cannot be told is refused."""
    stream = io.BytesIO(data)
    try:
        while stream.tell() < len(data):
            yield from _imports_of_one(stream)
    except ValueError as error:
        raise UnsafeModel("pickle", f"{name} is no whole pickle: {error}", next_step=_NEXT) from error


def _imports_of_one(stream: BinaryIO) -> Iterator[str]:
    """STACK_GLOBAL takes the two topmost values: they count only where nothing but strings was pushed just before."""
    recent: list[str] = []
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        kind = opcode.name
        if kind in {"GLOBAL", "INST"}:
            yield str(argument)
        elif kind == "STACK_GLOBAL":
            yield " ".join(recent[-2:]) if len(recent) >= 2 else "? ?"
        elif kind in {"EXT1", "EXT2", "EXT4"}:
            yield "copyreg extension"
        if "UNICODE" in kind:
            recent.append(str(argument))
        elif kind == "MEMOIZE":
            memo[len(memo)] = recent[-1] if recent else "?"
        elif kind in {"BINPUT", "LONG_BINPUT", "PUT"}:
            memo[int(str(argument))] = recent[-1] if recent else "?"
        elif kind in {"BINGET", "LONG_BINGET", "GET"}:
            recent.append(memo.get(int(str(argument)), "?"))
        else:
            recent.clear()
