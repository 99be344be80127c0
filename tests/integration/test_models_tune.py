"""`tollway models tune` against real engines."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.commands.models import app
from model_repo.config import parse_config
from model_repo.onnx_builder import write_model

RUN = CliRunner()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = write_model(tmp_path, "mlp")
    config = folder / "config.pbtxt"
    config.write_text("# kept\n" + config.read_text().replace("max_batch_size: 64", "max_batch_size: 2"))
    return tmp_path


def tune(repository: Path, *arguments: str) -> tuple[int, str, str]:
    options = ["--repository", str(repository), "--seconds", "0.2", "--concurrency", "8", "--threads", "1"]
    result = RUN.invoke(app, ["tune", "mlp", *options, *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_choice_is_measured_and_written(repository: Path) -> None:
    code, out, err = tune(repository, "--target-ms", "1000", "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert [one["candidate"]["rows"] for one in answer["measured"]][:2] == [0, 2]
    assert all(one["calls_per_s"] > 0 and one["failed"] == 0 for one in answer["measured"])
    text = (repository / "mlp" / "config.pbtxt").read_text()
    assert text.startswith("# kept\n")
    batching = parse_config(text, name="mlp").batching
    chosen = answer["chosen"]
    assert answer["written"] == bool(chosen["rows"])
    if batching is None:
        assert chosen == {"rows": 0, "delay_us": 0}
    else:
        assert (batching.preferred_rows, batching.delay_ns_max) == ((chosen["rows"],), 1000 * chosen["delay_us"])


def test_a_target_that_nothing_keeps_changes_nothing(repository: Path) -> None:
    before = (repository / "mlp" / "config.pbtxt").read_text()
    code, out, err = tune(repository, "--target-ms", "0.01")
    assert code == 1
    assert "no batch size keeps 0.01 ms with 8 callers; nothing was changed" in err
    assert "calls/s" in out
    assert (repository / "mlp" / "config.pbtxt").read_text() == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("max_batch_size: 2", "max_batch_size: 1"), "there are no batches to tune"),
        (("TYPE_FP32 dims: [ 64 ]", "TYPE_STRING dims: [ 64 ]"), "give a call with --request"),
        (("dims: [ 64 ]", "dims: [ 63 ]"), "configured dims [63] do not fit [64]"),
        (('name: "mlp"', 'name: "other"'), "differs from the model's folder"),
    ],
)
def test_what_cannot_be_measured_is_said(repository: Path, change: tuple[str, str], reason: str) -> None:
    config = repository / "mlp" / "config.pbtxt"
    config.write_text(config.read_text().replace(*change, 1))
    before = config.read_text()
    code, _, err = tune(repository, "--target-ms", "10")
    assert code == 1
    assert reason in err.replace("\n", "")
    assert config.read_text() == before


def test_a_model_that_is_not_there_is_said(repository: Path) -> None:
    result = RUN.invoke(app, ["tune", "absent", "--repository", str(repository), "--target-ms", "10"])
    assert result.exit_code == 1
    assert "No such file" in result.stderr
