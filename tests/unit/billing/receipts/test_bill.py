"""I26: `verify-bill` accepts honest invoices and no other: not one changed field of the invoice or of its proof."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from billing.events import decode, encode
from billing.invoices.document import Document
from billing.ledger.merkle import blocks_of, merkle_root, root_of
from billing.ledger.port import LedgerError
from billing.receipts import bill
from billing.receipts.bill import BillProof, decode_invoice, decode_proof, make_proof, verify_bill
from billing.receipts.keys import Signer, open_signer, public_keys
from billing.receipts.receipt import ReceiptError, head_message, transaction_leaf
from gateway.cli import build_app
from tests.unit.billing.invoices.office import MONTH_END_NS, Office, open_office
from tests.unit.billing.making import T0_NS


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with open_office(tmp_path) as opened:
        opened.set_up()
        yield opened


def bill_one(office: Office) -> Document:
    """Two invoices: the second has late calls of the first one's month, calls of its own, an item; the second's."""
    office.post_usage(40)
    office.bill()
    office.post_usage(3, t_ns=T0_NS + 5)
    office.post_usage(20, model="file_type", t_ns=MONTH_END_NS + 7)
    office.post_usage(2, outcome=1, t_ns=MONTH_END_NS + 9)
    office.post_usage(4, t_ns=MONTH_END_NS * 2)
    item = {"tenant": "acme", "source": "credit", "kind": "adjustment", "description": "credit", "amount_nanos": -1}
    office.do("item.add", item)
    office.now_ns = MONTH_END_NS + 40 * 86_400 * 10**9
    return office.document(office.bill(until_ns=MONTH_END_NS + 30 * 86_400 * 10**9)["number"])


def test_honest_bills_are_accepted_to_the_last_late_call(office: Office, tmp_path: Path) -> None:
    document = bill_one(office)
    proof = decode_proof(msgspec.json.encode(make_proof(office.reader, document, open_signer(tmp_path), 9)))
    assert verify_bill(document, proof, public_keys(tmp_path)) == 25
    (first, *_) = office.reader.execute("SELECT number FROM invoice ORDER BY serial").fetchone()
    earlier = office.document(first)
    assert (
        verify_bill(earlier, make_proof(office.reader, earlier, open_signer(tmp_path), 9), public_keys(tmp_path)) == 40
    )


def mutations(value: Any) -> Iterator[Any]:
    """`value` (JSON) with one leaf changed, one list member more or fewer."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ({**value, key: other} for other in mutations(inner))
    elif isinstance(value, list):
        for at, inner in list(enumerate(value))[:3]:
            yield from ([*value[:at], other, *value[at + 1 :]] for other in mutations(inner))
        if value:
            yield value[:-1]
            yield [*value, value[-1]]
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
    elif isinstance(value, str):
        yield value[:-1] + ("0" if value[-1:] != "0" else "1")


def refuses(document: bytes, proof: bytes, keys: dict[str, bytes]) -> bool:
    try:
        verify_bill(decode_invoice(document), decode_proof(proof), keys)
    except ReceiptError:
        return True
    return False


def test_no_changed_field_of_invoice_or_proof_passes(office: Office, tmp_path: Path) -> None:
    document = bill_one(office)
    proof = make_proof(office.reader, document, open_signer(tmp_path), 9)
    keys = public_keys(tmp_path)
    invoice, proven = msgspec.json.encode(document), msgspec.json.encode(proof)
    assert not refuses(invoice, proven, keys)
    forged_invoices = [msgspec.json.encode(one) for one in mutations(msgspec.json.decode(invoice))]
    forged_proofs = [msgspec.json.encode(one) for one in mutations(msgspec.json.decode(proven))]
    assert len(forged_invoices) > 60
    assert len(forged_proofs) > 30
    assert [one for one in forged_invoices if not refuses(one, proven, keys)] == []
    assert [one for one in forged_proofs if not refuses(invoice, one, keys)] == []


