"""The settings file that the bench writes is one that Tollway accepts, and each mode switches off what it says."""

from pathlib import Path

import pytest

from gateway.settings import load_settings
from loadtests.contenders.tollway import NOTES, settings_text

_PORTS = {"http_port": 1, "grpc_port": 2, "metrics_port": 3, "api_port": 4}


@pytest.mark.parametrize(
    ("mode", "has_key", "is_metering"), [("bare", False, False), ("policy", True, False), ("all", True, True)]
)
def test_modes_are_what_their_notes_say(mode: str, has_key: bool, is_metering: bool, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(settings_text(mode, tmp_path / "data", _PORTS, "127.0.0.1:5"))
    settings = load_settings(file, {})
    assert (settings.require_key, settings.metering, settings.call_log) == (has_key, is_metering, is_metering)
    assert (settings.http_port, settings.grpc_port, settings.engine) == (1, 2, False)
    assert (settings.backends[0].http, settings.backends[0].grpc) == ("http://127.0.0.1:5", "grpc://127.0.0.1:5")
    assert mode in NOTES


def test_engine_serves_the_given_repository_on_one_thread(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    models = tmp_path / "models"
    file.write_text(settings_text("all", tmp_path / "data", _PORTS, None, models=models))
    settings = load_settings(file, {})
    assert settings.engine
    assert settings.engine_threads == 1
    assert (settings.model_repositories, settings.python_models_allowed, settings.backends) == ((models,), (), ())


def test_python_models_run_only_where_a_scenario_asks_for_them(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    models = tmp_path / "models"
    file.write_text(settings_text("all", tmp_path / "data", _PORTS, None, models=models, runs_python=True))
    assert load_settings(file, {}).python_models_allowed == (models,)
