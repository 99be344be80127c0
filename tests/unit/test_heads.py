"""What a head says by its bytes alone: route, credential, what goes on to the backend, and what is refused at once."""

import pytest

from gateway.call import Headers, RequestHead
from gateway.errors import Code
from gateway.heads import (
    ADMIN,
    HEALTH,
    INFER,
    LIVE,
    MODEL_READ,
    READY,
    REFLECTION,
    SERVER_READ,
    WATCH,
    HeadFacts,
    facts_of,
)

TARGET = b"/v2/models/m/infer"
RPC = b"/inference.GRPCInferenceService/"


def http(target: bytes = TARGET, method: bytes = b"POST", headers: Headers | None = None) -> HeadFacts:
    return facts_of(RequestHead(method, target, headers or []))


def grpc(target: bytes = RPC + b"ModelInfer", method: bytes = b"POST", headers: Headers | None = None) -> HeadFacts:
    return facts_of(RequestHead(method, target, headers or [], is_grpc=True))


def refused(facts: HeadFacts) -> Code:
    assert facts.refusal is not None
    return facts.refusal.code


@pytest.mark.parametrize(
    ("method", "target", "kind", "model", "version"),
    [
        (b"GET", b"/v2/health/live", LIVE, "", ""),
        (b"GET", b"/v2/health/ready", READY, "", ""),
        (b"GET", b"/v2", SERVER_READ, "", ""),
        (b"POST", b"/v2/repository/index", SERVER_READ, "", ""),
        (b"POST", b"/v2/repository/models/m/load", ADMIN, "m", ""),
        (b"POST", b"/v2/repository/models/m/unload", ADMIN, "m", ""),
        (b"GET", b"/v2/trace/setting", ADMIN, "", ""),
        (b"POST", b"/v2/models/m/trace/setting", ADMIN, "m", ""),
        (b"POST", b"/v2/logging", ADMIN, "", ""),
        (b"GET", b"/v2/models/m", MODEL_READ, "m", ""),
        (b"GET", b"/v2/models/m/versions/3/ready", MODEL_READ, "m", "3"),
        (b"GET", b"/v2/models/m/config", MODEL_READ, "m", ""),
        (b"POST", b"/v2/models/a%20b/versions/3/infer?x=1", INFER, "a b", "3"),
    ],
)
def test_rest_targets_are_routed(method: bytes, target: bytes, kind: int, model: str, version: str) -> None:
    facts = http(target, method)
    assert facts.refusal is None
    assert (facts.kind, facts.model, facts.version) == (kind, model, version)


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (RPC + b"ServerLive", LIVE),
        (RPC + b"ServerReady", READY),
        (b"/grpc.health.v1.Health/Check", HEALTH),
        (b"/grpc.health.v1.Health/Watch", WATCH),
        (b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", REFLECTION),
        (b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", REFLECTION),
        (RPC + b"ServerMetadata", SERVER_READ),
        (RPC + b"RepositoryModelLoad", ADMIN),
        (RPC + b"RepositoryModelUnload", ADMIN),
        (RPC + b"TraceSetting", ADMIN),
        (RPC + b"LogSettings", ADMIN),
        (RPC + b"ModelReady", MODEL_READ),
        (RPC + b"ModelInfer", INFER),
    ],
)
def test_rpcs_are_routed(target: bytes, kind: int) -> None:
    facts = grpc(target)
    assert facts.refusal is None
    assert facts.kind == kind
    assert facts.model == ""


@pytest.mark.parametrize(
    ("target", "code"),
    [
        (b"/", Code.NOT_FOUND),
        (b"/v1/models/m", Code.NOT_FOUND),
        (b"/v2/models/m/nothing", Code.NOT_FOUND),
        (b"/v2/models/../infer", Code.BAD_REQUEST),
        (b"/v2/models/%2e%2e/infer", Code.BAD_REQUEST),
        (b"/v2/models/m/versions/X/infer", Code.BAD_REQUEST),
        (b"/v2/systemsharedmemory/status", Code.NOT_IMPLEMENTED),
    ],
)
def test_other_targets_are_refused(target: bytes, code: Code) -> None:
    assert refused(http(target)) is code


