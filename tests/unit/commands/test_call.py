"""`tollway call`: what is sent, what is printed, and one clear line for everything that can go wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from gateway.commands import call as module
from gateway.commands.call import call, call_model, read_env_file, send

METADATA = {"name": "ocr", "inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [-1]}], "outputs": []}
REPLY = {
    "model_name": "ocr",
    "outputs": [
        {"name": "TEXT", "datatype": "BYTES", "shape": [1], "data": ["hello"]},
        {"name": "SCORE", "datatype": "FP32", "shape": [1], "data": [0.5]},
    ],
}
FACTS = {
    "tollway-call-id": "c1",
    "tollway-charge": "0.01 USD",
    "ratelimit": '"day";r=5',
    "server-timing": "backend;dur=2",
}

Answer = Callable[[httpx.Request], httpx.Response]


class Gateway:
    """Answers as a gateway would; keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.metadata: Answer = lambda _request: httpx.Response(200, json=METADATA)
        self.infer: Answer = lambda _request: httpx.Response(200, json=REPLY, headers=FACTS)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.infer(request) if request.method == "POST" else self.metadata(request)

    def client(self, url: str, key: str | None) -> httpx.Client:
        self.url, self.key = url, key
        return httpx.Client(transport=httpx.MockTransport(self), base_url="http://gateway")


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gateway:
    """The command's own client is replaced at its seam; it runs in an empty folder with an empty environment."""
    gateway = Gateway()
    monkeypatch.setattr(module, "open_client", gateway.client)
    monkeypatch.delenv(module.URL_VARIABLE, raising=False)
    monkeypatch.delenv(module.KEY_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    return gateway


def run(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    app = typer.Typer()
    app.command("call")(call)
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    return result.exit_code, result.stdout, result.stderr


def test_answer_charge_limits_and_timings_are_shown(gateway: Gateway) -> None:
    code, out, _ = run("ocr", "--text", "x")
    assert code == 0
    assert out.splitlines() == [
        "0.500  hello",
        "",
        "charge   0.01 USD",
        "left     day 5",
        "time     backend 2 ms",
        "call     c1",
    ]


def test_items_go_as_a_binary_tensor_to_the_models_own_input(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "b.png").write_bytes(b"JPEG")
    assert run("ocr", "--image", "a.png", "--image", "b.png")[0] == 0
    asked, sent = gateway.requests
    assert asked.url.path == "/v2/models/ocr"
    assert sent.url.path == "/v2/models/ocr/infer"
    head_length = int(sent.headers["inference-header-content-length"])
    head = json.loads(sent.content[:head_length])
    assert (head["inputs"][0]["name"], head["inputs"][0]["shape"]) == ("IMAGE", [2])
    assert sent.content[head_length:] == b"\x04\0\0\0\x89PNG\x04\0\0\0JPEG"


def test_binary_reply_is_read(gateway: Gateway) -> None:
    head = json.dumps(
        {"outputs": [{"name": "T", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}]}
    ).encode()
    headers = {"inference-header-content-length": str(len(head))}
    gateway.infer = lambda _request: httpx.Response(200, content=head + b"\x02\0\0\0ok", headers=headers)
    assert run("ocr", "--text", "x")[1] == "ok\n"


def test_version_and_odd_names_are_quoted_into_the_path(gateway: Gateway) -> None:
    run("a/b c", "--text", "x", "--version", "3")
    assert gateway.requests[0].url.raw_path == b"/v2/models/a%2Fb%20c/versions/3"


def test_json_is_sent_as_it_is_without_asking_for_metadata(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "call.json").write_bytes(b'{"inputs": []}')
    assert run("ocr", "--json", "call.json")[0] == 0
    (sent,) = gateway.requests
    assert sent.content == b'{"inputs": []}'
    assert sent.headers["content-type"] == "application/json"


def test_json_may_come_from_standard_input(gateway: Gateway) -> None:
    assert run("ocr", "--json", "-", stdin=b'{"inputs": [1]}')[0] == 0
    assert gateway.requests[0].content == b'{"inputs": [1]}'


def test_output_for_programs_is_one_json_object(gateway: Gateway) -> None:
    _, out, _ = run("ocr", "--text", "x", "--output", "json")
    answer = json.loads(out)
    assert answer["call_id"] == "c1"
    assert answer["limits"] == {"day": {"r": 5}}
    assert answer["outputs"][0] == {"name": "TEXT", "datatype": "BYTES", "shape": [1], "data": ["hello"]}


def test_key_and_address_come_from_option_then_environment_then_demo_file(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run("ocr", "--text", "x")
    assert (gateway.url, gateway.key) == (module.DEFAULT_URL, None)
    (tmp_path / ".tollway").mkdir()
    (tmp_path / ".tollway" / "demo.env").write_text("TOLLWAY_HTTP=http://file:1\nTOLLWAY_KEY='from file'\n")
    run("ocr", "--text", "x")
    assert (gateway.url, gateway.key) == ("http://file:1", "from file")
    monkeypatch.setenv("TOLLWAY_HTTP", "http://env:2")
    monkeypatch.setenv("TOLLWAY_KEY", "env")
    run("ocr", "--text", "x")
    assert (gateway.url, gateway.key) == ("http://env:2", "env")
    run("ocr", "--text", "x", "--url", "http://option:3", "--key", "option")
    assert (gateway.url, gateway.key) == ("http://option:3", "option")


def test_env_file_is_read_as_a_shell_would(tmp_path: Path) -> None:
    path = tmp_path / "demo.env"
    path.write_text('# a comment=1\nexport A=1\nB="two words"\n\nnonsense\nC=\n')
    assert read_env_file(path) == {"A": "1", "B": "two words", "C": ""}


def test_env_file_with_an_open_quote_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "demo.env"
    path.write_text("A='open\n")
    with pytest.raises(typer.Exit):
        read_env_file(path)
    assert "the value of A has an open quote" in capsys.readouterr().err


def refusal(status: int, error: str, **headers: str) -> Answer:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _request: httpx.Response(status, json={"error": error, "code": "x"}, headers=fields)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (refusal(401, "a valid API key is required"), "a valid API key is required: give a valid key with --key"),
        (refusal(402, "the account is empty"), "the account is empty: top up"),
        (refusal(403, "the key may not call ocr"), "the key may not call ocr: this key may not do that"),
        (refusal(404, "unknown model 'ocr'"), "unknown model 'ocr': check the name"),
        (refusal(429, "5 calls a second", retry_after="7"), "5 calls a second: try again in 7 s"),
        (refusal(503, "ocr is not ready", retry_after="1"), "ocr is not ready: try again in 1 s"),
        (refusal(400, "IMAGE is damaged", tollway_call_id="c9"), "IMAGE is damaged (call c9)"),
        (lambda _request: httpx.Response(502, text="<html>"), "the gateway answered 502"),
        (lambda _request: httpx.Response(301, headers={"location": "http://evil"}), "the gateway answered 301"),
        (lambda _request: httpx.Response(200, text="hello"), "not OIP's"),
        (lambda _request: httpx.Response(200, json={"outputs": 3}), "not OIP's"),
        (
            lambda _request: httpx.Response(200, json=REPLY, headers={"inference-header-content-length": "x"}),
            "OIP server",
        ),
    ],
)
def test_refusal_is_one_line_that_says_what_to_do(gateway: Gateway, answer: Answer, told: str) -> None:
    gateway.infer = answer
    code, out, err = run("ocr", "--text", "x")
    assert code == 1
    assert out == ""
    assert err.count("\n") == 1
    assert told in err


def test_unknown_model_is_told_at_the_first_question(gateway: Gateway) -> None:
    gateway.metadata = refusal(404, "Request for unknown model: 'nope' is not found")
    code, _, err = run("nope", "--text", "x")
    assert code == 1
    assert "unknown model: 'nope'" in err
    assert len(gateway.requests) == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (httpx.ConnectError("refused"), "nothing answers at http://gateway: start it with `make run`"),
        (httpx.ReadTimeout("late"), "does not answer in time"),
        (httpx.RemoteProtocolError("cut"), "broke the connection off (RemoteProtocolError)"),
    ],
)
def test_trouble_on_the_way_is_one_line(gateway: Gateway, error: Exception, told: str) -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        raise error

    gateway.metadata = answer
    code, _, err = run("ocr", "--text", "x")
    assert code == 1
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give one of --image FILE"),
        (["--text", "x", "--json", "-"], "give one of --image FILE"),
        (["--image", "missing.png"], "missing.png: No such file or directory"),
        (["--file", "."], ".: Is a directory"),
        (["--text", "x", "--input", "OTHER"], "the model has no input 'OTHER'; its inputs are IMAGE BYTES[-1]"),
    ],
)
def test_wrong_arguments_are_one_line(gateway: Gateway, arguments: list[str], told: str) -> None:
    code, out, err = run("ocr", *arguments)
    assert code == 1
    assert out == ""
    assert told in err


