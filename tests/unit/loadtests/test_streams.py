"""The stream scenario: its generator, its bodies, its arithmetic. No server."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from tritonclient.grpc import service_pb2

from loadtests.payloads import numbers_request
from loadtests.streams import Wave, bare_tokens, build_models, find_missing, stream_body, summarise_streams
from model_repo.config import parse_config

_SPEAKER = Path(__file__).parents[3] / "loadtests" / "contenders" / "stream" / "speaker.py"


def speaker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speaker", _SPEAKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wave(per_s: float, data_bytes: int = 0, engine_us: float = 10.0) -> Wave:
    return Wave(
        tokens_per_s=per_s,
        tokens_per_cpu_s=2 * per_s,
        data_bytes=data_bytes,
        cpu_us_by_role={"engine": engine_us, "worker": 2.0},
    )


def test_streams_of_one_seed_say_the_same_in_every_process() -> None:
    tokens = bare_tokens(6)
    assert tokens == list(speaker().Speaker().speak(6, 5))
    assert len(set(tokens)) > 1


def test_without_work_the_tokens_are_counted() -> None:
    assert list(speaker().Speaker(0).speak(3, 4094)) == [4094, 4095, 0]


def test_the_request_is_a_modelinferrequest() -> None:
    request = service_pb2.ModelInferRequest.FromString(numbers_request("speaker", {"COUNT": 300, "SEED": 5}))
    assert request.model_name == "speaker"
    assert [(one.name, one.datatype, list(one.shape)) for one in request.inputs] == [
        ("COUNT", "INT32", [1]),
        ("SEED", "INT32", [1]),
    ]
    assert [int.from_bytes(raw, "little") for raw in request.raw_input_contents] == [300, 5]


def test_the_body_is_one_framed_message(tmp_path: Path) -> None:
    data = stream_body(tmp_path, "counter", 7).file.read_bytes()
    assert data[0] == 0
    assert int.from_bytes(data[1:5], "big") == len(data) - 5


def test_both_models_are_decoupled_and_differ_in_their_work(tmp_path: Path) -> None:
    repository = build_models(tmp_path)
    for name, hidden in (("speaker", "512"), ("counter", "0")):
        config = parse_config((repository / name / "config.pbtxt").read_text(), name=name)
        assert config.is_decoupled
        assert config.parameters["hidden"] == hidden


def test_the_ratio_is_of_medians() -> None:
    pairs = [((1000.0, 1100.0), wave(900)), ((1200.0, 1300.0), wave(800)), ((900.0, 950.0), wave(850))]
    result = summarise_streams(pairs, [wave(5000, engine_us=20), wave(7000, engine_us=30)], [])
    assert result.ratio == pytest.approx(850 / 1000)
    assert (result.served_per_cpu_s, result.bare_per_cpu_s) == (1700, 1100)
    assert (result.counted_per_s, result.cpu_us_by_role) == (6000, {"engine": 25.0, "worker": 2.0})


def test_a_wave_that_lost_responses_is_a_problem() -> None:
    warm = wave(1, data_bytes=1600)
    assert find_missing("speaker", wave(1, data_bytes=3200), 32, warm) == []
    assert find_missing("speaker", wave(1, data_bytes=3100), 32, warm) == ["speaker: 3100 bytes of responses, not 3200"]
