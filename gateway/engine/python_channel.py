"""Owns the socket of a Python model's process as the model sees it: requests in, responses and calls to models out.

One thread reads; any thread of the model may send. Runs in the child only, with numpy and the standard library.
`pb_utils` (the stub) is handed a `Channel` and knows nothing of frames. Small responses of decoupled models that come
close upon each other share a frame (`gateway.engine.python_outbox`).
"""

import queue
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

from gateway.engine.frames import Blob, FrameError, receive_frame, send_frame
from gateway.engine.python_outbox import Gone, Outbox, gather_s_of
from gateway.engine.tensors import DTYPES, Array, from_raw, to_raw

#: Calls to other models that one process may have under way.
CALLS_MAX: Final = 1024

#: Of arrays that travel as they are. BF16 is told by none: its bits are UINT16's.
_DATATYPES: Final = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}

#: (name, array) pairs of a tensor list.
Named = Iterable[tuple[str, Array]]
#: Told of each answer to a call: outputs or (message, code), and whether it was the last one.
OnAnswer = Callable[[list[tuple[str, Array]] | tuple[str, int] | None, bool], None]


class Asked:
    """One request under way: its number, whether its caller still waits, and how many responses may still be sent.

    A request of a decoupled model that is forgotten (no one holds it any more) without a last response is ended with an
    error, so that its caller does not wait for ever.
    """

    def __init__(self, channel: "Channel", number: int, *, is_decoupled: bool, window: int) -> None:
        self.channel = channel
        self.number = number
        self.is_decoupled = is_decoupled
        self.is_cancelled = False
        self.is_final = False
        #: In the ordinary mode: the one response that a sender was given, and its coming.
        self.is_sender_taken = False
        self.response: Any = None
        self.answered = threading.Event()
        self._credit = window
        self._changed = threading.Condition()

    def allow(self, count: int) -> None:
        """The engine has taken `count` responses on."""
        with self._changed:
            self._credit += count
            self._changed.notify_all()

    def cancel(self) -> None:
        """The caller has gone: nobody waits in `send` any more."""
        with self._changed:
            self.is_cancelled = True
            self._changed.notify_all()

    def send(self, described: dict[str, Any] | None, blob: Blob, *, is_final: bool) -> None:
        """Send a response (None: none, only the end), waiting while the caller is slow. Dropped once cancelled."""
        if described is not None:
            with self._changed:
                while self._credit <= 0 and not self.is_cancelled:
                    self._changed.wait()
                self._credit -= 1
        if self.is_cancelled:
            described, blob = None, Blob()
            if not is_final:
                return
        self.is_final = self.is_final or is_final
        self.channel.send_part(self.number, described, blob, is_final=is_final)
        if is_final:
            self.channel.forget(self.number)

    def fail(self, message: str) -> None:
        """End a decoupled request with an error, unless it has ended."""
        if not self.is_final:
            self.cancel()
            self.is_final = True
            self.channel.send_part(self.number, _fault(message), Blob(), is_final=True)
            self.channel.forget(self.number)

    def __del__(self) -> None:
        if self.is_decoupled and not self.is_final:
            self.is_final = True
            self.channel.leave_part(self.number, _fault("the model forgot the request without a final response"))
            self.channel.forget(self.number)


def _fault(message: str) -> dict[str, Any]:
    """As `describe` has it; 1: TRITONSERVER_ERROR_INTERNAL."""
    return {"error": message, "code": 1}


