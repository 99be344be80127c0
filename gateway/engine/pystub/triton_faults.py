"""Owns the faults of `pb_utils`: what a response carries, and what a model raises."""


class TritonModelException(Exception):
    """What a model raises to fail a batch, and what pb_utils raises at a model; its text is logged, not sent."""


class TritonError:
    """A fault that a response carries; its message is shown to the caller."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message = str(message)
        self._code = int(code)

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code
