"""Measures what TLS costs: CPU per call of a forwarding-only Tollway with and without it, and per handshake.

    python -m loadtests.tls_cost [--rounds 3] [--calls 60000] [--json]

h2load, 64 kept-alive HTTP/1.1 connections, 1 KiB bodies, server and load on a core each, rounds alternate. Handshakes:
connections of one request each, over TLS and in clear text; the difference per connection is the handshake.
"""

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loadtests.contenders import LOOPBACK, Contender, free_port, is_listening
from loadtests.contenders.direct import MODEL, start_backend
from loadtests.contenders.tollway import settings_text
from loadtests.load import run_count
from loadtests.measure import settle
from loadtests.payloads import HTTP_PATH, Body, http_body_of_size
from loadtests.processes import BenchError, Cores, cpu_ns_by_role, read_cpu, spawn, stop, wait_until

_ROOT: Final = Path(__file__).parent.parent
_HANDSHAKES: Final = 2000
_SETTINGS: Final = ("tls_certificate", "tls_key")


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed P-256 certificate for loopback, valid for a day, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    private.chmod(0o600)
    return certificate, private


def start(workdir: Path, backend: str, core: int, tls: tuple[Path, Path] | None) -> Contender:
    """A Tollway that only forwards, with TLS or without."""
    name = "tls" if tls else "clear"
    folder = workdir / name
    folder.mkdir(mode=0o700)
    ports = {port: free_port() for port in ("http_port", "grpc_port", "metrics_port", "api_port")}
    own = (
        [] if tls is None else [f"tls_certificate = {json.dumps(str(tls[0]))}", f"tls_key = {json.dumps(str(tls[1]))}"]
    )
    (folder / "settings.toml").write_text("\n".join([*own, settings_text("bare", folder / "data", ports, backend)]))
    log = workdir / f"{name}.log"
    command = [sys.executable, "-m", "gateway.cli", "up", "--settings", str(folder / "settings.toml")]
    process = spawn(command, core=core, log=log, cwd=_ROOT)
    try:
        wait_until(name, lambda: is_listening(ports["http_port"]), process, log, limit_s=60.0)
    except BaseException:
        stop(process)
        raise
    base = f"{'https' if tls else 'http'}://{LOOPBACK}:{ports['http_port']}"
    return Contender(name=name, http=base, grpc=base, process=process, note="forwards only")


def cpu_us(contender: Contender, work: "list[str] | Body", cores: Cores, calls: int) -> float:
    """CPU µs of the whole process tree per call over kept-alive connections, or per connection of one call."""
    assert contender.process is not None
    before = read_cpu(contender.process.pid)
    if isinstance(work, list):
        done = subprocess.run(["taskset", "-c", str(cores.load), *work], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"h2load ended with {done.returncode}: {done.stderr[-300:]}")
        count = _HANDSHAKES
    else:
        url = f"{contender.http}{HTTP_PATH.format(model=MODEL)}"
        count = run_count(url, work, (), calls=calls, is_grpc=False, core=cores.load).calls
    settle(contender.process.pid)
    return sum(cpu_ns_by_role(before, read_cpu(contender.process.pid)).values()) / 1000 / max(1, count)


def handshakes(contender: Contender) -> list[str]:
    """h2load: one request on each of many new connections, 20 at a time."""
    rate = ["-n", str(_HANDSHAKES), "-c", str(_HANDSHAKES), "-r", "400", "--h1"]
    return ["h2load", *rate, f"{contender.http}/v2/health/live"]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.tls_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=60_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    workdir = Path(tempfile.mkdtemp(prefix="tollway-tls-"))
    samples: dict[str, list[float]] = {}
    try:
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, workdir)
            cores = Cores.of_machine()
            cache = _ROOT / ".cache" / "bench"
            backend = start_backend(workdir, cache, cores.load)
            assert backend.process is not None
            stack.callback(stop, backend.process)
            body = http_body_of_size(workdir, "1k")
            contenders = []
            for tls in (None, write_certificate(workdir)):
                contender = start(workdir, backend.extras["address"], cores.server, tls)
                assert contender.process is not None
                stack.callback(stop, contender.process)
                contenders.append(contender)
            for number in range(options.rounds):
                for contender in contenders[:: 1 if number % 2 else -1]:
                    call = cpu_us(contender, body, cores, options.calls)
                    samples.setdefault(f"{contender.name}_call_us", []).append(call)
                    connection = cpu_us(contender, handshakes(contender), cores, options.calls)
                    samples.setdefault(f"{contender.name}_connection_us", []).append(connection)
    except BenchError as error:
        print(f"tls_cost: {error}", file=sys.stderr)
        return 2
    figures = {name: round(median(values), 1) for name, values in sorted(samples.items())}
    figures["tls_adds_per_call_us"] = round(figures["tls_call_us"] - figures["clear_call_us"], 1)
    figures["tls_adds_per_connection_us"] = round(figures["tls_connection_us"] - figures["clear_connection_us"], 1)
    print(json.dumps(figures) if options.json else "\n".join(f"{name:28} {value}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
