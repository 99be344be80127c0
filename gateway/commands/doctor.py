"""`tollway doctor`: check this machine and these settings; say what to do about each finding."""

import json
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from gateway.commands.up import DataDirOption, SetOption, SettingsOption, read_settings
from gateway.compiled import find_compiled
from gateway.errors import SettingsError
from gateway.net.tls import tls_context
from gateway.quota_address import QuotaAddress, check_quota_library, parse_quota_address
from gateway.settings import Settings
from gateway.supervisor import check_models, check_port_free, running_pid

_FREE_BYTES_MIN = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: what was looked at, whether it is good, and what to do if not."""

    name: str
    is_good: bool
    text: str


def examine(settings: Settings) -> Iterator[Finding]:
    """All checks, each independent of the others."""
    version = ".".join(map(str, sys.version_info[:3]))
    is_new = sys.version_info >= (3, 11)
    yield Finding(name="python", is_good=is_new, text=version if is_new else f"{version}: use 3.11 or newer")
    yield Finding(name="sqlite", is_good=True, text=sqlite3.sqlite_version)
    yield Finding(name="compiled hot modules", is_good=True, text=_compiled_text(settings))
    pid = running_pid(settings.data_dir)
    if pid is not None:
        yield Finding(name="running", is_good=True, text=f"tollway runs on {settings.data_dir} (pid {pid})")
    else:
        for name in ("http_port", "grpc_port", "metrics_port", "api_port"):
            yield _check(name, "free", lambda name=name: check_port_free(settings.host, getattr(settings, name), name))  # type: ignore[misc]
    if settings.tls_certificate is not None:
        yield _check("tls", "usable", lambda: _check_tls(settings))
    if settings.engine:
        yield _check("models", "found", lambda: check_models(settings))
    address = parse_quota_address(settings.quota_store)
    if address is not None:
        yield _check_quota_store(settings.quota_store, address)
    yield _check("data_dir", str(settings.data_dir), lambda: _check_data_dir(settings))
    for backend in settings.backends:
        for url in (backend.http, backend.grpc):
            if url is not None:
                yield _check(f"backend {backend.name}", url, lambda url=url: _check_reachable(url))  # type: ignore[misc]


def _check(name: str, good: str, action: Callable[[], None]) -> Finding:
    try:
        action()
    except SettingsError as error:
        return Finding(name=name, is_good=False, text=str(error))
    return Finding(name=name, is_good=True, text=good)


def _check_quota_store(url: str, address: QuotaAddress) -> Finding:
    try:
        check_quota_library(url)
        from gateway.quota.probe_redis import check_store  # needs an optional package

        return Finding(name="quota_store", is_good=True, text=check_store(address))
    except SettingsError as error:
        return Finding(name="quota_store", is_good=False, text=str(error))


def _compiled_text(settings: Settings) -> str:
    if settings.compiled == "off":
        return "no: switched off by compiled = off"
    return "yes" if find_compiled() is not None else "no: `make compile` builds them where there is a C compiler"


def _check_tls(settings: Settings) -> None:
    tls_context(settings.tls_certificate, settings.tls_key)


def _check_data_dir(settings: Settings) -> None:
    folder = settings.data_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < _FREE_BYTES_MIN:
        raise SettingsError(
            f"{folder} has {free // 2**20} MiB free: usage needs at least {_FREE_BYTES_MIN // 2**20} MiB"
        )
    if settings.data_dir.exists() and settings.data_dir.stat().st_mode & 0o077:
        raise SettingsError(f"{settings.data_dir} can be read by others: chmod 700 it")


def _check_reachable(url: str) -> None:
    from gateway.net.address import parse_address

    address = parse_address(url)
    try:
        if address.path is not None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(1)
                sock.connect(address.path)
        else:
            socket.create_connection((address.host, address.port), timeout=1).close()
    except OSError as error:
        raise SettingsError(f"{url} does not answer ({error}): start that server or correct the address") from None


def doctor(
    settings: SettingsOption = None,
    set_: SetOption = None,
    data_dir: DataDirOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Findings as JSON.")] = False,
) -> None:
    """Exit code 1 if something needs doing."""
    findings = list(examine(read_settings(settings, set_, data_dir)))
    if json_:
        print(json.dumps([{"name": f.name, "ok": f.is_good, "text": f.text} for f in findings]))
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.is_good else 'FIX '} {finding.name}: {finding.text}")
    raise typer.Exit(0 if all(finding.is_good for finding in findings) else 1)
