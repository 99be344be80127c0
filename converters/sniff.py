"""Owns the first look at a file: what format its bytes say it is, decided without running or unpacking anything."""

import os
import stat
from pathlib import Path
from typing import Final

from converters.errors import UnsafeModel, UsageFault

MODEL_BYTES_MAX: Final = 2 << 30
_HEAD_BYTES: Final = 512
_NEXT: Final = "export the model to ONNX in its own framework, then convert that file"
#: Beginning of a file → (rule, what it is).
_REFUSED: Final = (
    (b"PK\x03\x04", "zip", "a ZIP archive (torch.save, Keras 3 and NumPy's npz are such); it may hold pickles"),
    (b"PK\x05\x06", "zip", "an empty ZIP archive"),
    (b"\x89HDF\r\n\x1a\n", "hdf5", "an HDF5 file (Keras .h5), which may hold code in Lambda layers"),
    (b"\x93NUMPY", "npy", "a NumPy array, not a model"),
    (b"\x1f\x8b", "compressed", "gzip-compressed"),
    (b"BZh", "compressed", "bzip2-compressed"),
    (b"\xfd7zXZ\x00", "compressed", "xz-compressed"),
    (b"\x28\xb5\x2f\xfd", "compressed", "zstd-compressed"),
    (b"\x7fELF", "executable", "an executable"),
    (b"<?xml", "openvino_ir", "XML (an OpenVINO IR is such), which is a result and not a source here"),
    (b"GGUF", "gguf", "a GGUF file"),
    (b"version https://git-lfs", "git_lfs", "a pointer of Git LFS, not the model itself"),
)


def sniff(path: Path) -> str:
    """`"onnx"` for what may be one: a regular file whose first bytes are those of a ModelProto.

    Raises:
        UsageFault: there is no such file.
        UnsafeModel: a link, another format (by name), empty, or beyond `MODEL_BYTES_MAX`.
    """
    head = _read_head(path)
    for magic, rule, text in _REFUSED:
        if head.startswith(magic):
            raise UnsafeModel(rule, f"{path.name} is {text}", next_step=_NEXT)
    # Protocols 2 and above begin so; 0 and 1 are text, with an opcode and a module's name first. `cposix` …
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        raise UnsafeModel("pickle", f"{path.name} is a pickle: reading it would run its code", next_step=_NEXT)
    if head[:1] in {b"c", b"("} and b"\n" in head:
        raise UnsafeModel("pickle", f"{path.name} is a pickle of an old protocol", next_step=_NEXT)
    if head[4:8] == b"TFL3":
        raise UnsafeModel("tflite", f"{path.name} is a TFLite file", next_step=_NEXT)
    if head[8:9] == b"{" and len(head) > 9:
        raise UnsafeModel("safetensors", f"{path.name} holds weights without a graph (safetensors)", next_step=_NEXT)
    if head[257:262] == b"ustar":
        raise UnsafeModel("tar", f"{path.name} is a tar archive", next_step=_NEXT)
    # ModelProto begins with ir_version (0x08) or, as protobuf allows any order, with one of its other fields.
    if head[:1] not in {b"\x08", b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42", b"\x72"}:
        raise UnsafeModel("unknown_format", f"{path.name} is no ONNX model", next_step=_NEXT)
    return "onnx"


def _read_head(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise UsageFault("missing", f"{path} is not there", next_step="name an ONNX file") from error
    except OSError as error:
        raise UnsafeModel("link", f"{path.name} is a link or cannot be opened", next_step="name the file") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UnsafeModel("not_regular", f"{path.name} is no regular file", next_step="name an ONNX file")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > MODEL_BYTES_MAX:
            text = f"{path.name} has {status.st_size} bytes, more than {MODEL_BYTES_MAX}"
            raise UnsafeModel("too_large", text, next_step="keep the weights in external data files beside it")
        head = file.read(_HEAD_BYTES)
    if not head:
        raise UnsafeModel("empty", f"{path.name} is empty", next_step="export the model again")
    return head
