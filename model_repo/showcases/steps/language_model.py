"""`language_model`: a small language model that answers a text, token by token, for many callers at once.

`PROMPT: BYTES[1]` (UTF-8) → one response for each token: `TEXT: BYTES[1]`, the text that the token completed (empty
while a character is incomplete, and for the token that ends the answer); the last one also has `FINISH: BYTES[1]`,
"stop" or "length". All open requests take part in each step of the network (continuous batching by OpenVINO GenAI).
Request parameters: `max_tokens`, `temperature`, `top_p`, `seed`.
"""

import json
import os
import queue
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]

PROMPT_BYTES_MAX: Final = 32 << 10
#: Of the prompt with the template around it.
PROMPT_TOKENS_MAX: Final = 1024
TOKENS_MAX: Final = 512
TOKENS_DEFAULT: Final = 128
#: In the network's batch; as many again may wait.
STREAMS_MAX: Final = 64
_THREADS_MAX: Final = 4
#: Of 32 tokens each: 32,768 tokens of prompts and answers, 400 to 800 MB. Beyond it requests wait their turn.
_CACHE_BLOCKS: Final = 1024
_BATCH_TOKENS_MAX: Final = 512
_SEED_MAX: Final = (1 << 32) - 1
#: What a decoder shows for bytes that are no character yet.
_INCOMPLETE: Final = "\ufffd"

Decode = Callable[[Sequence[int]], str]


class PromptError(Exception):
    """What a caller asked for cannot be; the message is for the caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to continue a prompt. `temperature` 0: the likeliest token each time."""

    max_tokens: int = TOKENS_DEFAULT
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def read_options(parameters: Mapping[str, Any]) -> Options:
    """From request parameters.

    Raises:
        PromptError: one is unknown or has no value that it can have.
    """
    known: dict[str, tuple[type, float, float]] = {
        "max_tokens": (int, 1, TOKENS_MAX),
        "temperature": (float, 0.0, 2.0),
        "top_p": (float, 0.01, 1.0),
        "seed": (int, 0, _SEED_MAX),
    }
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        if name not in known:
            raise PromptError(f"parameter '{name[:80]}' is unknown; there are {', '.join(known)}")
        kind, low, high = known[name]
        number: Any = float(value) if kind is float and type(value) is int else value
        is_of_kind = type(number) is kind
        if not is_of_kind or not low <= number <= high:
            word = "a whole number" if kind is int else "a number"
            raise PromptError(f"parameter '{name}' must be {word} from {low:.10g} to {high:.10g}")
        found[name] = number
    return Options(**found)


class Pieces:
    """Tokens to text as they come: a character is told once its last byte has come."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        #: Where the text under way begins, and what of it has been told. A few tokens before it are decoded with it,
        #: since a decoder may drop the space that begins a text.
        self._begin = 0
        self._told = 0

    def add(self, token: int, *, is_last: bool) -> str:
        """The text that `token` completes."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._begin : self._told])
        text = self._decode(self._tokens[self._begin :])
        if text.endswith(_INCOMPLETE) and not is_last:
            return ""
        self._begin, self._told = self._told, len(self._tokens)
        return text[len(before) :]


class Stream:
    """One request: its handle in the pipeline, and a thread that hands tokens on: a slow caller holds up no other."""

    def __init__(self, request: Any, prompt: str, options: Options, decode: Decode) -> None:
        self.prompt = prompt
        self.options = options
        self.handle: Any = None
        self._sender = request.get_response_sender()
        self._pieces = Pieces(decode)
        self._count = 0
        self._tokens: queue.SimpleQueue[tuple[int, str] | None] = queue.SimpleQueue()

    def start(self) -> None:
        """It will be answered."""
        threading.Thread(target=self._hand_on, name="language-model-stream", daemon=True).start()

    @property
    def is_cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())

    def take(self, tokens: Sequence[int], finish: str) -> None:
        """More tokens; `finish` with the last of them, empty before."""
        for number, token in enumerate(tokens, 1):
            self._tokens.put((token, finish if number == len(tokens) else ""))
        if finish and not tokens:
            self.end()

    def end(self) -> None:
        """There will be no more."""
        self._tokens.put(None)

    def _hand_on(self) -> None:
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        while (item := self._tokens.get()) is not None:
            token, finish = item
            text = self._pieces.add(token, is_last=bool(finish))
            outputs = [_text("TEXT", text)] + ([_text("FINISH", finish)] if finish else [])
            self._sender.send(pb_utils.InferenceResponse(output_tensors=outputs), final if finish else 0)
            if finish:
                return
        self._sender.send(flags=final)


def _text(name: str, value: str) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = value.encode()
    return pb_utils.Tensor(name, array)


