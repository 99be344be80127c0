"""Owns the decision what becomes of each usage record: post, void, quarantine, or wait. Pure; no I/O.

    Served + Sent or Ended      → post (a call is charged once it is known to have been handed to the socket, R8)
    Served + Ended, free cause  → void: the caller got nothing complete, and nobody will ever send it (R8)
    Served, epoch lives         → waits; the watermark stays below it, so after a crash of the meter it is read again
    Served, epoch dead, no mark → void, counted and published (R7: what the caller got is undecidable)
    Served with a fault         → quarantine (R4)
    Progress, its Served decided → nothing more
    Progress, epoch dead before → the last one is posted: its units had been handed to the socket (R6)

One `Intake` per meter process; state is rebuilt from the logs above the watermarks.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from billing.events import Closed, Ended, Progress, Sent, Served
from billing.judge import Verdict
from billing.ledger.port import BATCH_EVENTS_MAX, Batch, Ending, Item, Position, Rejected, Source
from billing.packed import AnyRecord, Call, Packed

Judge = Callable[[Call], Verdict | None]

#: Causes of Ended for which nothing is charged: gone before the record was durable, or our own fault in sending. The
#: log writes both before the Sent of their group, so such a call is never posted first.
FREE_CAUSES: Final = frozenset({"gone_before_durable", "callback_failed"})


class Decided(NamedTuple):
    """What some records decided: calls to post, calls to void, and how exceptions among the posted ones ended."""

    ready: list[tuple[int, Call]]
    freed: list[tuple[int, Call]]
    endings: dict[int, Ending]


class LogPairing:
    """One log's records on their way to a decision: which Served wait for their terminal mark."""

    __slots__ = ("_above", "_served", "_streams", "is_ended", "pending", "seq")

    def __init__(self, position: Position) -> None:
        self.seq = position.seq
        self.is_ended = position.is_ended
        #: Served without a terminal mark yet, ascending by sequence number.
        self.pending: dict[int, Call] = {}
        self._served = position.served
        #: Sequence numbers of Served records above the watermark, decided or not.
        self._above: deque[int] = deque()
        #: Streams whose Served is not decided: call id → number of the first Progress, of the last, and its content.
        self._streams: dict[bytes, tuple[int, int, Served]] = {}

    def feed(self, records: Iterable[tuple[int, AnyRecord]]) -> Decided:
        """Take records in order; returns what they decided."""
        ready: list[tuple[int, Call]] = []
        freed: list[tuple[int, Call]] = []
        endings: dict[int, Ending] = {}
        pending, above, seq = self.pending, self._above, self.seq
        for seq, record in records:
            kind = type(record)
            if kind is Packed or kind is Served:
                pending[seq] = record  # type: ignore[assignment]
                above.append(seq)
            elif isinstance(record, Sent):
                self._release(record, ready)
            elif isinstance(record, Ended):
                # Ended wins over Sent whichever came first; it also says why the reply was cut.
                cut = pending.pop(record.served_seq, None)
                if cut is not None and record.cause in FREE_CAUSES:
                    freed.append((record.served_seq, cut))
                    continue
                endings[record.served_seq] = Ending(record.cause, record.bytes_sent)
                if cut is not None:
                    ready.append((record.served_seq, cut))
            elif isinstance(record, Progress):
                call_id = record.served.call_id
                known = self._streams.get(call_id)
                self._streams[call_id] = (seq if known is None else known[0], seq, record.served)
            else:
                assert isinstance(record, Closed)
        self.seq = seq
        if self._streams:
            for _, call in ready + freed:
                self._streams.pop(call.call_id, None)
        return Decided(ready, freed, endings)

    def end(self, last_seq: int) -> Decided:
        """The epoch is dead and fully read: give up (`freed`) what still waits, but for what streams had delivered."""
        unmarked: list[tuple[int, Call]] = []
        for seq, call in self.pending.items():
            if call.call_id not in self._streams:
                unmarked.append((seq, call))
        waiting = {call.call_id for call in self.pending.values()}
        ready: list[tuple[int, Call]] = []
        for call_id, (_, seq, served) in self._streams.items():
            ready.append((seq, served))
            if call_id not in waiting:
                self._above.append(seq)
        self.pending.clear()
        self._streams.clear()
        self.seq, self.is_ended = max(self.seq, last_seq), True
        return Decided(ready, unmarked, {})

    def position(self) -> Position:
        """The watermark: everything up to it is decided. Never passes the oldest waiting record."""
        above = self._above
        if not self.pending and not self._streams:
            self._served += len(above)
            above.clear()
            return Position(self.seq, self._served, self.is_ended)
        seq = min([first for first, _, _ in self._streams.values()], default=self.seq + 1) - 1
        if self.pending:
            seq = min(seq, next(iter(self.pending)) - 1)
        while above and above[0] <= seq:
            above.popleft()
            self._served += 1
        return Position(seq, self._served, self.is_ended)

    def _release(self, sent: Sent, ready: list[tuple[int, Call]]) -> None:
        pending = self.pending
        if not pending:
            return
        if sent.first_seq <= next(iter(pending)) and next(reversed(pending)) <= sent.last_seq:
            ready.extend(pending.items())
            pending.clear()
            return
        marked = [entry for entry in pending.items() if sent.first_seq <= entry[0] <= sent.last_seq]
        for seq, _ in marked:
            del pending[seq]
        ready.extend(marked)


