"""Media types of two clouds that say where the JSON of a binary request ends."""

import pytest

from gateway.wire.cloud_types import find_header_size, reply_type

SAGEMAKER = b"application/vnd.sagemaker-triton.binary+json"
VERTEX = b"application/vnd.vertex-ai-triton.binary+json"


@pytest.mark.parametrize("media", [SAGEMAKER, VERTEX])
@pytest.mark.parametrize(
    ("rest", "size"),
    [
        (b";json-header-size=17", b"17"),
        (b"; json-header-size=17", b"17"),
        (b" ;json-header-size=0", b"0"),
        (b";json-header-size=", b""),
        (b";json-header-size=x", b"x"),
        (b";json-header-size=1;a=b", b"1;a=b"),
        (b";other=17", b""),
        (b"", b""),
    ],
)
def test_the_size_is_what_follows(media: bytes, rest: bytes, size: bytes) -> None:
    assert find_header_size(media + rest) == size


@pytest.mark.parametrize(
    "value",
    [
        b"application/json",
        b"application/octet-stream;json-header-size=17",
        b"application/vnd.other.binary+json;json-header-size=17",
        SAGEMAKER + b"x;json-header-size=17",
        b"",
    ],
)
def test_other_media_types_say_nothing(value: bytes) -> None:
    assert find_header_size(value) is None


def test_a_reply_has_the_type_of_its_request() -> None:
    assert reply_type(VERTEX + b"; json-header-size=17", 40) == VERTEX + b";json-header-size=40"
