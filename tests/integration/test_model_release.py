"""An engine of its own over a repository that people publish, sign, approve and name while it serves."""

import json
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.commands.models import app
from tests.contract.s3_server import serving_s3
from tests.integration.engine_process import EngineProcess, running_process
from tests.unit.engine.certified import CONFIG, Build, stage

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 1]}]}).encode()
OWN = replace(Build().target, arch=platform.machine(), isa=())


def models(root: Path | str, *words: str) -> str:
    result = CliRunner().invoke(app, [*words, *([] if words[0] == "keygen" else ["--repository", str(root)])])
    assert result.exit_code == 0, result.output
    return result.stdout


def publish(root: Path, factor: float, *words: str, golden: float | None = None) -> None:
    publish_to(str(root), root.parent, factor, *words, golden=golden)


def publish_to(place: str, work: Path, factor: float, *words: str, golden: float | None = None) -> None:
    folder = work / f"staged-{factor}"
    stage(folder, Build(factor=factor, golden=golden or factor, target=OWN))
    (work / "config.pbtxt").write_text(CONFIG)
    models(place, "publish", str(folder), "--config", str(work / "config.pbtxt"), "--name", "m", *words)


def answer(engine: EngineProcess) -> float | None:
    """The factor that serves; None while nothing does."""
    status, body = engine.get("/v2/models/m/infer", method="POST", body=BODY)
    return float(json.loads(body)["outputs"][0]["data"][0]) if status == 200 else None


def wait_for(engine: EngineProcess, wanted: float | None) -> None:
    while answer(engine) != wanted:
        assert engine.process.poll() is None, engine.log
        time.sleep(0.01)  # another process: nothing to await


def test_signed_and_approved_versions_serve_and_aliases_are_followed(tmp_path: Path) -> None:
    root, key = tmp_path / "repo", str(tmp_path / "key")
    public = json.loads(models(root, "keygen", key, "--json"))["public"]
    publish(root, 2, "--key", key)
    extra = ("--trusted-model-key", public, "--approval-required", "--release-poll-s", "0.02")
    with running_process(tmp_path, root, extra=extra, wait=False) as engine:
        while "is not approved" not in engine.log:
            assert engine.process.poll() is None, engine.log
            time.sleep(0.01)
        assert answer(engine) is None
        models(root, "approve", "m", "1")
        wait_for(engine, 2)
        publish(root, 3, "--key", key)
        models(root, "approve", "m", "2")
        wait_for(engine, 3)
        models(root, "alias", "m", "stable", "1")
        wait_for(engine, 2)
        publish(root, 4)
        models(root, "approve", "m", "3")
        while "is not signed" not in engine.log:
            assert engine.process.poll() is None, engine.log
            time.sleep(0.01)
        assert answer(engine) == 2
        models(root, "approve", "m", "1", "--withdraw")
        models(root, "approve", "m", "3", "--withdraw")
        models(root, "alias", "m", "stable", "--remove")
        wait_for(engine, 3)
        models(root, "approve", "m", "2", "--withdraw")
        wait_for(engine, None)
        assert engine.stop() == 0
        assert "Traceback" not in engine.log


@pytest.mark.parametrize(("seconds", "serves"), [("5", None), ("0", 2.0)])
def test_the_golden_check_has_its_time_by_a_setting(seconds: str, serves: float | None, tmp_path: Path) -> None:
    publish(tmp_path / "repo", 2, golden=2.5)
    with running_process(tmp_path, tmp_path / "repo", extra=("--golden-check-s", seconds)) as engine:
        assert answer(engine) == serves
        assert ("golden check: golden case 0" in engine.log) is (serves is None)
        assert engine.stop() == 0


def test_a_key_that_is_none_ends_the_engine_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    words = ["--socket", str(tmp_path / "s"), "--repository", str(tmp_path / "repo"), "--trusted-model-key", "none"]
    command = [sys.executable, "-m", "gateway.engine", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "trusted_model_keys: 'none' is not ed25519:" in ended.stderr


def test_an_engine_serves_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_s3() as (address, _):
        for name, value in (
            ("AWS_ENDPOINT", address),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "local"),
        ):
            monkeypatch.setenv(name, value)
        bucket = "s3://models/team"
        publish_to(bucket, tmp_path, 2)
        extra = ["--model-store", bucket, "--mirror", str(tmp_path / "mirror")]
        extra += ["--model-store-poll-s", "0.02", "--release-poll-s", "0.02"]
        with running_process(tmp_path, extra=extra) as engine:
            wait_for(engine, 2)
            publish_to(bucket, tmp_path, 3)
            wait_for(engine, 3)
            models(bucket, "alias", "m", "stable", "1")
            wait_for(engine, 2)
            assert engine.stop() == 0
            assert "Traceback" not in engine.log
