"""Owns changing one block of a config.pbtxt as text, so that its comments and its order stay.

Bytes in, verified text out: what is returned was parsed again and says exactly what was asked for.
"""

import re
from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from model_repo.errors import ConfigError

#: Comments, quoted strings, braces and words, in protobuf's text format.
_TOKEN: Final = re.compile(r"#[^\n]*|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|[{}<>]|[A-Za-z_][A-Za-z0-9_]*")
_OPEN: Final = {"{": 1, "<": 1, "}": -1, ">": -1}
_BLOCK: Final = "dynamic_batching"


def with_batching(text: str, rows: int, delay_us: int) -> str:
    """`text` with batches of `rows` that wait at most `delay_us` for company; 0 rows: every request runs alone.

    Queue policies and whatever else the block holds stay. A block that holds more is kept for `rows` 0, too, with a
    preferred size of 1.

    Raises:
        ConfigError: `text` is no configuration.
    """
    message = _parse(text)
    block = message.dynamic_batching
    del block.preferred_batch_size[:]
    block.ClearField("max_queue_delay_microseconds")
    if rows or block.ListFields():
        block.preferred_batch_size.append(rows or 1)
        if delay_us:
            block.max_queue_delay_microseconds = delay_us
    else:
        message.ClearField(_BLOCK)
    begin, end = _span(text)
    changed = text[:begin] + _written(message, is_new_line=begin > 0 and text[begin - 1] != "\n") + text[end:]
    if _parse(changed) != message:
        raise ConfigError(f"{_BLOCK}: the block cannot be rewritten in this file; set it by hand")
    return changed


def _parse(text: str) -> Any:
    message = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, message)
    except (text_format.ParseError, ValueError) as error:
        raise ConfigError(f"not a model configuration: {error}") from error
    return message


def _written(message: Any, *, is_new_line: bool) -> str:
    if not message.HasField(_BLOCK):
        return ""
    inner = text_format.MessageToString(message.dynamic_batching, indent=2)
    lead = "\n" if is_new_line else ""
    return f"{lead}{_BLOCK} {{\n{inner}}}\n"


def _span(text: str) -> tuple[int, int]:
    """Where the block stands at the top level: from its name to behind its closing brace and line end; else the end.

    The format allows it once.
    """
    depth = 0
    begin = -1
    for match in _TOKEN.finditer(text):
        word = match[0]
        if depth == 0 and word == _BLOCK:
            begin = match.start()
        depth += _OPEN.get(word, 0)
        if depth == 0 and begin >= 0 and _OPEN.get(word) == -1:
            end = match.end()
            return begin, end + 1 if text[end : end + 1] == "\n" else end
    return len(text), len(text)
