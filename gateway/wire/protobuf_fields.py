"""Owns reading the fields of a small protobuf message whose type needs no generated code."""

from collections.abc import Iterator
from typing import Final

_VARINT, _FIXED64, LENGTH, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES_MAX: Final = 10


class Malformed(ValueError):
    """The bytes are no such message."""


def fields_of(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(number, wire type, content) of each field; the content of a number is not read, and empty.

    Raises:
        Malformed: on reaching what cannot be read.
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        content = b""
        if wire_type == _VARINT:
            _, position = _varint(message, position)
        elif wire_type == LENGTH:
            size, position = _varint(message, position)
            content = message[position : position + size]
            position += size
        elif wire_type in (_FIXED64, _FIXED32):
            position += 8 if wire_type == _FIXED64 else 4
        else:
            raise Malformed(f"wire type {wire_type}")
        if not number or position > len(message):
            raise Malformed("the message is cut short" if number else "field 0")
        yield number, wire_type, content


def text_of(message: bytes, wanted: int) -> str:
    """The text of field `wanted`, "" where it is absent; the last one counts, as protobuf says.

    Raises:
        Malformed: no protobuf message, or the field is no UTF-8 text.
    """
    text = b""
    for number, wire_type, content in fields_of(message):
        if number == wanted:
            if wire_type != LENGTH:
                raise Malformed(f"field {number} is no text")
            text = content
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"field {wanted} is not UTF-8") from error


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    for index in range(position, min(len(message), position + _VARINT_BYTES_MAX)):
        value |= (message[index] & 0x7F) << shift
        if message[index] < 0x80:
            return value, index + 1
        shift += 7
    raise Malformed("a number is cut short")
