"""docs/contract-rows.md: each row that says something is served or refused names a test that there is."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contract-rows.md").read_text(encoding="utf-8")
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| row ")
]
_WITHOUT = ("not served", "no effect")


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_the_page_has_rows() -> None:
    assert len(ROWS) > 60
    assert len({row[0] for row in ROWS}) == len(ROWS), "two rows say the same"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row[0]))
def test_each_row_has_its_test(row: tuple[str, ...]) -> None:
    assert len(row) == 3, row
    _, here, test = row
    if here.startswith(_WITHOUT):
        assert not test
        return
    match = re.fullmatch(r"`([\w/.]+)::(test_\w+)`", test)
    assert match is not None, test
    assert match[2] in names_in(match[1])
