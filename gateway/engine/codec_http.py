"""HOT PATH. Owns an inference's body over REST, in and out: JSON alone, or JSON and raw tensors (CONTRACT.md §2)."""

from typing import Final

import msgspec

from gateway.call import Data, Headers
from gateway.engine.codec_json import JsonCodec, json_data
from gateway.engine.inference import InferRequest, Wanted, returned
from gateway.engine.interface import Interface, Tensor
from gateway.engine.model import ModelVersion
from gateway.engine.tensors import DTYPES, Array, from_raw, invalid, to_raw
from gateway.errors import Code, TollwayError

_JSON: Final = (b"content-type", b"application/json")
BINARY_TYPE: Final = (b"content-type", b"application/octet-stream")
_SHAPES_KEPT_MAX: Final = 64
_encode: Final = msgspec.json.Encoder().encode


def decode_body(codec: JsonCodec, interface: Interface, body: Data, header_bytes: int) -> InferRequest:
    """A request; `header_bytes` -1: all JSON, 0: a raw tensor and nothing else, else the length of the JSON.

    Raises:
        TollwayError: bad_request, invalid_tensor, bad_header_length.
    """
    if header_bytes < 0:
        return codec.decode(interface, body, None)
    if header_bytes == 0:
        return _raw_request(interface, body)
    if header_bytes > len(body):
        raise TollwayError(
            Code.BAD_HEADER_LENGTH,
            f"inference-header-content-length is {header_bytes}, the whole body has {len(body)} bytes",
        )
    view = memoryview(body)
    return codec.decode(interface, view[:header_bytes], view[header_bytes:])


def _raw_request(interface: Interface, body: Data) -> InferRequest:
    """The body is the one input of one row; its variable size, if any, follows from the number of bytes."""
    if len(interface.inputs) != 1:
        raise invalid(f"model '{interface.model}' has {len(interface.inputs)} inputs; a raw request carries one")
    spec = interface.inputs[0]
    if spec.dims.count(-1) > 1:
        raise invalid(f"input '{spec.name}' has more than one variable size; a raw request cannot tell them")
    if spec.datatype == "BYTES":
        # The body is one element, as it is.
        shape = tuple(1 for _ in spec.dims)
        packed = len(body).to_bytes(4, "little") + bytes(body)
    else:
        packed = bytes(body) if isinstance(body, memoryview) else body
        fixed = DTYPES[spec.datatype].itemsize
        for size in spec.dims:
            fixed *= size if size != -1 else 1
        shape = tuple(len(body) // fixed if size == -1 else size for size in spec.dims)
    if interface.has_batch_axis:
        shape = (1, *shape)
    tensor = Tensor(spec.name, spec.datatype, shape, from_raw(spec.name, spec.datatype, shape, packed))
    return InferRequest("", [tensor], None, 0, is_binary_default=True)


class ReplyWriter:
    """Replies of one model version: what never changes is written once."""

    def __init__(self, version: ModelVersion) -> None:
        self._version = version
        name, number = _encode(version.name), _encode(version.version)
        self._head = b'{"model_name":%b,"model_version":%b,"outputs":[' % (name, number)
        self._head_id = b'"model_name":%b,"model_version":%b,"outputs":[' % (name, number)
        specs = version.interface.outputs
        self._names = [spec.name for spec in specs]
        self._prefixes = [
            b'{"name":%b,"datatype":"%b","shape":' % (_encode(spec.name), spec.datatype.encode()) for spec in specs
        ]
        self._all_json = [Wanted(position, False, 0) for position in range(len(specs))]
        self._all_binary = [Wanted(position, True, 0) for position in range(len(specs))]
        self._shapes: dict[tuple[int, ...], bytes] = {}

    def _shape_text(self, shape: tuple[int, ...]) -> bytes:
        """`[1,10]`; the first few are remembered."""
        text = _encode(shape)
        if len(self._shapes) < _SHAPES_KEPT_MAX:
            self._shapes[shape] = text
        return text

    def write(self, request: InferRequest, outputs: list[Array]) -> tuple[Headers, bytes]:
        """Headers (content type, length of the JSON) and body.

        Raises:
            TollwayError: bad_request, invalid_tensor, where an output has no such form.
        """
        wanted = request.outputs
        if wanted is None:
            wanted = self._all_binary if request.is_binary_default else self._all_json
        parts = [b'{"id":%b,' % _encode(request.id), self._head_id] if request.id else [self._head]
        blobs: list[Data] = []
        is_binary = False
        for item in wanted:
            datatype, array = returned(self._version, item, outputs)
            name = self._names[item.position]
            prefix = self._prefixes[item.position]
            if item.classes:
                prefix = b'{"name":%b,"datatype":"BYTES","shape":' % _encode(name)
            shape = self._shapes.get(array.shape) or self._shape_text(array.shape)
            if item.is_binary:
                blob = to_raw(array)
                is_binary = True
                blobs.append(blob)
                parts += (prefix, shape, b',"parameters":{"binary_data_size":%d}},' % len(blob))
            else:
                parts += (prefix, shape, b',"data":', json_data(name, datatype, array), b"},")
        # The last comma of the list gives way to its end.
        parts[-1] = parts[-1][:-1]
        parts.append(b"]}")
        if not is_binary:
            return [_JSON], b"".join(parts)
        length = sum(map(len, parts))
        headers = [BINARY_TYPE, (b"inference-header-content-length", b"%d" % length)]
        return headers, b"".join((*parts, *blobs))