class Intake:
    """All logs' pairings and what was decided since the last `take_batches`."""

    def __init__(self, positions: Mapping[Source, Position]) -> None:
        self._known = dict(positions)
        self._logs: dict[Source, LogPairing] = {}
        self._touched: set[Source] = set()
        self._ready: list[Item] = []
        self._voids: list[Item] = []
        self._endings: dict[tuple[Source, int], Ending] = {}

    def feed(self, source: Source, records: Iterable[tuple[int, AnyRecord]]) -> None:
        """Take the next records of one log."""
        ready, freed, endings = self._log(source).feed(records)
        self._ready.extend([(source, seq, served) for seq, served in ready])
        self._voids.extend([(source, seq, served) for seq, served in freed])
        self._endings.update({(source, seq): ending for seq, ending in endings.items()})
        self._touched.add(source)

    def end(self, source: Source, last_seq: int) -> None:
        """The log's epoch is dead and everything of it was fed."""
        decided = self._log(source).end(last_seq)
        self._ready.extend([(source, seq, served) for seq, served in decided.ready])
        self._voids.extend([(source, seq, served) for seq, served in decided.freed])
        self._touched.add(source)

    def take_batches(self, judge: Judge, now_ns: int) -> list[Batch]:
        """Everything decided since the last call, as batches to post in order; empty when nothing was.

        Records that only wait and marks that decide nothing are worth no commit: they move the watermark with the next
        decision. Only the last batch carries watermarks: a crash between two batches sends the earlier ones again.
        """
        posts, rejected = self._judge(judge)
        is_ended = any(self._logs[source].is_ended for source in self._touched)
        if not (posts or rejected or self._voids or is_ended):
            return []
        touched = {source: self._logs[source].position() for source in self._touched}
        last = Batch(
            posts=posts[-(len(posts) % BATCH_EVENTS_MAX or BATCH_EVENTS_MAX) :],
            rejected=rejected,
            voids=self._voids,
            positions=touched,
            endings=self._endings,
            now_ns=now_ns,
        )
        whole = len(posts) - len(last.posts)
        batches = [
            Batch(posts=posts[at : at + BATCH_EVENTS_MAX], endings=self._endings, now_ns=now_ns)
            for at in range(0, whole, BATCH_EVENTS_MAX)
        ]
        self._ready, self._voids, self._endings, self._touched = [], [], {}, set()
        for source in [source for source, position in touched.items() if position.is_ended]:
            self._known[source] = touched[source]
            del self._logs[source]
        return [*batches, last]

    def pending(self) -> list[Call]:
        """Served records that wait for their terminal mark."""
        return [served for log in self._logs.values() for served in log.pending.values()]

    def _log(self, source: Source) -> LogPairing:
        log = self._logs.get(source)
        if log is None:
            log = self._logs[source] = LogPairing(self._known.get(source, Position(0, 0)))
        return log

    def _judge(self, judge: Judge) -> tuple[list[Item], list[Rejected]]:
        verdicts = [judge(call) for _, _, call in self._ready]
        if not any(verdicts):
            return self._ready, []
        posts: list[Item] = []
        rejected: list[Rejected] = []
        for item, fault in zip(self._ready, verdicts, strict=True):
            if fault is None:
                posts.append(item)
            else:
                rejected.append(Rejected(item, fault.reason, fault.field))
        return posts, rejected
