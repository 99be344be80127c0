"""Owns the seam between a quota owner and the store that several hosts share: batches of script runs there and back."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from gateway.quota.store_words import Argument


class StoreUnavailable(Exception):
    """The store cannot be asked: unreachable, too slow, read-only, full, or it refuses us. Names no secret."""


class Command(NamedTuple):
    """One run of the script about `tenant` ("" for what concerns the whole host)."""

    operation: str
    tenant: str
    arguments: list[Argument]


class CommandFailed(NamedTuple):
    """The store's error reply to one command; nothing was changed by it."""

    text: str


Reply = Sequence[Any] | CommandFailed


class StoreLink(Protocol):
    """One connection. Nothing else uses it while `run` waits."""

    async def open(self) -> str:
        """Connect; returns what identifies this run of the server. Raises StoreUnavailable."""

    async def run(self, session: str, epoch: str, commands: Sequence[Command]) -> list[Reply]:
        """Run the commands in order, one round trip; replies in order.

        Raises StoreUnavailable, after which any of them may have been done and the link is closed.
        """

    async def close(self) -> None:
        """Never raises."""
