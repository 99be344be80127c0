"""`tollway demo` (what `make run` runs): start everything, make real calls, show what they cost and where that stands.

Nothing here is special: the calls go through the public ports with an ordinary key of the free plan.
"""

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer

from gateway.commands.call import Shown, call_model, open_client, read_env_file, show
from gateway.commands.client import Api, fail, open_api
from gateway.commands.up import (
    QUIET,
    DataDirOption,
    SetOption,
    SettingsOption,
    read_settings,
    show_bootstrap_token,
    start_detached,
    up_command,
    wait_ready,
)
from gateway.settings import Settings
from gateway.supervisor import running_pid, stderr_say

_TENANT: Final = "demo"
_ENV_FILE: Final = "demo.env"
_MODELS_S: Final = 60.0
_POSTED_S: Final = 10.0
_STOP_S: Final = 3.0
_SAMPLES: Final = Path(__file__).resolve().parents[2] / "model_repo" / "showcases" / "samples"


def demo(
    settings: SettingsOption = None,
    set_: SetOption = None,
    data_dir: DataDirOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return once ready; `make stop` ends it.")] = False,
) -> None:
    """Start, make real calls, show the charge and the ledger entry. Ctrl-C stops everything."""
    loaded = read_settings(settings, set_, data_dir)
    if detach:
        start_detached(loaded, settings, set_, data_dir, is_quiet=True)
        _show_all(loaded)
        return
    process = _start_attached(loaded, settings, set_, data_dir)
    try:
        _show_all(loaded)
        print("\nRunning. Ctrl-C stops everything.", flush=True)
        raise typer.Exit(process.wait())
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    finally:
        _stop(process)


def _start_attached(
    settings: Settings, file: Path | None, pairs: list[str] | None, data_dir: Path | None
) -> subprocess.Popen[bytes]:
    """`tollway up` as a child in its own process group: Ctrl-C reaches us alone, and we stop it in order."""
    if running_pid(settings.data_dir) is not None:
        stderr_say(f"tollway already runs on {settings.data_dir}: stop it with `make stop` or `tollway down`")
        raise typer.Exit(2)
    arguments = up_command(file, pairs, data_dir)
    process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, process_group=0, env={**os.environ, QUIET: "1"})
    if not wait_ready(process, settings):
        process.send_signal(signal.SIGINT)
        raise typer.Exit(process.wait() or 1)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# -- what is shown -----------------------------------------------------------------------------------------------------


def _show_all(settings: Settings) -> None:
    addresses = _addresses(settings)
    with open_api(settings.data_dir, None) as api:
        env = _prepare(settings, api, addresses)
        with open_client(addresses["TOLLWAY_HTTP"], env["TOLLWAY_KEY"]) as client:
            models = _wait_for_models(client)
            call_ids = [_call_and_show(client, name, kind, path) for name, kind, path in _calls(models)]
        for call_id in call_ids[:1]:
            _show_entry(api, call_id)
    _show_addresses(settings, env)


def _addresses(settings: Settings) -> dict[str, str]:
    ports = json.loads((settings.run_dir / "ports.json").read_text(encoding="utf-8"))
    scheme = "http" if settings.tls_certificate is None else "https"
    return {
        "TOLLWAY_HTTP": f"{scheme}://{settings.host}:{ports['http']}",
        "TOLLWAY_GRPC": f"{settings.host}:{ports['grpc']}",
        "TOLLWAY_API": f"http://{settings.host}:{ports['api']}",
    }


def _prepare(settings: Settings, api: Api, addresses: dict[str, str]) -> dict[str, str]:
    """The demo tenant, a key and demo.env (mode 600). A key of an earlier run is kept while it works."""
    path = settings.data_dir / _ENV_FILE
    known = read_env_file(path)
    if not any(tenant["tenant"] == _TENANT for tenant in api.get_all("/admin/tenants", {}, 1000)):
        api.post("/admin/tenants", {"tenant": _TENANT, "name": "Demo", "plan": "free"})
    key = known.get("TOLLWAY_KEY")
    if not key or not _works(addresses["TOLLWAY_HTTP"], key):
        key = str(api.post("/admin/keys", {"tenant": _TENANT, "name": "demo", "scopes": ["infer", "read"]})["key"])
        _wait_for_key(addresses["TOLLWAY_HTTP"], key)
    token = _take_token(settings) or known.get("TOLLWAY_ADMIN_TOKEN", "")
    env = {**addresses, "TOLLWAY_KEY": key, "TOLLWAY_ADMIN_TOKEN": token}
    text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    return env


