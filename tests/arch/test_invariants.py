"""docs/invariants.md names every invariant, and tests that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "invariants.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| I(\d+) \|(.*)$", PAGE, re.MULTILINE))


def test_every_invariant_has_a_row_with_a_test() -> None:
    assert sorted(map(int, ROWS)) == list(range(1, 34))
    assert [number for number, row in ROWS.items() if "tests/" not in row] == []


def test_every_file_named_is_there() -> None:
    named = sorted(set(re.findall(r"\btests/[\w/]+\.py", PAGE)))
    assert len(named) > 30
    assert [path for path in named if not (ROOT / path).is_file()] == []
