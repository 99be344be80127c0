"""Owns the generator that both sides run: a recurrent language model of random weights, one token a step."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
VOCABULARY: Final = 4096
HIDDEN: Final = 512


class Speaker:
    """`hidden` 0: the tokens are counted, not computed, which leaves nothing but what passing them on costs."""

    def __init__(self, hidden: int = HIDDEN) -> None:
        self._hidden = hidden
        noise = np.random.default_rng(7)
        scale = 1.0 / max(hidden, 1) ** 0.5
        #: gates: float32[3 x hidden, 2 x hidden]; embedding and readout: float32[vocabulary, hidden]
        self._gates = (noise.standard_normal((3 * hidden, 2 * hidden)) * scale).astype(np.float32)
        self._embedding = noise.standard_normal((VOCABULARY, hidden)).astype(np.float32)
        self._readout = (noise.standard_normal((VOCABULARY, hidden)) * scale).astype(np.float32)

    def speak(self, count: int, seed: int) -> Iterator[int]:
        """`count` tokens after the token `seed`, the likeliest each time."""
        if not self._hidden:
            yield from (number % VOCABULARY for number in range(seed, seed + count))
            return
        state = np.zeros(self._hidden, dtype=np.float32)
        token = seed % VOCABULARY
        for _ in range(count):
            state = self._step(state, self._embedding[token])
            token = int(np.argmax(self._readout @ state))
            yield token

    def _step(self, state: Array, letter: Array) -> Array:
        """One step of a gated recurrent unit; all: float32[hidden]."""
        size = self._hidden
        reset, update = np.split(_squash(self._gates[: 2 * size] @ np.concatenate((letter, state))), 2)
        fresh = np.tanh(self._gates[2 * size :] @ np.concatenate((letter, reset * state)))
        return np.asarray(update * state + (1 - update) * fresh, dtype=np.float32)


def _squash(value: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-value)))
