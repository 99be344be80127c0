"""Owns the stream scenario: tokens per second of 64 gRPC streams through the gateway, against a bare generator loop.

The generator (`contenders/stream/speaker.py`) is a recurrent language model that reads 3.7 million weights a token: a
fortieth of the smallest language model in use (SmolLM2, 135 million), so what streams cost is not hidden behind it.
Gateway, engine and the model's process share one core, which the bare loop gets as well; the load has the other.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from loadtests.contenders import Contender
from loadtests.contenders.tollway import start_tollway
from loadtests.load import parse_h2load, run_h2load_text
from loadtests.measure import settle
from loadtests.payloads import GRPC_HEADERS, STREAM_PATH, Body, grpc_frame, numbers_request
from loadtests.processes import BenchError, Cores, cpu_ns_by_role, read_cpu, stop

STREAMS: Final = 64
_CODE: Final = Path(__file__).parent / "contenders" / "stream"
#: Models: with the generator's work, and without any.
_HIDDEN: Final = {"speaker": 512, "counter": 0}
_SEED: Final = 5
_CHECKED_TOKENS: Final = 24
_WARM_TOKENS: Final = 16
#: Tokens a stream where the model does no work: enough for a second or two.
_COUNTED_TOKENS: Final = 512
_CONFIG: Final = """name: "{name}"
backend: "python"
max_batch_size: 0
input [
  {{ name: "COUNT" data_type: TYPE_INT32 dims: [ 1 ] }},
  {{ name: "SEED" data_type: TYPE_INT32 dims: [ 1 ] }}
]
output [ {{ name: "TOKEN" data_type: TYPE_INT32 dims: [ 1 ] }} ]
model_transaction_policy {{ decoupled: true }}
parameters {{ key: "hidden" value {{ string_value: "{hidden}" }} }}
"""
_DATA: Final = re.compile(r"\((\d+)\) data")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamResult:
    """Tokens per second, medians over alternating rounds; `ratio` is served ÷ bare.

    `cpu_us_by_role`: what a token costs where the model does no work, by process; `counted_per_s`: tokens per second
    then.
    """

    bare_per_s: float
    bare_per_cpu_s: float
    served_per_s: float
    served_per_cpu_s: float
    ratio: float
    counted_per_s: float
    cpu_us_by_role: dict[str, float]
    rounds: tuple[tuple[float, float], ...]
    problems: tuple[str, ...]


def build_models(repository: Path) -> Path:
    """Both models in Triton's layout."""
    for name, hidden in _HIDDEN.items():
        folder = repository / name / "1"
        folder.mkdir(parents=True)
        for file in ("model.py", "speaker.py"):
            shutil.copy(_CODE / file, folder)
        (folder.parent / "config.pbtxt").write_text(_CONFIG.format(name=name, hidden=hidden))
    return repository


