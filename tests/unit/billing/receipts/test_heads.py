"""Published heads (I25): trees that grow, stored once and for ever, and that two of them can be compared offline."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from billing.invoices.assemble import InvoiceError
from billing.ledger.merkle import EMPTY_ROOT, root_of
from billing.receipts.heads import (
    PUBLISH_MAX,
    Consistency,
    decode_consistency,
    decode_head,
    find_head,
    list_heads,
    newest_heads,
    sign_head,
    verify_consistency,
)
from billing.receipts.keys import Signer, open_signer, public_keys, rotate
from billing.receipts.receipt import Head, ReceiptError
from billing.receipts.tree import Frontier, consistency_path, is_consistent
from gateway.commands.receipts import app
from tests.unit.billing.invoices.office import Office

LEAVES = [hashlib.sha256(bytes([number])).digest() for number in range(70)]
OTHER = hashlib.sha256(b"other").digest()


def test_frontier_is_the_tree_at_every_size() -> None:
    frontier = Frontier()
    assert frontier.root == EMPTY_ROOT
    for size, leaf in enumerate(LEAVES, 1):
        frontier.append(leaf)
        assert (frontier.size, frontier.root) == (size, root_of(LEAVES[:size]))


@pytest.mark.parametrize("second", [1, 2, 3, 7, 8, 33, 70])
def test_every_earlier_tree_is_shown_to_be_the_beginning_and_nothing_else_is(second: int) -> None:
    whole = root_of(LEAVES[:second])
    for first in range(1, second + 1):
        path, root = consistency_path(LEAVES[:second], first), root_of(LEAVES[:first])
        assert is_consistent(first, root, second, whole, path)
        wrong: list[tuple[int, bytes, int, bytes, list[bytes]]] = [
            (first, OTHER, second, whole, path),
            (first, root, second, OTHER, path),
            (first, root, second, whole, [*path, OTHER]),
            (second + 1, root, second, whole, path),
            (0, root, second, whole, path),
        ]
        if path:
            wrong += [
                (first, root, second, whole, path[:-1]),
                (first, root, second, whole, [OTHER, *path[1:]]),
                (first, root, second, whole, [*path[:-1], OTHER]),
            ]
        assert not any(is_consistent(*one) for one in wrong), (first, second)


def test_a_leaf_changed_later_breaks_every_path_from_before() -> None:
    chance = random.Random(7)
    for _ in range(100):
        second = chance.randint(2, len(LEAVES))
        first = chance.randint(1, second - 1)
        changed = list(LEAVES[:second])
        changed[chance.randrange(first)] = OTHER
        path = consistency_path(changed, first)
        assert not is_consistent(first, root_of(LEAVES[:first]), second, root_of(changed), path)


@pytest.mark.parametrize("first", [0, -1, 4])
def test_there_is_no_path_from_what_is_no_part(first: int) -> None:
    with pytest.raises(IndexError):
        consistency_path(LEAVES[:3], first)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path / "ledger.db")
    yield opened
    opened.close()


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return open_signer(tmp_path)


def head(signer: Signer, size: int, tenant: str = "acme") -> Head:
    return sign_head(tenant, size, root_of(LEAVES[:size]), signer, 1_000 + size)


def publish(office: Office, signer: Signer, *heads: Head) -> list[Head]:
    body = {"public_key": signer.public.hex(), "heads": msgspec.to_builtins(heads)}
    return msgspec.convert(office.do("receipts.publish", body)["heads"], list[Head])


def test_heads_are_stored_once_and_the_stored_one_is_answered(office: Office, signer: Signer) -> None:
    first = head(signer, 3)
    assert publish(office, signer, first, head(signer, 2, "beta")) == [first, head(signer, 2, "beta")]
    again = sign_head("acme", 3, root_of(LEAVES[:3]), signer, 9_999)
    assert publish(office, signer, again) == [first]
    grown = head(signer, 5)
    assert publish(office, signer, grown) == [grown]
    assert publish(office, signer, head(signer, 4)) == [grown]  # somebody was quicker
    assert list_heads(office.reader, "acme", after=0, limit=10) == [first, grown]
    assert list_heads(office.reader, "acme", after=3, limit=10) == [grown]
    assert find_head(office.reader, "acme") == grown
    assert find_head(office.reader, "acme", 4) is None
    assert newest_heads(office.reader) == {"acme": (5, grown.root), "beta": (2, head(signer, 2).root)}


def test_two_histories_are_never_published(office: Office, signer: Signer) -> None:
    publish(office, signer, head(signer, 3))
    with pytest.raises(InvoiceError, match="another root at size 3") as caught:
        publish(office, signer, sign_head("acme", 3, OTHER, signer, 5))
    assert caught.value.code == "conflict"


def test_what_is_not_signed_so_is_not_stored(office: Office, signer: Signer, tmp_path: Path) -> None:
    good = head(signer, 3)
    other = rotate(tmp_path)
    for bad in (
        msgspec.structs.replace(good, size=4),
        msgspec.structs.replace(good, tenant="beta"),
        msgspec.structs.replace(good, signature=""),
        head(other, 3),
    ):
        with pytest.raises(InvoiceError, match="heads: "):
            publish(office, signer, bad)
    with pytest.raises(InvoiceError, match="no calls"):
        publish(office, signer, sign_head("acme", 0, EMPTY_ROOT, signer, 5))
    with pytest.raises(InvoiceError, match="not hex"):
        office.do("receipts.publish", {"public_key": "zz", "heads": []})
    with pytest.raises(InvoiceError, match=f"at most {PUBLISH_MAX}"):
        publish(office, signer, *[good] * (PUBLISH_MAX + 1))
    assert publish(office, signer, *[good] * PUBLISH_MAX) == [good] * PUBLISH_MAX
    assert list_heads(office.reader, "acme", after=0, limit=10) == [good]


@pytest.mark.parametrize("statement", ["UPDATE tree_head SET root = 'x'", "DELETE FROM tree_head"])
def test_published_heads_cannot_be_changed(office: Office, signer: Signer, statement: str) -> None:
    publish(office, signer, head(signer, 3))
    with pytest.raises(Exception, match="append-only"), office.ledger.journal() as journal:
        journal.execute(statement)


def proof(signer: Signer, first: int = 3, second: int = 5) -> Consistency:
    path = tuple(node.hex() for node in consistency_path(LEAVES[:second], first))
    return Consistency(first=head(signer, first), second=head(signer, second), path=path)


def test_a_holder_of_a_head_checks_offline_that_books_continue(signer: Signer, tmp_path: Path) -> None:
    old, keys = head(signer, 3), public_keys(tmp_path)
    assert verify_consistency(decode_consistency(msgspec.json.encode(proof(signer))), old, keys) == 2
    newer = rotate(tmp_path)
    rotated = msgspec.structs.replace(proof(signer), second=head(newer, 5))
    assert verify_consistency(rotated, old, public_keys(tmp_path)) == 2


def test_no_changed_field_of_a_consistency_proof_passes(signer: Signer, tmp_path: Path) -> None:
    old, keys, good = head(signer, 3), public_keys(tmp_path), proof(signer)
    bad: list[dict[str, Any]] = [
        {"version": 2},
        {"first": head(signer, 2)},
        {"first": sign_head("acme", 3, OTHER, signer, 5)},
        {"second": head(signer, 6)},
        {"second": head(signer, 5, "beta")},
        {"second": sign_head("acme", 5, OTHER, signer, 5)},
        {"second": msgspec.structs.replace(good.second, signature="00" * 64)},
        {"path": good.path[:-1]},
        {"path": ("zz",)},
        {"path": tuple(reversed(good.path))},
    ]
    for fields in bad:
        with pytest.raises(ReceiptError):
            verify_consistency(msgspec.structs.replace(good, **fields), old, keys)
    with pytest.raises(ReceiptError, match="none of the known keys"):
        verify_consistency(good, old, {})


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"head": 3}', b'{"tenant": "x"}'])
def test_what_is_no_head_and_no_proof_is_refused(data: bytes) -> None:
    with pytest.raises(ReceiptError):
        decode_head(data)
    with pytest.raises(ReceiptError):
        decode_consistency(data)


def test_command_compares_a_head_or_a_receipt_s_head(signer: Signer, tmp_path: Path) -> None:
    held, newer = tmp_path / "held.json", tmp_path / "newer.json"
    newer.write_bytes(msgspec.json.encode(proof(signer)))
    for content in (head(signer, 3), {"head": head(signer, 3), "version": 1}):
        held.write_bytes(msgspec.json.encode(content))
        words = ["compare", str(held), str(newer), "--public-key", signer.public.hex()]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        assert "transactions_since" in result.output
    held.write_bytes(msgspec.json.encode(head(signer, 4)))
    assert CliRunner().invoke(app, words).exit_code == 1
