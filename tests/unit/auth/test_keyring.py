import sys
from typing import Any

import pytest

from gateway.auth import keyring as keyring_module
from gateway.auth import keys
from gateway.auth.keyring import Keyring, Principal, Scope, authorize
from gateway.errors import Code, Refusal
from gateway.snapshot import Tenant
from tests.unit.auth.policies import NOW_NS, PLAN, TENANT, Issued, issue, secret_of, snapshot_of


def code_of(verdict: Principal | Refusal) -> Code:
    assert isinstance(verdict, Refusal)
    return verdict.code


def test_a_right_key_gives_its_principal_each_time() -> None:
    issued = issue(models=("ocr", "mlp"))
    ring = Keyring(snapshot_of(issue(), issued, version=7))
    assert ring.version == 7
    for _ in range(3):
        principal = ring.authenticate(issued.text, NOW_NS)
        assert isinstance(principal, Principal)
        assert (principal.key, principal.tenant, principal.plan) == (issued.key, TENANT, PLAN)
        assert principal.models == frozenset({"ocr", "mlp"})
        assert principal.scopes == Scope.INFER | Scope.READ


def test_no_credential_and_foreign_text_are_unauthenticated() -> None:
    ring = Keyring(snapshot_of(issue()))
    for text in (None, b"", b"sk-123", b"\xff" * 500, b"tw_live_"):
        assert code_of(ring.authenticate(text, NOW_NS)) is Code.UNAUTHENTICATED


def test_a_typo_is_named_as_such_and_an_unknown_key_is_not_told_from_a_wrong_secret() -> None:
    issued = issue()
    ring = Keyring(snapshot_of(issued))
    assert ring.authenticate(issued.text[:-1] + b"!", NOW_NS) is keyring_module.MALFORMED
    unknown = ring.authenticate(keys.mint().text.encode(), NOW_NS)
    wrong = ring.authenticate(keys.mint(kid=issued.key.kid).text.encode(), NOW_NS)
    assert unknown is wrong is keyring_module.UNAUTHENTICATED


def compares_in(ring: Keyring, text: str) -> int:
    """How often `authenticate` compares digests, as the interpreter's profiler sees it."""
    if (keyring_module.__file__ or "").endswith(".so"):
        pytest.skip("the profiler does not see the calls of a compiled module")
    names: list[str] = []

    def note(frame: object, event: str, function: object) -> None:
        if event == "c_call":
            names.append(getattr(function, "__name__", ""))

    sys.setprofile(note)
    try:
        ring.authenticate(text.encode(), NOW_NS)
    finally:
        sys.setprofile(None)
    # Each comparison follows a full HMAC: the inner and the outer hash.
    assert names.count("update") == names.count("digest") == 2 * names.count("compare_digest")
    return names.count("compare_digest")


def test_an_unknown_kid_and_a_wrong_secret_cost_the_same_work() -> None:
    issued = issue()
    ring = Keyring(snapshot_of(issued))
    assert compares_in(ring, keys.mint().text) == 1
    assert compares_in(ring, keys.mint(kid=issued.key.kid).text) == 1


def test_a_text_that_opened_a_lock_is_remembered_by_its_snapshot_alone() -> None:
    issued = issue()
    text = issued.text.decode()
    ring = Keyring(snapshot_of(issued))
    assert [compares_in(ring, text) for _ in range(3)] == [1, 0, 0]
    assert compares_in(Keyring(snapshot_of(issued)), text) == 1, "another snapshot knows nothing of it"
    wrong = keys.mint(kid=issued.key.kid).text
    assert [compares_in(ring, wrong) for _ in range(3)] == [1, 1, 1], "a wrong text is never remembered"


