"""Owns the calls that Python models make to other models of the engine (business logic scripting).

A call is a work like any other: it waits in the other model's queue, and ends with its answer, its fault, the process
that asked for it, or its deadline. All methods belong to the loop's thread.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

from gateway.clock import Clock
from gateway.engine.context import read_context
from gateway.engine.frames import Blob
from gateway.engine.interface import Interface, Tensor
from gateway.engine.python_wire import triton_code, write_arrays
from gateway.engine.tensors import Array, from_raw
from gateway.engine.work import Servable, Work
from gateway.errors import Code, TollwayError

#: Calls that one process may have under way; the child refuses before.
CALLS_MAX: Final = 1024
#: head, tensors.
Post = Callable[[dict[str, Any], Blob], None]


class Callee(Protocol):
    """A model version that can be called."""

    interface: Interface

    @property
    def is_decoupled(self) -> bool: ...

    def servable(self) -> Servable:
        """Raises: TollwayError: model_not_ready."""


#: By name and version ("": the latest). Raises TollwayError: model_not_found, version_not_found.
FindModel = Callable[[str, str], Callee]


class _Call:
    """One call under way: who runs it, and which outputs were asked for."""

    __slots__ = ("callee", "number", "positions", "servable", "work")

    def __init__(self, number: int, callee: Callee, servable: Servable, positions: list[int]) -> None:
        self.number = number
        self.callee = callee
        self.servable = servable
        self.positions = positions
        self.work: Work | None = None


class Calls:
    """The calls of one process."""

    def __init__(self, find_model: FindModel, post: Post, clock: Clock, call_ns_max: int) -> None:
        self._find_model = find_model
        self._post = post
        self._now = clock.monotonic_ns
        self._call_ns_max = call_ns_max
        self._calls: dict[int, _Call] = {}

    @property
    def under_way(self) -> int:
        return len(self._calls)

    def begin(self, head: dict[str, Any], blob: memoryview) -> None:
        """Start what a `call` frame asks for; its answer, or its fault, is posted."""
        number = int(head["call"])
        try:
            version = "" if head["version"] < 0 else str(head["version"])
            callee = self._find_model(head["model"], version)
            servable = callee.servable()
            if head["do"] == "ready":
                self._post({"do": "reply", "call": number, "outputs": [], "final": True}, Blob())
                return
            self._infer(number, head, blob, callee, servable)
        except TollwayError as error:
            self._calls.pop(number, None)
            self._fail(number, error)

    def _infer(self, number: int, head: dict[str, Any], blob: memoryview, callee: Callee, servable: Servable) -> None:
        if len(self._calls) >= CALLS_MAX or number in self._calls:
            raise TollwayError(Code.OVERLOADED, f"more than {CALLS_MAX} calls to other models are under way")
        if callee.is_decoupled and not head["decoupled"]:
            message = f"model '{head['model']}' is decoupled: call it with decoupled=True"
            raise TollwayError(Code.NOT_IMPLEMENTED, message)
        interface = callee.interface
        tensors = [
            Tensor(name, datatype, tuple(shape), from_raw(name, datatype, shape, blob[offset : offset + size]))
            for name, datatype, shape, offset, size in head["inputs"]
        ]
        accepted = interface.accept(tensors)
        positions = interface.output_indexes(head["requested"]) or list(range(len(interface.outputs)))
        parameters = dict(head["parameters"])
        if head["corr"]:
            flags = head["flags"]
            parameters.update(sequence_id=head["corr"], sequence_start=bool(flags & 1), sequence_end=bool(flags & 2))
        timeout_us = int(head["timeout"])
        call = self._calls[number] = _Call(number, callee, servable, positions)
        work = call.work = Work(
            accepted.feeds,
            self._on_result,
            self._on_error,
            rows=accepted.rows,
            signature=accepted.signature,
            deadline_ns=self._now() + self._call_ns_max,
            timeout_ns=timeout_us * 1000,
            nbytes=accepted.nbytes,
            context=read_context(head["id"], parameters, tuple(head["requested"]), timeout_us=timeout_us),
            on_part=self._on_part if callee.is_decoupled else None,
        )
        work.owner = call
        servable.submit(work)

    def _on_part(self, work: Work, part: list[Array | None] | TollwayError) -> None:
        call: _Call = work.owner
        # The model reads its socket at all times: a response is taken at once.
        work.taken(1)
        if isinstance(part, TollwayError):
            self._fail(call.number, part, is_final=False)
        else:
            self._answer(call, part, is_final=False)

    def _on_result(self, work: Work, outputs: list[Array]) -> None:
        call: _Call = work.owner
        self._calls.pop(call.number, None)
        if call.callee.is_decoupled:
            self._post({"do": "reply", "call": call.number, "final": True}, Blob())
        else:
            self._answer(call, outputs, is_final=True)

    def _on_error(self, work: Work, error: TollwayError) -> None:
        call: _Call = work.owner
        self._calls.pop(call.number, None)
        self._fail(call.number, error)

    def _answer(self, call: _Call, outputs: "list[Array] | list[Array | None]", *, is_final: bool) -> None:
        interface = call.callee.interface
        named = []
        for position in call.positions:
            array = outputs[position]
            if array is not None:
                spec = interface.outputs[position]
                named.append((spec.name, spec.datatype, interface.outward(position, array)))
        blob = Blob()
        described = write_arrays(named, blob)
        self._post({"do": "reply", "call": call.number, "outputs": described, "final": is_final}, blob)

    def _fail(self, number: int, error: TollwayError, *, is_final: bool = True) -> None:
        head = {"do": "reply", "call": number, "error": error.message, "code": triton_code(error.code)}
        self._post({**head, "final": is_final}, Blob())

    def drop(self, number: int) -> None:
        """Nobody waits for this call any more."""
        call = self._calls.pop(number, None)
        if call is not None and call.work is not None:
            call.servable.cancel(call.work)

    def close(self) -> None:
        """The process is gone: withdraw everything."""
        for number in list(self._calls):
            self.drop(number)
