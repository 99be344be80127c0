"""Composition root of control: `python -m gateway.control --settings FILE | --data-dir DATA …` (docs/control-api.md).

Exit 0 after SIGTERM, 2 with one line on stderr when it cannot start.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

import uvloop

from gateway.clock import SystemClock
from gateway.control.backends import backends_from_settings, engine_backend, parse_backends
from gateway.control.prices import load_prices
from gateway.control.providers import load_providers
from gateway.control.rebuild_job import RebuildRules
from gateway.control.serve import listen_local, listen_tcp, serve
from gateway.control.start import open_control
from gateway.errors import SettingsError
from gateway.settings import Settings, load_settings
from gateway.snapshot import Backend


def main(argv: list[str] | None = None) -> int:
    """Run control until it is told to stop."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    # It would print the text of an unknown exception, which may hold a secret; `app` logs its type and place.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    try:
        _run(arguments)
    except SettingsError as error:
        sys.stderr.write(f"control: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"control: {error.filename or 'data directory'}: {error.strerror}: check disk and rights\n")
        return 2
    return 0


def _run(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments)
    host = arguments.host or settings.host
    port = settings.api_port if arguments.port is None else arguments.port
    clock = SystemClock()
    control = open_control(
        settings.data_dir,
        prices=load_prices(arguments.prices or settings.price_book),
        backends=_backends(arguments, settings),
        clock=clock,
    )
    try:
        with (
            listen_tcp(host, port) as tcp,
            listen_local(settings.control_socket) as local,
            listen_local(settings.self_service_socket) as relayed,
        ):
            uvloop.run(
                serve(
                    control,
                    data_dir=settings.data_dir,
                    tcp=tcp,
                    local=local,
                    relayed=relayed,
                    clock=clock,
                    providers=load_providers(settings.data_dir),
                    repository=next(iter(settings.model_repositories), None),
                    rebuilds=_rebuilds(settings),
                    on_ready=lambda: _say_ready(arguments.ready_fd),
                )
            )
        # Not left behind: a socket file without a listener looks like a control that hangs.
        for path in (settings.control_socket, settings.self_service_socket):
            path.unlink(missing_ok=True)
    finally:
        control.close()


def _settings(arguments: argparse.Namespace) -> Settings:
    # Quoted: an override is read as TOML, where a folder named 1 would be a number.
    overrides = {} if arguments.data_dir is None else {"data_dir": json.dumps(str(arguments.data_dir))}
    return load_settings(arguments.settings, {}, overrides)


def _rebuilds(settings: Settings) -> RebuildRules | None:
    if not settings.rebuild_poll_s or not settings.engine:
        return None
    return RebuildRules(
        poll_s=settings.rebuild_poll_s,
        repositories=settings.model_repositories,
        is_approval_required=settings.approval_required,
        trusted_keys=settings.trusted_model_keys,
        engine=engine_backend(settings.engine_socket),
    )


def _backends(arguments: argparse.Namespace, settings: Settings) -> tuple[Backend, ...]:
    if arguments.backends is not None:
        return parse_backends(arguments.backends)
    return backends_from_settings(settings)


def _say_ready(fd: int | None) -> None:
    if fd is not None:
        os.write(fd, b"ready\n")
        os.close(fd)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gateway.control", description="Tollway's control plane.")
    parser.add_argument("--settings", type=Path, help="settings file (tollway.toml)")
    parser.add_argument("--data-dir", type=Path, help="data directory; overrides the settings'")
    parser.add_argument("--host", help="address to listen on; default: the settings'")
    parser.add_argument("--port", type=int, help="TCP port; default: the settings' api_port")
    parser.add_argument("--backends", help="JSON list of backends; default: the settings' and the embedded engine")
    parser.add_argument("--prices", type=Path, help="price book (TOML or JSON); default: the settings'")
    parser.add_argument("--ready-fd", type=int, help="file descriptor to write 'ready' to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
