"""Owns the generate extension over REST: plain JSON in, plain JSON out, once (`generate`) or as events.

Members of the request that name an input become its tensor; `id` is the request's; the others, and those of a member
`parameters`, are request parameters. An output of one element is shown as that element, others as flat lists.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from gateway.call import Data, Headers
from gateway.engine.aliases import is_alias, version_header
from gateway.engine.codec_json import json_data
from gateway.engine.context import Context, read_context
from gateway.engine.inference import timeout_ns
from gateway.engine.interface import Interface, Tensor
from gateway.engine.model import ModelVersion
from gateway.engine.registry import Registry
from gateway.engine.service import MIB, EngineCall
from gateway.engine.tensors import DTYPES, Array, invalid
from gateway.engine.work import Work
from gateway.errors import Code, TollwayError
from gateway.wire.oip_target import Verb
from gateway.wire.status import oip_error_body
from model_repo.config import TensorSpec

VERBS: Final = (Verb.MODEL_GENERATE, Verb.MODEL_GENERATE_STREAM)
BODY_BYTES_MAX: Final = 64 * MIB
_EVENTS: Final[Headers] = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_JSON: Final[Headers] = [(b"content-type", b"application/json")]
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode
_encode: Final = msgspec.json.Encoder().encode


def decode_generate(interface: Interface, body: Data) -> tuple[list[Tensor], Context, int]:
    """Tensors, context and the caller's time-out (ns, 0: none).

    Raises:
        TollwayError: bad_request, invalid_tensor, body_too_large.
    """
    if len(body) > BODY_BYTES_MAX:
        raise TollwayError(Code.BODY_TOO_LARGE, f"more than {BODY_BYTES_MAX} bytes of JSON")
    try:
        members = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TollwayError(Code.BAD_REQUEST, f"malformed JSON: {error}") from error
    specs = {spec.name: spec for spec in interface.inputs}
    request_id = members.pop("id", "") if "id" not in specs else ""
    if not isinstance(request_id, str):
        raise TollwayError(Code.BAD_REQUEST, "id must be a text")
    parameters: dict[str, Any] = {}
    if "parameters" not in specs and isinstance(members.get("parameters"), dict):
        parameters = members.pop("parameters")
    tensors = []
    for name, value in members.items():
        if name in specs:
            tensors.append(_tensor(specs[name], value, has_batch_axis=interface.has_batch_axis))
        else:
            parameters[name] = value
    limit_ns = timeout_ns(parameters.get("timeout"))
    return tensors, read_context(request_id, parameters, (), timeout_us=limit_ns // 1000), limit_ns


def _tensor(spec: TensorSpec, value: Any, *, has_batch_axis: bool) -> Tensor:
    """The elements, in order, fill the configured shape: whole rows, or one row with its variable size."""
    elements = list(_flat(spec.name, value))
    return Tensor(spec.name, spec.datatype, *_shaped(spec, elements, has_batch_axis=has_batch_axis))


def _flat(name: str, value: Any, depth: int = 0) -> Sequence[Any]:
    if not isinstance(value, list):
        return [value]
    if depth > 16:
        raise invalid(f"input '{name}' has lists within more than 16 lists")
    if not any(isinstance(item, list) for item in value):
        return value
    return [element for item in value for element in _flat(name, item, depth + 1)]


def _shaped(spec: TensorSpec, elements: list[Any], *, has_batch_axis: bool) -> tuple[tuple[int, ...], Array]:
    count = len(elements)
    fixed = math.prod(size for size in spec.dims if size != -1)
    variable = spec.dims.count(-1)
    if count == 0 or count % fixed or variable > 1:
        raise invalid(f"input '{spec.name}': {count} elements do not fill its shape {list(spec.dims)}")
    rows = 1 if variable else count // fixed
    if rows != 1 and not has_batch_axis:
        raise invalid(f"input '{spec.name}': {count} elements do not fill its shape {list(spec.dims)}")
    inner = tuple(count // fixed if size == -1 else size for size in spec.dims)
    shape = (rows, *inner) if has_batch_axis else inner
    return shape, _array(spec, elements).reshape(shape)


def _array(spec: TensorSpec, elements: list[Any]) -> Array:
    datatype = spec.datatype
    allowed: tuple[type, ...] = (int,)
    if datatype == "BYTES":
        allowed = (str,)
    elif datatype == "BOOL":
        allowed = (bool,)
    elif datatype in ("FP32", "FP64"):
        allowed = (int, float)
    elif datatype in ("FP16", "BF16"):
        raise invalid(f"input '{spec.name}': {datatype} has no JSON form; use infer with binary data")
    if any(type(element) not in allowed for element in elements):
        raise invalid(f"input '{spec.name}' takes elements of {datatype}")
    if datatype == "BYTES":
        array: Array = np.empty(len(elements), dtype=object)
        array[:] = [element.encode() for element in elements]
        return array
    try:
        with np.errstate(over="raise"):
            return np.array(elements, dtype=DTYPES[datatype])
    except (OverflowError, FloatingPointError) as error:
        raise invalid(f"input '{spec.name}': a value is out of the range of {datatype}") from error


def encode_generate(version: ModelVersion, request_id: str, outputs: Sequence[Array | None]) -> bytes:
    """One answer.

    Raises:
        TollwayError: bad_request, where JSON cannot carry a value.
    """
    parts = [b'"id":%b' % _encode(request_id)] if request_id else []
    parts.append(b'"model_name":%b,"model_version":%b' % (_encode(version.name), _encode(version.version)))
    for position, spec in enumerate(version.interface.outputs):
        array = outputs[position]
        if array is None:
            continue
        data = json_data(spec.name, spec.datatype, version.interface.outward(position, array))
        parts.append(b"%b:%b" % (_encode(spec.name), data[1:-1] if array.size == 1 else data))
    return b"{%b}" % b",".join(parts)


class _Answer:
    """The reply of one call: one JSON object, or events as they come."""

    def __init__(self, call: EngineCall, version: ModelVersion, request_id: str, *, is_stream: bool) -> None:
        self._call = call
        self._version = version
        self._request_id = request_id
        self._is_stream = is_stream
        self._is_begun = False
        self._held = 0
        self._parts: list[list[Array | None]] = []

    def on_part(self, work: Work, part: list[Array | None] | TollwayError) -> None:
        """A response of a decoupled model."""
        call = self._call
        if call.is_over:
            return
        if not self._is_stream:
            self._collect(work, part)
            return
        self._send(part)
        if call.exchange.is_writable:
            work.taken(1)
        else:
            self._held += 1

    def _collect(self, work: Work, part: list[Array | None] | TollwayError) -> None:
        work.taken(1)
        if isinstance(part, TollwayError):
            self._give_up(work, part)
            return
        self._parts.append(part)
        if len(self._parts) > 1:
            self._give_up(work, _not_one(self._version))

    def _give_up(self, work: Work, error: TollwayError) -> None:
        if self._call.servable is not None:
            self._call.servable.cancel(work)
        self._call.fail(error)

    def _send(self, part: Sequence[Array | None] | TollwayError) -> None:
        """An event. A fault before the first one still has a status to be told by."""
        if isinstance(part, TollwayError):
            if not self._is_begun:
                work = self._call.work
                assert work is not None
                self._give_up(work, part)
                return
            event = oip_error_body(part.code, part.message)
        else:
            try:
                event = encode_generate(self._version, self._request_id, part)
            except TollwayError as error:
                self._send(error)
                return
        self._begin()
        self._call.exchange.send_body(b"data: %b\n\n" % event)

    def _begin(self) -> None:
        if not self._is_begun:
            self._is_begun = True
            aliased = [version_header(self._version)] if self._call.is_aliased else []
            self._call.exchange.send_head(200, [*_EVENTS, *aliased])

    def on_result(self, work: Work, outputs: list[Array]) -> None:
        """The only response of an ordinary model, or the end of a decoupled one's."""
        if self._call.is_over:
            return
        answers: list[list[Array | None]] = self._parts if self._version.is_decoupled else [list(outputs)]
        if self._is_stream:
            for answer in answers:
                self._send(answer)
            if not self._call.is_over:
                self._end()
        elif len(answers) != 1:
            self._call.fail(_not_one(self._version))
        else:
            self._call.attempt(lambda: self._reply(answers[0]))

    def _reply(self, outputs: list[Array | None]) -> None:
        body = encode_generate(self._version, self._request_id, outputs)
        self._call.reply(200, _JSON + self._call.cost_headers(), body)

    def on_error(self, _work: Work, error: TollwayError) -> None:
        """No (further) response will come."""
        if self._call.is_over:
            return
        if not self._is_begun:
            self._call.fail(error)
            return
        self._send(error)
        self._end()

    def _end(self) -> None:
        self._begin()
        call = self._call
        trailers = call.cost_headers()
        call.is_over = True
        call.work = None
        call.exchange.call = None
        call.exchange.send_end(trailers)

    def on_writable(self) -> None:
        """The caller reads again."""
        held, self._held = self._held, 0
        if held and self._call.work is not None:
            self._call.work.taken(held)


