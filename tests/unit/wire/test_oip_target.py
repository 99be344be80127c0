"""OIP targets: every path of the contract, and those that two readers could read differently."""

import pytest

from gateway.errors import Code, Refusal
from gateway.wire.oip_target import METHODS, Route, Verb, parse_target

ROUTES: dict[bytes, Route] = {
    b"/v2": Route(Verb.SERVER_METADATA),
    b"/v2/": Route(Verb.SERVER_METADATA),
    b"/v2/health/live": Route(Verb.SERVER_LIVE),
    b"/v2/health/ready?verbose=1": Route(Verb.SERVER_READY),
    b"/v2/models/mlp": Route(Verb.MODEL_METADATA, "mlp"),
    b"/v2/models/mlp/versions/3": Route(Verb.MODEL_METADATA, "mlp", "3"),
    b"/v2/models/mlp/versions/stable/infer": Route(Verb.MODEL_INFER, "mlp", "stable"),
    b"/v2/models/mlp/versions/" + b"a" * 32: Route(Verb.MODEL_METADATA, "mlp", "a" * 32),
    b"/v2/models/mlp/ready": Route(Verb.MODEL_READY, "mlp"),
    b"/v2/models/mlp/versions/3/ready": Route(Verb.MODEL_READY, "mlp", "3"),
    b"/v2/models/mlp/infer": Route(Verb.MODEL_INFER, "mlp"),
    b"/v2/models/mlp/versions/12/infer?x=/../": Route(Verb.MODEL_INFER, "mlp", "12"),
    b"/v2/models/mlp/config": Route(Verb.MODEL_CONFIG, "mlp"),
    b"/v2/models/mlp/stats": Route(Verb.MODEL_STATS, "mlp"),
    b"/v2/models/mlp/generate": Route(Verb.MODEL_GENERATE, "mlp"),
    b"/v2/models/mlp/generate_stream": Route(Verb.MODEL_GENERATE_STREAM, "mlp"),
    b"/v2/models/mlp/trace/setting": Route(Verb.MODEL_TRACE, "mlp"),
    b"/v2/models/stats": Route(Verb.ALL_STATS),
    b"/v2/trace/setting": Route(Verb.SERVER_TRACE),
    b"/v2/logging": Route(Verb.SERVER_LOGGING),
    b"/v2/repository/index": Route(Verb.REPOSITORY_INDEX),
    b"/v2/repository/main/index": Route(Verb.REPOSITORY_INDEX),
    b"/v2/repository/models/mlp/load": Route(Verb.REPOSITORY_LOAD, "mlp"),
    b"/v2/repository/models/mlp/unload": Route(Verb.REPOSITORY_UNLOAD, "mlp"),
    b"/v2/repository/main/models/mlp/load": Route(Verb.REPOSITORY_LOAD, "mlp"),
    b"/v2/systemsharedmemory/status": Route(Verb.SHARED_MEMORY),
    b"/v2/cudasharedmemory/region/x/register": Route(Verb.SHARED_MEMORY),
    b"/v2/models/a%20b%C3%A4/infer": Route(Verb.MODEL_INFER, "a bä"),
    b"/v2/models/a..b/infer": Route(Verb.MODEL_INFER, "a..b"),
    b"/v2/models/versions/infer": Route(Verb.MODEL_INFER, "versions"),
}


@pytest.mark.parametrize("target", ROUTES)
def test_routes(target: bytes) -> None:
    assert parse_target(target) == ROUTES[target]


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/v1/models/x",
        b"/v2x",
        b"/v2/models",
        b"/v2/nothing/x",
        b"/v2/models/mlp/",
        b"/v2/models/mlp/infer/",
        b"/v2/models/mlp/nothing",
        b"/v2/models/mlp/versions/3/infer/x",
        b"/V2/models/mlp/infer",
        b"//v2/models/mlp/infer",
        b"/v2/repository/x",
        b"/v2/repository/main/models/mlp/nothing",
        b"/v2/repository/models/mlp/load/x",
        b"*",
    ],
)
def test_other_paths_are_not_found(target: bytes) -> None:
    made = parse_target(target)
    assert isinstance(made, Refusal)
    assert made.code == Code.NOT_FOUND


@pytest.mark.parametrize(
    "target",
    [
        b"/v2/models//infer",
        b"/v2/models/../infer",
        b"/v2/models/./infer",
        b"/v2/models/%2e%2E/infer",
        b"/v2/models/a%2Fb/infer",
        b"/v2/models/a%5cb/infer",
        b"/v2/models/a%00b/infer",
        b"/v2/models/a%0ab/infer",
        b"/v2/models/a%/infer",
        b"/v2/models/a%2/infer",
        b"/v2/models/a%zz/infer",
        b"/v2/models/%ff/infer",
        b"/v2/models/" + b"m" * 257 + b"/infer",
        b"/v2/models/mlp/versions",
        b"/v2/models/mlp/versions/Latest/infer",
        b"/v2/models/mlp/versions/a.b/infer",
        b"/v2/models/mlp/versions/" + b"a" * 33 + b"/infer",
        b"/v2/models/mlp/versions/-1/infer",
        b"/v2/models/mlp/versions/%31/infer",
        b"/v2/models/mlp/versions//infer",
        b"/v2/models/mlp/versions/1234567890123456789/infer",
        b"/v2/repository/../index",
        b"/v2/repository/models/../load",
        b"/v2/repository/../models/mlp/load",
    ],
)
def test_ambiguous_paths_are_bad_requests(target: bytes) -> None:
    made = parse_target(target)
    assert isinstance(made, Refusal)
    assert made.code == Code.BAD_REQUEST


def test_every_verb_has_its_methods() -> None:
    assert set(METHODS) == set(Verb)
