"""Owns how long walks over posted events are cut: a statement at a time, so that the meter can commit in between.

With a rollback journal a reader holds the meter off for as long as its statement runs.
"""

import sqlite3
from collections.abc import Iterator
from typing import Final

PAGE_EVENTS: Final = 100_000


def event_pages(
    db: sqlite3.Connection, since_ns: int, until_ns: int, *, page_events: int = PAGE_EVENTS
) -> Iterator[tuple[int, int]]:
    """Ranges of event ids, (first, last) both included, that hold every event posted so far in [since_ns, until_ns)."""
    first, last = db.execute(
        "SELECT MIN(first_event_id), MAX(first_event_id + event_count - 1) FROM journal_tx"
        " WHERE kind = 'usage' AND event_count > 0 AND t_max_ns >= ? AND t_min_ns < ?",
        (since_ns, until_ns),
    ).fetchone()
    if first is None:
        return
    for start in range(first, last + 1, page_events):
        yield start, min(last, start + page_events - 1)
