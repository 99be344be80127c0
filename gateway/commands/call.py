"""Owns `tollway call`: one metered call of a model by a person, and what it answered, cost and left."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import httpx
import typer

from gateway.commands.client import fail
from gateway.commands.oip_client import (
    HEADER_LENGTH,
    OipError,
    Output,
    TensorMeta,
    choose_input,
    decode_reply,
    encode_call,
    read_inputs,
)
from gateway.commands.output import print_json
from gateway.commands.reply_text import facts_as_lines, headers_as_json, outputs_as_json, outputs_as_lines
from gateway.commands.stream_text import Streamed, generate_body, is_decoupled, stream

DEFAULT_URL: Final = "http://127.0.0.1:8000"
#: Written by `make run`; the environment goes before it.
DEMO_ENV: Final = Path(".tollway/demo.env")
URL_VARIABLE: Final = "TOLLWAY_HTTP"
KEY_VARIABLE: Final = "TOLLWAY_KEY"
FILE_BYTES_MAX: Final = 256 << 20
ENV_BYTES_MAX: Final = 64 << 10
CONNECT_S: Final = 5.0
ANSWER_S: Final = 300.0


class Shown(StrEnum):
    """How to print the answer."""

    TEXT = "text"
    JSON = "json"


def call(
    model: Annotated[str, typer.Argument(help="The model, for example ocr.", show_default=False)],
    *,
    image: Annotated[list[Path] | None, typer.Option(help="A PNG or JPEG file. Repeat for more items.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="A sound, as a WAV file. Repeat for more items.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text. Repeat for more items.")] = None,
    file: Annotated[list[Path] | None, typer.Option(help="A file's bytes as they are. Repeat for more items.")] = None,
    json: Annotated[
        str | None, typer.Option(help="A whole OIP request as JSON: a file, or - for standard input.")
    ] = None,
    input_name: Annotated[str | None, typer.Option("--input", help="The input to fill, if that is not clear.")] = None,
    version: Annotated[str | None, typer.Option(help="A version of the model; default: as routed.")] = None,
    url: Annotated[str | None, typer.Option(help=f"The gateway; default: {URL_VARIABLE}, then {DEMO_ENV}.")] = None,
    key: Annotated[str | None, typer.Option(help=f"The API key; default: {KEY_VARIABLE}, then {DEMO_ENV}.")] = None,
    output: Annotated[Shown, typer.Option(help="text for people, json for programs.")] = Shown.TEXT,
) -> None:
    """Call a model and show its answer, the charge and what the limits have left."""
    kind, items = _read_items({"image": image, "audio": audio, "file": file}, text, json)
    settings = {**read_env_file(DEMO_ENV), **os.environ}
    address = url or settings.get(URL_VARIABLE) or DEFAULT_URL
    secret = key or settings.get(KEY_VARIABLE)
    with open_client(address, secret) as client:
        path = f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")
        try:
            outputs, headers = call_model(client, path, kind, items, input_name)
        except _Decoupled as decoupled:
            streamed = call_stream(client, path, decoupled.meta, items, is_shown=output is Shown.TEXT)
            show_stream(model, streamed, shown=output)
            return
    show(model, outputs, headers, shown=output)


class _Decoupled(Exception):
    """The model answers with a stream; `meta` is the input to fill."""

    def __init__(self, meta: TensorMeta) -> None:
        super().__init__()
        self.meta = meta


def _read_items(
    files: Mapping[str, Sequence[Path] | None], text: Sequence[str] | None, json: str | None
) -> tuple[str, list[bytes]]:
    """What is sent and as which kind; exactly one kind may be given."""
    given = {**files, "text": text, "json": json}
    kinds = [kind for kind, value in given.items() if value]
    if len(kinds) != 1:
        fail("give one of --image FILE, --audio FILE, --text TEXT, --file FILE or --json FILE|-")
    if json:
        return "json", [sys.stdin.buffer.read(FILE_BYTES_MAX) if json == "-" else read_file(Path(json))]
    if text:
        return "text", [item.encode() for item in text]
    return kinds[0], [read_file(path) for path in files[kinds[0]] or ()]


def read_file(path: Path) -> bytes:
    """The bytes of a file; what cannot be read ends the command with one line."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            fail(f"{path} has more than {FILE_BYTES_MAX >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")


def read_env_file(path: Path) -> dict[str, str]:
    """NAME=VALUE lines as a shell would read them, `export` or not; empty where there is no such file."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = file.read(ENV_BYTES_MAX).splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path}: {error}")
    values = {}
    for line in lines:
        name, is_pair, value = line.strip().removeprefix("export ").partition("=")
        if is_pair and not name.startswith("#"):
            try:
                values[name.strip()] = "".join(shlex.split(value))
            except ValueError:
                fail(f"{path}: the value of {name} has an open quote")
    return values


def open_client(url: str, key: str | None) -> httpx.Client:
    """A client of one gateway. It follows no redirect and no proxy of the environment: the key goes to `url` only."""
    if not url.startswith(("http://", "https://")):
        fail(f"--url {url!r} is no address: use http://host:port or https://host")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(
        base_url=url, headers=headers, timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S), trust_env=False
    )


def call_model(
    client: httpx.Client, path: str, kind: str, items: Sequence[bytes], input_name: str | None
) -> tuple[tuple[Output, ...], Mapping[str, str]]:
    """Make the call; whatever goes wrong ends the command with one line.

    Raises:
        _Decoupled: the model answers with a stream only.
    """
    try:
        if kind == "json":
            response = send(client, "POST", f"{path}/infer", items[0], {"content-type": "application/json"})
        else:
            metadata = send(client, "GET", path).json()
            meta = choose_input(read_inputs(metadata), kind, input_name)
            body, head_bytes = encode_call(meta, items)
            content = {"content-type": "application/octet-stream", HEADER_LENGTH: str(head_bytes)}
            response = send(client, "POST", f"{path}/infer", body, content, is_passed=is_decoupled)
            if is_decoupled(response):
                raise _Decoupled(meta)
        length = response.headers.get(HEADER_LENGTH)
        return decode_reply(response.content, None if length is None else int(length)), response.headers
    except OipError as error:
        fail(str(error))
    except ValueError:
        fail(f"{client.base_url} answered with neither JSON nor tensors: is that an OIP server?")


def call_stream(
    client: httpx.Client, path: str, meta: TensorMeta, items: Sequence[bytes], *, is_shown: bool
) -> Streamed:
    """Call a decoupled model and print its text as it comes; whatever goes wrong ends the command with one line."""
    with _one_line(client):
        try:
            body = generate_body(meta, items)
            begun_s = time.monotonic()
            with client.stream("POST", f"{path}/generate_stream", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    fail(explain(response))
                return stream(response, begun_s, _print_piece if is_shown else _print_nothing)
        except OipError as error:
            fail(str(error))


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)


def _print_nothing(_text: str) -> None:
    """The whole is printed at the end."""


@contextmanager
def _one_line(client: httpx.Client) -> Iterator[None]:
    """What a connection does wrong ends the command with a line that says what to do."""
    try:
        yield
    except httpx.ConnectError:
        fail(f"nothing answers at {client.base_url}: start it with `make run` or `tollway up`, or give --url")
    except httpx.TimeoutException:
        fail(f"{client.base_url} does not answer in time: try again")
    except httpx.HTTPError as error:
        fail(f"{client.base_url} broke the connection off ({type(error).__name__}): try again")


def send(
    client: httpx.Client,
    method: str,
    path: str,
    content: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    is_passed: Callable[[httpx.Response], bool] = lambda _response: False,
) -> httpx.Response:
    """One request; anything but 200, or what `is_passed`, ends the command with a line that says what to do."""
    with _one_line(client):
        response = client.request(method, path, content=content, headers=headers)
    if response.status_code != httpx.codes.OK and not is_passed(response):
        fail(explain(response))
    return response


def explain(response: httpx.Response) -> str:
    """The gateway's own words, and what to do about them."""
    try:
        answer: Any = response.json()
    except ValueError:
        answer = None
    message = answer.get("error") if isinstance(answer, dict) else None
    text = str(message or f"the gateway answered {response.status_code}")
    advice = _advice(response.status_code, response.headers.get("retry-after"))
    call_id = response.headers.get("tollway-call-id")
    return text + (f": {advice}" if advice else "") + (f" (call {call_id})" if call_id else "")


def _advice(status: int, retry_after: str | None) -> str:
    if status == httpx.codes.UNAUTHORIZED:
        return f"give a valid key with --key or {KEY_VARIABLE}; `tollway keys create` makes one"
    if status == httpx.codes.FORBIDDEN:
        return "this key may not do that; `tollway keys list` shows its scopes and models"
    if status == httpx.codes.PAYMENT_REQUIRED:
        return "top up the account"
    if status == httpx.codes.NOT_FOUND:
        return "check the name; `tollway models list` shows what is served"
    if retry_after:
        return f"try again in {retry_after} s"
    return ""


def show(model: str, outputs: Sequence[Output], headers: Mapping[str, str], *, shown: Shown) -> None:
    """Print the answer and what the headers tell of the call."""
    facts = headers_as_json(headers)
    if shown is Shown.JSON:
        print_json({"model": model, **facts, "outputs": outputs_as_json(outputs)})
        return
    for line in outputs_as_lines(outputs):
        print(line)
    lines = list(facts_as_lines(facts))
    if lines:
        print("", *lines, sep="\n")


def show_stream(model: str, streamed: Streamed, *, shown: Shown) -> None:
    """Print how a stream went; its text has been printed. The charge comes behind the reply, where httpx drops it."""
    facts = headers_as_json(streamed.headers)
    timings = {"first": 1000 * streamed.first_s, "whole": 1000 * streamed.whole_s}
    if shown is Shown.JSON:
        events = list(streamed.events)
        print_json({"model": model, **facts, "timings_ms": timings, "text": streamed.text, "events": events})
        return
    print("", "", f"units    {len(streamed.events)} (`tollway usage` shows their charge)", sep="\n")
    print(*facts_as_lines({**facts, "timings_ms": timings}), sep="\n")
