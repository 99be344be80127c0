"""The pages name every setting, limit, metric and verb, with its default, and nothing that is not there."""

import importlib
import re
from pathlib import Path

import pytest
import typer

from gateway.cli import GROUPS, VERBS
from gateway.monitoring.metrics import METRICS
from gateway.settings import Backend, Limits, Settings

DOCS = Path(__file__).parents[2] / "docs"


def rows(page: str) -> list[list[str]]:
    """The cells of every table row of a page but heads and rules."""
    lines = (DOCS / page).read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| `")]
    assert cells, page
    return cells


def names(page: str) -> list[str]:
    return [name for row in rows(page) for name in re.findall(r"`(\w+)`", row[0])]


def test_every_setting_is_on_the_page_and_only_those() -> None:
    assert sorted(names("settings.md")) == sorted(Settings.__struct_fields__)


def test_every_field_of_a_backend_is_shown() -> None:
    page = (DOCS / "settings.md").read_text()
    assert not [name for name in Backend.__struct_fields__ if not re.search(rf"^{name} = ", page, re.MULTILINE)]


def test_every_limit_is_on_the_page_with_its_default_and_its_unit() -> None:
    table = {row[0].strip("`"): row[1:] for row in rows("limits.md")}
    assert set(table) == set(Limits.__struct_fields__)
    defaults = Limits()
    for name, (default, unit, _) in table.items():
        assert float(default) == getattr(defaults, name), name
        assert ("_bytes_" in name) == (unit == "bytes"), name
        assert name.endswith("_s") == (unit == "seconds"), name


def test_plain_defaults_of_settings_are_those_of_the_code() -> None:
    defaults = Settings()
    for row in rows("settings.md"):
        name = row[0].strip("`")
        value = getattr(defaults, name, None)
        if isinstance(value, bool):
            assert row[1] == str(value).lower(), name
        elif isinstance(value, int):
            assert row[1] == str(value), name


def test_every_metric_is_on_the_page_with_its_type() -> None:
    assert {row[0].strip("`"): row[1] for row in rows("metrics.md")} == {
        name: kind for name, (kind, _) in METRICS.items()
    }


@pytest.mark.parametrize("verb", VERBS)
def test_every_single_verb_is_on_the_page(verb: str) -> None:
    assert f"`tollway {verb}" in (DOCS / "cli.md").read_text()


@pytest.mark.parametrize("group", GROUPS)
def test_every_verb_of_a_group_is_on_the_page(group: str) -> None:
    page = (DOCS / "cli.md").read_text()
    app: typer.Typer = importlib.import_module(GROUPS[group][0]).app
    verbs = [one.name or one.callback.__name__ for one in app.registered_commands if one.callback is not None]
    assert verbs
    assert not [verb for verb in verbs if f"`tollway {group} {verb}" not in page]


def test_every_verb_on_the_page_is_mounted() -> None:
    shown = set(re.findall(r"`tollway ([a-z-]+)", (DOCS / "cli.md").read_text()))
    assert shown == set(VERBS) | set(GROUPS)


def test_pages_named_in_pages_exist() -> None:
    missing = [
        (page.name, name)
        for page in DOCS.rglob("*.md")
        for name in re.findall(r"\bdocs/[\w./-]+\.md", page.read_text())
        if not (DOCS.parent / name).exists()
    ]
    assert not missing


def test_code_named_in_pages_exists() -> None:
    missing = [
        (page.name, name)
        for page in DOCS.rglob("*.md")
        for name in re.findall(
            r"`((?:gateway|billing|model_repo|tests|loadtests)/[\w./-]+\.(?:py|toml|sh))`", page.read_text()
        )
        if not (DOCS.parent / name).exists()
    ]
    assert not missing
