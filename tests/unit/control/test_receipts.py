"""Receipts by control: published before they are given, verified by anyone, each tenant's own, and never signed anew
over books that changed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from billing.invoices.document import Document
from billing.receipts.bill import decode_proof, verify_bill
from billing.receipts.heads import decode_consistency, decode_head, verify_consistency
from billing.receipts.keys import open_signer, public_keys
from billing.receipts.receipt import decode_receipt, verify_receipt
from gateway.control import receipts as receipts_module
from gateway.control.errors import ControlCode, ControlError
from gateway.control.money import Money
from gateway.control.receipts import HeadRounds
from tests.unit.billing.invoices.office import ACCOUNT, MONTH_END_NS, SELLER, Office
from tests.unit.control.billing_desk import meter_of
from tests.unit.control.support import Desk


@pytest.fixture
def office(desk: Desk) -> Iterator[Office]:
    with meter_of(desk) as opened:
        opened.do("seller.set", SELLER)
        for tenant in ("acme", "beta"):
            desk.new_tenant(tenant, plan="pay-per-call")
            opened.do("account.set", ACCOUNT | {"tenant": tenant})
            opened.post_usage(40, tenant=tenant)
        yield opened


def rounds(desk: Desk) -> HeadRounds:
    money = Money(desk.data_dir, desk.control.registry, desk.app.state.ask_meter)
    return HeadRounds(money, desk.control.registry, desk.data_dir)


def must(desk: Desk, path: str, **query: Any) -> bytes:
    answer = desk.ask("GET", path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.content


def sizes(desk: Desk, tenant: str = "acme") -> list[int]:
    items = msgspec.json.decode(must(desk, "/admin/receipts/heads", tenant=tenant))["items"]
    return [one["size"] for one in items]


def call_id_of(office: Office, tenant: str = "acme") -> str:
    query = "SELECT call_id FROM usage_event JOIN tenant t USING (tenant_id) WHERE t.name = ? ORDER BY event_id LIMIT 1"
    (raw,) = office.reader.execute(query, (tenant,)).fetchone()
    return bytes(raw).hex()


def test_rounds_publish_what_grew_and_nothing_else(desk: Desk, office: Office) -> None:
    job = rounds(desk)
    assert job.tick() == 2
    assert job.tick() == 0
    assert sizes(desk) == [1]
    office.post_usage(5, tenant="acme")
    office.post_usage(5, tenant="acme")
    assert job.tick() == 1
    assert (sizes(desk), sizes(desk, "beta")) == ([1, 3], [1])
    assert rounds(desk).tick() == 0  # after a restart


def test_rounds_read_in_parts(desk: Desk, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts_module, "READ_MAX", 1)
    monkeypatch.setattr(receipts_module, "PUBLISH_MAX", 1)
    assert rounds(desk).tick() == 2
    assert (sizes(desk), sizes(desk, "beta")) == ([1], [1])


def test_what_the_meter_could_not_store_is_published_by_the_next_round(desk: Desk, office: Office) -> None:
    job = rounds(desk)
    asked = job._money._ask

    def away(_path: Path, _request: dict[str, Any]) -> dict[str, Any]:
        raise ControlError(ControlCode.UNAVAILABLE, "away")

    job._money._ask = away
    assert job.tick() == 0
    assert sizes(desk) == []
    job._money._ask = asked
    assert job.tick() == 2


def test_books_that_no_longer_begin_with_what_was_signed_are_never_signed_again(
    desk: Desk, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    assert rounds(desk).tick() == 2
    office.post_usage(5, tenant="acme")
    office.post_usage(5, tenant="beta")
    with office.ledger.journal() as journal:  # what nobody can do but the owner of the file
        journal.execute("DROP TRIGGER journal_tx_no_update")
        journal.execute(
            "UPDATE journal_tx SET merkle_root = zeroblob(32) WHERE kind = 'usage' AND tx_id = (SELECT MIN(j.tx_id)"
            " FROM journal_tx j JOIN tenant t USING (tenant_id) WHERE t.name = 'acme' AND j.kind = 'usage')"
        )
    job = rounds(desk)
    assert job.tick() == 1
    assert job.broken == {"acme"}
    assert "tree_head_broken tenant=acme size=1" in caplog.text
    assert (sizes(desk), sizes(desk, "beta")) == ([1], [1, 2])
    refused = desk.ask("GET", "/admin/receipts/head", params={"tenant": "acme"})
    assert refused.status_code == 409
    assert sizes(desk) == [1]


def test_a_receipt_is_under_a_published_head_and_holds(desk: Desk, office: Office) -> None:
    call_id = call_id_of(office)
    receipt = decode_receipt(must(desk, f"/admin/receipts/calls/{call_id}", tenant="acme"))
    assert verify_receipt(receipt, public_keys(desk.data_dir)).call_id.hex() == call_id
    assert sizes(desk) == [receipt.head.size]
    again = decode_receipt(must(desk, f"/admin/receipts/calls/{call_id}", tenant="acme"))
    assert again == receipt
    assert sizes(desk) == [receipt.head.size]
    keys = msgspec.json.decode(must(desk, "/admin/receipts/keys"))
    assert keys == {receipt.head.key_id: open_signer(desk.data_dir).public.hex()}


def test_an_older_head_is_shown_to_be_the_beginning_of_a_newer_one(desk: Desk, office: Office) -> None:
    held = decode_head(must(desk, "/admin/receipts/head", tenant="acme"))
    for _ in range(4):
        office.post_usage(3, tenant="acme")
    proof = decode_consistency(must(desk, "/admin/receipts/consistency", tenant="acme", first=held.size))
    assert verify_consistency(proof, held, public_keys(desk.data_dir)) == 4
    same = decode_consistency(must(desk, "/admin/receipts/consistency", tenant="acme", first=1, second=1))
    assert (same.first, same.second, same.path) == (held, held, ())


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/admin/receipts/calls/zz", {"tenant": "acme"}, 422),
        ("/admin/receipts/calls/" + "0" * 32, {"tenant": "acme"}, 404),
        ("/admin/receipts/calls/" + "0" * 32, {}, 422),
        ("/admin/receipts/head", {"tenant": "nobody"}, 404),
        ("/admin/receipts/consistency", {"tenant": "acme", "first": 9}, 404),
        ("/admin/receipts/consistency", {"tenant": "acme", "first": 0}, 422),
        ("/admin/receipts/consistency", {"tenant": "acme", "first": 1, "second": 7}, 404),
        ("/admin/receipts/bills/INV-000099", {}, 404),
    ],
)
def test_what_is_not_there_is_named(desk: Desk, office: Office, path: str, query: dict[str, Any], status: int) -> None:
    must(desk, "/admin/receipts/head", tenant="acme")
    assert desk.ask("GET", path, params=query).status_code == status


def test_a_bill_is_proven_before_and_after_a_rotation(desk: Desk, office: Office) -> None:
    number = office.do("invoice.bill", {"tenant": "acme", "until_ns": MONTH_END_NS})["invoice"]["number"]
    whole = msgspec.json.decode(must(desk, f"/admin/billing/invoices/{number}"))["document"]
    document = msgspec.convert(whole, Document)
    before = must(desk, f"/admin/receipts/bills/{number}")
    assert verify_bill(document, decode_proof(before), public_keys(desk.data_dir)) == 40
    assert desk.ask("POST", "/admin/receipts/rotate-key").status_code == 200
    after = decode_proof(must(desk, f"/admin/receipts/bills/{number}"))
    assert verify_bill(document, after, public_keys(desk.data_dir)) == 40
    assert (after.head.size, after.head.root) == (decode_proof(before).head.size, decode_proof(before).head.root)
    assert after.head.key_id != decode_proof(before).head.key_id
    trail = msgspec.json.decode(must(desk, "/admin/audit"))["items"]
    assert "receipts.rotate" in {one["action"] for one in trail}


def test_a_tenant_too_large_for_a_proof_here_is_told(
    desk: Desk, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = office.do("invoice.bill", {"tenant": "acme", "until_ns": MONTH_END_NS})["invoice"]["number"]
    monkeypatch.setattr(receipts_module, "PROOF_CALLS_MAX", 40)
    assert desk.ask("GET", f"/admin/receipts/bills/{number}").status_code == 200
    monkeypatch.setattr(receipts_module, "PROOF_CALLS_MAX", 39)
    refused = desk.ask("GET", f"/admin/receipts/bills/{number}")
    assert refused.status_code == 422
    assert "more than 39 calls" in refused.json()["error"]


def test_keys_that_cannot_be_used_are_a_named_error(desk: Desk, office: Office) -> None:
    open_signer(desk.data_dir)
    (key,) = (desk.data_dir / "receipts").glob("*.key")
    key.chmod(0o644)
    answer = desk.ask("GET", "/admin/receipts/head", params={"tenant": "acme"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
    assert rounds(desk).tick() == 0
