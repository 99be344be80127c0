"""TLS with ALPN h2 and http/1.1 on both ports: tritonclient, grpc, curl and bare sockets."""

import datetime
import ipaddress
import json
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.doors import tensor
from tests.e2e.harness import Tollway
from tests.e2e.raw import infer_body

X = np.full((1, 64), 0.5, dtype=np.float32)
PORTS = ("http_port", "grpc_port")


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


class TlsTollway(Tollway):
    """The harness asks in plain HTTP whether it serves; here that must be asked over TLS."""

    certificate: Path

    def _get(self, path: str) -> int:
        context = ssl.create_default_context(cafile=str(self.certificate))
        with (
            socket.create_connection(("127.0.0.1", self.ports["http_port"]), 60) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as sock,
        ):
            sock.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
            return int(sock.recv(4096).split(b" ")[1])

    def is_serving(self) -> bool:
        try:
            return self._get("/v2/health/ready") == 200
        except OSError:
            return False

    def is_live(self) -> bool:
        return self.is_serving()


@dataclass(frozen=True, slots=True, kw_only=True)
class Safe:
    """A Tollway behind TLS, with a key that its worker knows."""

    tollway: TlsTollway
    key: str
    certificate: Path

    @property
    def auth(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    @contextmanager
    def open(self, port: str, *protocols: str) -> Iterator[ssl.SSLSocket]:
        context = ssl.create_default_context(cafile=str(self.certificate))
        if protocols:
            context.set_alpn_protocols(protocols)
        with (
            socket.create_connection(("127.0.0.1", self.tollway.ports[port]), 60) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as sock,
        ):
            yield sock

    def post(self, port: str = "http_port") -> int:
        """Status of one call of mlp over HTTP/1.1."""
        body = infer_body()
        head = f"POST /v2/models/mlp/infer HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.key}\r\n"
        with self.open(port, "http/1.1") as sock:
            sock.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            return int(sock.recv(4096).split(b" ")[1])


@pytest.fixture(scope="module")
def safe() -> Iterator[Safe]:
    folder = Path(tempfile.mkdtemp(prefix="tls"))
    certificate, private = write_certificate(folder)
    tollway = TlsTollway(settings={"tls_certificate": str(certificate), "tls_key": str(private)})
    tollway.certificate = certificate
    with tollway:
        tollway.create_tenant("acme", "internal")
        opened = Safe(tollway=tollway, key=tollway.create_key("acme"), certificate=certificate)
        tollway.wait(lambda: opened.post() == 200, "the key")
        yield opened
    shutil.rmtree(folder)


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["h2"], "h2"), (["spdy/3"], None), ([], None)],
)
def test_alpn(safe: Safe, port: str, offered: list[str], chosen: str | None) -> None:
    with safe.open(port, *offered) as sock:
        assert sock.selected_alpn_protocol() == chosen
        assert sock.version() in ("TLSv1.2", "TLSv1.3")
        if chosen != "h2":
            sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")


def test_old_tls_is_refused(safe: Safe) -> None:
    context = ssl.create_default_context(cafile=str(safe.certificate))
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", safe.tollway.ports["http_port"]), 60) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


def test_plain_text_on_a_tls_port_gets_nothing(safe: Safe) -> None:
    with socket.create_connection(("127.0.0.1", safe.tollway.ports["http_port"]), 60) as sock:
        sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        try:
            data = sock.recv(4096)
        except ConnectionError:
            data = b""
        assert not data.startswith(b"HTTP/1.1 2")
    assert safe.post() == 200


@pytest.mark.parametrize("port", PORTS)
def test_tritonclient_http(safe: Safe, port: str) -> None:
    client = triton_http.InferenceServerClient(
        f"localhost:{safe.tollway.ports[port]}",
        ssl=True,
        ssl_options={"ca_certs": str(safe.certificate)},
    )
    with client:
        got = client.infer("mlp", [tensor(triton_http, "x", X, "FP32")], headers=safe.auth)
        assert got.as_numpy("y").shape == (1, 10)


@pytest.mark.parametrize("port", PORTS)
def test_tritonclient_grpc(safe: Safe, port: str) -> None:
    client = triton_grpc.InferenceServerClient(
        f"localhost:{safe.tollway.ports[port]}", ssl=True, root_certificates=str(safe.certificate)
    )
    with client:
        got = client.infer("mlp", [tensor(triton_grpc, "x", X, "FP32")], headers=safe.auth)
        assert got.as_numpy("y").shape == (1, 10)


@pytest.mark.parametrize("port", PORTS)
def test_grpc_health_over_a_secure_channel(safe: Safe, port: str) -> None:
    credentials = grpc.ssl_channel_credentials(safe.certificate.read_bytes())
    with grpc.secure_channel(f"localhost:{safe.tollway.ports[port]}", credentials) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize(("option", "version"), [("--http2", "2"), ("--http1.1", "1.1")])
def test_curl(safe: Safe, port: str, option: str, version: str) -> None:
    done = subprocess.run(
        [
            "curl", "--silent", "--noproxy", "*", option, "--cacert", str(safe.certificate), "--max-time", "30",
            "--header", f"authorization: Bearer {safe.key}", "--write-out", "\n%{http_version} %{http_code}",
            "--data-binary", "@-", f"https://localhost:{safe.tollway.ports[port]}/v2/models/mlp/infer",
        ],
        input=infer_body(), capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    text, _, last = done.stdout.rpartition(b"\n")
    assert last == f"{version} 200".encode()
    assert json.loads(text)["outputs"][0]["shape"] == [1, 10]


def test_large_bodies_and_the_books(safe: Safe) -> None:
    """Runs last: a body of many TLS records both ways; then everything answered is in the ledger."""
    array = np.arange(500_000, dtype=np.float32).reshape(1, -1)
    with triton_http.InferenceServerClient(
        f"localhost:{safe.tollway.ports['http_port']}", ssl=True, ssl_options={"ca_certs": str(safe.certificate)}
    ) as http:
        got = http.infer("echo", [tensor(triton_http, "x", array, "FP32")], headers=safe.auth)
        assert got.as_numpy("y").tobytes() == array.tobytes()
    with triton_grpc.InferenceServerClient(
        f"localhost:{safe.tollway.ports['grpc_port']}", ssl=True, root_certificates=str(safe.certificate)
    ) as rpc:
        got = rpc.infer("echo", [tensor(triton_grpc, "x", array, "FP32")], headers=safe.auth)
        assert got.as_numpy("y").tobytes() == array.tobytes()
    safe.tollway.wait_until_posted()
    assert safe.tollway.admin("GET", "/admin/reconcile")["is_ok"]