class Channel:
    """The engine, seen from the child. `executes` yields (head, blob) of batches; None once the engine has hung up."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        #: Weak by number: a request lives as long as the model holds it.
        self._asked: dict[int, Any] = {}
        self._calls: dict[int, OnAnswer] = {}
        self._next_call = 1
        self._is_gone = False
        self._outbox = Outbox(self._write)
        self.executes: queue.SimpleQueue[tuple[dict[str, Any], memoryview] | None] = queue.SimpleQueue()

    def start(self) -> None:
        threading.Thread(target=self._read, name="engine-frames", daemon=True).start()

    def send(self, head: dict[str, Any], blob: Blob | None = None) -> None:
        """Send a frame, behind all responses that wait. Raises: Gone."""
        self._outbox.send(head, blob)

    def send_part(self, number: int, described: dict[str, Any] | None, blob: Blob, *, is_final: bool) -> None:
        """Send a response of a decoupled model, its end, or both: now, or in a moment with others. Raises: Gone."""
        self._outbox.add([number, described, is_final], blob)

    def leave_part(self, number: int, described: dict[str, Any]) -> None:
        """Send the end of a request in a moment."""
        self._outbox.leave([number, described, True])

    def _write(self, head: dict[str, Any], blob: Blob | None) -> None:
        try:
            send_frame(self._sock, head, blob)
        except OSError as error:
            raise Gone("the engine has hung up") from error

    def remember(self, number: int, asked: Any) -> None:
        """`asked` is a weak reference to an `Asked`."""
        self._asked[number] = asked
        self._outbox.gather_s = gather_s_of(len(self._asked))

    def forget(self, number: int) -> None:
        self._asked.pop(number, None)
        self._outbox.gather_s = gather_s_of(len(self._asked))

    def call(self, head: dict[str, Any], blob: Blob, on_answer: OnAnswer) -> int:
        """Ask the engine for an inference of another model; returns the call's number.

        Raises:
            Gone: the engine has hung up.
            FrameError: too many calls are under way, or this one is too large.
        """
        with self._lock:
            if self._is_gone:
                raise Gone("the engine has hung up")
            if len(self._calls) >= CALLS_MAX:
                raise FrameError(f"more than {CALLS_MAX} calls to other models are under way")
            number = self._next_call
            self._next_call = number + 1
            self._calls[number] = on_answer
        try:
            self.send({"say": "call", "call": number, **head}, blob)
        except BaseException:
            self._calls.pop(number, None)
            raise
        return number

    def drop_call(self, number: int) -> None:
        """Nobody waits for this call's answers any more."""
        if self._calls.pop(number, None) is not None:
            self.send({"say": "drop", "call": number})

    def _read(self) -> None:
        try:
            while True:
                head, blob = receive_frame(self._sock)
                self._dispatch(head, blob)
        except (FrameError, OSError):
            pass  # The engine hung up: an orderly stop.
        finally:
            self._end()

    def _end(self) -> None:
        """Wake whoever waits for the engine."""
        with self._lock:
            self._is_gone = True
            calls, self._calls = list(self._calls.values()), {}
        for on_answer in calls:
            on_answer(("the engine has hung up", 4), True)
        for reference in list(self._asked.values()):
            asked = reference()
            if asked is not None:
                asked.cancel()
                asked.answered.set()
        self.executes.put(None)

    def _dispatch(self, head: dict[str, Any], blob: memoryview) -> None:
        do = head["do"]
        if do == "execute":
            self.executes.put((head, blob))
            return
        if do == "reply":
            self._answer(head, blob)
            return
        reference = self._asked.get(head["n"])
        asked = reference() if reference is not None else None
        if asked is not None:
            asked.cancel() if do == "cancel" else asked.allow(head["count"])

    def _answer(self, head: dict[str, Any], blob: memoryview) -> None:
        number, is_final = head["call"], head["final"]
        on_answer = self._calls.pop(number, None) if is_final else self._calls.get(number)
        if on_answer is None:
            return
        if "error" in head:
            on_answer((head["error"], head["code"]), is_final)
        elif "outputs" in head:
            on_answer(read_tensors(head["outputs"], blob), is_final)
        else:
            on_answer(None, is_final)


def write_tensors(named: Named, blob: Blob) -> list[list[Any]]:
    """Append tensors to `blob`; returns their `[name, datatype, shape, offset, size]`.

    Raises:
        TypeError: an array of a type that does not travel.
    """
    described = []
    for name, own in named:
        array, datatype = own, _DATATYPES.get(own.dtype)
        if datatype is None:
            array = _travelling(own)
            datatype = _datatype(array)
        data = to_raw(array)
        described.append([name, datatype, list(array.shape), blob.add(data), len(data)])
    return described


def read_tensors(described: Iterable[list[Any]], blob: memoryview) -> list[tuple[str, Array]]:
    """The inverse of `write_tensors`; arrays lie in `blob`'s memory."""
    return [
        (name, from_raw(name, datatype, shape, blob[offset : offset + size]))
        for name, datatype, shape, offset, size in described
    ]


def _travelling(array: Array) -> Array:
    """Fixed-width text of numpy as objects; everything else little-endian."""
    if array.dtype.kind in "SU":
        return array.astype(object)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _datatype(array: Array) -> str:
    for name, dtype in DTYPES.items():
        if dtype == array.dtype:
            return name
    raise TypeError(f"numpy type {array.dtype} cannot be sent")
