"""Owns the response cache: what a model answered to the same tensors before is not worked out again.

For models whose configuration says `response_cache { enable: true }` and whose answer depends on their tensors alone:
those in a file. Who caches says with it that callers may learn, by its speed, that somebody has asked the same.
"""

import hashlib
from collections import OrderedDict
from typing import Final

from gateway.clock import Clock
from gateway.engine.statistics import Statistics
from gateway.engine.tensors import Array, to_raw
from gateway.engine.work import OnResult, Servable, Work

#: Of one model version's kept outputs; the least recently used go first.
CACHE_BYTES_MAX: Final = 64 << 20
#: An answer larger than this part of the cache is not kept.
_SHARE_MAX: Final = 4
#: Counted for an entry beside its tensors.
_ENTRY_BYTES: Final = 256


class ResponseCache:
    """A `Servable` before another. All methods belong to the loop's thread."""

    def __init__(
        self, servable: Servable, statistics: Statistics, clock: Clock, *, nbytes_max: int = CACHE_BYTES_MAX
    ) -> None:
        self._servable = servable
        self._statistics = statistics
        self._clock = clock
        self._nbytes_max = nbytes_max
        self._kept: OrderedDict[bytes, tuple[list[Array], int]] = OrderedDict()
        self.nbytes = 0

    def submit(self, work: Work) -> None:
        """See `Servable`: a hit is resolved before this returns, with no device time."""
        begun_ns = self._clock.monotonic_ns()
        key = fingerprint(work)
        found = self._kept.get(key)
        now_ns = self._clock.monotonic_ns()
        if found is None:
            self._statistics.on_cache_miss(now_ns - begun_ns)
            work.on_result = self._keeping(key, work.on_result)
            self._servable.submit(work)
            return
        self._kept.move_to_end(key)
        work.enqueued_ns = begun_ns
        self._statistics.on_cache_hit(work.rows, now_ns - begun_ns, self._clock.wall_ns() // 1_000_000)
        work.resolve(found[0])

    def cancel(self, work: Work) -> None:
        self._servable.cancel(work)

    def _keeping(self, key: bytes, on_result: OnResult) -> OnResult:
        def keep_and_tell(work: Work, outputs: list[Array]) -> None:
            self._keep(key, outputs)
            on_result(work, outputs)

        return keep_and_tell

    def _keep(self, key: bytes, outputs: list[Array]) -> None:
        nbytes = _ENTRY_BYTES + sum(_held(output) for output in outputs)
        if key in self._kept or nbytes * _SHARE_MAX > self._nbytes_max:
            return
        # Copies: an output may be a few rows of a batch, whose memory it would keep.
        self._kept[key] = ([output.copy() for output in outputs], nbytes)
        self.nbytes += nbytes
        while self.nbytes > self._nbytes_max:
            _, (_, gone) = self._kept.popitem(last=False)
            self.nbytes -= gone


def fingerprint(work: Work) -> bytes:
    """Equal only for works with the same tensors: names, types, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=32)
    for name, array in sorted(work.feeds.items()):
        raw = to_raw(array)
        head = f"{name}\0{array.dtype.str}\0{array.shape}\0{len(raw)}\0"
        digest.update(head.encode())
        digest.update(raw)
    return digest.digest()


def _held(array: Array) -> int:
    return sum(len(item) + 64 for item in array.ravel()) if array.dtype.hasobject else array.nbytes
