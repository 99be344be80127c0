"""The generator as a decoupled model: `COUNT: int32[1]` and `SEED: int32[1]` → `TOKEN: int32[1]`, a response each.

All open requests take turns, token by token, on one thread: what the bare loop does, and what servers of language
models do.
"""

import json
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]
from speaker import Speaker  # type: ignore[import-not-found,unused-ignore]


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"]).get("parameters", {})
        self._speaker = Speaker(int(parameters["hidden"]["string_value"]))
        self._turns: deque[tuple[Iterator[int], Any]] = deque()
        self._changed = threading.Condition()
        self._is_over = False
        self._thread = threading.Thread(target=self._speak, name="speak")
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            count, seed = (
                int(pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0]) for name in ("COUNT", "SEED")
            )
            with self._changed:
                self._turns.append((self._speaker.speak(count, seed), request.get_response_sender()))
                self._changed.notify()

    def _speak(self) -> None:
        while True:
            with self._changed:
                while not self._turns and not self._is_over:
                    self._changed.wait()
                if self._is_over:
                    return
                tokens, sender = self._turns.popleft()
            if sender.is_cancelled():
                continue
            token = next(tokens, None)
            if token is None:
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            output = pb_utils.Tensor("TOKEN", np.array([token], dtype=np.int32))
            sender.send(pb_utils.InferenceResponse(output_tensors=[output]))
            with self._changed:
                self._turns.append((tokens, sender))

    def finalize(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join()
