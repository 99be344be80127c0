"""Keys through the API, judged by the keyring that workers use."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.auth.keyring import Keyring, Principal
from gateway.control.keys import LIVE_SECRETS_MAX
from gateway.errors import Code, Refusal
from tests.unit.control.support import NS_PER_S, Desk

SCOPES = ["infer", "read", "admin", "operate"]


def verdict(desk: Desk, text: str) -> Principal | Refusal:
    """What a worker that has read the published snapshot says now."""
    return Keyring(desk.snapshot).authenticate(text.encode(), desk.clock.wall_ns())


def opens(desk: Desk, text: str) -> bool:
    return isinstance(verdict(desk, text), Principal)


def code(desk: Desk, text: str) -> Code:
    refusal = verdict(desk, text)
    assert isinstance(refusal, Refusal)
    return refusal.code


def rotate(desk: Desk, key_id: str, operation: str, overlap_s: int = 60) -> Any:
    return desk.must("POST", f"/admin/keys/{key_id}/rotate", {"operation_id": operation, "overlap_s": overlap_s})


@pytest.fixture(autouse=True)
def acme(desk: Desk) -> None:
    desk.new_tenant("acme")


def test_a_new_key_opens_at_workers_before_its_answer(desk: Desk) -> None:
    made = desk.new_key(scopes=["infer"], models=["ocr", "file_type"])
    principal = verdict(desk, made["key"])
    assert isinstance(principal, Principal)
    assert principal.key.key_id == made["details"]["key_id"]
    assert principal.key.scopes == ("infer",)
    assert principal.models == frozenset({"ocr", "file_type"})


def test_a_key_is_shown_once_and_never_listed(desk: Desk) -> None:
    made = desk.new_key()
    secret = made["key"].split("_")[3]
    key_id = made["details"]["key_id"]
    for path in ("/admin/keys", f"/admin/keys/{key_id}", "/admin/audit", "/admin/status"):
        assert secret not in desk.ask("GET", path).text


def test_an_expired_key_is_refused_and_shown_as_expired(desk: Desk) -> None:
    made = desk.new_key(expires_s=60)
    assert opens(desk, made["key"])
    desk.clock.advance(60 * NS_PER_S)
    assert code(desk, made["key"]) is Code.KEY_EXPIRED
    assert desk.must("GET", f"/admin/keys/{made['details']['key_id']}")["state"] == "expired"


def test_a_revoked_key_is_refused_before_the_answer_and_for_ever(desk: Desk) -> None:
    made = desk.new_key()
    path = f"/admin/keys/{made['details']['key_id']}"
    revoked = desk.must("POST", f"{path}/revoke")
    assert code(desk, made["key"]) is Code.KEY_REVOKED
    desk.clock.advance(NS_PER_S)
    assert desk.must("POST", f"{path}/revoke") == revoked
    refused = desk.ask("POST", f"{path}/rotate", {"operation_id": "operation-1"})
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")


def test_both_secrets_open_during_the_overlap_and_only_the_new_one_after(desk: Desk) -> None:
    made = desk.new_key()
    key_id = made["details"]["key_id"]
    new = rotate(desk, key_id, "operation-1")["key"]
    assert new.split("_")[2] == made["details"]["kid"]
    desk.clock.advance(60 * NS_PER_S - 1)
    assert opens(desk, made["key"])
    assert opens(desk, new)
    desk.clock.advance(1)
    assert code(desk, made["key"]) is Code.KEY_EXPIRED
    assert opens(desk, new)
    assert len(desk.must("GET", f"/admin/keys/{key_id}")["secrets"]) == 1


def test_rotation_without_overlap_ends_the_old_secret_at_once(desk: Desk) -> None:
    made = desk.new_key()
    new = rotate(desk, made["details"]["key_id"], "operation-1", 0)["key"]
    assert not opens(desk, made["key"])
    assert opens(desk, new)


def test_a_repeated_rotation_gives_the_same_result_without_the_secret(desk: Desk) -> None:
    made = desk.new_key()
    key_id = made["details"]["key_id"]
    first = rotate(desk, key_id, "operation-1")
    version, rows = desk.snapshot.version, desk.must("GET", "/admin/status")["audit"]["rows"]
    desk.clock.advance(NS_PER_S)
    again = rotate(desk, key_id, "operation-1")
    assert again == first | {"key": None, "is_repeated": True}
    assert desk.snapshot.version == version
    assert desk.must("GET", "/admin/status")["audit"]["rows"] == rows
    assert opens(desk, first["key"])


def test_an_operation_id_used_for_something_else_is_a_conflict(desk: Desk) -> None:
    key_id = desk.new_key()["details"]["key_id"]
    rotate(desk, key_id, "operation-1")
    answer = desk.ask("POST", f"/admin/keys/{key_id}/rotate", {"operation_id": "operation-1", "overlap_s": 61})
    assert answer.status_code == 409
    assert "overlap_s" in answer.json()["error"]


def test_operation_ids_are_each_keys_own_so_that_none_tells_of_another_tenants(desk: Desk) -> None:
    desk.new_tenant("beta")
    for tenant in ("acme", "beta"):
        key_id = desk.new_key(tenant)["details"]["key_id"]
        assert rotate(desk, key_id, "operation-1")["key"] is not None
        assert rotate(desk, key_id, "operation-1")["is_repeated"]


def test_lost_answers_do_not_cut_the_secret_in_use(desk: Desk) -> None:
    made = desk.new_key()
    for number in range(3):
        rotate(desk, made["details"]["key_id"], f"operation-{number}", 3600)
    assert opens(desk, made["key"])


def test_an_older_overlap_is_never_lengthened(desk: Desk) -> None:
    made = desk.new_key()
    rotate(desk, made["details"]["key_id"], "operation-1", 60)
    rotate(desk, made["details"]["key_id"], "operation-2", 3600)
    desk.clock.advance(60 * NS_PER_S)
    assert not opens(desk, made["key"])


def test_live_secrets_of_a_key_are_bounded(desk: Desk) -> None:
    key_id = desk.new_key()["details"]["key_id"]
    for number in range(LIVE_SECRETS_MAX - 1):
        rotate(desk, key_id, f"operation-{number}")
    body = {"operation_id": "operation-x", "overlap_s": 60}
    answer = desk.ask("POST", f"/admin/keys/{key_id}/rotate", body)
    assert (answer.status_code, answer.json()["code"]) == (409, "limit_reached")
    desk.clock.advance(60 * NS_PER_S)
    assert desk.ask("POST", f"/admin/keys/{key_id}/rotate", body).status_code == 200


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes"),
        ({"models": []}, "models"),
        ({"models": ["a/b"]}, "models"),
        ({"models": ["a\nb"]}, "models"),
        ({"expires_s": 0}, "expires_s"),
        ({"user_role": "admin"}, "user_role: unknown field"),
        ({"kid": "AAAAAAAA"}, "kid: unknown field"),
        ({"is_revoked": False}, "is_revoked: unknown field"),
    ],
)
def test_a_wrong_key_is_refused_with_what_is_wrong(desk: Desk, change: dict[str, Any], text: str) -> None:
    answer = desk.ask("POST", "/admin/keys", {"tenant": "acme"} | change)
    assert answer.status_code == 422
    assert text in answer.json()["error"]


def test_a_key_needs_a_tenant_that_exists(desk: Desk) -> None:
    assert desk.ask("POST", "/admin/keys", {"tenant": "nobody"}).json()["code"] == "not_found"


def test_keys_are_listed_by_tenant_in_the_order_of_their_creation(desk: Desk) -> None:
    desk.new_tenant("beta")
    made = []
    for tenant in ("acme", "beta", "acme"):
        made.append(desk.new_key(tenant)["details"]["key_id"])
        desk.clock.advance(1_000_000)
    assert [key["key_id"] for key in desk.must("GET", "/admin/keys")["items"]] == made
    assert [key["key_id"] for key in desk.must("GET", "/admin/keys?tenant=acme")["items"]] == made[::2]
    page = desk.must("GET", "/admin/keys?limit=2")
    assert [key["key_id"] for key in desk.must("GET", f"/admin/keys?after={page['next']}")["items"]] == made[2:]


def test_suspending_a_tenant_closes_all_its_keys(desk: Desk) -> None:
    made = desk.new_key()
    desk.must("POST", "/admin/tenants/acme/suspend")
    assert code(desk, made["key"]) is Code.TENANT_SUSPENDED


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"scopes": ["infer", "admin"]}, "scopes"),
        ({"models": ["ocr", "secret"]}, "models"),
        ({"models": None}, "models"),
        ({"expires_s": 61}, "expires_s"),
        ({"expires_s": None}, "expires_s"),
        ({"tenant": "beta"}, "tenant"),
    ],
)
def test_a_key_made_by_a_key_may_not_exceed_it(desk: Desk, change: dict[str, Any], text: str) -> None:
    desk.new_tenant("beta")
    parent = desk.new_key(scopes=["infer", "read"], models=["ocr"], expires_s=60)["details"]["key_id"]
    within = {"tenant": "acme", "scopes": ["infer"], "models": ["ocr"], "expires_s": 60, "parent": parent}
    assert desk.ask("POST", "/admin/keys", within).status_code == 201
    answer = desk.ask("POST", "/admin/keys", within | change)
    assert (answer.status_code, answer.json()["code"]) == (403, "exceeds_parent")
    assert text in answer.json()["error"]


def test_revoking_a_key_revokes_every_key_below_it(desk: Desk) -> None:
    top = desk.new_key()
    middle = desk.new_key(parent=top["details"]["key_id"])
    bottom = desk.new_key(parent=middle["details"]["key_id"])
    desk.must("POST", f"/admin/keys/{top['details']['key_id']}/revoke")
    for made in (top, middle, bottom):
        assert code(desk, made["key"]) is Code.KEY_REVOKED
        assert desk.must("GET", f"/admin/keys/{made['details']['key_id']}")["state"] == "revoked"
    refused = desk.ask("POST", "/admin/keys", {"tenant": "acme", "parent": bottom["details"]["key_id"]})
    assert refused.json()["code"] == "exceeds_parent"


def test_an_expired_key_makes_no_keys(desk: Desk) -> None:
    parent = desk.new_key(expires_s=60)["details"]["key_id"]
    desk.clock.advance(60 * NS_PER_S)
    answer = desk.ask("POST", "/admin/keys", {"tenant": "acme", "parent": parent, "expires_s": 1})
    assert answer.json()["code"] == "exceeds_parent"


def test_rights_widened_in_the_database_gain_nothing_at_use(desk: Desk) -> None:
    parent = desk.new_key(scopes=["infer"], models=["ocr"])["details"]["key_id"]
    child = desk.new_key(scopes=["infer"], models=["ocr"], parent=parent)
    with desk.control.registry.database.write() as tx:
        tx.exec_driver_sql('UPDATE api_key SET scopes = \'["admin","infer"]\', models = NULL WHERE parent IS NOT NULL')
    desk.new_key()  # any change publishes
    principal = verdict(desk, child["key"])
    assert isinstance(principal, Principal)
    assert principal.key.scopes == ("infer",)
    assert principal.models == frozenset({"ocr"})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_key_made_through_the_api_ever_exceeds_a_key_above_it(desk: Desk, data: st.DataObject) -> None:
    """Random attempts at a tree of keys: whatever is accepted, the published rights shrink from parent to child."""
    made: list[str] = []
    for _ in range(data.draw(st.integers(1, 4))):
        body = {
            "tenant": "acme",
            "scopes": data.draw(st.lists(st.sampled_from(SCOPES), min_size=1, max_size=3)),
            "models": data.draw(st.none() | st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=2)),
            "expires_s": data.draw(st.none() | st.sampled_from([10, 20])),
            "parent": data.draw(st.none() | st.sampled_from(made)) if made else None,
        }
        answer = desk.ask("POST", "/admin/keys", body)
        assert answer.status_code in (201, 403)
        if answer.status_code == 201:
            made.append(answer.json()["details"]["key_id"])
    for key_id in made:
        parent_id = desk.must("GET", f"/admin/keys/{key_id}")["parent"]
        if parent_id is None:
            continue
        child, parent = desk.key(key_id), desk.key(parent_id)
        assert set(child.scopes) <= set(parent.scopes)
        assert parent.models is None or (child.models is not None and set(child.models) <= set(parent.models))
        assert parent.expires_ns is None or (child.expires_ns is not None and child.expires_ns <= parent.expires_ns)
