"""Owns the fixtures of the contract suites: a PostgreSQL server per session, started when a test first asks for it."""

from collections.abc import Iterator

import pytest

from tests.contract.postgres_server import PostgresServer, find_tools, running_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    tools = find_tools()
    if tools is None:
        pytest.skip("PostgreSQL is not installed here (Debian package postgresql)")
    with running_server(tools) as server:
        yield server
