"""Owns how heads come to be published, by rounds and on demand, and receipts and proofs under published heads.

Control computes and signs, the meter stores; only what is stored is given out, so no two histories can be told apart by
chance. Before a tree is signed again it must still begin with the tree that was signed last.
"""

import logging
import os
import sqlite3
from pathlib import Path
from typing import Final

import msgspec

from billing.invoices.store import get_document
from billing.ledger.merkle import root_of
from billing.receipts.bill import BillProof, make_proof
from billing.receipts.heads import (
    PUBLISH_MAX,
    Consistency,
    find_head,
    newest_heads,
    sign_head,
)
from billing.receipts.keys import ReceiptKeyError, Signer, open_signer
from billing.receipts.prover import new_leaves, receipt_under, tenant_leaves, tree_size
from billing.receipts.receipt import Head, Receipt
from billing.receipts.tree import Frontier, consistency_path
from gateway.control.errors import ControlCode, ControlError, invalid, not_found
from gateway.control.money import Money
from gateway.control.registry import Registry

ROUND_S: Final = 60.0
#: Transactions that a round reads at once: short queries, so that the meter is not held up.
READ_MAX: Final = 20_000
#: Calls of a tenant in a proof that control makes; larger ones are made beside it (`tollway receipts bill --local`).
PROOF_CALLS_MAX: Final = 100_000
_VERB: Final = "receipts.publish"
_log = logging.getLogger("tollway.control")


class Receipts:
    """Heads, receipts and proofs of one data directory. Blocking, for worker threads."""

    def __init__(self, money: Money, registry: Registry, data_dir: Path) -> None:
        self._money = money
        self._now_ns = registry.clock.wall_ns
        self._data_dir = data_dir

    def head(self, tenant: str) -> Head:
        """A published head over all that is posted of `tenant`. Raises ControlError: nothing is, or it is broken."""
        known, size = self._money.read(lambda db: (find_head(db, tenant), tree_size(db, tenant)), tenant=tenant)
        if known is not None and known.size >= size:
            return known
        if not size:
            raise not_found("posted call of", tenant)
        leaves = self._money.read(lambda db: tenant_leaves(db, tenant), tenant=tenant)
        if known is not None and root_of(leaves[: known.size]).hex() != known.root:
            _log.error("tree_head_broken tenant=%s size=%d", tenant, known.size)
            raise ControlError(ControlCode.CONFLICT, f"the books of {tenant!r} differ from the head of {known.size}")
        signer = signer_of(self._data_dir)
        made = sign_head(tenant, len(leaves), root_of(leaves), signer, self._now_ns())
        return publish(self._money, signer, [made])[0]

    def receipt(self, tenant: str, call_id: bytes) -> Receipt:
        """The receipt of a posted call. Raises ControlError: `tenant` has no such call."""
        head = self.head(tenant)
        found = self._money.read(lambda db: receipt_under(db, head, call_id), tenant=tenant)
        if found is None:
            raise not_found("posted call", call_id.hex())
        return found

    def consistency(self, tenant: str, first: int, second: int | None) -> Consistency:
        """The path from one published head to another, or to one over all calls. Raises ControlError."""
        newer = self.head(tenant) if second is None else self._published(tenant, second)
        older = self._published(tenant, first)
        if older.size > newer.size:
            raise invalid(f"first: {first} is more than second, {newer.size}")
        leaves = self._money.read(lambda db: tenant_leaves(db, tenant), tenant=tenant)[: newer.size]
        path = tuple(node.hex() for node in consistency_path(leaves, older.size))
        return Consistency(first=older, second=newer, path=path)

    def proof(self, name: str, *, tenant: str | None = None) -> BillProof:
        """The proof of an invoice, of `tenant` only if given. Raises ControlError."""
        document = self._money.read(lambda db: get_document(db, name), tenant=tenant)
        if tenant is not None and document.tenant != tenant:
            raise not_found("invoice", name)
        head, signer = self.head(document.tenant), signer_of(self._data_dir)
        if head.key_id != signer.key_id:
            # A proof is signed by its head's key. After a rotation: the published tree once more, by the new key.
            head = sign_head(head.tenant, head.size, bytes.fromhex(head.root), signer, self._now_ns())

        def make(db: sqlite3.Connection) -> BillProof:
            return make_proof(db, document, signer, self._now_ns(), head, PROOF_CALLS_MAX)

        return self._money.read(make, tenant=document.tenant)

    def _published(self, tenant: str, size: int) -> Head:
        found = self._money.read(lambda db: find_head(db, tenant, size), tenant=tenant)
        if found is None:
            raise not_found("published head of size", str(size))
        return found


