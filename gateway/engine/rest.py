"""HOT PATH. Owns the REST endpoints of the Open Inference Protocol: from a route to an answer."""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from gateway.call import Data, Headers
from gateway.engine.admin import Admin, read_settings, shared_memory_refused
from gateway.engine.aliases import is_alias
from gateway.engine.body import COMPRESS_BYTES_MIN
from gateway.engine.codec_http import BINARY_TYPE, ReplyWriter, decode_body
from gateway.engine.codec_json import JsonCodec
from gateway.engine.generate import VERBS, serve_generate
from gateway.engine.metadata import model_config, model_metadata, server_metadata
from gateway.engine.model import ModelVersion
from gateway.engine.offload import Coder
from gateway.engine.overrides import read_parameters
from gateway.engine.registry import Registry, model_stats
from gateway.engine.request_forms import RequestForms
from gateway.engine.service import BODY_BYTES_MAX, MIB, EngineCall
from gateway.engine.tensors import Array
from gateway.errors import Code, TollwayError
from gateway.wire.cloud_types import reply_type
from gateway.wire.http1 import encode_fields
from gateway.wire.oip_target import Verb
from gateway.wire.status import http_status, oip_error_body

_JSON: Final[Headers] = [(b"content-type", b"application/json")]
_JSON_LINE: Final = b"content-type: application/json\r\n"
#: JSON is parsed on the loop; tensors larger than this travel as binary data.
JSON_BYTES_MAX: Final = 64 * MIB
_encode: Final = msgspec.json.Encoder().encode


