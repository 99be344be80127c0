"""Owns a second copy of the usage logs for the judge: hard links to every segment, made while the system runs.

The meter deletes what it has posted; a link keeps the bytes. What is read from here owes nothing to the meter's own
bookkeeping: which calls were recorded, and which of them got a terminal mark.
"""

import contextlib
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from billing.events import Ended, Progress, Sent, Served
from billing.usagelog.reader import Batch, Damaged, UsageReader

_EVERY_S: Final = 0.02


@dataclass(slots=True)
class Recorded:
    """One epoch as its bytes tell it."""

    served: dict[int, Served] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    ended: dict[int, Ended] = field(default_factory=dict)
    progress: list[Progress] = field(default_factory=list)

    def is_marked(self, seq: int) -> bool:
        return seq in self.ended or any(mark.first_seq <= seq <= mark.last_seq for mark in self.sent)


class Archive:
    """Links segments from `root` into `folder` until `stop`."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root = root
        self.folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take what is there now and end."""
        self._stop.set()
        self._thread.join()
        self._take()

    def read(self) -> dict[tuple[str, int], Recorded]:
        """Every record of every epoch. Raises AssertionError when a log is damaged."""
        epochs: dict[tuple[str, int], Recorded] = {}
        reader = UsageReader(self.folder, is_owner=False)
        try:
            while (result := reader.read_batch()) is not None:
                assert not isinstance(result, Damaged), result
                if isinstance(result, Batch):
                    _feed(epochs.setdefault((result.instance, result.epoch), Recorded()), result)
        finally:
            reader.close()
        return epochs

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._take()

    def _take(self) -> None:
        for folder in self._root.glob("*/*"):
            if not folder.name.isdecimal():
                continue
            target = self.folder / folder.parent.name / folder.name
            target.mkdir(parents=True, exist_ok=True)
            # Between the look and the link the meter may delete the folder, or this process may have linked it before.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for name in os.listdir(folder):
                    if not (target / name).exists():
                        with contextlib.suppress(FileNotFoundError):
                            os.link(folder / name, target / name)


def _feed(recorded: Recorded, batch: Batch) -> None:
    for seq, record in batch.records:
        if isinstance(record, Served):
            recorded.served[seq] = record
        elif isinstance(record, Sent):
            recorded.sent.append(record)
        elif isinstance(record, Ended):
            recorded.ended[record.served_seq] = record
        elif isinstance(record, Progress):
            recorded.progress.append(record)