class HeadRounds:
    """Publishes a head for every tenant whose tree grew. `tick` is one round; blocking, for a worker thread."""

    def __init__(self, money: Money, registry: Registry, data_dir: Path) -> None:
        self._money = money
        self._now_ns = registry.clock.wall_ns
        self._data_dir = data_dir
        self._frontiers: dict[str, Frontier] = {}
        self._last_tx_id = 0
        #: (size, root) published before this process; what is read anew must pass through it.
        self._before: dict[str, tuple[int, str]] | None = None
        self._grown: set[str] = set()
        #: Tenants whose books differ from what was signed: never signed again by us.
        self.broken: set[str] = set()

    def tick(self) -> int:
        """How many heads were published."""
        try:
            self._read()
            return self._publish()
        except ControlError as error:
            # Without a ledger, or while the meter restarts, there is nothing to do; the next round comes.
            _log.debug("heads_wait code=%s", error.code)
            return 0

    def _read(self) -> None:
        if self._before is None:
            self._before = self._money.read(newest_heads)
        while True:
            last = self._last_tx_id
            found = self._money.read(lambda db, last=last: new_leaves(db, last, READ_MAX))  # type: ignore[misc]  # mypy infers no lambda with a default
            for tx_id, tenant, leaf in found:
                self._take(self._before, tenant, leaf)
                self._last_tx_id = tx_id
            if len(found) < READ_MAX:
                return

    def _take(self, before: dict[str, tuple[int, str]], tenant: str, leaf: bytes) -> None:
        frontier = self._frontiers.setdefault(tenant, Frontier())
        frontier.append(leaf)
        size, root = before.get(tenant, (0, ""))
        if frontier.size == size and frontier.root.hex() != root:
            _log.error("tree_head_broken tenant=%s size=%d", tenant, size)
            self.broken.add(tenant)
        if frontier.size > size:
            self._grown.add(tenant)
        else:
            self._grown.discard(tenant)

    def _publish(self) -> int:
        done = 0
        waiting = sorted(self._grown - self.broken)
        if not waiting:
            return 0
        signer = signer_of(self._data_dir)
        for at in range(0, len(waiting), PUBLISH_MAX):
            part = waiting[at : at + PUBLISH_MAX]
            trees = [(tenant, self._frontiers[tenant]) for tenant in part]
            publish(
                self._money,
                signer,
                [sign_head(tenant, tree.size, tree.root, signer, self._now_ns()) for tenant, tree in trees],
            )
            self._grown.difference_update(part)
            done += len(part)
        return done


def publish(money: Money, signer: Signer, heads: list[Head]) -> list[Head]:
    """Store `heads`; what is stored of each tenant now. Raises ControlError."""
    body = {"public_key": signer.public.hex(), "heads": msgspec.to_builtins(heads)}
    answer = money.run_unaudited(_VERB, f"heads:{os.urandom(16).hex()}", body)
    return msgspec.convert(answer["heads"], list[Head])


def signer_of(data_dir: Path) -> Signer:
    """The current key. Raises ControlError; the log says what is wrong with the files."""
    try:
        return open_signer(data_dir)
    except (ReceiptKeyError, OSError) as error:
        _log.error("receipt_keys_unusable: %s", error)
        message = "receipts cannot be signed now: control's log says why"
        raise ControlError(ControlCode.UNAVAILABLE, message, retry_after_s=60) from error