@pytest.mark.parametrize("url", ["gateway:8000", "ftp://gateway", ""])
def test_address_without_a_scheme_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        module.open_client(url, None)
    assert "is no address" in capsys.readouterr().err


def test_key_travels_as_a_bearer_token_and_redirects_are_not_followed() -> None:
    with module.open_client("http://127.0.0.1:1", "secret") as client:
        assert client.headers["authorization"] == "Bearer secret"
        assert not client.follow_redirects
    with module.open_client("http://127.0.0.1:1", None) as client:
        assert "authorization" not in client.headers


def test_client_is_not_needed_to_call(gateway: Gateway) -> None:
    with gateway.client("", None) as client:
        outputs, headers = call_model(client, "/v2/models/ocr", "image", [b"x"], None)
        assert outputs[0].values == (b"hello",)
        assert headers["tollway-call-id"] == "c1"
        assert send(client, "GET", "/v2/models/ocr").status_code == 200


def test_large_file_is_refused_before_it_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(module.FILE_BYTES_MAX + 1)
    with pytest.raises(typer.Exit):
        module.read_file(path)
    assert "more than 256 MiB" in capsys.readouterr().err


# -- decoupled models -------------------------------------------------------------------------------------------------

LANGUAGE = {"name": "lm", "inputs": [{"name": "PROMPT", "datatype": "BYTES", "shape": [1]}], "outputs": []}
EVENTS = (
    'data: {"model_name":"lm","model_version":"1","TEXT":"The"}\n\n'
    ": a comment\n\n"
    'data: {"model_name":"lm","model_version":"1","TEXT":" end","FINISH":"stop"}\n\n'
)


