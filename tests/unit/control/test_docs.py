"""The pages tell every route, error code and verb; the OpenAPI document describes every route and field of a body."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import typer

from gateway.control.errors import HTTP_STATUS, ControlCode
from tests.unit.control.support import Desk
from tests.unit.control.test_guard import all_routes

DOCS = Path(__file__).parents[3] / "docs"
GROUPS = ("keys", "tenants", "plans", "ledger", "admin", "models")


def document(desk: Desk) -> Any:
    return desk.ask("GET", "/openapi.json").json()


def test_every_route_is_on_the_page(desk: Desk) -> None:
    page = (DOCS / "control-api.md").read_text()
    assert not [route.path for route in all_routes(desk.app) if route.path not in page]


def test_every_error_code_is_on_the_page_with_its_status() -> None:
    rows = [line for line in (DOCS / "control-api.md").read_text().splitlines() if line.startswith("| `")]
    assert set(HTTP_STATUS) == set(ControlCode)
    for code, status in HTTP_STATUS.items():
        assert [row for row in rows if f"`{code}`" in row and row.endswith(f"| {status} |")], code


@pytest.mark.parametrize("group", GROUPS)
def test_every_verb_is_on_the_page(group: str) -> None:
    page = (DOCS / "cli.md").read_text()
    app: typer.Typer = importlib.import_module(f"gateway.commands.{group}").app
    names = [one.name or one.callback.__name__ for one in app.registered_commands if one.callback is not None]
    assert names
    assert not [name for name in names if f"tollway {group} {name}" not in page]


def test_every_operation_has_a_text_and_every_admin_operation_its_errors(desk: Desk) -> None:
    for path, operations in document(desk)["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description"), (method, path)
            if path.startswith("/admin"):
                assert {"401", "422", "429"} <= set(operation["responses"]), (method, path)


def test_every_field_of_a_body_is_described_and_bodies_are_closed(desk: Desk) -> None:
    bodies = {name: one for name, one in document(desk)["components"]["schemas"].items() if name.endswith("Body")}
    assert len(bodies) >= 6
    for name, schema in bodies.items():
        assert schema["additionalProperties"] is False, name
        assert not [field for field, one in schema["properties"].items() if not one.get("description")], name
