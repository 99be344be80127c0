"""Owns what travels between the engine and a Python model's process, on the engine's side: works out, responses in.

What a process says is checked like a caller's: sizes, types, shapes, names.
"""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from gateway.engine.frames import Blob
from gateway.engine.interface import Interface
from gateway.engine.tensors import Array, from_raw, to_raw
from gateway.engine.work import Work
from gateway.errors import Code, TollwayError

#: pb_utils.TritonError codes that are the caller's fault or the model's momentary state; others are backend faults.
_CODES: Final = {
    2: Code.BAD_REQUEST,
    3: Code.INVALID_TENSOR,
    4: Code.OVERLOADED,
    5: Code.NOT_IMPLEMENTED,
    7: Code.CANCELLED,
}
#: The other way, for the answers to calls that a model makes.
_TRITON_CODES: Final = {
    Code.MODEL_NOT_FOUND: 2,
    Code.VERSION_NOT_FOUND: 2,
    Code.INVALID_TENSOR: 3,
    Code.BAD_REQUEST: 3,
    Code.MODEL_NOT_READY: 4,
    Code.QUEUE_FULL: 4,
    Code.OVERLOADED: 4,
    Code.DEADLINE_EXCEEDED: 4,
    Code.NOT_IMPLEMENTED: 5,
    Code.CANCELLED: 7,
}
_LEFT_OUT: Final = np.empty(0, dtype=np.uint8)


def write_request(work: Work, number: int, interface: Interface, blob: Blob) -> dict[str, Any]:
    """A work as an element of an `execute` frame; its tensors are added to `blob`."""
    feeds, context = work.feeds, work.context
    named = [(spec.name, spec.datatype, feeds[spec.name]) for spec in interface.inputs if spec.name in feeds]
    request: dict[str, Any] = {"n": number, "inputs": write_arrays(named, blob)}
    if context.request_id:
        request["id"] = context.request_id
    if context.correlation_id:
        request["corr"] = context.correlation_id
    if context.is_start or context.is_end:
        request["flags"] = context.flags
    if context.parameters:
        request["parameters"] = dict(context.parameters)
    if context.timeout_us:
        request["timeout"] = context.timeout_us
    if context.priority:
        request["priority"] = context.priority
    if context.requested:
        request["requested"] = list(context.requested)
    return request


def write_arrays(named: Iterable[tuple[str, str, Array]], blob: Blob) -> list[list[Any]]:
    """`[name, datatype, shape, offset, size]` of each array."""
    described = []
    for name, datatype, array in named:
        data = to_raw(array)
        described.append([name, datatype, list(array.shape), blob.add(data), len(data)])
    return described


def read_response(
    response: dict[str, Any], blob: memoryview, interface: Interface, rows: int, requested: tuple[str, ...]
) -> list[Array] | TollwayError:
    """The outputs in the order of the configuration. One that nobody asked for may be missing: it is empty."""
    partial = read_part(response, blob, interface, rows)
    if isinstance(partial, TollwayError):
        return partial
    outputs: list[Array] = []
    for spec, array in zip(interface.outputs, partial, strict=True):
        if array is None and (not requested or spec.name in requested):
            return _fault(interface, f"returned no output '{spec.name}'")
        outputs.append(_LEFT_OUT if array is None else array)
    return outputs


#: A response of a decoupled model's request: the request's number, what it is (None: nothing), whether it is the last.
Part = tuple[int, "list[Array | None] | TollwayError | None", bool]


def read_parts(parts: Any, blob: memoryview, interface: Interface) -> list[Part]:
    """What a `parts` frame holds, in order."""
    return [
        (int(number), None if response is None else read_part(response, blob, interface, -1), bool(is_final))
        for number, response, is_final in parts
    ]


def read_part(
    response: dict[str, Any], blob: memoryview, interface: Interface, rows: int
) -> list[Array | None] | TollwayError:
    """A response's outputs, None where it has none; or the fault that it, or its making, carries.

    `rows` -1: as many as the model likes (decoupled models).
    """
    if "error" in response:
        code = _CODES.get(response["code"], Code.BACKEND_FAULT)
        retry_ms = 1000 if code is Code.OVERLOADED else None
        return TollwayError(code, str(response["error"]), retry_after_ms=retry_ms)
    outputs: list[Array | None] = [None] * len(interface.outputs)
    for name, datatype, shape, offset, size in response["outputs"]:
        position = interface.output_positions.get(name)
        if position is None:
            continue  # As in Triton: what is not configured is not returned.
        spec = interface.outputs[position]
        # numpy has no BF16: models return its bits.
        if datatype != spec.datatype and (datatype, spec.datatype) != ("UINT16", "BF16"):
            return _fault(interface, f"returned output '{name}' as {datatype}, configured is {spec.datatype}")
        try:
            array = from_raw(name, spec.datatype, tuple(shape), blob[offset : offset + size])
        except TollwayError as error:
            return _fault(interface, error.message)
        fault = interface.find_output_fault(position, array, rows)
        if fault is not None:
            return _fault(interface, fault)
        outputs[position] = array
    return outputs


def triton_code(code: Code) -> int:
    """The pb_utils.TritonError code of one of our faults."""
    return _TRITON_CODES.get(code, 1)


def _fault(interface: Interface, reason: str) -> TollwayError:
    return TollwayError(Code.BACKEND_FAULT, f"model '{interface.model}': {reason}")
