"""Owns a call of a decoupled model by `tollway call`: events of generate_stream, shown as they come."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

from gateway.commands.oip_client import OipError, TensorMeta

_DATA: Final = "data: "
#: Members of an event that are no outputs.
_OWN: Final = frozenset({"model_name", "model_version", "id"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """A stream that has ended: its events' outputs, the reply's headers, and how long it took from request to end."""

    events: tuple[Mapping[str, Any], ...]
    headers: Mapping[str, str]
    first_s: float
    whole_s: float

    @property
    def text(self) -> str:
        """All pieces of text, one behind another."""
        return "".join(text_of(event) for event in self.events)


def is_decoupled(response: httpx.Response) -> bool:
    """Whether a refusal of `infer` says that the model has to be called as a stream."""
    return response.status_code == httpx.codes.NOT_IMPLEMENTED and b"is decoupled" in response.content


def generate_body(meta: TensorMeta, items: Sequence[bytes]) -> dict[str, Any]:
    """The request of generate_stream.

    Raises:
        OipError: an item is no text, or the model takes another number of them.
    """
    if len(items) != 1:
        raise OipError(f"a stream answers one item, not {len(items)}")
    try:
        return {meta.name: items[0].decode()}
    except UnicodeDecodeError as error:
        raise OipError(f"input '{meta.name}' of a stream takes text") from error


def read_events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The outputs of each event.

    Raises:
        OipError: an event is none, or says that the model failed.
    """
    for line in lines:
        if not line.startswith(_DATA):
            continue
        try:
            event = json.loads(line.removeprefix(_DATA))
        except ValueError as error:
            raise OipError("an event of the stream is no JSON") from error
        if not isinstance(event, dict):
            raise OipError("an event of the stream is no JSON object")
        if "error" in event:
            raise OipError(str(event["error"]))
        yield {name: value for name, value in event.items() if name not in _OWN}


def text_of(event: Mapping[str, Any]) -> str:
    """Its first text: what a person reads."""
    return next((value for value in event.values() if isinstance(value, str)), "")


def stream(response: httpx.Response, begun_s: float, show: Callable[[str], object]) -> Streamed:
    """Read a reply to its end; `show` is called with each piece of text at once.

    Raises:
        OipError: as `read_events`.
    """
    events = []
    first_s = 0.0
    for event in read_events(response.iter_lines()):
        first_s = first_s or time.monotonic() - begun_s
        events.append(event)
        show(text_of(event))
    return Streamed(events=tuple(events), headers=response.headers, first_s=first_s, whole_s=time.monotonic() - begun_s)
