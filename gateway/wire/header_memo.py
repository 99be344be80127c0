"""HOT PATH. Owns what is remembered of stateless header blocks: whole blocks, single fields, and blocks but for a part.

Callers often send the same block but for a field or two (`grpc-timeout`, `traceparent`). A `Template` is such a block:
what begins and ends like it is decoded in its middle only, and its head is the known one with other fields there.
"""

from collections.abc import Callable
from typing import Any, Final

from gateway.call import Headers, RequestHead
from gateway.wire.http2_fields import REGULAR, Field

_MEMO_BLOCK_BYTES_MAX: Final = 2048
_MEMO_FIELD_BYTES_MAX: Final = 512
_TEMPLATES_MAX: Final = 8
_ENTRY_OVERHEAD_BYTES: Final = 32


class HeaderBlock:
    """A decoded block, shared by all equal blocks: read-only but for its slots of derived values.

    `list_bytes` is the size by RFC 9113 §6.5.2. `head` and `trailers` keep what the block says as either, `is_plain`
    whether such a head may be followed by a whole body without a closer look (None: not asked yet).
    """

    __slots__ = ("fields", "head", "is_plain", "list_bytes", "trailers")

    def __init__(self, fields: list[Field], list_bytes: int) -> None:
        self.fields = fields
        self.list_bytes = list_bytes
        self.head: Any = None
        self.trailers: Any = None
        self.is_plain: bool | None = None


class Template:
    """A request block but for ordinary fields in its middle. Boundaries lie between fields, so parts decode alone."""

    __slots__ = (
        "after",
        "before",
        "fixed_bytes",
        "head",
        "headers_after",
        "headers_before",
        "prefix",
        "suffix",
    )

    def __init__(self, prefix: bytes, suffix: bytes, fields: list[Field], varying: range, head: RequestHead) -> None:
        self.prefix = prefix
        self.suffix = suffix
        self.before = fields[: varying.start]
        self.after = fields[varying.stop :]
        self.fixed_bytes = sum(list_bytes(field) for field in self.before + self.after)
        self.head = head
        self.headers_before: Headers = []
        self.headers_after: Headers = []

    def derive(self, middle: list[Field], list_bytes_max: int, headers_max: int) -> HeaderBlock | None:
        """The block with `middle` in its middle; None if only a full reading can judge it."""
        size_bytes = self.fixed_bytes
        pairs: Headers = []
        for pair, kind in middle:
            if kind != REGULAR:
                return None
            size_bytes += len(pair[0]) + len(pair[1]) + _ENTRY_OVERHEAD_BYTES
            pairs.append(pair)
        fields = self.before + middle + self.after
        if size_bytes > list_bytes_max or len(fields) > headers_max:
            return None
        block = HeaderBlock(fields, size_bytes)
        known = self.head
        head = block.head = RequestHead(
            known.method,
            known.target,
            self.headers_before + pairs + self.headers_after,
            known.authority,
            known.content_length,
        )
        head.is_grpc = known.is_grpc
        head.expects_continue = known.expects_continue
        return block


class HeaderMemo:
    """Remembers stateless blocks and fields by their bytes, in two generations: the old one is forgotten as a whole.

    Two generations keep the blocks in use while unique ones (trace ids) stream through.
    """

    __slots__ = ("_blocks_max", "_fields_max", "_last", "_old_fields", "_templates", "blocks", "fields", "old_blocks")

    def __init__(self, blocks_max: int = 512, fields_max: int = 2048) -> None:
        self._blocks_max = blocks_max
        self._fields_max = fields_max
        self.blocks: dict[bytes, HeaderBlock] = {}
        self.old_blocks: dict[bytes, HeaderBlock] = {}
        self.fields: dict[bytes, Field] = {}
        self._old_fields: dict[bytes, Field] = {}
        self._templates: list[Template] = []
        self._last: tuple[bytes, HeaderBlock] | None = None

    def find_template(self, raw: bytes) -> "Template | None":
        """The template that `raw` fits by its first and last bytes."""
        for template in self._templates:
            if raw.startswith(template.prefix) and raw.endswith(template.suffix, len(template.prefix)):
                return template
        return None

    def learn(self, raw: bytes, block: HeaderBlock, offsets_of: Callable[[bytes], list[int]]) -> None:
        """Compare a block with the one before it: fields that differ in the middle make a template."""
        last, self._last = self._last, (raw, block)
        if last is not None and len(raw) <= _MEMO_BLOCK_BYTES_MAX:
            template = _template(raw, block, last[1], offsets_of)
            if template is not None:
                self._templates.insert(0, template)
                del self._templates[_TEMPLATES_MAX:]

    def keep_block(self, raw: bytes, block: HeaderBlock) -> None:
        if len(raw) > _MEMO_BLOCK_BYTES_MAX:
            return
        if len(self.blocks) >= self._blocks_max:
            self.old_blocks, self.blocks = self.blocks, {}
        self.blocks[raw] = block

    def find_field(self, raw: bytes) -> Field | None:
        """A field not in `fields`, from the old generation."""
        found = self._old_fields.get(raw)
        if found is not None:
            self.keep_field(raw, found)
        return found

    def keep_field(self, raw: bytes, value: Field) -> None:
        if len(raw) > _MEMO_FIELD_BYTES_MAX:
            return
        if len(self.fields) >= self._fields_max:
            self._old_fields, self.fields = self.fields, {}
        self.fields[raw] = value


def list_bytes(field: Field) -> int:
    """What a field counts towards the header list (RFC 9113 §6.5.2)."""
    name, value = field[0]
    return len(name) + len(value) + _ENTRY_OVERHEAD_BYTES


def _template(
    raw: bytes, block: HeaderBlock, last: HeaderBlock, offsets_of: Callable[[bytes], list[int]]
) -> Template | None:
    """A template from two blocks read one after the other, of which the earlier has a request head; or None."""
    head = last.head
    fields = block.fields
    known = last.fields
    if type(head) is not RequestHead:
        return None
    shortest = min(len(fields), len(known))
    start = 0
    while start < shortest and fields[start][0] == known[start][0]:
        start += 1
    tail = 0
    while tail < shortest - start and fields[-1 - tail][0] == known[-1 - tail][0]:
        tail += 1
    varying = known[start : len(known) - tail]
    if not start or not varying or any(kind != REGULAR for _, kind in varying):
        return None
    pairs = [pair for pair, _ in varying]
    at = next((index for index, pair in enumerate(head.headers) if pair is pairs[0]), -1)
    if at < 0 or head.headers[at : at + len(pairs)] != pairs:
        return None
    offsets = offsets_of(raw)
    end = len(fields) - tail
    template = Template(raw[: offsets[start]], raw[offsets[end] :], fields, range(start, end), head)
    template.headers_before = head.headers[:at]
    template.headers_after = head.headers[at + len(pairs) :]
    return template
