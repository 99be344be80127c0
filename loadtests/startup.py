"""Measures how long a machine's start takes: from `tollway up` to listening, to ready, to every model ready.

    python -m loadtests.startup [--rounds 5] [--json]

Models must be built (`make models`). A model is ready when the gateway says so for that model: its session is made and
its warm-up has run. Times are wall-clock seconds; medians over the rounds, each with a data folder of its own.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from loadtests.contenders import LOOPBACK, free_port, is_listening
from loadtests.processes import BenchError, spawn, stop

_ROOT: Final = Path(__file__).parent.parent
_LIMIT_S: Final = 60.0
_POLL_S: Final = 0.005


def first_true(is_so: Callable[[], bool], start_s: float, what: str) -> float:
    """Seconds from `start_s` until `is_so`. Raises BenchError after a minute."""
    while not is_so():
        if time.monotonic() - start_s > _LIMIT_S:
            raise BenchError(f"{what} did not come within {_LIMIT_S:.0f} s")
        time.sleep(_POLL_S)
    return time.monotonic() - start_s


def is_answered(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def measure_once(models: Path) -> dict[str, float]:
    """One start: seconds until listening, until the server is ready, until all of `models` are."""
    names = sorted(folder.name for folder in models.iterdir() if (folder / "config.pbtxt").exists())
    if not names:
        raise BenchError(f"no models in {models}: run `make models`")
    folder = Path(tempfile.mkdtemp(prefix="tollway-startup-"))
    ports = {name: free_port() for name in ("http_port", "grpc_port", "metrics_port", "api_port")}
    settings = folder / "settings.toml"
    lines = [f"data_dir = {json.dumps(str(folder / 'data'))}", "require_key = false", "metering = false"]
    lines += [f"{name} = {port}" for name, port in ports.items()]
    lines += [f"{name} = [{json.dumps(str(models))}]" for name in ("model_repositories", "python_models_allowed")]
    settings.write_text("\n".join(lines) + "\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith("TOLLWAY_")}
    base = f"http://{LOOPBACK}:{ports['http_port']}/v2"
    start_s = time.monotonic()
    cores = sorted(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "gateway.cli", "up", "--settings", str(settings)]
    process = spawn(command, core=cores[0], log=folder / "up.log", cwd=_ROOT, env=env)
    os.sched_setaffinity(process.pid, cores)  # a start has the whole machine
    try:
        listening_s = first_true(lambda: is_listening(ports["http_port"]), start_s, "a listening port")
        ready_s = first_true(lambda: is_answered(f"{base}/health/ready"), start_s, "readiness")
        urls = [f"{base}/models/{name}/ready" for name in names]
        models_s = max(first_true(partial(is_answered, url), start_s, url) for url in urls)
    finally:
        stop(process)
        shutil.rmtree(folder)
    return {"listening_s": listening_s, "ready_s": ready_s, "all_models_ready_s": models_s}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        rounds = [measure_once(_ROOT / "model_repo" / "models") for _ in range(options.rounds)]
    except BenchError as error:
        print(f"startup: {error}", file=sys.stderr)
        return 2
    figures = {name: round(median(one[name] for one in rounds), 2) for name in rounds[0]}
    print(
        json.dumps(figures) if options.json else "\n".join(f"{name:20} {value:.2f}" for name, value in figures.items())
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
