"""Owns the client's own record of what it asked and got: the truth that the ledger is held against.

One `Attempt` per call, complete or not; each is also appended to a JSON-lines file as it ends, so a failed run leaves
its evidence. Threads write; `attempts` is read once they have stopped.
"""

import threading
import time
from pathlib import Path
from typing import Final

import msgspec

HTTP: Final = 0
GRPC: Final = 1


class Attempt(msgspec.Struct, kw_only=True):
    """One call as its caller saw it. Instants are monotonic nanoseconds of this machine."""

    tenant: str
    protocol: int
    #: What was asked: calls of one kind have one right answer.
    kind: str
    sent_ns: int = msgspec.field(default_factory=time.monotonic_ns)
    done_ns: int = 0
    #: HTTP status; for gRPC 200 stands for OK and minus the status code for anything else. 0: no answer.
    status: int = 0
    call_id: str = ""
    charge: str = ""
    body_sha256: str = ""
    body_bytes: int = 0
    #: Whether the whole reply was received.
    is_complete: bool = False
    #: The caller left on purpose.
    is_hung_up: bool = False
    retry_after: str = ""

    @property
    def is_good(self) -> bool:
        """A 2xx that was fully received: what must be in the ledger."""
        return self.is_complete and self.status == 200


class Truth:
    """All attempts of a run."""

    def __init__(self, path: Path) -> None:
        self.attempts: list[Attempt] = []
        self._file = path.open("ab")
        self._lock = threading.Lock()

    def add(self, attempt: Attempt) -> None:
        """Note one attempt at its end. Any thread."""
        attempt.done_ns = time.monotonic_ns()
        with self._lock:
            self.attempts.append(attempt)
            self._file.write(msgspec.json.encode(attempt) + b"\n")

    def close(self) -> None:
        self._file.close()

    def good(self, tenant: str | None = None) -> list[Attempt]:
        """Attempts that must be in the ledger; of one tenant, or of all."""
        return [one for one in self.attempts if one.is_good and tenant in (None, one.tenant)]