def test_both_secrets_work_in_the_overlap_and_only_the_new_one_after() -> None:
    old = keys.mint()
    new = keys.mint(kid=old.kid)
    end_ns = NOW_NS + 1000
    secrets = (secret_of(old.secret, not_after_ns=end_ns), secret_of(new.secret, pepper_version=2))
    ring = Keyring(snapshot_of(issue(kid=old.kid, secrets=secrets)))
    old_text, new_text = old.text.encode(), new.text.encode()
    assert isinstance(ring.authenticate(old_text, end_ns - 1), Principal)
    assert isinstance(ring.authenticate(new_text, end_ns - 1), Principal)
    assert ring.authenticate(old_text, end_ns) is keyring_module.ROTATED
    assert isinstance(ring.authenticate(new_text, end_ns), Principal)


def test_expiry_is_exact_and_holds_after_success() -> None:
    issued = issue(expires_ns=NOW_NS)
    ring = Keyring(snapshot_of(issued))
    assert isinstance(ring.authenticate(issued.text, NOW_NS - 1), Principal)
    assert ring.authenticate(issued.text, NOW_NS) is keyring_module.EXPIRED


@pytest.mark.parametrize(
    ("key", "policy", "code"),
    [
        ({"is_revoked": True}, {}, Code.KEY_REVOKED),
        ({"is_revoked": True, "expires_ns": 1}, {}, Code.KEY_REVOKED),
        ({}, {"tenants": (Tenant(tenant="acme", plan="free", is_suspended=True),)}, Code.TENANT_SUSPENDED),
        ({}, {"tenants": ()}, Code.POLICY_STALE),
        ({}, {"plans": ()}, Code.POLICY_STALE),
        ({"secrets": ()}, {}, Code.UNAUTHENTICATED),
        ({}, {"peppers": {}}, Code.UNAUTHENTICATED),
        ({}, {"peppers": {9: b"other"}}, Code.UNAUTHENTICATED),
    ],
)
def test_reasons_to_refuse_a_right_secret(key: dict[str, Any], policy: dict[str, Any], code: Code) -> None:
    issued = issue(**key)
    assert code_of(Keyring(snapshot_of(issued, **policy)).authenticate(issued.text, NOW_NS)) is code


def test_the_reason_is_told_only_to_who_holds_the_secret() -> None:
    issued = issue(is_revoked=True)
    ring = Keyring(snapshot_of(issued))
    stranger = keys.mint(kid=issued.key.kid).text.encode()
    assert code_of(ring.authenticate(stranger, NOW_NS)) is Code.UNAUTHENTICATED


def test_a_new_snapshot_decides_anew() -> None:
    issued = issue()
    assert isinstance(Keyring(snapshot_of(issued)).authenticate(issued.text, NOW_NS), Principal)
    revoked = Issued(issued.text, issue(kid=issued.key.kid, secrets=issued.key.secrets, is_revoked=True).key)
    assert code_of(Keyring(snapshot_of(revoked, version=2)).authenticate(issued.text, NOW_NS)) is Code.KEY_REVOKED


def principal_with(**fields: Any) -> Principal:
    issued = issue(**fields)
    principal = Keyring(snapshot_of(issued)).authenticate(issued.text, NOW_NS)
    assert isinstance(principal, Principal)
    return principal


def test_scopes_are_required_one_by_one_and_unknown_names_give_nothing() -> None:
    principal = principal_with(scopes=("read", "everything"))
    assert authorize(principal, Scope.READ, None) is None
    for scope, name in ((Scope.INFER, "infer"), (Scope.ADMIN, "admin"), (Scope.OPERATE, "operate")):
        refusal = authorize(principal, scope, None)
        assert refusal is not None
        assert refusal.code is Code.SCOPE_FORBIDDEN
        assert f"'{name}'" in refusal.message


def test_the_model_list_is_exact_and_absent_means_every_model() -> None:
    assert authorize(principal_with(), Scope.INFER, "any") is None
    listed = principal_with(models=("ocr",))
    assert authorize(listed, Scope.INFER, "ocr") is None
    assert authorize(listed, Scope.INFER, None) is None
    for model in ("OCR", "ocr2", ""):
        refusal = authorize(listed, Scope.INFER, model)
        assert refusal is not None
        assert refusal.code is Code.MODEL_FORBIDDEN
    assert authorize(principal_with(models=()), Scope.INFER, "ocr") is not None
