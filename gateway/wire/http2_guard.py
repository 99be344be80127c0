"""Owns the defence of an HTTP/2 connection against floods: counters that refill with time, and their verdicts.

Nothing here is touched by an ordinary call: only control frames, resets and window updates draw on it. Time comes from
the injected monotonic clock, so that an honest long-lived connection (keep-alive pings for days) never adds up.
"""

from collections.abc import Callable
from typing import Final

from gateway.wire.http2_frames import H2Code, Http2Error, Http2Limits

_NS_PER_S: Final = 1_000_000_000


class _Bucket:
    """A token bucket; `take` says whether one more is allowed."""

    __slots__ = ("_burst", "_last_ns", "_per_s", "tokens")

    def __init__(self, burst: int, per_s: int, now_ns: int) -> None:
        self._burst = burst
        self._per_s = per_s
        self._last_ns = now_ns
        self.tokens = burst

    def take(self, monotonic_ns: Callable[[], int]) -> bool:
        self.tokens -= 1
        return self.tokens >= 0 or self._refill(monotonic_ns())

    def _refill(self, now_ns: int) -> bool:
        """Only asked when empty: whole tokens for the time since the last refill, at most a burst."""
        grown = (now_ns - self._last_ns) * self._per_s // _NS_PER_S
        if grown <= 0:
            return False
        self.tokens = min(self._burst, self.tokens + grown)
        self._last_ns = now_ns
        return self.tokens >= 0


class FloodGuard:
    """Counts what costs us more than it costs the peer; past a limit raises Http2Error(ENHANCE_YOUR_CALM)."""

    __slots__ = (
        "_control",
        "_explained_frames",
        "_limits",
        "_monotonic_ns",
        "_resets",
        "_unsent",
        "_updates",
        "is_peer_reading",
    )

    def __init__(self, limits: Http2Limits, monotonic_ns: Callable[[], int]) -> None:
        now_ns = monotonic_ns()
        self._limits = limits
        self._monotonic_ns = monotonic_ns
        self._control = _Bucket(limits.control_frames_burst_max, limits.control_frames_per_s_max, now_ns)
        self._resets = _Bucket(limits.resets_burst_max, limits.resets_per_s_max, now_ns)
        self._updates = _Bucket(limits.window_updates_burst_max, limits.window_updates_per_s_max, now_ns)
        self._explained_frames = 0
        self._unsent = 0
        self.is_peer_reading = True

    def on_control_frame(self, what: str) -> None:
        if not self._control.take(self._monotonic_ns):
            raise Http2Error(H2Code.ENHANCE_YOUR_CALM, f"too many {what}")
        if self.is_peer_reading:
            self._unsent = 0
            return
        self._unsent += 1
        if self._unsent > self._limits.unsent_replies_max:
            raise Http2Error(H2Code.ENHANCE_YOUR_CALM, "the answers to control frames are not read")

    def on_reset(self) -> None:
        if not self._resets.take(self._monotonic_ns):
            raise Http2Error(H2Code.ENHANCE_YOUR_CALM, "too many reset streams")

    def on_window_update(self, data_frames_sent: int) -> None:
        """`data_frames_sent`: our DATA frames so far; each explains some of the peer's updates."""
        updates = self._updates
        if updates.take(self._monotonic_ns):
            return
        explained = (data_frames_sent - self._explained_frames) * self._limits.window_updates_per_data_frame
        self._explained_frames = data_frames_sent
        updates.tokens = min(self._limits.window_updates_burst_max, updates.tokens + explained)
        if updates.tokens < 0:
            raise Http2Error(H2Code.ENHANCE_YOUR_CALM, "too many WINDOW_UPDATE frames")
