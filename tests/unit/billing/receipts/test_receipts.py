"""I25: every posted call has a receipt that holds, heads only append, and no changed field of a receipt passes."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from billing.ledger.connect import open_reader
from billing.ledger.merkle import root_of
from billing.ledger.port import Batch
from billing.ledger.sqlite import SqliteLedger
from billing.receipts.keys import KEYS_MAX, ReceiptKeyError, open_signer, public_keys, rotate
from billing.receipts.prover import make_head, make_receipt, tenant_leaves
from billing.receipts.receipt import (
    BYTES_MAX,
    Receipt,
    ReceiptError,
    decode_receipt,
    encode_receipt,
    verify_head,
    verify_receipt,
)
from gateway.commands.receipts import app
from tests.unit.billing.making import call, items

#: Calls per transaction of "acme": one, part of a block, whole blocks, blocks and a rest.
SIZES = (1, 5, 16, 32, 37)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    opened = SqliteLedger(tmp_path / "ledger.db")
    yield opened
    opened.close()


@pytest.fixture
def data_dir(ledger: SqliteLedger, tmp_path: Path) -> Path:
    at = 1
    for size in SIZES:
        ledger.post(Batch(posts=[*items(range(at, at + size)), *items([at], tenant="beta")], now_ns=5))
        at += size
    return tmp_path


def receipt_of(data_dir: Path, number: int, tenant: str = "acme") -> Receipt | None:
    db = open_reader(data_dir / "ledger.db")
    try:
        return make_receipt(db, tenant, call(number).call_id, open_signer(data_dir), 77)
    finally:
        db.close()


def some(data_dir: Path, number: int = 50) -> Receipt:
    found = receipt_of(data_dir, number)
    assert found is not None
    return found


def test_every_posted_call_has_a_receipt_that_holds(data_dir: Path) -> None:
    for number in range(1, sum(SIZES) + 1):
        receipt = decode_receipt(encode_receipt(some(data_dir, number)))
        assert verify_receipt(receipt, public_keys(data_dir)) == call(number)


def test_tenant_gets_receipts_of_its_own_calls_only(data_dir: Path) -> None:
    assert receipt_of(data_dir, 3, "beta") is None
    assert receipt_of(data_dir, 9_999) is None
    own = receipt_of(data_dir, 1, "beta")
    assert own is not None
    assert verify_receipt(own, public_keys(data_dir)).tenant == "beta"


def changed(value: Any) -> list[Any]:
    """Other values of the same kind."""
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, str):
        return [value[:-1] + ("0" if value[-1] != "0" else "1"), value[2:], ""]
    return [value[:-1], (*value, value[-1]), (changed(value[0])[0], *value[1:]), tuple(reversed(value))]


def test_no_changed_field_passes(data_dir: Path) -> None:
    receipt, keys = some(data_dir), public_keys(data_dir)
    verify_receipt(receipt, keys)
    forged = [
        msgspec.structs.replace(receipt, **{field: other})
        for field in receipt.__struct_fields__
        if field != "head"
        for other in changed(getattr(receipt, field))
        if other != getattr(receipt, field)
    ]
    forged += [
        msgspec.structs.replace(receipt, head=msgspec.structs.replace(receipt.head, **{field: other}))
        for field in receipt.head.__struct_fields__
        for other in changed(getattr(receipt.head, field))
    ]
    assert len(forged) > 40
    for one in forged:
        with pytest.raises(ReceiptError):
            verify_receipt(one, keys)


def test_each_changed_fact_of_the_call_is_found(data_dir: Path) -> None:
    receipt = some(data_dir)
    record = bytes.fromhex(receipt.records[receipt.place])
    for at in range(len(record)):
        other = record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :]
        records = (*receipt.records[: receipt.place], other.hex(), *receipt.records[receipt.place + 1 :])
        with pytest.raises(ReceiptError):
            verify_receipt(msgspec.structs.replace(receipt, records=records), public_keys(data_dir))


def test_heads_only_append(ledger: SqliteLedger, data_dir: Path) -> None:
    db, signer = open_reader(data_dir / "ledger.db"), open_signer(data_dir)
    heads = [make_head(db, "acme", signer, 1)]
    for number in (500, 501, 502):
        ledger.post(Batch(posts=items([number]), now_ns=6))
        heads.append(make_head(db, "acme", signer, 2))
    assert [head.size for head in heads] == [5, 6, 7, 8]
    leaves = tenant_leaves(db, "acme")
    assert [root_of(leaves[: head.size]).hex() for head in heads] == [head.root for head in heads]
    db.close()


def test_rotated_key_signs_and_the_old_one_stays_valid(data_dir: Path) -> None:
    old = some(data_dir)
    signer = rotate(data_dir)
    new = some(data_dir)
    assert (old.head.key_id != new.head.key_id, new.head.key_id) == (True, signer.key_id)
    for receipt in (old, new):
        verify_receipt(receipt, public_keys(data_dir))
    with pytest.raises(ReceiptError, match="none of the known keys"):
        verify_receipt(old, {signer.key_id: signer.public})
    with pytest.raises(ReceiptError, match="none of the known keys"):
        verify_head(old.head, {old.head.key_id: signer.public})
    assert len(list((data_dir / "receipts").glob("*.key"))) == 1


def test_secret_key_is_private_and_a_damaged_or_open_one_is_refused(data_dir: Path) -> None:
    signer = open_signer(data_dir)
    path = data_dir / "receipts" / f"{signer.key_id}.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    with pytest.raises(ReceiptKeyError, match="others can read it"):
        open_signer(data_dir)
    path.chmod(0o600)
    path.write_bytes(b"x" * 32)
    with pytest.raises(ReceiptKeyError, match="another key"):
        open_signer(data_dir)
    path.write_bytes(b"x")
    with pytest.raises(ReceiptKeyError, match="1 bytes"):
        open_signer(data_dir)


@pytest.mark.parametrize("damage", ["zz", "00" * 32])
def test_damaged_public_key_is_named(data_dir: Path, damage: str) -> None:
    path = data_dir / "receipts" / f"{open_signer(data_dir).key_id}.pub"
    path.write_text(damage)
    with pytest.raises(ReceiptKeyError, match=path.name):
        public_keys(data_dir)


@pytest.mark.parametrize("data", [b"", b"{}", b"[", b"\xff", b"x" * (BYTES_MAX + 1), b'{"version": 1, "extra": 2}'])
def test_what_is_no_receipt_is_refused(data: bytes) -> None:
    with pytest.raises(ReceiptError):
        decode_receipt(data)


def test_command_verifies_a_receipt_with_nothing_else(data_dir: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    made = encode_receipt(some(data_dir, 0x32)).decode()
    file = tmp_path / "receipt.json"
    file.write_text(made)
    key = open_signer(data_dir).public
    good = runner.invoke(app, ["verify", str(file), "--public-key", key.hex()])
    assert (good.exit_code, "acme" in good.output) == (0, True), good.output
    assert runner.invoke(app, ["verify", str(file), "--public-key", "00" * 32]).exit_code == 1
    forged = made.replace('"place":1', '"place":2')
    assert forged != made
    file.write_text(forged)
    assert runner.invoke(app, ["verify", str(file), "--public-key", key.hex()]).exit_code == 1


def test_keys_are_made_up_to_the_limit(data_dir: Path) -> None:
    folder = data_dir / "receipts"
    folder.mkdir(mode=0o700)
    for number in range(KEYS_MAX - 1):
        (folder / f"{number:016x}.pub").touch()
    rotate(data_dir)
    with pytest.raises(ReceiptKeyError, match="1000 keys"):
        rotate(data_dir)
