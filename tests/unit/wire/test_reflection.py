"""Reflection as bytes: what is described is what the protocols say, whatever is asked has an answer."""

import json
import zlib
from base64 import b64decode
from random import Random
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from gateway.wire.protobuf_fields import Malformed
from gateway.wire.reflection import Reflection, decode_files
from gateway.wire.reflection_files import PACKED
from tests.unit.wire.reflection_source import SERVICES, all_files, described, reflection_file


def _classes(version: str) -> tuple[Any, Any]:
    """(ServerReflectionRequest, ServerReflectionResponse) of real protobuf."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(reflection_file(version))
    package = f"grpc.reflection.{version}"
    request, response = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.ServerReflection{name}"))
        for name in ("Request", "Response")
    )
    return request, response


REQUEST, RESPONSE = _classes("v1")


@pytest.fixture(scope="module")
def reflection() -> Reflection:
    return decode_files(PACKED)


def ask(reflection: Reflection, **question: Any) -> Any:
    request = REQUEST(host="here", **question)
    answer = RESPONSE.FromString(reflection.answer(request.SerializeToString()))
    assert answer.original_request == request
    return answer


def test_what_is_packed_is_what_the_protocols_say() -> None:
    """Run `python -m tests.unit.wire.reflection_source` where this fails: the packages' descriptors have changed."""
    assert json.loads(zlib.decompress(b64decode(PACKED))) == described()


def test_services_are_listed(reflection: Reflection) -> None:
    answer = ask(reflection, list_services="*")
    assert tuple(service.name for service in answer.list_services_response.service) == SERVICES


@pytest.mark.parametrize("file", all_files(), ids=lambda file: file.name)
def test_every_file_and_symbol_leads_to_the_file_and_all_that_it_imports(reflection: Reflection, file: Any) -> None:
    """A pool of real protobuf can be built of each answer alone."""
    names = [file.name, *file.dependency]
    answers = [ask(reflection, file_by_filename=file.name)]
    symbols = [f"{file.package}.{message.name}" for message in file.message_type]
    symbols += [f"{file.package}.{service.name}" for service in file.service]
    symbols += [f".{file.package}.{one.name}.{method.name}" for one in file.service for method in one.method]
    for symbol in symbols:
        answers.append(ask(reflection, file_containing_symbol=symbol))
    for answer in answers:
        protos = [
            descriptor_pb2.FileDescriptorProto.FromString(proto)
            for proto in answer.file_descriptor_response.file_descriptor_proto
        ]
        assert [proto.name for proto in protos] == names
        assert protos[0] == file


def test_every_name_that_protobuf_knows_is_a_symbol(reflection: Reflection) -> None:
    """Nested messages, fields, oneofs, enums and their values: by protobuf's own full names."""
    pool = descriptor_pool.DescriptorPool()
    for file in all_files():
        pool.Add(file)
    for name in ("inference.ModelConfig", "inference.InferParameter", "grpc.health.v1.HealthCheckResponse"):
        found: Any = pool.FindMessageTypeByName(name)
        symbols = [one.full_name for one in (*found.fields, *found.oneofs, *found.nested_types, *found.enum_types)]
        assert symbols
        for symbol in symbols:
            assert ask(reflection, file_containing_symbol=symbol).HasField("file_descriptor_response"), symbol


@pytest.mark.parametrize(
    "question",
    [
        {"file_by_filename": "nix.proto"},
        {"file_by_filename": ""},
        {"file_containing_symbol": "inference.Nix"},
        {"file_containing_symbol": "x" * 3000},
        {"file_containing_extension": {"containing_type": "inference.ModelConfig", "extension_number": 9}},
        {"all_extension_numbers_of_type": "inference.Nix"},
    ],
)
def test_what_is_not_known_is_an_error_response(reflection: Reflection, question: dict[str, Any]) -> None:
    error = ask(reflection, **question).error_response
    assert error.error_code == 5
    assert len(error.error_message) < 300


def test_a_known_type_has_no_extensions(reflection: Reflection) -> None:
    answer = ask(reflection, all_extension_numbers_of_type="inference.ModelConfig")
    response = answer.all_extension_numbers_response
    assert (response.base_type_name, list(response.extension_number)) == ("inference.ModelConfig", [])


def test_the_last_question_counts_as_in_protobuf(reflection: Reflection) -> None:
    both = REQUEST(list_services="").SerializeToString() + REQUEST(file_by_filename="nix").SerializeToString()
    assert REQUEST.FromString(both).WhichOneof("message_request") == "file_by_filename"
    assert RESPONSE.FromString(reflection.answer(both)).HasField("error_response")


@pytest.mark.parametrize(
    "message", [b"", b"\x0a\x01x", b"\x3a\x05ab", b"\x3a", b"\x38\x01", b"\x02\x00", b"\x3f", b"\x80" * 12]
)
def test_malformed_requests_are_refused(reflection: Reflection, message: bytes) -> None:
    with pytest.raises(Malformed):
        reflection.answer(message)


def test_random_bytes_are_answered_or_malformed(reflection: Reflection) -> None:
    random = Random(5)
    for _ in range(2000):
        message = random.randbytes(random.randrange(40))
        try:
            answer = reflection.answer(message)
        except Malformed:
            continue
        assert RESPONSE.FromString(answer).WhichOneof("message_response") is not None
