"""Owns how far this host's clock is from the ledger's, measured at heartbeats, and which calls a wrong clock stamped.

An event's time decides its day, month and price period, so a call from a host whose clock is off by more than SKEW_NS
is not posted but quarantined, until a person decides (MONEY.md I24). Never is an event's time held against the time of
its arrival: a late event is late, not skewed. What is compared is two clocks at one moment, and a call is suspected by
when it was stamped: from the last heartbeat at which the clocks agreed to the first at which they do again, in terms of
the host's own clock. Calls stamped before and read late (an outage, a meter that was down) are posted as ever.

Only a ledger on a server has a second clock; with `sqlite://` worker, meter and ledger share one. What is not seen: a
clock that was wrong, and right again, while no meter ran.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from billing.judge import Verdict
from billing.packed import Call, served_of

#: MONEY.md §4: quarantine beyond five minutes.
SKEW_NS: Final = 300_000_000_000
BEAT_NS: Final = 10_000_000_000
#: The host's two clocks went apart by so much since the last heartbeat: one stepped, and it is time for the next.
STEP_NS: Final = 1_000_000_000
#: Times of a wrong clock that are remembered; the oldest are forgotten when their calls have long been read.
SPANS_MAX: Final = 64
CLOCK_SKEWED: Final = "clock_skewed"
#: In the data directory, so that a restarted meter knows what the one before it saw.
SPANS_FILE: Final = "clock-skew"

Judge = Callable[[Call], Verdict | None]
_log = logging.getLogger(__name__)


class Memory(msgspec.Struct, kw_only=True):
    """What outlives a meter. Instants are of this host's clock; `since_ns` None: the clocks agree."""

    since_ns: int | None = None
    #: The latest that the clock can have shown while it was wrong, as of the last step.
    until_ns: int = 0
    skew_ns: int = 0
    #: Half-open spans, oldest first, in which the clock was wrong.
    spans: list[tuple[int, int]] = []


class ClockWatch:
    """One meter's. `reference_ns` asks the ledger's server for its time, and may raise: then nothing is learnt."""

    def __init__(
        self,
        folder: Path,
        reference_ns: Callable[[], int],
        *,
        wall_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
    ) -> None:
        """Raises OSError, ValueError: what was remembered cannot be read."""
        self._path = folder / SPANS_FILE
        self._reference_ns = reference_ns
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._memory = _load(self._path)
        #: Both clocks of the host at the last heartbeat; None before the first.
        self._beat_ns: int | None = None
        self._beat_wall_ns = 0
        #: Host's clock less the ledger's at the last heartbeat; None before the first.
        self.skew_ns: int | None = None

    def beat(self) -> None:
        """Compare the clocks, if it is time to: at intervals, and at once when the host's clock stepped.

        Called before records are judged, hence after all of them were stamped, it has seen every step that is in them.
        Raises what `reference_ns` raises, OSError.
        """
        begun_ns, wall_ns = self._monotonic_ns(), self._wall_ns()
        if self._beat_ns is not None:
            stepped_ns = abs((wall_ns - self._beat_wall_ns) - (begun_ns - self._beat_ns))
            if begun_ns - self._beat_ns < BEAT_NS and stepped_ns < STEP_NS:
                return
        reference_ns = self._reference_ns()
        trip_ns = self._monotonic_ns() - begun_ns
        # Half the way there; the rest of the uncertainty counts for the clock.
        self.skew_ns = wall_ns + trip_ns // 2 - reference_ns
        since_last_ns = None if self._beat_ns is None else begun_ns - self._beat_ns
        # The latest that the host's clock can have shown since the last heartbeat, had it gone on until now.
        last_ns = wall_ns if since_last_ns is None else max(wall_ns, self._beat_wall_ns + since_last_ns)
        self._beat_ns, self._beat_wall_ns = begun_ns, wall_ns
        if abs(self.skew_ns) - trip_ns // 2 > SKEW_NS:
            self._on_skewed(0 if since_last_ns is None else max(0, wall_ns - since_last_ns), last_ns)
        elif self._memory.since_ns is not None:
            # Of another meter's last heartbeat only the skew is known: until now it showed at most so much more.
            ahead_ns = max(0, self._memory.skew_ns) if since_last_ns is None else 0
            self._on_right(last_ns + ahead_ns)

    def guard(self, judge: Judge) -> Judge:
        """`judge`, and no call that a wrong clock may have stamped passes it."""
        memory = self._memory
        if memory.since_ns is None and not memory.spans:
            return judge

        def careful(call: Call) -> Verdict | None:
            fault = judge(call)
            return Verdict(CLOCK_SKEWED, "t_ns") if fault is None and self.suspects(served_of(call).t_ns) else fault

        return careful

    def suspects(self, t_ns: int) -> bool:
        """Whether this host's clock was, or may have been, wrong when it showed `t_ns`."""
        since_ns = self._memory.since_ns
        if since_ns is not None and t_ns >= since_ns:
            return True
        return any(start_ns <= t_ns < end_ns for start_ns, end_ns in self._memory.spans)

    def _on_skewed(self, start_ns: int, last_ns: int) -> None:
        """The clock went wrong when it would have shown `start_ns`; 0 before a first heartbeat: nobody knows when."""
        memory = self._memory
        assert self.skew_ns is not None
        if memory.since_ns is None:
            _log.error("clock_skewed: this host is %.0f s off the ledger's clock: its calls wait", self.skew_ns / 1e9)
            memory.since_ns = start_ns
        has_stepped = abs(self.skew_ns - memory.skew_ns) >= STEP_NS
        if has_stepped and start_ns:
            memory.since_ns = min(memory.since_ns, start_ns)  # further back than before
        memory.until_ns = max(memory.until_ns, last_ns)
        if has_stepped:
            memory.skew_ns = self.skew_ns
            self._save()

    def _on_right(self, last_ns: int) -> None:
        """The clock was set right since the last heartbeat; until then it showed `last_ns` at most."""
        memory = self._memory
        assert memory.since_ns is not None
        span = (memory.since_ns, max(memory.until_ns, last_ns) + 1)
        memory.spans = [*memory.spans, span][-SPANS_MAX:]
        memory.since_ns, memory.until_ns, memory.skew_ns = None, 0, 0
        _log.warning("clock_right: it agrees with the ledger's again")
        self._save()

    def _save(self) -> None:
        """Whole or not at all, and on disk before a call is judged by it."""
        made = self._path.with_name(f".{self._path.name}.new")
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as out:
            out.write(msgspec.json.encode(self._memory))
            out.flush()
            os.fsync(out.fileno())
        made.rename(self._path)


def _load(path: Path) -> Memory:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Memory)
    except FileNotFoundError:
        return Memory()
    except msgspec.DecodeError as error:
        raise ValueError(
            f"{path.name}: cannot be read ({error}): restore it, or remove it after a look at it"
        ) from error
