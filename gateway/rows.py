"""Owns counting the rows of a JSON or binary-extension request for backends whose own count is not believed.

Only calls of row-priced models on untrusted HTTP backends come here: their body waits until its JSON part is in.
"""

from typing import Final

from gateway.call import Data
from gateway.errors import Code, Refusal
from gateway.wire.oip_peek import json_rows

JSON_BYTES_MAX: Final = 8 * 1024 * 1024


ROWS_UNKNOWN: Final = Refusal(
    code=Code.INVALID_TENSOR,
    message="the first input's shape cannot be read, and this model is priced by its rows",
)


class RowPeek:
    """Collects the JSON part: `head_bytes` of it, or the whole body when that is None."""

    __slots__ = ("_head_bytes", "_json", "rows")

    def __init__(self, head_bytes: int | None) -> None:
        self._head_bytes = head_bytes
        self._json = bytearray()
        #: Known once `feed` or `finish` returned True.
        self.rows = 0

    def feed(self, data: Data) -> bool | Refusal:
        """True when the rows are known, False while more is needed."""
        if self._head_bytes is None:
            self._json += data
            if len(self._json) > JSON_BYTES_MAX:
                message = f"the JSON body is larger than {JSON_BYTES_MAX} bytes: use the binary tensor extension"
                return Refusal(code=Code.BODY_TOO_LARGE, message=message)
            return False
        self._json += data[: self._head_bytes - len(self._json)]
        return self.finish() if len(self._json) >= self._head_bytes else False

    def finish(self) -> bool | Refusal:
        """The JSON part, or the body, is complete."""
        if self._head_bytes is not None and len(self._json) < self._head_bytes:
            message = "Inference-Header-Content-Length is longer than the body"
            return Refusal(code=Code.BAD_HEADER_LENGTH, message=message)
        rows = json_rows(bytes(self._json))
        if rows < 1:
            return ROWS_UNKNOWN
        self.rows = rows
        return True


def row_peek_of(head_length: bytes | None, *, is_encoded: bool) -> RowPeek | Refusal:
    """A peek for a request with this `Inference-Header-Content-Length`, or why its rows cannot be counted."""
    if is_encoded:
        return Refusal(
            code=Code.UNSUPPORTED_ENCODING, message="this model is priced by its rows here: send the body uncompressed"
        )
    if head_length is None:
        return RowPeek(None)
    if not head_length.isdigit() or not 1 <= int(head_length[:10]) <= JSON_BYTES_MAX or len(head_length) > 8:
        return Refusal(code=Code.BAD_HEADER_LENGTH, message="malformed Inference-Header-Content-Length")
    return RowPeek(int(head_length))
