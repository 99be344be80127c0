"""Owns how the verbs reach control: its unix socket by default, or `--api URL` with TOLLWAY_ADMIN_TOKEN.

The token comes from the environment only: an argument would stand in every process listing.
"""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import httpx
import typer

TOKEN_VARIABLE: Final = "TOLLWAY_ADMIN_TOKEN"  # noqa: S105 - a name, not a secret
#: Reconciling a large ledger takes a while; everything else answers at once.
ANSWER_S: Final = 300.0
CONNECT_S: Final = 5.0
PAGE: Final = 1_000

DataDir = Annotated[
    Path, typer.Option("--data-dir", envvar="TOLLWAY_DATA_DIR", help="Data directory of the installation.")
]
ApiUrl = Annotated[
    str | None, typer.Option("--api", help="Base address of a remote control; needs TOLLWAY_ADMIN_TOKEN.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DEFAULT_DATA_DIR: Final = Path(".tollway")

Query = Mapping[str, str | int | list[str] | None]


class Api:
    """The admin API. Whatever goes wrong ends the command with one line on stderr and exit code 1."""

    def __init__(self, client: httpx.Client, place: str) -> None:
        self._client = client
        self._place = place

    def get(self, path: str, query: Query | None = None) -> Any:
        wanted = {name: value for name, value in (query or {}).items() if value is not None}
        return self._send("GET", path, params=wanted)

    def post(self, path: str, body: object = None) -> Any:
        return self._send("POST", path, json={} if body is None else body)

    def get_bytes(self, path: str, query: Query | None = None) -> bytes:
        """The body as it came: a PDF, or JSON whose bytes matter."""
        wanted = {name: value for name, value in (query or {}).items() if value is not None}
        response = self._request("GET", path, params=wanted)
        if not response.is_success:
            self._read(response)
        return response.content

    def get_all(self, path: str, query: Query, limit: int) -> list[Any]:
        """Up to `limit` items of a list, page by page. Says on stderr when there are more."""
        items: list[Any] = []
        after: str | int | None = None
        while len(items) < limit:
            answer = self.get(path, {**query, "after": after, "limit": min(PAGE, limit - len(items))})
            items += answer["items"]
            after = answer["next"]
            if after is None:
                return items
        typer.echo(f"there are more than {limit}: use --limit", err=True)
        return items

    def _send(self, method: str, path: str, **content: Any) -> Any:
        return self._read(self._request(method, path, **content))

    def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            return self._client.request(method, path, **content)
        except httpx.ConnectError:
            fail(f"control is not running at {self._place}: start it with `make run` or `tollway up`")
        except httpx.TimeoutException:
            fail(f"control at {self._place} does not answer: look at its log, then try again")
        except httpx.HTTPError as error:
            fail(f"control at {self._place} broke the connection off ({type(error).__name__}): try again")

    def _read(self, response: httpx.Response) -> Any:
        try:
            answer = response.json()
        except ValueError:
            fail(f"{self._place} answered {response.status_code} without JSON: is that Tollway's admin API?")
        if not response.is_success:
            message = answer.get("error") if isinstance(answer, dict) else None
            fail(str(message or f"{self._place} answered {response.status_code}"))
        return answer


@contextmanager
def open_api(data_dir: Path, api: str | None) -> Iterator[Api]:
    """The API at `api`, or at the unix socket in `data_dir`."""
    client, place = _local_client(data_dir) if api is None else _remote_client(api)
    with client:
        yield Api(client, place)


def fail(message: str) -> NoReturn:
    """One line: what, where, what to do. Exit code 1."""
    typer.echo(f"tollway: {' '.join(message.split())}", err=True)
    raise typer.Exit(1)


def _local_client(data_dir: Path) -> tuple[httpx.Client, str]:
    path = data_dir / "run" / "control.sock"
    _check_socket(path)
    transport = httpx.HTTPTransport(uds=str(path))
    return httpx.Client(transport=transport, base_url="http://control", timeout=_timeout(), trust_env=False), str(path)


def _check_socket(path: Path) -> None:
    """Try the socket first: httpx tells neither why it cannot connect nor closes what it opened."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_S)
        try:
            probe.connect(str(path))
        except PermissionError:
            fail(f"no right to open {path}: run as the user who runs tollway, or use --api with {TOKEN_VARIABLE}")
        except OSError:
            fail(f"control is not running at {path}: start it with `make run` or `tollway up`")


def _remote_client(api: str) -> tuple[httpx.Client, str]:
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        fail(f"{TOKEN_VARIABLE} is not set: export the admin token to use --api")
    if not api.startswith(("http://", "https://")):
        fail(f"--api {api!r} is no address: use http://host:port or https://host")
    headers = {"authorization": f"Bearer {token}"}
    # Without the environment's proxies: the token goes to that address and nowhere else.
    return httpx.Client(base_url=api, headers=headers, timeout=_timeout(), trust_env=False), api


def _timeout() -> httpx.Timeout:
    return httpx.Timeout(ANSWER_S, connect=CONNECT_S)
