"""Owns the signatures of webhooks, as the Standard Webhooks specification has them. Pure.

    webhook-id: evt_17        webhook-timestamp: 1770000000        webhook-signature: v1,<base64> v1,<base64>

A signature is HMAC-SHA256 over "id.timestamp.body". During a rotation there is one per secret that is valid, so that a
receiver may change its secret at any moment of the overlap.
"""

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence
from typing import Final

PREFIX: Final = "whsec_"
TOLERANCE_S: Final = 300
SECRET_BYTES: Final = 32
_SECRET_BYTES_MIN, _SECRET_BYTES_MAX = 24, 64
ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"


class SignatureError(ValueError):
    """A secret that is none, or a message that does not verify; the text says why and holds no secret."""


def encode_secret(key: bytes) -> str:
    """The text of a secret: "whsec_" and base64."""
    return PREFIX + base64.b64encode(key).decode()


def decode_secret(text: str) -> bytes:
    """Reverse of `encode_secret`. Raises SignatureError."""
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError("the secret is not whsec_ and base64") from error
    if not _SECRET_BYTES_MIN <= len(key) <= _SECRET_BYTES_MAX:
        raise SignatureError(f"the secret must have {_SECRET_BYTES_MIN} to {_SECRET_BYTES_MAX} bytes")
    return key


def derive_key(pepper: bytes, endpoint_id: str, generation: int) -> bytes:
    """The key of an endpoint's secret of that generation. It follows from the pepper, so no secret is ever stored."""
    return hmac.digest(pepper, f"webhook:{endpoint_id}:{generation}".encode(), "sha256")


def sign(keys: Sequence[bytes], message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """The three headers of a message, with a signature for each of `keys`."""
    return {
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: str(timestamp_s),
        SIGNATURE_HEADER: " ".join(f"v1,{_signature(key, message_id, timestamp_s, body)}" for key in keys),
    }


def verify(keys: Sequence[bytes], headers: Mapping[str, str], body: bytes, now_s: int) -> None:
    """What a receiver does. Raises SignatureError: a header is missing, the time is off, or no signature fits."""
    try:
        message_id, timestamp = headers[ID_HEADER], headers[TIMESTAMP_HEADER]
        offered = headers[SIGNATURE_HEADER].split()
    except KeyError as error:
        raise SignatureError(f"the header {error.args[0]} is missing") from error
    if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 15:
        raise SignatureError(f"{TIMESTAMP_HEADER} is no time")
    if abs(now_s - int(timestamp)) > TOLERANCE_S:
        raise SignatureError(f"{TIMESTAMP_HEADER} is more than {TOLERANCE_S} s away")
    expected = [f"v1,{_signature(key, message_id, int(timestamp), body)}".encode() for key in keys]
    is_known = False
    for one in offered:
        for wanted in expected:
            is_known |= hmac.compare_digest(one.encode("latin-1", "replace"), wanted)
    if not is_known:
        raise SignatureError("no signature fits")


def _signature(key: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    return base64.b64encode(hmac.digest(key, f"{message_id}.{timestamp_s}.".encode() + body, "sha256")).decode()