def decoupled(gateway: Gateway, events: str, status: int = 200) -> None:
    """The gateway serves a decoupled model that answers with `events`."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/generate_stream"):
            return httpx.Response(status, text=events, headers={"tollway-call-id": "c2"})
        return httpx.Response(501, json={"error": "model 'lm' is decoupled: call it by generate_stream"})

    gateway.metadata = lambda _request: httpx.Response(200, json=LANGUAGE)
    gateway.infer = answer


def test_a_decoupled_model_is_called_as_a_stream_and_its_text_printed(gateway: Gateway) -> None:
    decoupled(gateway, EVENTS)
    code, out, _ = run("lm", "--text", "Say it")
    assert code == 0
    text, _, units, *facts = out.splitlines()
    assert text == "The end"
    assert units == "units    2 (`tollway usage` shows their charge)"
    assert facts[0].startswith("time     first ")
    assert facts[-1] == "call     c2"
    assert [request.url.path for request in gateway.requests] == [
        "/v2/models/lm",
        "/v2/models/lm/infer",
        "/v2/models/lm/generate_stream",
    ]
    assert json.loads(gateway.requests[-1].content) == {"PROMPT": "Say it"}


def test_a_stream_as_json_has_its_text_and_every_event(gateway: Gateway) -> None:
    decoupled(gateway, EVENTS)
    code, out, _ = run("lm", "--text", "Say it", "--output", "json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["text"], answer["call_id"]) == ("The end", "c2")
    assert answer["events"] == [{"TEXT": "The"}, {"TEXT": " end", "FINISH": "stop"}]


@pytest.mark.parametrize(
    ("events", "status", "message"),
    [
        ('data: {"error":"model \'lm\' raised X","code":"backend_fault"}\n\n', 200, "raised X"),
        ("data: {nonsense\n\n", 200, "no JSON"),
        ("data: [1]\n\n", 200, "no JSON object"),
        ('{"error":"too many"}', 503, "too many"),
    ],
)
def test_a_stream_that_fails_is_one_line(gateway: Gateway, events: str, status: int, message: str) -> None:
    decoupled(gateway, events, status)
    code, _, err = run("lm", "--text", "Say it")
    assert code == 1
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_stream_takes_one_item(gateway: Gateway) -> None:
    gateway.metadata = lambda _request: httpx.Response(
        200, json={"name": "lm", "inputs": [{"name": "PROMPT", "datatype": "BYTES", "shape": [-1]}]}
    )
    gateway.infer = lambda _request: httpx.Response(501, json={"error": "model 'lm' is decoupled"})
    code, _, err = run("lm", "--text", "a", "--text", "b")
    assert code == 1
    assert "a stream answers one item, not 2" in err


def test_another_501_is_a_refusal_as_any(gateway: Gateway) -> None:
    gateway.infer = lambda _request: httpx.Response(501, json={"error": "not served here"})
    code, _, err = run("ocr", "--text", "x")
    assert code == 1
    assert "not served here" in err