def _not_one(version: ModelVersion) -> TollwayError:
    message = f"model '{version.name}' did not answer with exactly one response: use generate_stream"
    return TollwayError(Code.NOT_IMPLEMENTED, message)


def serve_generate(registry: Registry, call: EngineCall, body: Data) -> None:
    """Begin a call of one of `VERBS`.

    Raises:
        TollwayError: a refusal to send.
    """
    route = call.facts.route
    version = registry.get(route.model, route.version)
    servable = version.servable()
    tensors, context, limit_ns = decode_generate(version.interface, body)
    accepted = version.interface.accept(tensors)
    is_stream = route.verb is Verb.MODEL_GENERATE_STREAM
    answer = _Answer(call, version, context.request_id, is_stream=is_stream)
    call.version, call.servable, call.stream = version, servable, answer
    call.is_aliased = is_alias(route.version)
    call.work = Work(
        accepted.feeds,
        answer.on_result,
        answer.on_error,
        rows=accepted.rows,
        signature=accepted.signature,
        deadline_ns=call.deadline_ns,
        timeout_ns=limit_ns,
        nbytes=accepted.nbytes,
        context=context,
        on_part=answer.on_part if version.is_decoupled else None,
        tenant=call.facts.tenant,
        weight=call.facts.weight,
        priority_best=call.facts.priority_best,
    )
    servable.submit(call.work)