def bare_loop(seconds: int, core: int) -> tuple[float, float]:
    """(tokens per second, tokens per second of CPU) of the bare generators. Raises BenchError."""
    command = ["env", "OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1", "taskset", "-c", str(core), sys.executable]
    command += [str(_CODE / "bare_loop.py"), str(seconds), str(STREAMS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 + 3 * seconds)
    if done.returncode != 0:
        raise BenchError(f"the bare loop ended with {done.returncode}: {done.stderr[-500:]}")
    per_s, per_cpu_s = json.loads(done.stdout)
    return per_s, per_cpu_s


def bare_tokens(count: int) -> list[int]:
    """What the generator says, in a process of its own. Raises BenchError."""
    code = f"from speaker import Speaker; print(list(Speaker().speak({count}, {_SEED})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=_CODE)
    if done.returncode != 0:
        raise BenchError(f"the generator ended with {done.returncode}: {done.stderr[-500:]}")
    tokens: list[int] = json.loads(done.stdout)
    return tokens


def ask(contender: Contender, count: int) -> list[int]:
    """The tokens of one stream, by a client of Triton's protocol. Raises BenchError."""
    message = numbers_request("speaker", {"COUNT": count, "SEED": _SEED})
    request = service_pb2.ModelInferRequest.FromString(message)
    tokens = []
    assert contender.grpc is not None
    with grpc.insecure_channel(contender.grpc.removeprefix("http://")) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            for reply in stub.ModelStreamInfer(iter([request]), metadata=tuple(contender.headers), timeout=30):
                if reply.error_message:
                    raise BenchError(f"a stream's fault: {reply.error_message}")
                raw = reply.infer_response.raw_output_contents
                tokens += [int.from_bytes(data, "little") for data in raw]
        except grpc.RpcError as error:
            raise BenchError(f"a stream failed: {error}") from error
    return tokens


def stream_body(workdir: Path, model: str, count: int) -> Body:
    """A stream of one request, in a file."""
    file = workdir / f"{model}_{count}.grpc"
    file.write_bytes(grpc_frame(numbers_request(model, {"COUNT": count, "SEED": _SEED})))
    return Body(file=file, headers=GRPC_HEADERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """64 streams that begin together. `tokens_per_cpu_s` is of the whole process tree."""

    tokens_per_s: float
    tokens_per_cpu_s: float
    data_bytes: int
    cpu_us_by_role: dict[str, float]


def run_wave(contender: Contender, model: str, count: int, workdir: Path, core: int) -> Wave:
    """Let each stream have `count` tokens. Raises BenchError where a stream fails."""
    assert contender.process is not None
    pid = contender.process.pid
    before = read_cpu(pid)
    url = f"{contender.grpc}{STREAM_PATH}"
    body = stream_body(workdir, model, count)
    text = run_h2load_text(url, body, contender.headers, concurrency=STREAMS, calls=STREAMS, core=core)
    load = parse_h2load(text, "")
    found = _DATA.search(text)
    if load.calls != STREAMS or load.failed or found is None:
        raise BenchError(f"{load.failed} of {STREAMS} streams failed: {text[-500:]}")
    settle(pid)
    spent = cpu_ns_by_role(before, read_cpu(pid))
    tokens = STREAMS * count
    return Wave(
        tokens_per_s=tokens / load.seconds,
        tokens_per_cpu_s=tokens / (sum(spent.values()) / 1e9),
        data_bytes=int(found[1]),
        cpu_us_by_role={role: ns / 1000 / tokens for role, ns in spent.items()},
    )


def run_streams(workdir: Path, cores: Cores, *, rounds: int, seconds: int) -> StreamResult:
    """Alternate the bare loop and waves of streams. Raises BenchError."""
    models = build_models(workdir / "stream_models")
    contender = start_tollway(
        "all", None, workdir, core=cores.server, name="tollway_streams", models=models, runs_python=True
    )
    assert contender.process is not None
    pairs: list[tuple[tuple[float, float], Wave]] = []
    counted: list[Wave] = []
    problems = []
    try:
        if ask(contender, _CHECKED_TOKENS) != bare_tokens(_CHECKED_TOKENS):
            problems.append("the streams' tokens are not the generator's")
        warm = {name: run_wave(contender, name, _WARM_TOKENS, workdir, cores.load) for name in _HIDDEN}
        for _ in range(rounds):
            bare = bare_loop(seconds, cores.server)
            count = max(_WARM_TOKENS, round(seconds * bare[0] / STREAMS))
            wave = run_wave(contender, "speaker", count, workdir, cores.load)
            pairs.append((bare, wave))
            counted.append(run_wave(contender, "counter", _COUNTED_TOKENS, workdir, cores.load))
            problems += find_missing("speaker", wave, count, warm["speaker"])
            problems += find_missing("counter", counted[-1], _COUNTED_TOKENS, warm["counter"])
    finally:
        stop(contender.process)
    return summarise_streams(pairs, counted, problems)


def find_missing(model: str, wave: Wave, count: int, warm: Wave) -> list[str]:
    """A response has one size, so the bytes of all tell how many came; a short wave is the measure."""
    wanted = warm.data_bytes * count // _WARM_TOKENS
    return [] if wave.data_bytes == wanted else [f"{model}: {wave.data_bytes} bytes of responses, not {wanted}"]


def summarise_streams(
    pairs: Sequence[tuple[tuple[float, float], Wave]], counted: Sequence[Wave], problems: Sequence[str]
) -> StreamResult:
    """Medians; `pairs` are ((tokens per second, per second of CPU) of the bare loop, wave)."""
    bare = median(one for (one, _), _ in pairs)
    served = median(wave.tokens_per_s for _, wave in pairs)
    roles = {role for wave in counted for role in wave.cpu_us_by_role}
    return StreamResult(
        bare_per_s=bare,
        bare_per_cpu_s=median(one for (_, one), _ in pairs),
        served_per_s=served,
        served_per_cpu_s=median(wave.tokens_per_cpu_s for _, wave in pairs),
        ratio=served / bare,
        counted_per_s=median(wave.tokens_per_s for wave in counted),
        cpu_us_by_role={role: median(wave.cpu_us_by_role.get(role, 0.0) for wave in counted) for role in sorted(roles)},
        rounds=tuple((one, wave.tokens_per_s) for (one, _), wave in pairs),
        problems=tuple(problems),
    )