@pytest.mark.parametrize(
    "target", [b"/inference.GRPCInferenceService/Nothing", b"/x.Y/Z", b"/", b"/grpc.health.v1.Health/List"]
)
def test_other_rpcs_are_not_implemented(target: bytes) -> None:
    assert refused(grpc(target)) is Code.NOT_IMPLEMENTED


def test_a_wrong_method_names_the_right_one() -> None:
    facts = http(TARGET, b"GET")
    assert refused(facts) is Code.METHOD_NOT_ALLOWED
    assert facts.refusal is not None
    assert facts.refusal.headers == ((b"allow", b"POST"),)
    assert refused(grpc(method=b"GET")) is Code.METHOD_NOT_ALLOWED


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer k"),
        (b"authorization", b"bearer  k "),
        (b"x-api-key", b"k"),
        (b"apikey", b" k"),
        (b"x-apig-appcode", b"k"),
    ],
)
def test_a_credential_is_taken_and_cut(header: tuple[bytes, bytes]) -> None:
    facts = http(headers=[header, (b"accept", b"*/*")])
    assert facts.credential == b"k"
    assert facts.forward == [(b"accept", b"*/*")]


def test_two_different_credentials_are_refused_and_neither_is_forwarded() -> None:
    facts = http(headers=[(b"x-api-key", b"a"), (b"apikey", b"b")])
    assert refused(facts) is Code.BAD_REQUEST
    assert facts.credential is None
    assert facts.forward == []


def test_another_scheme_of_authorization_is_no_credential_but_is_not_forwarded_either() -> None:
    facts = http(headers=[(b"authorization", b"Basic abc")])
    assert (facts.credential, facts.forward, facts.refusal) == (None, [], None)


def test_ours_and_rewritten_fields_are_not_forwarded() -> None:
    own = (
        b"host",
        b"content-length",
        b"x-request-id",
        b"traceparent",
        b"x-request-timeout-ms",
        b"cookie",
        b"tollway-rows",
        b"x-tollway-a",
    )
    facts = http(headers=[*((name, b"1") for name in own), (b"content-type", b"application/json"), (b"x-mine", b"2")])
    assert facts.forward == [(b"content-type", b"application/json"), (b"x-mine", b"2")]
    assert facts.forward_lines == b"content-type: application/json\r\nx-mine: 2\r\n"


def test_the_first_sound_request_id_counts() -> None:
    ids = [(b"x-request-id", b"with space"), (b"triton-request-id", b"first"), (b"x-request-id", b"second")]
    assert http(headers=ids).request_id == b"first"


@pytest.mark.parametrize(("size", "is_taken"), [(0, False), (1, True), (128, True), (129, False)])
def test_a_request_id_is_bounded(size: int, is_taken: bool) -> None:
    assert (http(headers=[(b"x-request-id", b"x" * size)]).request_id is not None) is is_taken


