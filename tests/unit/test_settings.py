"""Settings: three sources in order, every refusal names field and remedy, what the supervisor hands on comes back."""

import re
from pathlib import Path

import pytest

from gateway.errors import SettingsError
from gateway.settings import Backend, Limits, Settings, dump_settings, load_settings, parse_settings


def write(tmp_path: Path, text: str, name: str = "tollway.toml") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def load(**overrides: str) -> Settings:
    return load_settings(None, {}, {name.replace("__", "."): value for name, value in overrides.items()})


@pytest.mark.parametrize("name", ["engine_model_memory_bytes", "engine_model_idle_s"])
def test_memory_bounds_of_models_are_not_negative(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} must be"):
        load_settings(None, {}, {name: "-1"})


def test_nothing_given_is_the_defaults() -> None:
    assert load_settings(None, {}) == Settings()


def test_later_sources_win(tmp_path: Path) -> None:
    file = write(tmp_path, "http_port = 1\ngrpc_port = 1\napi_port = 1\n")
    environ = {"TOLLWAY_GRPC_PORT": "2", "TOLLWAY_API_PORT": "2", "TOLLWAY_ADMIN_TOKEN": "ignored", "PATH": "x"}
    settings = load_settings(file, environ, {"api_port": "3"})
    assert (settings.http_port, settings.grpc_port, settings.api_port) == (1, 2, 3)


def test_values_may_be_toml_or_plain_text() -> None:
    settings = load(
        data_dir="some/where", host="127.0.0.1", workers="2", engine="true", model_repositories='["a", "b"]'
    )
    assert settings.data_dir == Path("some/where")
    assert settings.workers == 2
    assert settings.model_repositories == (Path("a"), Path("b"))


def test_limits_are_set_by_their_dotted_name(tmp_path: Path) -> None:
    file = write(tmp_path, "[limits]\nheaders_max = 7\nhead_s = 1.5\n")
    settings = load_settings(file, {}, {"limits.headers_max": "8"})
    assert (settings.limits.headers_max, settings.limits.head_s) == (8, 1.5)
    assert settings.limits.body_bytes_max == Limits().body_bytes_max


def test_backends_come_from_the_file_only(tmp_path: Path) -> None:
    file = write(tmp_path, '[[backends]]\nname = "t"\nhttp = "http://127.0.0.1:1"\nmodels = ["a"]\n')
    settings = load_settings(file, {"TOLLWAY_BACKENDS": "[]", "TOLLWAY_LIMITS": "{}"})
    assert settings.backends == (Backend(name="t", http="http://127.0.0.1:1", models=("a",)),)


def test_what_is_handed_to_children_comes_back(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path,
        backends=(Backend(name="t", grpc="grpc://h:1", is_trusted=True),),
        price_book=tmp_path / "prices.toml",
        limits=Limits(headers_max=5),
    )
    assert parse_settings(dump_settings(settings)) == settings
    file = tmp_path / "settings.json"
    file.write_bytes(dump_settings(settings))
    assert load_settings(file, {}) == settings


