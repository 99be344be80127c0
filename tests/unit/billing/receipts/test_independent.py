"""I25 by another hand: docs/verify_receipt.py, which shares no code with us, accepts what is honest and nothing else.

It runs alone: another interpreter, isolated, without site packages.
"""

import json
import random
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from billing.ledger.connect import open_reader
from billing.ledger.port import Batch
from billing.ledger.sqlite import SqliteLedger
from billing.receipts.heads import Consistency
from billing.receipts.keys import Signer, open_signer
from billing.receipts.prover import make_head, make_receipt, tenant_leaves
from billing.receipts.tree import consistency_path
from tests.unit.billing.making import call, items

SCRIPT = Path(__file__).parents[4] / "docs" / "verify_receipt.py"
Verify = Callable[[Any, bytes], Any]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, Any], list[Any], Signer]:
    """Receipts by call number, proofs between heads, and who signed."""
    folder = tmp_path_factory.mktemp("ledger")
    ledger, signer, heads = SqliteLedger(folder / "ledger.db"), open_signer(folder), []
    db, at = open_reader(folder / "ledger.db"), 1
    for size in (1, 5, 16, 32, 37, 2):
        ledger.post(Batch(posts=[*items(range(at, at + size)), *items([at], tenant="beta")], now_ns=5))
        at += size
        heads.append(make_head(db, "acme", signer, at))
    receipts = {n: make_receipt(db, "acme", call(n).call_id, signer, 2**40) for n in range(1, at)}
    leaves = tenant_leaves(db, "acme")
    proofs = [
        Consistency(
            first=first,
            second=second,
            path=tuple(one.hex() for one in consistency_path(leaves[: second.size], first.size)),
        )
        for second in heads
        for first in heads
        if first.size <= second.size
    ]
    db.close()
    ledger.close()
    return {n: msgspec.to_builtins(one) for n, one in receipts.items()}, msgspec.to_builtins(proofs), signer


def test_it_accepts_every_honest_receipt_and_says_what_was_called(script: dict[str, Any], honest: Any) -> None:
    receipts, _, signer = honest
    assert len(receipts) == 93
    for number in sorted(random.Random(1).sample(sorted(receipts), 25)):
        found = script["verify_receipt"](receipts[number], signer.public)
        made = msgspec.structs.asdict(call(number))
        assert found == made | {"call_id": made["call_id"].hex()}


def test_it_accepts_every_honest_growth(script: dict[str, Any], honest: Any) -> None:
    _, proofs, signer = honest
    assert len(proofs) == 21
    for proof in proofs:
        sizes = {"first": proof["first"]["size"], "second": proof["second"]["size"]}
        assert script["verify_growth"](proof, signer.public) == sizes


def forgeries(document: Any) -> list[Any]:
    """`document` with one value changed, at every place of it."""
    if isinstance(document, dict):
        return [document | {key: other} for key, value in document.items() for other in forgeries(value)]
    if isinstance(document, list | tuple):
        found = [
            [*document[:at], other, *document[at + 1 :]] for at, one in enumerate(document) for other in forgeries(one)
        ]
        return [*found, [*document, "00" * 32], *([document[:-1]] if document else [])]
    if isinstance(document, int):
        return [document + 1]
    return [document[:-1] + ("1" if document[-1] == "0" else "0")]


@pytest.mark.parametrize(("kind", "verify"), [("receipt", "verify_receipt"), ("growth", "verify_growth")])
def test_it_refuses_every_document_with_one_value_changed(
    script: dict[str, Any], honest: Any, kind: str, verify: str
) -> None:
    receipts, proofs, signer = honest
    document = receipts[50] if kind == "receipt" else next(one for one in proofs if len(one["path"]) > 2)
    script[verify](document, signer.public)
    forged = forgeries(document)
    assert len(forged) > 15
    for one in forged:
        with pytest.raises((ValueError, KeyError, IndexError, TypeError, OverflowError)):
            script[verify](one, signer.public)


def test_another_key_and_an_altered_signature_prove_nothing(
    script: dict[str, Any], honest: Any, tmp_path: Path
) -> None:
    receipts, _, _ = honest
    with pytest.raises(ValueError, match="key_id"):
        script["verify_receipt"](receipts[1], open_signer(tmp_path).public)


def test_it_runs_alone_and_tells_by_its_exit_status(honest: Any, tmp_path: Path) -> None:
    receipts, _, signer = honest
    file = tmp_path / "receipt.json"

    def run(document: Any) -> "subprocess.CompletedProcess[str]":
        file.write_text(json.dumps(document))
        command = [sys.executable, "-I", "-S", str(SCRIPT), str(file), signer.public.hex()]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    good = run(receipts[7])
    assert (good.returncode, json.loads(good.stdout)["call_id"]) == (0, call(7).call_id.hex())
    bad = run(receipts[7] | {"place": 1})
    assert (bad.returncode, bad.stdout) == (1, "")
    assert "not proven" in bad.stderr
