"""Owns a real PostgreSQL server for tests: made in a folder of its own, on a unix socket, ended with the session."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

DEBIAN_FOLDER = Path("/usr/lib/postgresql")
_SETTINGS = {"listen_addresses": "", "max_connections": "120", "shared_buffers": "32MB"}
#: What makes a server of a test quick, and would make a figure a lie.
_CARELESS = {"fsync": "off", "full_page_writes": "off"}


def find_tools() -> Path | None:
    """The folder of initdb and pg_ctl; None when PostgreSQL is not installed here."""
    for found in (shutil.which("pg_ctl"), *sorted(DEBIAN_FOLDER.glob("*/bin/pg_ctl"), reverse=True)):
        if found is not None and Path(found).with_name("initdb").exists():
            return Path(found).parent
    return None


class PostgresServer:
    """A server in `folder`, which belongs to the account that runs it (never root: PostgreSQL refuses that)."""

    def __init__(self, tools: Path, folder: Path, *, is_durable: bool = False) -> None:
        self._tools = tools
        self._folder = folder
        self._databases = 0
        self._as: dict[str, object] = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam("nobody")
            os.chown(folder, account.pw_uid, account.pw_gid)
            self._as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        folder.chmod(0o755)
        self._run("initdb", "-D", "data", "-U", "owner", "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
        lines = [f"{name} = '{value}'" for name, value in (_SETTINGS if is_durable else _SETTINGS | _CARELESS).items()]
        lines.append(f"unix_socket_directories = '{folder}'")
        with (folder / "data/postgresql.conf").open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    @property
    def pid(self) -> int:
        """Of the server's first process, the parent of all others."""
        return int((self._folder / "data/postmaster.pid").read_text().split()[0])

    def start(self) -> None:
        self._run("pg_ctl", "-D", "data", "-l", "log", "-w", "-t", "60", "start")

    def stop(self) -> None:
        """At once: what is under way is lost, as when the machine goes."""
        self._run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def new_database(self) -> str:
        """The URL of an empty database."""
        self._databases += 1
        name = f"ledger{self._databases}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self._url(name)

    def _url(self, database: str) -> str:
        return f"postgresql://owner@/{database}?host={self._folder}"

    def _run(self, tool: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._tools / tool, *arguments],
            cwd=self._folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=120,
            **self._as,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, f"{tool} ended with {done.returncode}; see {self._folder}/log"


@contextmanager
def running_server(tools: Path, *, is_durable: bool = False, where: Path | None = None) -> Iterator[PostgresServer]:
    """A running server; stopped and removed at the end. `is_durable`: with its own safe settings, below `where`."""
    # Not below pytest's folder: a socket's path must be short, and another account must get there.
    shared_memory = Path("/dev/shm")
    if not is_durable and os.access(shared_memory, os.W_OK):
        where = shared_memory  # a database per test: hundreds of files each
    folder = Path(tempfile.mkdtemp(prefix="tollway-pg-", dir=where))
    try:
        server = PostgresServer(tools, folder, is_durable=is_durable)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
