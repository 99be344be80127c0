"""Owns protobuf messages as JSON values, in the form of Triton's REST endpoints: field names as written, all fields
present, 64-bit numbers as numbers (protobuf's own JSON would quote them).
"""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor


def message_json(message: Any) -> dict[str, Any]:
    """The message as a JSON object."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"]
            result[field.name] = {str(key): _value(inner, value[key]) for key in value}
        elif field.is_repeated:
            result[field.name] = [_value(field, item) for item in value]
        else:
            result[field.name] = _value(field, value)
    return result


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return message_json(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value.decode("latin-1") if isinstance(value, bytes) else value


def fill_message(message: Any, value: dict[str, Any]) -> Any:
    """Set fields of `message` from a JSON object with the same names; the inverse for plain and nested fields."""
    for name, item in value.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if field.message_type is None:
            if field.is_repeated:
                getattr(message, name).extend(item)
            else:
                setattr(message, name, item)
        elif field.is_repeated:
            for inner in item:
                fill_message(getattr(message, name).add(), inner)
        else:
            fill_message(getattr(message, name), item)
    return message
