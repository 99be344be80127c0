"""Owns the group commit's thread: it waits for the disk where the kernel cannot sync for the loop (`loop_flusher`)."""

import queue

from gateway.metering.group_commit import GroupCommit, Message


class Flusher:
    """Drives `commit` with what comes through `inbox`, on its own thread; `commit` calls everything there."""

    def __init__(self, commit: GroupCommit, inbox: queue.SimpleQueue[Message]) -> None:
        self.inbox = inbox
        self._commit = commit

    @property
    def is_running(self) -> bool:
        return self._commit.is_running

    def run(self) -> None:
        """The thread: until an End or an error."""
        while self._commit.is_running:
            self.step()

    def step(self) -> None:
        """Wait for a message, take all that are there, write and sync."""
        commit, inbox = self._commit, self.inbox
        try:
            commit.take(inbox.get())
            while not inbox.empty():
                commit.take(inbox.get())
            while commit.begin():
                commit.writer.sync()
                commit.complete()
        except Exception as error:  # noqa: BLE001 - whatever it is, see `GroupCommit.fail`
            commit.fail(error)