def test_paths_of_sockets_follow_the_data_directory() -> None:
    settings = Settings(data_dir=Path("d"))
    sockets = (
        settings.engine_socket,
        settings.quota_socket,
        settings.meter_socket,
        settings.control_socket,
        settings.self_service_socket,
    )
    assert sockets == tuple(Path("d/run") / f"{name}.sock" for name in ("engine", "quota", "meter", "control", "me"))
    assert settings.usage_root == Path("d/usage")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("htp_port = 1", "htp_port"),
        ('http_port = "x"', r"http_port"),
        ("[limits]\nhedders_max = 1", "hedders_max"),
        ("http_port = ", "cannot be read"),
        ('[[backends]]\nhttp = "http://h:1"', "name"),
        ('[[backends]]\nname = "t"\nport = 1\nhttp = "http://h:1"', "port"),
        ("workers = 1.5", "workers"),
        ("engine = 1", "engine"),
        ("data_dir = 3", "data_dir"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_the_field(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings(write(tmp_path, text), {})
    assert "tollway.toml" in str(caught.value)


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        load_settings(tmp_path / "nothing.toml", {})
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(tmp_path / "bytes.toml", {})
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(write(tmp_path, "{", "broken.json"), {})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"http_port": "-1"}, "not a port"),
        ({"metrics_port": "65536"}, "not a port"),
        ({"workers": "0"}, "use 1 to 256"),
        ({"workers": "257"}, "use 1 to 256"),
        ({"quota_store": "memcached://h"}, "its scheme is none of ours"),
        ({"quota_store": "redis://h", "require_key": "false"}, "no limits to decide"),
        ({"ledger": "mysql://u:hidden@h/d"}, "ledger: use sqlite:// or postgresql://USER@HOST/DATABASE"),
        ({"tls_key": "k.pem"}, "go together"),
        ({"tls_certificate": "c.pem"}, "go together"),
        ({"engine": "false"}, "nothing could serve"),
        ({"require_key": "false", "host": "0.0.0.0"}, "loopback"),
        ({"metering": "false", "host": "::"}, "loopback"),
        ({"limits__headers_max": "0"}, "limits.headers_max"),
        ({"limits__call_s": "-1.0"}, "limits.call_s"),
        ({"nothing": "1"}, "nothing"),
        ({"limits__nothing": "1"}, "nothing"),
    ],
)
def test_values_out_of_bounds_and_combinations_are_refused(overrides: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        load(**overrides)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name = "t"', "at least one address"),
        ('name = "t"\nhttp = "grpc://h:1"', "http = 'grpc://h:1'"),
        ('name = "t"\ngrpc = "http://h:1"', "grpc = 'http://h:1'"),
        ('name = "t"\nhttp = "h:1"', "must begin with"),
    ],
)
def test_backends_without_a_usable_address_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        load_settings(write(tmp_path, "[[backends]]\n" + text), {})


@pytest.mark.parametrize("name", ["http_port", "workers", "limits"])
def test_a_dotted_name_below_a_plain_value_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}.inner"):
        load_settings(None, {}, {name: "3", f"{name}.inner": "4"})


def test_bounds_themselves_are_accepted() -> None:
    assert load(http_port="0", api_port="65535", workers="256").workers == 256
    assert load(require_key="false", metering="false").require_key is False
    assert load(require_key="false", host="::1").host == "::1"


def test_nan_and_infinity_are_no_limits() -> None:
    for value in ("nan", "inf"):
        with pytest.raises(SettingsError):
            load(limits__call_s=value)


KEY = "ed25519:" + "A" * 43 + "="


def test_trusted_model_keys_are_public_keys_and_have_a_limit() -> None:
    key = f'["{KEY}"]'
    assert load_settings(None, {"TOLLWAY_TRUSTED_MODEL_KEYS": key}).trusted_model_keys == (KEY,)
    for wrong in ('["ed25519:short"]', '["-----BEGIN PRIVATE KEY-----"]', f'["{KEY}x"]'):
        with pytest.raises(SettingsError, match="no public key"):
            load_settings(None, {}, {"trusted_model_keys": wrong})
    with pytest.raises(SettingsError, match="at most 32"):
        load_settings(None, {}, {"trusted_model_keys": str([KEY] * 33)})
    assert len(load_settings(None, {}, {"trusted_model_keys": str([KEY] * 32)}).trusted_model_keys) == 32


@pytest.mark.parametrize("name", ["engine_golden_check_s", "engine_release_poll_s", "rebuild_poll_s"])
@pytest.mark.parametrize("value", ["-1.0", "inf", "nan"])
def test_times_of_the_engine_are_finite_and_not_negative(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load_settings(None, {}, {name: value})


@pytest.mark.parametrize("address", ["http://host/models", "models", "file://host/models"])
def test_a_model_store_is_a_bucket_or_a_folder(address: str) -> None:
    with pytest.raises(SettingsError, match="model_store = "):
        load_settings(None, {}, {"model_store": address})
    assert load_settings(None, {}, {"model_store": "s3://models/team"}).model_store == "s3://models/team"


@pytest.mark.parametrize("value", ["0.0", "-1.0", "inf", "nan"])
def test_a_model_store_is_looked_at_now_and_then(value: str) -> None:
    with pytest.raises(SettingsError, match="model_store_poll_s"):
        load_settings(None, {}, {"model_store_poll_s": value})
