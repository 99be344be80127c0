"""One running Tollway for all suites of clients in this folder."""

from collections.abc import Iterator

import pytest

from tests.e2e.stage import Stage, open_stage


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    with open_stage() as opened:
        yield opened
