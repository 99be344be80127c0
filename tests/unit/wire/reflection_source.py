"""Makes gateway/wire/reflection_files.py from the protocols' own descriptors.

`python -m tests.unit.wire.reflection_source` writes it; `test_reflection.py` demands that it is what these give.
"""

import base64
import json
import textwrap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

MODULE = Path(__file__).parents[3] / "gateway" / "wire" / "reflection_files.py"
SERVICES = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
)
_Field = descriptor_pb2.FieldDescriptorProto
#: (message, fields: (name, number, type, type of a message or None, is repeated, in the oneof)) of the specification.
_STRING, _INT32, _BYTES, _MESSAGE = _Field.TYPE_STRING, _Field.TYPE_INT32, _Field.TYPE_BYTES, _Field.TYPE_MESSAGE
_REFLECTION: tuple[tuple[str, str, tuple[tuple[str, int, Any, str, bool, bool], ...]], ...] = (
    (
        "ServerReflectionRequest",
        "message_request",
        (
            ("host", 1, _STRING, "", False, False),
            ("file_by_filename", 3, _STRING, "", False, True),
            ("file_containing_symbol", 4, _STRING, "", False, True),
            ("file_containing_extension", 5, _MESSAGE, "ExtensionRequest", False, True),
            ("all_extension_numbers_of_type", 6, _STRING, "", False, True),
            ("list_services", 7, _STRING, "", False, True),
        ),
    ),
    (
        "ExtensionRequest",
        "",
        (("containing_type", 1, _STRING, "", False, False), ("extension_number", 2, _INT32, "", False, False)),
    ),
    (
        "ServerReflectionResponse",
        "message_response",
        (
            ("valid_host", 1, _STRING, "", False, False),
            ("original_request", 2, _MESSAGE, "ServerReflectionRequest", False, False),
            ("file_descriptor_response", 4, _MESSAGE, "FileDescriptorResponse", False, True),
            ("all_extension_numbers_response", 5, _MESSAGE, "ExtensionNumberResponse", False, True),
            ("list_services_response", 6, _MESSAGE, "ListServiceResponse", False, True),
            ("error_response", 7, _MESSAGE, "ErrorResponse", False, True),
        ),
    ),
    ("FileDescriptorResponse", "", (("file_descriptor_proto", 1, _BYTES, "", True, False),)),
    (
        "ExtensionNumberResponse",
        "",
        (("base_type_name", 1, _STRING, "", False, False), ("extension_number", 2, _INT32, "", True, False)),
    ),
    ("ListServiceResponse", "", (("service", 1, _MESSAGE, "ServiceResponse", True, False),)),
    ("ServiceResponse", "", (("name", 1, _STRING, "", False, False),)),
    (
        "ErrorResponse",
        "",
        (("error_code", 1, _INT32, "", False, False), ("error_message", 2, _STRING, "", False, False)),
    ),
)


def reflection_file(version: str) -> Any:
    """FileDescriptorProto of grpc.reflection.`version`, as the gRPC specification has it."""
    package = f"grpc.reflection.{version}"
    file = descriptor_pb2.FileDescriptorProto(
        name=f"grpc/reflection/{version}/reflection.proto", package=package, syntax="proto3"
    )
    for name, oneof, fields in _REFLECTION:
        message = file.message_type.add(name=name)
        if oneof:
            message.oneof_decl.add(name=oneof)
        for field, number, kind, type_name, is_repeated, is_one_of in fields:
            made = message.field.add(name=field, number=number, type=kind)
            made.label = _Field.LABEL_REPEATED if is_repeated else _Field.LABEL_OPTIONAL
            if type_name:
                made.type_name = f".{package}.{type_name}"
            if is_one_of:
                made.oneof_index = 0
    file.service.add(name="ServerReflection").method.add(
        name="ServerReflectionInfo",
        input_type=f".{package}.ServerReflectionRequest",
        output_type=f".{package}.ServerReflectionResponse",
        client_streaming=True,
        server_streaming=True,
    )
    return file


def all_files() -> list[Any]:
    """FileDescriptorProtos of every service in SERVICES."""
    files = [reflection_file("v1"), reflection_file("v1alpha")]
    for module in (health_pb2, model_config_pb2, service_pb2):
        files.append(descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb))
    return files


def symbols_of(file: Any) -> list[str]:
    """Full names of everything that `file` defines: messages, fields, oneofs, enums, values, services, methods."""
    prefix = f"{file.package}."
    names: list[str] = []
    for message in file.message_type:
        names += _names_in(message, prefix)
    for enum in file.enum_type:
        names += _names_of(enum, prefix)
    for service in file.service:
        names += [prefix + service.name, *(f"{prefix}{service.name}.{method.name}" for method in service.method)]
    return sorted(names)


def _names_in(message: Any, prefix: str) -> Iterator[str]:
    own = prefix + message.name
    yield own
    yield from (f"{own}.{part.name}" for part in (*message.field, *message.oneof_decl))
    for nested in message.nested_type:
        yield from _names_in(nested, f"{own}.")
    for enum in message.enum_type:
        yield from _names_of(enum, f"{own}.")


def _names_of(enum: Any, prefix: str) -> Iterator[str]:
    """An enum; its values are its siblings, as in C++."""
    yield prefix + enum.name
    yield from (prefix + value.name for value in enum.value)


def described() -> dict[str, Any]:
    """What the module holds, unpacked."""
    files = {
        file.name: {
            "imports": list(file.dependency),
            "proto": file.SerializeToString(deterministic=True).decode("latin-1"),
            "symbols": symbols_of(file),
        }
        for file in all_files()
    }
    return {"files": files, "services": list(SERVICES)}


def write() -> None:
    packed = base64.b64encode(zlib.compress(json.dumps(described(), sort_keys=True).encode(), 9)).decode()
    lines = "\n".join(f'    "{line}"' for line in textwrap.wrap(packed, 112))
    MODULE.write_text(
        '"""Owns what server reflection describes. Generated by `python -m tests.unit.wire.reflection_source`."""\n\n'
        f"from typing import Final\n\nPACKED: Final = (\n{lines}\n)\n",
        encoding="ascii",
    )


if __name__ == "__main__":
    write()