def test_a_trace_is_continued() -> None:
    facts = http(headers=[(b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")])
    assert (facts.trace_id, facts.trace_flags) == (b"a" * 32, b"01")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00-" + b"0" * 32 + b"-" + b"b" * 16 + b"-01",
        b"00-" + b"a" * 32 + b"-" + b"0" * 16 + b"-01",
        b"00-" + b"A" * 32 + b"-" + b"b" * 16 + b"-01",
        b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01-x",
        b"00-" + b"a" * 31 + b"-" + b"b" * 16 + b"-01",
    ],
)
def test_a_malformed_trace_is_left_alone_and_refuses_nothing(value: bytes) -> None:
    facts = http(headers=[(b"traceparent", value)])
    assert (facts.trace_id, facts.refusal) == (None, None)


@pytest.mark.parametrize(
    ("value", "timeout_ns"), [(b"1", 1_000_000), (b"250", 250_000_000), (b"999999999", 999_999_999_000_000)]
)
def test_a_time_out_over_http(value: bytes, timeout_ns: int) -> None:
    assert http(headers=[(b"x-request-timeout-ms", value)]).timeout_ns == timeout_ns


@pytest.mark.parametrize("value", [b"", b"0", b"-1", b"1.5", b"1e3", b" 1", b"1000000000", b"\xb2"])
def test_a_malformed_time_out_over_http_is_refused(value: bytes) -> None:
    assert refused(http(headers=[(b"x-request-timeout-ms", value)])) is Code.BAD_REQUEST


@pytest.mark.parametrize(("value", "timeout_ns"), [(b"10m", 10_000_000), (b"1H", 3600 * 10**9), (b"0n", 1)])
def test_a_grpc_time_out(value: bytes, timeout_ns: int) -> None:
    facts = grpc(headers=[(b"grpc-timeout", value)])
    assert (facts.timeout_ns, facts.refusal, facts.forward) == (timeout_ns, None, [])


@pytest.mark.parametrize("value", [b"", b"m", b"10", b"123456789m", b"10x", b"-1m"])
def test_a_malformed_grpc_time_out_is_refused_on_grpc_only(value: bytes) -> None:
    assert refused(grpc(headers=[(b"grpc-timeout", value)])) is Code.BAD_REQUEST
    assert http(headers=[(b"grpc-timeout", value)]).refusal is None


@pytest.mark.parametrize(
    ("value", "is_encoded", "is_refused"),
    [
        (b"identity", False, False),
        (b"gzip", True, False),
        (b" GZip ", True, False),
        (b"deflate", True, False),
        (b"br", True, True),
        (b"gzip, gzip", True, True),
    ],
)
def test_content_codings(value: bytes, is_encoded: bool, is_refused: bool) -> None:
    facts = http(headers=[(b"content-encoding", value)])
    assert facts.is_encoded is is_encoded
    assert (facts.refusal is not None) is is_refused
    assert facts.forward == [(b"content-encoding", value)]


@pytest.mark.parametrize(
    ("value", "is_refused"), [(b"identity", False), (b"gzip", False), (b"deflate", False), (b"snappy", True)]
)
def test_grpc_codings(value: bytes, is_refused: bool) -> None:
    facts = grpc(headers=[(b"grpc-encoding", value)])
    assert facts.grpc_encoding == value
    assert (facts.refusal is not None) is is_refused


def test_an_idempotency_key_is_noted_where_it_matters_and_goes_no_further() -> None:
    key = [(b"idempotency-key", b"a")]
    for facts in (http(headers=key), grpc(headers=key)):
        assert (facts.refusal, facts.idempotency_key) == (None, b"a")
        assert b"idempotency-key" not in dict(facts.forward)
    assert http(b"/v2", b"GET", key).idempotency_key is None
    assert http(headers=key * 2).refusal is None
    assert refused(http(headers=[*key, (b"idempotency-key", b"b")])) is Code.BAD_REQUEST


def test_the_first_reason_is_the_one_told() -> None:
    facts = http(b"/nowhere", headers=[(b"x-api-key", b"a"), (b"apikey", b"b"), (b"x-request-timeout-ms", b"x")])
    assert refused(facts) is Code.NOT_FOUND


def test_the_json_length_is_kept_as_it_came() -> None:
    facts = http(headers=[(b"inference-header-content-length", b"12")])
    assert facts.json_length == b"12"
    assert facts.forward == [(b"inference-header-content-length", b"12")]


def test_shared_memory_is_refused_with_the_reason() -> None:
    for facts in (http(b"/v2/systemsharedmemory/status", b"GET"), grpc(RPC + b"CudaSharedMemoryRegister")):
        assert refused(facts) is Code.NOT_IMPLEMENTED
        assert facts.refusal is not None
        assert "send tensors as binary data" in facts.refusal.message


def test_calls_that_change_a_backend_are_no_listings() -> None:
    assert not grpc(RPC + b"RepositoryModelLoad").is_listing
    assert not http(b"/v2/logging").is_listing
    assert not http(b"/v2/repository/models/m/load").is_listing


# -- media types of clouds --------------------------------------------------------------------------------------------

MEDIA = b"application/vnd.sagemaker-triton.binary+json;json-header-size="


def test_a_clouds_media_type_becomes_the_header_that_backends_know() -> None:
    facts = http(headers=[(b"content-type", MEDIA + b"17")])
    assert facts.refusal is None
    assert facts.json_length == b"17"
    assert (b"inference-header-content-length", b"17") in facts.forward
    both = http(headers=[(b"content-type", MEDIA + b"17"), (b"inference-header-content-length", b"17")])
    assert [pair[0] for pair in both.forward].count(b"inference-header-content-length") == 1
    assert both.refusal is None


def test_two_lengths_that_differ_are_refused() -> None:
    facts = http(headers=[(b"content-type", MEDIA + b"17"), (b"inference-header-content-length", b"18")])
    assert refused(facts) is Code.BAD_HEADER_LENGTH
