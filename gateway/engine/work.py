"""HOT PATH. Owns `Work`: one inference asked of one model version, resolved exactly once or withdrawn.

No future and no task per inference: whoever asks gives two callbacks, called on the loop's thread.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from gateway.engine.context import EMPTY, Context
from gateway.engine.tensors import Array
from gateway.errors import TollwayError

#: Tensors by name, as the model itself sees them.
Feeds = Mapping[str, Array]
#: Called with the outputs in the order of the model's configuration.
OnResult = Callable[["Work", list[Array]], None]
OnError = Callable[["Work", TollwayError], None]
#: Called for each response of a decoupled model: its outputs (None: left out), or a fault that does not end the stream.
OnPart = Callable[["Work", "list[Array | None] | TollwayError"], None]
#: A batch's result for a work of a decoupled model: its responses, and its end, come by themselves.
STREAMING: Final[list[Array]] = []


class Work:
    """Tensors for one model version, and what became of them.

    `feeds`: name → array with `rows` as first axis (models with a batch axis). `signature` equals only for works that
    may share a batch. `deadline_ns` is monotonic, 0 for none; `timeout_ns` is the caller's bound on queueing.
    `on_part`: the caller takes many responses, and says by `taken` when they have gone on (back-pressure); `on_result`
    with no outputs is then their end.
    `compute_ns` is this work's exact share of the device time of its batch, `queue_ns` its wait before it ran.
    """

    __slots__ = (
        "compute_ns",
        "context",
        "deadline_ns",
        "enqueued_ns",
        "expires_ns",
        "feeds",
        "is_done",
        "nbytes",
        "on_error",
        "on_part",
        "on_result",
        "owner",
        "priority_best",
        "progress",
        "queue_ns",
        "rank",
        "rows",
        "signature",
        "tenant",
        "timeout_ns",
        "turn",
        "weight",
    )

    def __init__(
        self,
        feeds: Feeds,
        on_result: OnResult,
        on_error: OnError,
        *,
        rows: int = 1,
        signature: Any = None,
        deadline_ns: int = 0,
        timeout_ns: int = 0,
        nbytes: int = 0,
        context: Context = EMPTY,
        on_part: OnPart | None = None,
        tenant: bytes = b"",
        weight: int = 1,
        priority_best: int = 0,
    ) -> None:
        self.feeds = feeds
        self.on_result = on_result
        self.on_error = on_error
        self.rows = rows
        self.signature = signature
        self.deadline_ns = deadline_ns
        self.timeout_ns = timeout_ns
        self.nbytes = nbytes
        self.context = context
        self.on_part = on_part
        #: Whose call it is, as the gateway says (b"": nobody has said).
        self.tenant = tenant
        #: Of its tenant's plan: the share of a queue beside others' shares, and the best priority level (0: any).
        self.weight = weight
        self.priority_best = priority_best
        self.enqueued_ns = 0
        #: Monotonic; the queue's own bound on the wait, which no longer counts once the work runs; 0: none.
        self.expires_ns = 0
        #: Place in the queue before age: lower leaves first.
        self.rank = 0
        #: Place among works of its rank; see `gateway.engine.fairness`.
        self.turn = 0
        self.queue_ns = 0
        self.compute_ns = 0
        self.is_done = False
        #: Free for whoever asks, and for whoever runs the work: an ensemble is both, of its steps and to its caller.
        self.owner: Any = None
        self.progress: Any = None

    def resolve(self, outputs: list[Array]) -> None:
        """Hand over the outputs, unless the work is already resolved, failed or withdrawn."""
        if not self.is_done:
            self.is_done = True
            self.on_result(self, outputs)

    def fail(self, error: TollwayError) -> None:
        """Hand over the fault, unless the work is already resolved, failed or withdrawn."""
        if not self.is_done:
            self.is_done = True
            self.on_error(self, error)

    def taken(self, count: int) -> None:
        """`count` more responses of a decoupled model have gone on: it may send as many again."""
        if self.progress is not None and not self.is_done:
            self.progress.taken(count)

    def withdraw(self) -> None:
        """The caller is gone: neither callback is called any more."""
        self.is_done = True


class Servable(Protocol):
    """What runs works: a model version with its batcher, or an ensemble of them."""

    def submit(self, work: Work) -> None:
        """Take a work; it is resolved later or before this returns. Never raises a client's fault: `work.fail` does."""

    def cancel(self, work: Work) -> None:
        """Withdraw a work: it leaves its queue at once; if it runs, its result is dropped."""


def shares(total: int, weights: list[int]) -> list[int]:
    """Split `total` by `weights` into integers that sum exactly to it (largest remainder; ties to the first).

    Weights are positive. MONEY.md I23: the shares of a batch sum exactly to its device time.
    """
    if len(weights) == 1:
        return [total]
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    left = total - sum(parts)
    if left:
        order = sorted(range(len(weights)), key=lambda index: -(total * weights[index] % whole))
        for index in order[:left]:
            parts[index] += 1
    return parts
