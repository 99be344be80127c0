"""Owns the MLP scenario: CPU per call of a tiny model, through the gateway all on, and of other servers beside it.

Everybody gets one row of 64 numbers as JSON over HTTP, which is the one form that all of them speak, over 32
connections. Server on one core, load on another.
"""

import json
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from loadtests.contenders import Contender
from loadtests.contenders.model_servers import STARTERS, NotInstalled
from loadtests.contenders.tollway import start_tollway
from loadtests.load import LoadResult, run_wrk
from loadtests.measure import settle
from loadtests.payloads import HTTP_PATH, Body
from loadtests.plan import rotated
from loadtests.processes import BenchError, Cores, cpu_ns_by_role, read_cpu, stop

CONCURRENCY: Final = 32
_INPUTS: Final = 64
_OUTPUTS: Final = 10
#: Not 0.0: numbers that are written short parse faster than those of real callers.
_ROW: Final = [round(0.015625 * number - 0.5, 6) for number in range(_INPUTS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpSample:
    """One round of one server. CPU is that of its whole tree, per answered call."""

    server: str
    round: int
    calls: int
    calls_per_s: float
    p50_us: float | None
    p99_us: float | None
    cpu_us: float
    cpu_us_by_role: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpResult:
    """Medians by server; `absent` says why a server was not measured."""

    cpu_us: dict[str, float]
    calls_per_s: dict[str, float]
    p50_us: dict[str, float | None]
    notes: dict[str, str]
    absent: dict[str, str]
    samples: tuple[MlpSample, ...]
    problems: tuple[str, ...]

    def ratio(self, peer: str) -> float | None:
        """Tollway's CPU per call ÷ the peer's; None where the peer was not measured."""
        return self.cpu_us["tollway"] / self.cpu_us[peer] if {"tollway", peer} <= self.cpu_us.keys() else None


def oip_body(workdir: Path) -> Body:
    """One row as OIP's JSON."""
    tensor = {"name": "x", "shape": [1, _INPUTS], "datatype": "FP32", "data": _ROW}
    return _body(workdir / "mlp_oip.json", {"inputs": [tensor]})


def litserve_body(workdir: Path) -> Body:
    return _body(workdir / "mlp_litserve.json", {"x": _ROW})


def _body(file: Path, value: Any) -> Body:
    file.write_text(json.dumps(value, separators=(",", ":")))
    return Body(file=file, headers=(("content-type", "application/json"),))


def _target(server: str) -> str:
    return "/predict" if server == "litserve" else HTTP_PATH.format(model="mlp")


def read_outputs(answer: Any) -> list[float]:
    """The ten numbers in an answer of any of the servers. Raises BenchError."""
    try:
        data = answer["y"] if "y" in answer else answer["outputs"][0]["data"]
        values = [float(value) for value in (data[0] if isinstance(data[0], list) else data)]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BenchError(f"an answer without numbers: {json.dumps(answer)[:300]}") from error
    if len(values) != _OUTPUTS:
        raise BenchError(f"{len(values)} numbers instead of {_OUTPUTS}")
    return values


def _ask(contender: Contender, body: Body) -> list[float]:
    headers = dict((*body.headers, *contender.headers))
    url = f"{contender.http}{_target(_short(contender))}"
    request = urllib.request.Request(url, data=body.file.read_bytes(), headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=30) as reply:
        return read_outputs(json.load(reply))


def _short(contender: Contender) -> str:
    return "tollway" if contender.name.startswith("tollway") else contender.name


def run_mlp(models: Path, workdir: Path, cores: Cores, *, rounds: int, seconds: int, peers: Sequence[str]) -> MlpResult:
    """Start Tollway over `models` and every peer that is installed; alternate rounds over them.

    Raises BenchError when Tollway itself does not serve. What a peer does wrong is a problem of the result.
    """
    bodies = {name: litserve_body(workdir) if name == "litserve" else oip_body(workdir) for name in ("tollway", *peers)}
    contenders: dict[str, Contender] = {}
    absent: dict[str, str] = {}
    problems: list[str] = []
    samples: list[MlpSample] = []
    try:
        contenders["tollway"] = start_tollway(
            "all", None, workdir, core=cores.server, name="tollway_mlp", models=models
        )
        wanted = _ask(contenders["tollway"], bodies["tollway"])
        for name in peers:
            try:
                contenders[name] = STARTERS[name](models / "mlp" / "1" / "model.onnx", workdir, cores.server)
                problems += _compare(name, wanted, _ask(contenders[name], bodies[name]))
            except NotInstalled as error:
                absent[name] = str(error)
            except (BenchError, OSError) as error:
                absent[name] = "did not serve"
                problems.append(f"{name}: {error}")
        for name, contender in contenders.items():
            _load(contender, bodies[name], 1, cores.load)
        for round_ in range(rounds):
            for name in rotated(list(contenders), round_):
                sample, faults = _measure(contenders[name], bodies[name], round_, seconds, cores.load)
                samples.append(sample)
                problems += faults
    finally:
        for contender in contenders.values():
            if contender.process is not None:
                stop(contender.process)
    return summarise_mlp(samples, {name: item.note for name, item in contenders.items()}, absent, problems)


def _compare(name: str, wanted: Sequence[float], found: Sequence[float]) -> Iterator[str]:
    if any(abs(one - other) > 1e-4 for one, other in zip(wanted, found, strict=True)):
        yield f"{name} answers {list(found)}, Tollway {list(wanted)}"


def _load(contender: Contender, body: Body, seconds: int, core: int) -> LoadResult:
    url = f"{contender.http}{_target(_short(contender))}"
    return run_wrk(url, body, contender.headers, concurrency=CONCURRENCY, seconds=seconds, core=core)


def _measure(contender: Contender, body: Body, round_: int, seconds: int, core: int) -> tuple[MlpSample, list[str]]:
    assert contender.process is not None
    pid = contender.process.pid
    before = read_cpu(pid)
    load = _load(contender, body, seconds, core)
    settle(pid)
    spent = cpu_ns_by_role(before, read_cpu(pid))
    by_role = {role: ns / 1000 / max(1, load.calls) for role, ns in spent.items()}
    name = _short(contender)
    is_fine = load.calls and not load.failed
    faults = [] if is_fine else [f"{name}: {load.failed} calls failed of {load.calls + load.failed}"]
    sample = MlpSample(
        server=name,
        round=round_,
        calls=load.calls,
        calls_per_s=load.calls / load.seconds,
        p50_us=load.p50_us,
        p99_us=load.p99_us,
        cpu_us=sum(by_role.values()),
        cpu_us_by_role=by_role,
    )
    return sample, faults


def summarise_mlp(
    samples: Sequence[MlpSample], notes: dict[str, str], absent: dict[str, str], problems: Sequence[str]
) -> MlpResult:
    """Medians over the rounds of each server."""
    groups: dict[str, list[MlpSample]] = {}
    for sample in samples:
        groups.setdefault(sample.server, []).append(sample)
    return MlpResult(
        cpu_us={name: median(one.cpu_us for one in group) for name, group in groups.items()},
        calls_per_s={name: median(one.calls_per_s for one in group) for name, group in groups.items()},
        p50_us={
            name: median([one.p50_us for one in group if one.p50_us is not None] or [0.0])
            for name, group in groups.items()
        },
        notes=notes,
        absent=absent,
        samples=tuple(samples),
        problems=tuple(problems),
    )
