"""Owns the faults of a conversion: each with a stable rule, an exit code and what to do next.

ConvertError
├── UnsafeModel (exit 4)          refused before anything ran it
├── VerificationFailed (exit 3)   no variant gives the source's results
├── UnfitTarget (exit 5)          the repository or the host does not take the result
├── ToolFailed (exit 6)           a library, a limit or the child process failed
└── UsageFault (exit 2)           what was asked for cannot be
"""

from typing import ClassVar


class ConvertError(Exception):
    """`rule` is stable and machine-readable; the message names the file, node or option."""

    exit_code: ClassVar[int] = 1

    def __init__(self, rule: str, message: str, *, next_step: str) -> None:
        super().__init__(message)
        self.rule = rule
        self.next_step = next_step


class UnsafeModel(ConvertError):
    exit_code = 4


class VerificationFailed(ConvertError):
    exit_code = 3


class UnfitTarget(ConvertError):
    exit_code = 5


class ToolFailed(ConvertError):
    exit_code = 6


class UsageFault(ConvertError):
    exit_code = 2


#: Exit code → class, to raise anew on this side what a child reported.
BY_EXIT_CODE: dict[int, type[ConvertError]] = {
    kind.exit_code: kind for kind in (UnsafeModel, VerificationFailed, UnfitTarget, ToolFailed, UsageFault)
}
