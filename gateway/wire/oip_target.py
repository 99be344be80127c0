"""HOT PATH. Owns OIP request targets: raw bytes of a path to a small value, refused where two readers could differ."""

import re
from enum import StrEnum
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from gateway.errors import Code, Refusal

_NAME_BYTES_MAX: Final = 256
#: A number, or an alias (model_repo.release.ALIAS).
_is_version = re.compile(rb"[0-9]{1,18}|[a-z][a-z0-9_-]{0,31}").fullmatch
_is_bad_escape = re.compile(rb"%(?![0-9A-Fa-f]{2})").search
_is_bad_name = re.compile(r"[\x00-\x1f\x7f/\\]").search
#: Ours, beside OIP. Bytes that no reader changes and no dot segments: what is relayed is what was meant.
_is_self_service = re.compile(rb"/me(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]{1,128}){0,8}").fullmatch


class Verb(StrEnum):
    """What a target asks for. Names follow the gRPC methods where there is one."""

    SERVER_LIVE = "server_live"
    SERVER_READY = "server_ready"
    SERVER_METADATA = "server_metadata"
    MODEL_INFER = "model_infer"
    MODEL_READY = "model_ready"
    MODEL_METADATA = "model_metadata"
    MODEL_CONFIG = "model_config"
    MODEL_STATS = "model_stats"
    MODEL_GENERATE = "model_generate"
    MODEL_GENERATE_STREAM = "model_generate_stream"
    MODEL_TRACE = "model_trace"
    ALL_STATS = "all_stats"
    SERVER_TRACE = "server_trace"
    SERVER_LOGGING = "server_logging"
    SHARED_MEMORY = "shared_memory"
    REPOSITORY_INDEX = "repository_index"
    REPOSITORY_LOAD = "repository_load"
    REPOSITORY_UNLOAD = "repository_unload"
    SELF_SERVICE = "self_service"


class Route(NamedTuple):
    """An OIP target. `version` is "" where none was named; a number or an alias."""

    verb: Verb
    model: str = ""
    version: str = ""


_GET: Final = (b"GET",)
_POST: Final = (b"POST",)
#: HTTP methods a verb is served with; anything else is 405 with Allow.
METHODS: Final[dict[Verb, tuple[bytes, ...]]] = {
    Verb.SERVER_LIVE: _GET,
    Verb.SERVER_READY: _GET,
    Verb.SERVER_METADATA: _GET,
    Verb.MODEL_INFER: _POST,
    Verb.MODEL_READY: _GET,
    Verb.MODEL_METADATA: _GET,
    Verb.MODEL_CONFIG: _GET,
    Verb.MODEL_STATS: _GET,
    Verb.MODEL_GENERATE: _POST,
    Verb.MODEL_GENERATE_STREAM: _POST,
    Verb.MODEL_TRACE: (b"GET", b"POST"),
    Verb.ALL_STATS: _GET,
    Verb.SERVER_TRACE: (b"GET", b"POST"),
    Verb.SERVER_LOGGING: (b"GET", b"POST"),
    Verb.SHARED_MEMORY: (b"GET", b"POST"),
    Verb.REPOSITORY_INDEX: _POST,
    Verb.REPOSITORY_LOAD: _POST,
    Verb.REPOSITORY_UNLOAD: _POST,
    Verb.SELF_SERVICE: (b"GET", b"POST", b"DELETE"),
}

_FIXED: Final[dict[bytes, Route]] = {
    b"/v2": Route(Verb.SERVER_METADATA),
    b"/v2/": Route(Verb.SERVER_METADATA),
    b"/v2/health/live": Route(Verb.SERVER_LIVE),
    b"/v2/health/ready": Route(Verb.SERVER_READY),
    b"/v2/models/stats": Route(Verb.ALL_STATS),
    b"/v2/trace/setting": Route(Verb.SERVER_TRACE),
    b"/v2/logging": Route(Verb.SERVER_LOGGING),
    b"/v2/repository/index": Route(Verb.REPOSITORY_INDEX),
}
_MODEL_VERBS: Final[dict[tuple[bytes, ...], Verb]] = {
    (): Verb.MODEL_METADATA,
    (b"infer",): Verb.MODEL_INFER,
    (b"ready",): Verb.MODEL_READY,
    (b"config",): Verb.MODEL_CONFIG,
    (b"stats",): Verb.MODEL_STATS,
    (b"generate",): Verb.MODEL_GENERATE,
    (b"generate_stream",): Verb.MODEL_GENERATE_STREAM,
    (b"trace", b"setting"): Verb.MODEL_TRACE,
}
_SHARED_MEMORY: Final = frozenset({b"systemsharedmemory", b"cudasharedmemory"})


def _not_found() -> Refusal:
    return Refusal(code=Code.NOT_FOUND, message="Not Found")


def _bad(message: str) -> Refusal:
    return Refusal(code=Code.BAD_REQUEST, message=message)


def parse_target(target: bytes) -> Route | Refusal:
    """The route of a raw target (query ignored). Depends on the bytes alone: may be kept in `RequestHead.memo`."""
    path = target.partition(b"?")[0]
    found = _FIXED.get(path)
    if found is not None:
        return found
    segments = path.split(b"/")
    if segments[1:2] == [b"me"] and _is_self_service(path):
        return Route(Verb.SELF_SERVICE)
    if segments[:2] != [b"", b"v2"] or len(segments) < 4:
        return _not_found()
    kind, rest = segments[2], segments[3:]
    if kind == b"models":
        return _model_route(rest)
    if kind == b"repository":
        return _repository_route(rest)
    if kind in _SHARED_MEMORY:
        return Route(Verb.SHARED_MEMORY)
    return _not_found()


def _model_route(segments: list[bytes]) -> Route | Refusal:
    """`{m}[/versions/{v}][/verb]`."""
    model = _name(segments[0])
    if isinstance(model, Refusal):
        return model
    version = ""
    rest = segments[1:]
    if rest[:1] == [b"versions"]:
        if len(rest) < 2 or not _is_version(rest[1]):
            return _bad("a model version is a number or an alias")
        version = rest[1].decode()
        rest = rest[2:]
    verb = _MODEL_VERBS.get(tuple(rest))
    return _not_found() if verb is None else Route(verb, model, version)


def _repository_route(segments: list[bytes]) -> Route | Refusal:
    """`[{repository}/]index | [{repository}/]models/{m}/load|unload`; the repository's name is not used."""
    if len(segments) in (2, 4) and segments[0] != b"models":
        repository = _name(segments[0])
        if isinstance(repository, Refusal):
            return repository
        segments = segments[1:]
    if segments == [b"index"]:
        return Route(Verb.REPOSITORY_INDEX)
    if len(segments) != 3 or segments[0] != b"models":
        return _not_found()
    model = _name(segments[1])
    if isinstance(model, Refusal):
        return model
    if segments[2] == b"load":
        return Route(Verb.REPOSITORY_LOAD, model)
    if segments[2] == b"unload":
        return Route(Verb.REPOSITORY_UNLOAD, model)
    return _not_found()


def _name(segment: bytes) -> str | Refusal:
    """A percent-decoded name: UTF-8, without controls and slashes, not a dot segment (it may become a path below)."""
    if _is_bad_escape(segment):
        return _bad("malformed percent-encoding in the path")
    try:
        name = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        return _bad("a name in the path is not UTF-8")
    if not name or name in (".", "..") or _is_bad_name(name) or len(segment) > _NAME_BYTES_MAX:
        return _bad("malformed model name in the path")
    return name
