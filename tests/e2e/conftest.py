"""One running Tollway for all suites of clients in this folder, and one for those that attack."""

from collections.abc import Iterator

import pytest

from tests.e2e.stage import Stage, open_fort, open_stage


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    with open_stage() as opened:
        yield opened


@pytest.fixture(scope="session")
def fort() -> Iterator[Stage]:
    with open_fort() as opened:
        yield opened