class Engine:
    """The pipeline and its loop, on a thread. `configure` makes a pipeline's configuration of options."""

    def __init__(self, pipeline: Any, configure: Callable[[Options], Any], on_failure: Callable[[], None]) -> None:
        self._pipeline = pipeline
        self._configure = configure
        self._on_failure = on_failure
        self._waiting: list[Stream] = []
        self._running: list[Stream] = []
        self._next_id = 0
        self._is_over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="language-model", daemon=True)
        self._thread.start()

    def add(self, stream: Stream) -> bool:
        """Take a request; False where too many wait."""
        with self._changed:
            if len(self._waiting) + len(self._running) >= 2 * STREAMS_MAX:
                return False
            stream.start()
            self._waiting.append(stream)
            self._changed.notify()
        return True

    def close(self) -> None:
        """End the loop after the step under way. Idempotent."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._begin():
                self._pipeline.step()
                self._collect()
        except Exception:  # noqa: BLE001 - whatever the library raises: the engine starts a fresh process
            pb_utils.Logger.log_error(traceback.format_exc())
            self._on_failure()

    def _begin(self) -> bool:
        """Wait until there is something to do, and let requests in; False at the end."""
        with self._changed:
            while not self._is_over and not self._waiting and not self._running:
                self._changed.wait()
            if self._is_over:
                return False
            room = STREAMS_MAX - len(self._running)
            begun, self._waiting = self._waiting[:room], self._waiting[room:]
            self._running += begun
        for stream in begun:
            stream.handle = self._pipeline.add_request(self._next_id, stream.prompt, self._configure(stream.options))
            self._next_id += 1
        return True

    def _collect(self) -> None:
        """Hand on what the step has brought, and let go of those that are done or whose caller has left."""
        done = []
        for stream in self._running:
            handle = stream.handle
            if stream.is_cancelled:
                handle.cancel()
                stream.end()
                done.append(stream)
                continue
            while handle.can_read():
                for output in handle.read().values():
                    finish = finish_of(output.finish_reason)
                    stream.take(output.generated_ids, finish)
                    if finish:
                        done.append(stream)
        if done:
            with self._changed:
                self._running = [stream for stream in self._running if stream not in done]


def finish_of(reason: Any) -> str:
    """`GenerationFinishReason` as callers see it; empty while it goes on."""
    name = str(getattr(reason, "name", reason))
    return {"STOP": "stop", "LENGTH": "length"}.get(name, "")


class TritonPythonModel:
    """Requests come in batches, answers leave when they are there."""

    def initialize(self, args: dict[str, str]) -> None:
        import openvino_genai as genai  # type: ignore[import-not-found,unused-ignore]

        config = json.loads(args["model_config"])
        wanted = int(config.get("parameters", {}).get("threads", {}).get("string_value", "0"))
        threads = wanted or min(_THREADS_MAX, len(os.sched_getaffinity(0)))
        file = Path(args["model_repository"]) / args["model_version"] / "model.gguf"
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = _CACHE_BLOCKS
        scheduler.max_num_batched_tokens = _BATCH_TOKENS_MAX
        scheduler.max_num_seqs = STREAMS_MAX
        properties = {"INFERENCE_NUM_THREADS": threads}
        pipeline = genai.ContinuousBatchingPipeline(str(file), scheduler, "CPU", properties)
        self._tokenizer = pipeline.get_tokenizer()

        def configure(options: Options) -> Any:
            generation = genai.GenerationConfig()
            generation.max_new_tokens = options.max_tokens
            generation.set_eos_token_id(self._tokenizer.get_eos_token_id())
            if options.temperature > 0:
                generation.do_sample = True
                generation.temperature = options.temperature
                generation.top_p = options.top_p
                generation.rng_seed = options.seed
            return generation

        self._engine = Engine(pipeline, configure, lambda: os._exit(1))

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            try:
                stream = Stream(request, *self._read(request), self._tokenizer.decode)
            except PromptError as error:
                _refuse(request, str(error), pb_utils.TritonError.INVALID_ARG)
                continue
            if not self._engine.add(stream):
                _refuse(request, f"{2 * STREAMS_MAX} answers are under way", pb_utils.TritonError.UNAVAILABLE)

    def _read(self, request: Any) -> tuple[str, Options]:
        """The prompt as the network was taught to read it, and the options. Raises PromptError."""
        options = read_options(json.loads(request.parameters() or "{}"))
        data = pb_utils.get_input_tensor_by_name(request, "PROMPT").as_numpy()[0]
        if not 0 < len(data) <= PROMPT_BYTES_MAX:
            raise PromptError(f"the prompt must have 1 to {PROMPT_BYTES_MAX} bytes")
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise PromptError("the prompt is no UTF-8 text") from error
        prompt = self._tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        count = self._tokenizer.encode(prompt).input_ids.get_shape()[1]
        if count > PROMPT_TOKENS_MAX:
            raise PromptError(f"the prompt has {count} tokens, more than {PROMPT_TOKENS_MAX}")
        return prompt, options

    def finalize(self) -> None:
        self._engine.close()


def _refuse(request: Any, message: str, code: int) -> None:
    response = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
    request.get_response_sender().send(response, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