def _take_token(settings: Settings) -> str | None:
    """The bootstrap token, once: it goes into demo.env and its own file is deleted."""
    return show_bootstrap_token(settings, lambda _text: None)


def _works(url: str, key: str) -> bool:
    with open_client(url, key) as client:
        return client.get("/v2").status_code != httpx.codes.UNAUTHORIZED


def _wait_for_key(url: str, key: str) -> None:
    """A new key reaches the workers with their next look at the snapshot."""
    end_s = time.monotonic() + 5.0
    while not _works(url, key):
        if time.monotonic() > end_s:
            fail("the new key did not reach the workers within 5 s: see .tollway/log/tollway.log")
        time.sleep(0.05)


def _wait_for_models(client: httpx.Client) -> set[str]:
    """Names of models that are ready; waits until every one is, or says which is not."""
    end_s = time.monotonic() + _MODELS_S
    while True:
        response = client.post("/v2/repository/index", json={})
        index: list[dict[str, Any]] = response.json() if response.status_code == httpx.codes.OK else []
        late = [entry["name"] for entry in index if entry["state"] != "READY"]
        if index and not late:
            return {entry["name"] for entry in index}
        if time.monotonic() > end_s:
            fail(
                f"not ready after {_MODELS_S:.0f} s: {', '.join(late) or 'the engine'}; see the log or `tollway doctor`"
            )
        time.sleep(0.05)


def _calls(models: set[str]) -> list[tuple[str, str, Path]]:
    """The showcase calls that these models allow."""
    calls = [("ocr", "image", _SAMPLES / "invoice.png"), ("file_type", "file", Path(__file__))]
    return [call for call in calls if call[0] in models and call[2].exists()]


def _call_and_show(client: httpx.Client, model: str, kind: str, path: Path) -> str:
    print(f"\n$ tollway call {model} --{kind} {path.name}", flush=True)
    outputs, headers = call_model(client, f"/v2/models/{model}", kind, [path.read_bytes()], None)
    show(model, outputs, headers, shown=Shown.TEXT)
    return headers.get("tollway-call-id", "")


def _show_entry(api: Api, call_id: str) -> None:
    """The call's entries, once the meter has posted it."""
    end_s = time.monotonic() + _POSTED_S
    while True:
        items = api.get("/admin/ledger/entries", {"call_id": call_id})["items"]
        if items or time.monotonic() > end_s:
            break
        time.sleep(0.05)
    print(f"\n$ tollway ledger entries --call {call_id}")
    if not items:
        print(f"not posted after {_POSTED_S:.0f} s: see `tollway reconcile`")
    for item in items:
        print(f"tx {item['tx']}  {item['account']:<36}  {item['amount']} {item['currency']}")


def _show_addresses(settings: Settings, env: dict[str, str]) -> None:
    http, grpc, key = env["TOLLWAY_HTTP"], env["TOLLWAY_GRPC"], env["TOLLWAY_KEY"]
    print(f"""
HTTP  {http}   gRPC  {grpc}   API  {env["TOLLWAY_API"]}/docs   metrics  http://{settings.host}:{settings.metrics_port}/metrics
Key of tenant 'demo' (free plan: 5 calls/s, 1,000 a day); all of this is in {settings.data_dir / _ENV_FILE}

curl -s {http}/v2/models/file_type/infer -H 'Authorization: Bearer {key}' \\
  -d '{{"inputs":[{{"name":"CONTENT","shape":[1],"datatype":"BYTES","data":["import os"]}}]}}'

python - <<'PY'   # pip install 'tritonclient[grpc]'
import numpy as np, tritonclient.grpc as triton
client = triton.InferenceServerClient("{grpc}")
image = triton.InferInput("IMAGE", [1], "BYTES")
image.set_data_from_numpy(np.array([open("{os.path.relpath(_SAMPLES / "invoice.png")}", "rb").read()], dtype=object))
reply = client.infer("ocr", [image], headers={{"authorization": "Bearer {key}"}})
print(b"\\n".join(reply.as_numpy("TEXT")).decode())
PY""")
