"""Owns the media types by which two clouds name Triton's binary requests: the length of the JSON is their parameter.

`application/vnd.sagemaker-triton.binary+json;json-header-size=N`, and the same of `vertex-ai-triton`. They say what
`Inference-Header-Content-Length: N` says, for services that let no such header through.
"""

from typing import Final

_PREFIX: Final = b"application/vnd."
_TYPES: Final = frozenset(
    {b"application/vnd.sagemaker-triton.binary+json", b"application/vnd.vertex-ai-triton.binary+json"}
)
_SIZE: Final = b"json-header-size"


def find_header_size(content_type: bytes) -> bytes | None:
    """N as it was sent, perhaps malformed (b"" where it is missing); None for any other media type."""
    if not content_type.startswith(_PREFIX):
        return None
    media, _, parameter = content_type.partition(b";")
    if media.strip() not in _TYPES:
        return None
    name, _, value = parameter.strip().partition(b"=")
    return value if name == _SIZE else b""


def reply_type(content_type: bytes, header_size: int) -> bytes:
    """The media type of a binary reply to a request of `content_type`, one of ours."""
    return b"%b;%b=%d" % (content_type.partition(b";")[0].strip(), _SIZE, header_size)
