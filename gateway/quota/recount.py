"""Owns reading the caps' counts from the meter: one question over its socket, deadline included.

Request and reply are u32-LE-length-prefixed msgpack: {"op": "counts", "windows": [[tenant, since_ns], …]} →
{"counts": [n, …]} in the same order: calls served since then, posted or still in the usage logs.
"""

import asyncio
from pathlib import Path
from typing import Final

import msgspec

ANSWER_S: Final = 5.0
WINDOWS_PER_QUESTION: Final = 2_000
_ANSWER_BYTES_MAX: Final = 1024 * 1024


class MeterError(Exception):
    """The meter could not be asked, or its answer makes no sense."""


class _Counts(msgspec.Struct):
    counts: list[int]


async def ask_counts(meter_socket: Path, windows: list[tuple[str, int]]) -> list[int]:
    """Served calls per window, in order. A window that starts at 0 is not asked about and counts 0.

    Raises MeterError within `ANSWER_S` seconds per question.
    """
    asked = [window for window in windows if window[1]]
    counted: list[int] = []
    for start in range(0, len(asked), WINDOWS_PER_QUESTION):
        part = asked[start : start + WINDOWS_PER_QUESTION]
        try:
            async with asyncio.timeout(ANSWER_S):
                counts = await _ask(meter_socket, part)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, msgspec.DecodeError) as error:
            raise MeterError(f"the meter cannot be asked: {type(error).__name__}") from error
        if len(counts) != len(part) or min(counts) < 0:
            raise MeterError("the meter's answer does not fit the question")
        counted += counts
    results = iter(counted)
    return [next(results) if since_ns else 0 for _, since_ns in windows]


async def _ask(meter_socket: Path, windows: list[tuple[str, int]]) -> list[int]:
    reader, writer = await asyncio.open_unix_connection(str(meter_socket))
    try:
        payload = msgspec.msgpack.encode({"op": "counts", "windows": windows})
        writer.write(len(payload).to_bytes(4, "little") + payload)
        await writer.drain()
        size = int.from_bytes(await reader.readexactly(4), "little")
        if size > _ANSWER_BYTES_MAX:
            raise MeterError(f"the meter's answer of {size} bytes is over the limit")
        return msgspec.msgpack.decode(await reader.readexactly(size), type=_Counts).counts
    finally:
        writer.close()
