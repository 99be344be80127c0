"""The step of `language_model`: options, text of tokens, and its loop over a pipeline that stands in for OpenVINO's."""

import threading
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.unit.model_repo.steps import load_step

WAIT_S = 60


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_step("language_model", monkeypatch)


def decode(tokens: Sequence[int]) -> str:
    """One byte a token."""
    return bytes(tokens).decode(errors="replace")


# -- options ----------------------------------------------------------------------------------------------------------


def test_without_parameters_the_likeliest_tokens_are_taken(step: ModuleType) -> None:
    assert step.read_options({}) == step.Options(max_tokens=128, temperature=0.0, top_p=1.0, seed=0)


def test_parameters_are_taken_at_both_ends_of_their_ranges(step: ModuleType) -> None:
    most = {"max_tokens": 512, "temperature": 2, "top_p": 1.0, "seed": (1 << 32) - 1}
    assert step.read_options(most) == step.Options(max_tokens=512, temperature=2.0, top_p=1.0, seed=(1 << 32) - 1)
    least = {"max_tokens": 1, "temperature": 0, "top_p": 0.01, "seed": 0}
    assert step.read_options(least) == step.Options(max_tokens=1, temperature=0.0, top_p=0.01, seed=0)


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_tokens": 0},
        {"max_tokens": 513},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"max_tokens": "7"},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"seed": 1 << 32},
        {"beam": 2},
    ],
)
def test_a_parameter_that_cannot_be_is_named(step: ModuleType, parameters: dict[str, Any]) -> None:
    (name,) = parameters
    with pytest.raises(step.PromptError, match=f"parameter '{name}'"):
        step.read_options(parameters)


# -- text -------------------------------------------------------------------------------------------------------------


def pieces(step: ModuleType, data: bytes) -> list[str]:
    """The pieces of an answer whose last token ends it."""
    found = step.Pieces(decode)
    return [found.add(token, is_last=number == len(data)) for number, token in enumerate(data, 1)]


def test_pieces_make_up_the_text(step: ModuleType) -> None:
    assert pieces(step, b"No.") == ["N", "o", "."]


def test_a_character_is_told_once_it_is_whole(step: ModuleType) -> None:
    assert pieces(step, "caf\u00e9 \U0001f600!".encode()) == [
        "c", "a", "f", "", "\u00e9", " ", "", "", "", "\U0001f600", "!",
    ]  # fmt: skip


def test_a_character_that_never_became_whole_is_shown_as_such(step: ModuleType) -> None:
    assert "".join(pieces(step, b"ab\xf0")) == "ab\ufffd"


def test_a_space_that_a_decoder_drops_at_the_begin_of_a_text_is_kept(step: ModuleType) -> None:
    words = {1: " Paris", 2: " is", 3: " big"}

    def drop(tokens: Sequence[int]) -> str:
        return "".join(words[token] for token in tokens).removeprefix(" ")

    found = step.Pieces(drop)
    assert [found.add(token, is_last=token == 3) for token in words] == ["Paris", " is", " big"]


# -- the loop ---------------------------------------------------------------------------------------------------------


class Handle:
    def __init__(self, prompt: str) -> None:
        self.left = list(prompt.encode())
        self.unread: list[Any] = []
        self.is_cancelled = False

    def can_read(self) -> bool:
        return bool(self.unread)

    def read(self) -> dict[int, Any]:
        return {0: self.unread.pop(0)}

    def cancel(self) -> None:
        self.is_cancelled = True


class Pipeline:
    """Answers a prompt with itself, a byte a step; a step may be held up."""

    def __init__(self) -> None:
        self.handles: list[Handle] = []
        self.options: list[Any] = []
        self.most_at_once = 0
        self.may_step = threading.Event()
        self.may_step.set()
        self.fault: Exception | None = None

    def add_request(self, number: int, prompt: str, options: Any) -> Handle:
        assert number == len(self.handles)
        self.handles.append(Handle(prompt))
        self.options.append(options)
        return self.handles[-1]

    def step(self) -> None:
        assert self.may_step.wait(WAIT_S)
        if self.fault is not None:
            raise self.fault
        live = [handle for handle in self.handles if handle.left and not handle.is_cancelled]
        self.most_at_once = max(self.most_at_once, len(live))
        for handle in live:
            token = handle.left.pop(0)
            reason = SimpleNamespace(name="NONE" if handle.left else "STOP")
            handle.unread.append(SimpleNamespace(generated_ids=[token], finish_reason=reason))


