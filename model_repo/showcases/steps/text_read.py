"""First step of `sentence_embedding`: texts to the numbers of their word pieces.

`TEXT: bytes[texts]` (UTF-8) → `IDS: int64[texts, tokens]` and `MASK: int64[texts, tokens]` (0: padding up to the
longest). Words are split as the network was trained: control characters out, lower case, no accents, punctuation and
CJK characters apart, then the longest pieces of the vocabulary from the left; at most 256 tokens, the rest is cut.
"""

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]

Array = npt.NDArray[Any]

TEXTS_MAX: Final = 256
TEXT_BYTES_MAX: Final = 1 << 20
TOKENS_MAX: Final = 256
_WORD_CHARS_MAX: Final = 100
_CJK: Final = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class TextError(Exception):
    """Texts that their sender must change; the message says how."""


class Tokeniser:
    """`vocabulary`: one piece a line, its number is its place; pieces inside a word begin with `##`."""

    def __init__(self, vocabulary: str) -> None:
        self._numbers = {piece: number for number, piece in enumerate(vocabulary.splitlines())}
        self._unknown, self._first, self._last = (self._numbers[name] for name in ("[UNK]", "[CLS]", "[SEP]"))

    def numbers(self, text: str) -> list[int]:
        """Of one text, with the marks of its beginning and its end."""
        found = [self._first]
        for word in split_words(text):
            found += self._pieces(word)
            if len(found) >= TOKENS_MAX:
                break
        return [*found[: TOKENS_MAX - 1], self._last]

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _WORD_CHARS_MAX:
            return [self._unknown]
        found: list[int] = []
        start = 0
        while start < len(word):
            for end in range(len(word), start, -1):
                number = self._numbers.get(("##" if start else "") + word[start:end])
                if number is not None:
                    break
            else:
                return [self._unknown]
            found.append(number)
            start = end
        return found


def split_words(text: str) -> Iterator[str]:
    """Lower-case words without accents; each mark of punctuation and each CJK character is one."""
    spaced = "".join(_spaced(char) for char in text)
    # Lower case comes after the accents: there are letters whose lower case has one.
    # One character at a time, so that a capital sigma is the same at the end of a word.
    parts = (char for char in unicodedata.normalize("NFD", spaced) if unicodedata.category(char) != "Mn")
    bare = "".join(char.lower() for char in parts)
    for run in bare.split():
        word = ""
        for char in run:
            if is_punctuation(char):
                if word:
                    yield word
                yield char
                word = ""
            else:
                word += char
        if word:
            yield word


def _spaced(char: str) -> str:
    code = ord(char)
    if char in "\t\n\r" or unicodedata.category(char) == "Zs":
        return " "
    if code in {0, 0xFFFD} or unicodedata.category(char) in {"Cc", "Cf", "Co", "Cs"}:
        return ""
    return f" {char} " if any(low <= code <= high for low, high in _CJK) else char


def is_punctuation(char: str) -> bool:
    """All that ASCII prints besides letters and digits counts, also `$` and `~`, which Unicode calls symbols."""
    code = ord(char)
    is_ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return is_ascii_mark or unicodedata.category(char).startswith("P")


def read_texts(contents: list[bytes]) -> list[str]:
    """Raises: TextError: too many, too long, or not UTF-8."""
    if not 1 <= len(contents) <= TEXTS_MAX:
        raise TextError(f"TEXT has {len(contents)} texts: 1 to {TEXTS_MAX} may be sent at once")
    texts = []
    for place, data in enumerate(contents):
        if len(data) > TEXT_BYTES_MAX:
            raise TextError(f"TEXT[{place}] has {len(data)} bytes, more than {TEXT_BYTES_MAX}")
        try:
            texts.append(data.decode())
        except UnicodeDecodeError as error:
            raise TextError(f"TEXT[{place}] is not UTF-8") from error
    return texts


def lay_out(rows: list[list[int]]) -> tuple[Array, Array]:
    """IDS and MASK, padded with 0 up to the longest row."""
    ids = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return ids, mask


class TritonPythonModel:
    """Any number of texts a request; the vocabulary lies beside this file."""

    def initialize(self, args: dict[str, str]) -> None:
        self._tokeniser = Tokeniser(Path(__file__).with_name("vocab.txt").read_text(encoding="utf-8"))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        contents = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
        try:
            rows = [self._tokeniser.numbers(text) for text in read_texts(list(contents))]
        except TextError as error:
            return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        ids, mask = lay_out(rows)
        return pb_utils.InferenceResponse([pb_utils.Tensor("IDS", ids), pb_utils.Tensor("MASK", mask)])
