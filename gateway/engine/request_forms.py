"""HOT PATH. Owns the forms of requests that come again and again: JSON that differs in the numbers of one tensor only.

A client writes the same JSON around other numbers with each call. What stands before and behind them is decoded once,
checked once, and known again by its bytes; of the next request only the numbers are parsed. A form is learnt from the
whole decoder's answer to the same text with other numbers in that place, so it cannot differ from what it stands for:
whatever the place turns out to be (a member that nobody reads, one of two `data`), a wrong one does not take the
numbers. Anything that does not fit to the byte goes the long way, and so does every fault.
"""

import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np

from gateway.call import Data
from gateway.engine.codec_json import JsonCodec
from gateway.engine.inference import InferRequest
from gateway.engine.interface import Accepted, Interface
from gateway.errors import TollwayError

#: Forms of one model version, and text of one form outside of its numbers.
FORMS_MAX: Final = 64
FORM_BYTES_MAX: Final = 1024
#: Numbers of one request; above, the long way is no slower.
NUMBERS_MAX: Final = 1024
#: A number takes at most so many characters of the text, else it goes the long way.
_BODY_BYTES_MAX: Final = FORM_BYTES_MAX + 32 * NUMBERS_MAX
_DATA: Final = b'"data":'
_LETTERS: Final = {"FP32": "f", "FP64": "d", "INT32": "i", "INT64": "q"}


class Form:
    """What requests have in common whose JSON is equal but for the numbers of their one tensor."""

    __slots__ = ("decode", "dtype", "name", "nbytes", "pack", "request", "rows", "shape", "signature", "suffix")

    def __init__(self, suffix: bytes, datatype: str, count: int, request: InferRequest, accepted: Accepted) -> None:
        self.suffix = suffix
        self.request = request
        ((self.name, array),) = accepted.feeds.items()
        self.shape: tuple[int, ...] = array.shape
        self.dtype: Any = array.dtype
        self.rows = accepted.rows
        self.signature = accepted.signature
        self.nbytes = accepted.nbytes
        self.decode: Callable[[bytes], Any] = _decoder(datatype).decode
        self.pack: Callable[..., bytes] = struct.Struct(f"<{count}{_LETTERS[datatype]}").pack


class RequestForms:
    """The forms of one model version. Not thread-safe."""

    def __init__(self, interface: Interface, codec: JsonCodec) -> None:
        self._interface = interface
        self._codec = codec
        #: By the text before the numbers.
        self._known: dict[bytes, Form] = {}
        #: Forms that came once; a form is learnt when it comes again.
        self._seen: set[bytes] = set()

    @property
    def count(self) -> int:
        return len(self._known)

    def find(self, body: Data) -> tuple[InferRequest, Accepted] | None:
        """The request in `body`, if it has a known form; never raises a caller's fault."""
        if not isinstance(body, bytes):
            return None
        begin = body.find(_DATA) + len(_DATA)
        form = self._known.get(body[:begin])
        if form is None or not body.endswith(form.suffix):
            return None
        end = len(body) - len(form.suffix)
        try:
            packed = form.pack(*form.decode(body[begin:end]))
        except (msgspec.MsgspecError, struct.error, OverflowError):
            return None
        array = np.ndarray(form.shape, form.dtype, packed)
        return form.request, Accepted({form.name: array}, form.rows, form.signature, form.nbytes)

    def learn(self, body: Data, request: InferRequest) -> None:
        """Look at a request that went the long way, and was accepted."""
        if not isinstance(body, bytes) or len(body) > _BODY_BYTES_MAX or len(request.tensors) != 1:
            return
        tensor = request.tensors[0]
        if tensor.datatype not in _LETTERS or not 0 < tensor.array.size <= NUMBERS_MAX:
            return
        begin = body.find(_DATA) + len(_DATA)
        end = body.find(b"]", begin) + 1
        if begin < len(_DATA) or not end or begin + len(body) - end > FORM_BYTES_MAX:
            return
        prefix, suffix = body[:begin], body[end:]
        if not self._is_seen(prefix + b"\0" + suffix):
            return
        form = self._proven(prefix, suffix, tensor.datatype, tensor.array.size)
        if form is not None:
            if len(self._known) >= FORMS_MAX:
                self._known.clear()
            self._known[prefix] = form

    def _is_seen(self, text: bytes) -> bool:
        if text in self._seen:
            self._seen.discard(text)
            return True
        if len(self._seen) >= FORMS_MAX:
            self._seen.clear()
        self._seen.add(text)
        return False

    def _proven(self, prefix: bytes, suffix: bytes, datatype: str, count: int) -> Form | None:
        """The form, if numbers in this place are those of the tensor: asked twice, for one answer may be chance."""
        form: Form | None = None
        for first in (1, 2):
            numbers = [number % 100 + first for number in range(count)]
            text = prefix + msgspec.json.encode(numbers) + suffix
            try:
                request = self._codec.decode(self._interface, text, None)
                accepted = self._interface.accept(request.tensors)
            except TollwayError:
                return None
            (tensor,) = request.tensors
            if tensor.datatype != datatype or tensor.array.ravel().tolist() != numbers:
                return None
            form = Form(suffix, datatype, count, request, accepted)
        return form


def _decoder(datatype: str) -> Any:
    return msgspec.json.Decoder(list[float] if datatype.startswith("FP") else list[int])