class Caller:
    """A request, and what its sender was given."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, str]] = []
        self.is_left = False
        self.is_ended = threading.Event()

    def get_response_sender(self) -> "Caller":
        return self

    def is_cancelled(self) -> bool:
        return self.is_left

    def send(self, response: Any = None, flags: int = 0) -> None:
        if response is not None:
            found = {tensor.name(): tensor.as_numpy()[0].decode() for tensor in response.output_tensors()}
            self.pieces.append((found["TEXT"], found.get("FINISH", "")))
        if flags:
            self.is_ended.set()


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline()


def ask(step: ModuleType, engine: Any, prompt: str) -> Caller:
    caller = Caller()
    assert engine.add(step.Stream(caller, prompt, step.Options(), decode))
    return caller


def start(step: ModuleType, pipeline: Pipeline, on_failure: Any = None) -> Any:
    return step.Engine(pipeline, lambda options: options, on_failure or (lambda: None))


def test_each_token_is_a_response_and_the_last_says_why(step: ModuleType, pipeline: Pipeline) -> None:
    engine = start(step, pipeline)
    caller = ask(step, engine, "Yes")
    assert caller.is_ended.wait(WAIT_S)
    engine.close()
    assert caller.pieces == [("Y", ""), ("e", ""), ("s", "stop")]
    assert pipeline.options == [step.Options()]


def test_requests_take_part_in_the_same_steps(step: ModuleType, pipeline: Pipeline) -> None:
    pipeline.may_step.clear()
    engine = start(step, pipeline)
    callers = [ask(step, engine, text) for text in ("one", "two", "three")]
    pipeline.may_step.set()
    assert all(caller.is_ended.wait(WAIT_S) for caller in callers)
    engine.close()
    assert ["".join(text for text, _ in caller.pieces) for caller in callers] == ["one", "two", "three"]
    assert pipeline.most_at_once >= 2


def test_a_caller_that_leaves_is_let_go_and_others_go_on(step: ModuleType, pipeline: Pipeline) -> None:
    pipeline.may_step.clear()
    engine = start(step, pipeline)
    gone, stays = ask(step, engine, "x" * 400), ask(step, engine, "stays")
    gone.is_left = True
    pipeline.may_step.set()
    assert stays.is_ended.wait(WAIT_S)
    assert gone.is_ended.wait(WAIT_S)
    engine.close()
    assert pipeline.handles[0].is_cancelled
    assert len(gone.pieces) < 400


def test_more_than_may_wait_are_refused(step: ModuleType, pipeline: Pipeline) -> None:
    pipeline.may_step.clear()
    engine = start(step, pipeline)
    callers = [ask(step, engine, "a") for _ in range(2 * step.STREAMS_MAX)]
    before = threading.active_count()
    assert not engine.add(step.Stream(Caller(), "a", step.Options(), decode))
    assert threading.active_count() == before
    pipeline.may_step.set()
    assert all(caller.is_ended.wait(WAIT_S) for caller in callers)
    engine.close()
    assert pipeline.most_at_once <= step.STREAMS_MAX


def test_a_pipeline_that_fails_ends_the_process(
    step: ModuleType, pipeline: Pipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    failed = threading.Event()
    pipeline.fault = RuntimeError("out of blocks")
    engine = start(step, pipeline, failed.set)
    ask(step, engine, "a")
    assert failed.wait(WAIT_S)
    engine.close()
    assert "out of blocks" in capfd.readouterr().err


@pytest.mark.parametrize(("name", "finish"), [("STOP", "stop"), ("LENGTH", "length"), ("NONE", "")])
def test_reasons_have_their_own_words(step: ModuleType, name: str, finish: str) -> None:
    assert step.finish_of(SimpleNamespace(name=name)) == finish
