"""Owns answers to gRPC server reflection (grpc.reflection.v1 and v1alpha, which differ in name only), without I/O.

Request: file_by_filename 3, file_containing_symbol 4, file_containing_extension 5, all_extension_numbers_of_type 6,
list_services 7. Response: original_request 2, file_descriptor_response 4, list_services_response 6, error_response 7.
What is described is `gateway.wire.reflection_files`, made from the protocol's own descriptors.
"""

import base64
import json
import zlib
from dataclasses import dataclass
from typing import Any, Final

from gateway.wire.grpc import varint
from gateway.wire.protobuf_fields import LENGTH, Malformed, fields_of
from gateway.wire.status import Grpc

_BY_FILENAME, _BY_SYMBOL, _BY_EXTENSION, _EXTENSION_NUMBERS, _LIST_SERVICES = 3, 4, 5, 6, 7
_QUESTIONS: Final = frozenset({_BY_FILENAME, _BY_SYMBOL, _BY_EXTENSION, _EXTENSION_NUMBERS, _LIST_SERVICES})
_NAME_CHARS_SHOWN: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtoFile:
    """One .proto file: its serialized FileDescriptorProto, what it imports, the full names that it defines."""

    proto: bytes
    imports: tuple[str, ...]
    symbols: frozenset[str]


class Reflection:
    """Answers about a fixed set of files."""

    def __init__(self, files: dict[str, ProtoFile], services: tuple[str, ...]) -> None:
        self._files = files
        self._services = services
        self._file_of = {symbol: name for name, file in files.items() for symbol in file.symbols}

    def answer(self, request: bytes) -> bytes:
        """The ServerReflectionResponse to one ServerReflectionRequest; what is not known is an answer, too.

        Raises:
            Malformed: the bytes are no such request.
        """
        return _field(2, request) + self._answer(*_question(request))

    def _answer(self, question: int, value: bytes) -> bytes:
        if question == _LIST_SERVICES:
            return _field(6, b"".join(_field(1, _field(1, name.encode())) for name in self._services))
        name = value.decode("utf-8", "replace")
        if question == _BY_FILENAME:
            found = name if name in self._files else None
        elif question == _BY_SYMBOL:
            found = self._file_of.get(name.removeprefix("."))
        else:
            # All our files are proto3 without extensions: of every type that there is, there are none.
            if question == _EXTENSION_NUMBERS and name.removeprefix(".") in self._file_of:
                return _field(5, _field(1, value))
            found = None
        if found is None:
            text = (
                f"'{name[:_NAME_CHARS_SHOWN]}' is not described here" if question != _BY_EXTENSION else "no extensions"
            )
            return _field(7, b"\x08" + varint(Grpc.NOT_FOUND) + _field(2, text.encode()))
        return _field(4, b"".join(_field(1, self._files[file].proto) for file in self._with_imports(found)))

    def _with_imports(self, name: str) -> list[str]:
        """The file and all that it needs, itself first: clients then ask once."""
        names = [name]
        for known in names:
            names.extend(other for other in self._files[known].imports if other not in names)
        return names


def decode_files(packed: str) -> Reflection:
    """From the text of `reflection_files`: base64 of deflated JSON."""
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    files = {
        name: ProtoFile(
            proto=file["proto"].encode("latin-1"), imports=tuple(file["imports"]), symbols=frozenset(file["symbols"])
        )
        for name, file in found["files"].items()
    }
    return Reflection(files, tuple(found["services"]))


def _field(number: int, value: bytes) -> bytes:
    return bytes((number << 3 | LENGTH,)) + varint(len(value)) + value


def _question(request: bytes) -> tuple[int, bytes]:
    """(which of the oneof, its value); the last one counts, as protobuf says."""
    question, value = 0, b""
    for number, wire_type, content in fields_of(request):
        if number in _QUESTIONS:
            if wire_type != LENGTH:
                raise Malformed(f"field {number} of ServerReflectionRequest has the wrong type")
            question, value = number, content
    if not question:
        raise Malformed("the request asks nothing")
    return question, value