class RestServer:
    """Answers REST calls."""

    def __init__(
        self,
        registry: Registry,
        coder: Coder,
        *,
        version: str,
        body_bytes_max: int = BODY_BYTES_MAX,
    ) -> None:
        self._registry = registry
        self._coder = coder
        self._server_metadata = server_metadata(version)
        self._body_bytes_max = body_bytes_max
        self._codec = JsonCodec()
        self._answers: dict[Verb, Callable[[EngineCall, Data], Any]] = {
            Verb.SERVER_LIVE: lambda _call, _body: {"live": True},
            Verb.SERVER_READY: self._ready,
            Verb.SERVER_METADATA: lambda _call, _body: self._server_metadata,
            Verb.MODEL_READY: self._model_ready,
            Verb.MODEL_METADATA: self._model_metadata,
            Verb.MODEL_CONFIG: lambda call, _body: model_config(self._get_ready(call)),
            Verb.MODEL_STATS: self._model_stats,
            Verb.ALL_STATS: lambda _call, _body: model_stats(self._registry.versions()),
            Verb.REPOSITORY_INDEX: self._index,
        }
        admin = Admin(registry)
        self._answers |= {
            Verb.SERVER_TRACE: lambda call, body: admin.trace("", _changes_of(call, body)),
            Verb.MODEL_TRACE: lambda call, body: admin.trace(call.facts.route.model, _changes_of(call, body)),
            Verb.SERVER_LOGGING: lambda call, body: admin.log(_changes_of(call, body)),
        }
        self._observer = registry.observer
        self._changes = {Verb.REPOSITORY_LOAD: admin.load, Verb.REPOSITORY_UNLOAD: admin.unload}

    def serve(self, call: EngineCall, body: Data) -> None:
        """See `ProtocolServer`."""
        facts = call.facts
        if facts.coding and len(body):
            self._inflate(call, body)
        elif facts.route.verb is Verb.MODEL_INFER:
            self._infer(call, body)
        else:
            self._serve_other(call, body)

    def _inflate(self, call: EngineCall, body: Data) -> None:
        serve = self._infer if call.facts.route.verb is Verb.MODEL_INFER else self._serve_other
        self._coder.inflate(
            body,
            call.facts.coding,
            self._body_bytes_max,
            lambda plain: call.attempt(lambda: serve(call, plain)),
            call.fail,
        )

    def _serve_other(self, call: EngineCall, body: Data) -> None:
        """Anything but `infer`."""
        if call.facts.route.verb in VERBS:
            self._generate(call, body)
        else:
            self._answer(call, body)

    def refuse(self, call: EngineCall, error: TollwayError) -> None:
        """See `ProtocolServer`."""
        headers = _JSON
        if error.retry_after_ms is not None:
            headers = [*headers, (b"retry-after", b"%d" % -(-error.retry_after_ms // 1000))]
        if call.facts.extra:
            headers = headers + call.facts.extra
        call.reply(http_status(error.code), headers, oip_error_body(error.code, error.message))

    def _answer(self, call: EngineCall, body: Data) -> None:
        verb = call.facts.route.verb
        answer = self._answers.get(verb)
        change = self._changes.get(verb)
        if change is not None:
            # Triton answers with an empty body.
            parameters = read_parameters(body)
            change(call.facts.route.model, parameters, lambda: call.reply(200, _JSON, b""), call.fail)
            return
        if verb is Verb.SHARED_MEMORY:
            raise shared_memory_refused()
        if answer is None:
            raise TollwayError(Code.NOT_IMPLEMENTED, f"{verb.value.replace('_', ' ')} is not served by this engine")
        # Never compressed, as Triton's: tritonclient's aio client inflates the replies of `infer` only.
        call.reply(200, _JSON, _encode(answer(call, body)))

    def _get_ready(self, call: EngineCall) -> ModelVersion:
        route = call.facts.route
        version = self._registry.get(route.model, route.version)
        if not version.is_ready:
            raise version.not_ready()
        return version

    def _ready(self, _call: EngineCall, _body: Data) -> Any:
        if not self._registry.is_ready:
            raise TollwayError(Code.MODEL_NOT_READY, "the server is not ready", retry_after_ms=1000)
        return {"ready": True}

    def _model_ready(self, call: EngineCall, _body: Data) -> Any:
        return {"name": self._get_ready(call).name, "ready": True}

    def _model_metadata(self, call: EngineCall, _body: Data) -> Any:
        return model_metadata(self._get_ready(call), self._registry)

    def _model_stats(self, call: EngineCall, _body: Data) -> Any:
        route = call.facts.route
        if route.version:
            return model_stats([self._registry.get(route.model, route.version)])
        return model_stats(self._registry.versions_of(route.model))

    def _index(self, _call: EngineCall, body: Data) -> Any:
        """`{"ready": true}` lists only what is ready (model repository extension)."""
        try:
            wanted = msgspec.json.decode(body, type=dict[str, Any]) if len(body) else {}
        except msgspec.MsgspecError as error:
            raise TollwayError(Code.BAD_REQUEST, f"malformed JSON: {error}") from error
        rows: list[dict[str, Any]] = [*self._registry.index(is_ready_only=wanted.get("ready") is True)]
        for row in rows:
            aliases = self._registry.aliases_of(row["name"], row["version"])
            if aliases:
                row["aliases"] = aliases
        return rows

    def _infer(self, call: EngineCall, body: Data) -> None:
        facts = call.facts
        version = self._registry.get(facts.route.model, facts.route.version)
        if facts.route.version:
            call.is_aliased = is_alias(facts.route.version)
        servable = version.servable()
        json_bytes = len(body) if facts.header_bytes < 0 else facts.header_bytes
        if json_bytes > JSON_BYTES_MAX:
            raise TollwayError(
                Code.BODY_TOO_LARGE, f"more than {JSON_BYTES_MAX} bytes of JSON; send large tensors as binary data"
            )
        if facts.header_bytes >= 0 or version.is_decoupled:
            call.infer(version, servable, decode_body(self._codec, version.interface, body, facts.header_bytes))
            return
        forms: RequestForms | None = version.rest_forms
        if forms is None:
            forms = version.rest_forms = RequestForms(version.interface, self._codec)
        found = forms.find(body)
        if found is not None:
            call.infer(version, servable, found[0], found[1])
            return
        request = decode_body(self._codec, version.interface, body, -1)
        accepted = version.interface.accept(request.tensors)
        forms.learn(body, request)
        call.infer(version, servable, request, accepted)

    def _generate(self, call: EngineCall, body: Data) -> None:
        serve_generate(self._registry, call, body)

    def finish(self, call: EngineCall, outputs: list[Array]) -> None:
        """See `ProtocolServer`."""
        version, request = call.version, call.request
        assert version is not None
        assert request is not None
        writer: ReplyWriter | None = version.rest_writer
        if writer is None:
            writer = version.rest_writer = ReplyWriter(version)
        headers, body = writer.write(request, outputs)
        if self._observer.is_on:
            assert call.work is not None
            self._observer.note(version, request, call.work)
        media_type = call.facts.media_type
        if media_type and headers[0] == BINARY_TYPE:
            headers = [(b"content-type", reply_type(media_type, int(headers[1][1]))), *headers[1:]]
        coding = call.facts.accepts
        if not coding or len(body) < COMPRESS_BYTES_MIN:
            # A list of one is always the same one: JSON.
            call.reply_result(headers, _JSON_LINE if len(headers) == 1 else encode_fields(headers), body)
            return
        headers = [*headers, (b"content-encoding", coding.encode()), *call.cost_headers()]
        self._coder.deflate(body, coding, lambda packed: call.reply(200, headers, packed), call.fail)


def _changes_of(call: EngineCall, body: Data) -> dict[str, Any]:
    """What a call changes; a GET only reads."""
    return read_settings(body) if call.exchange.head.method == b"POST" else {}