def resigned(document: Document, proof: BillProof, signer: Signer) -> BillProof:
    """The proof as a dishonest operator would sign it: tree, head and statement made anew over what it says."""
    leaves = []
    for one in proof.transactions:
        records = [bytes.fromhex(record) for record in one.records]
        leaves.append(transaction_leaf(one.tx_id, len(records), one.leaf_version, merkle_root(blocks_of(records))))
    head = msgspec.structs.replace(proof.head, size=len(leaves), root=root_of(leaves).hex())
    head = msgspec.structs.replace(head, signature=signer.sign(head_message(head)).hex())
    proof = msgspec.structs.replace(proof, head=head)
    return msgspec.structs.replace(proof, signature=signer.sign(bill._statement(document, proof)).hex())


def with_record(proof: BillProof, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> BillProof:
    first, *rest = proof.transactions
    for at, one in enumerate(rest):
        if len(one.records) == 20:
            rest[at] = msgspec.structs.replace(one, records=change(one.records))
    return msgspec.structs.replace(proof, transactions=(first, *rest))


@pytest.mark.parametrize("forgery", ["extra leaf", "changed units", "changed price", "missing credit", "missing call"])
def test_even_the_signer_cannot_sign_a_wrong_bill(office: Office, tmp_path: Path, forgery: str) -> None:
    document, signer = bill_one(office), open_signer(tmp_path)
    proof, keys = make_proof(office.reader, document, signer, 9), public_keys(tmp_path)
    assert verify_bill(document, resigned(document, proof, signer), keys) == 25
    if forgery == "extra leaf":
        proof = with_record(proof, lambda records: (*records, records[-1]))
    elif forgery == "missing call":
        proof = with_record(proof, lambda records: records[:-1])
    elif forgery == "changed units":

        def more_rows(records: tuple[str, ...]) -> tuple[str, ...]:
            served: Any = decode(bytes.fromhex(records[0]))
            return (encode(msgspec.structs.replace(served, rows=served.rows + 1)).hex(), *records[1:])

        proof = with_record(proof, more_rows)
    elif forgery == "changed price":
        assert "20000" in proof.prices[0]
        proof = msgspec.structs.replace(proof, prices=(proof.prices[0].replace("20000", "20001"),))
    else:
        document = msgspec.structs.replace(document, lines=document.lines[:-1], total_minor=document.total_minor + 1)
    with pytest.raises(ReceiptError):
        verify_bill(document, resigned(document, proof, signer), keys)


def test_commands_prove_and_verify(office: Office, tmp_path: Path) -> None:
    document = bill_one(office)
    invoice, proof = tmp_path / "invoice.json", tmp_path / "proof.json"
    runner = CliRunner()
    made = runner.invoke(
        build_app("receipts"), ["receipts", "bill", document.number, "--local", "--data-dir", str(tmp_path)]
    )
    assert made.exit_code == 0, made.output
    proof.write_text(made.output)
    invoice.write_bytes(msgspec.json.encode({"document": document, "state": {}}))
    key = open_signer(tmp_path).public.hex()
    command = ["verify-bill", str(invoice), "--receipts", str(proof), "--public-key", key]
    good = runner.invoke(build_app("verify-bill"), command)
    assert (good.exit_code, "25 calls" in good.output) == (0, True), good.output
    invoice.write_bytes(msgspec.json.encode(msgspec.structs.replace(document, number="INV-999999")))
    assert runner.invoke(build_app("verify-bill"), command).exit_code == 1
    for damaged in (b"", b"[]", b"{}", hashlib.sha256(b"x").digest()):
        invoice.write_bytes(damaged)
        assert runner.invoke(build_app("verify-bill"), command).exit_code == 1


def test_only_a_finalized_invoice_over_usage_has_a_proof(office: Office, tmp_path: Path) -> None:
    document = msgspec.structs.replace(bill_one(office), cut=None)
    with pytest.raises(LedgerError, match="finalized invoice"):
        make_proof(office.reader, document, open_signer(tmp_path), 9)
