"""Owns the fixtures of the contract suites: a PostgreSQL server per session, started when a test first asks for it."""

from collections.abc import Iterator

import pytest

from tests.contract.moto_server import PYTHON, serving_moto
from tests.contract.postgres_server import PostgresServer, find_tools, running_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    tools = find_tools()
    if tools is None:
        pytest.skip("PostgreSQL is not installed here (Debian package postgresql)")
    with running_server(tools) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 by moto; one server a session."""
    if not PYTHON.exists():
        pytest.skip("moto is not installed here (make test does it)")
    with serving_moto(tmp_path_factory.mktemp("moto") / "log") as address:
        yield address
