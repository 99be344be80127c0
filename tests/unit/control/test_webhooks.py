"""Events become signed messages, tried until taken, once per event; endpoints rotate, replay and are switched off."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from billing.webhooks.schedule import ATTEMPTS_MAX, DISABLE_AFTER_NS, PAUSES_S
from billing.webhooks.sender import Delivered
from billing.webhooks.signing import decode_secret, verify
from billing.webhooks.targets import Target, look_at
from gateway.control.money import Money
from gateway.control.webhook_runner import PENDING_MAX, SENDS_PER_ENDPOINT, WebhookRunner
from gateway.control.webhook_store import ENDPOINTS_MAX, KEPT_NS, prune
from tests.unit.billing.invoices.office import Office
from tests.unit.control.billing_desk import meter_of
from tests.unit.control.support import NS_PER_S, Desk

URL = "https://hooks.example.com/in"
HOOKS = "/admin/tenants/acme/webhooks"


class Post:
    """A desk with an office, and receivers in memory: `answers` are statuses to give, then 200."""

    def __init__(self, desk: Desk, office: Office) -> None:
        self.desk = desk
        self.office = office
        self.answers: list[int] = []
        self.got: list[tuple[Target, dict[str, str], bytes]] = []
        money = Money(desk.data_dir, desk.control.registry, desk.app.state.ask_meter)
        self.runner = WebhookRunner(
            money,
            desk.control.registry,
            look=lambda url: look_at(url, lambda *_: ["93.184.216.34"]),
            send=self._send,
            random=lambda: 0.5,
        )

    def _send(self, target: Target, headers: Mapping[str, str], body: bytes) -> Delivered:
        self.got.append((target, dict(headers), body))
        status = self.answers.pop(0) if self.answers else 200
        return Delivered(status, "", 3)

    def happen(self, count: int = 1) -> None:
        for _ in range(count):
            self.office.do("subscription.start", {"tenant": "acme", "name": "Pro", "fee_minor": 1})

    def wait(self, seconds: int) -> None:
        self.desk.clock.advance(seconds * NS_PER_S)
        self.runner.tick()

    def new(self, **fields: Any) -> Any:
        return self.desk.must("POST", HOOKS, {"url": URL, **fields})

    def log(self, endpoint_id: str) -> list[Any]:
        found: list[Any] = self.desk.must("GET", f"{HOOKS}/{endpoint_id}/deliveries")["items"]
        return found


@pytest.fixture
def post(desk: Desk) -> Iterator[Post]:
    desk.new_tenant()
    with meter_of(desk) as office:
        office.set_up()
        yield Post(desk, office)


def test_an_event_becomes_one_signed_message(post: Post) -> None:
    post.happen()
    made = post.new()
    post.happen()
    post.wait(2)
    post.wait(2)
    ((target, headers, body),) = post.got
    assert (target.host, target.path) == ("hooks.example.com", "/in")
    verify([decode_secret(made["secret"])], headers, body, post.desk.clock.wall_ns() // NS_PER_S)
    assert b'"type":"subscription.started"' in body
    (delivery,) = post.log(made["details"]["endpoint_id"])
    assert (delivery["state"], [one["status"] for one in delivery["attempts"]]) == ("delivered", [200])
    assert delivery["message_id"] == headers["webhook-id"]


def test_only_the_wanted_events_of_the_tenant_are_sent(post: Post) -> None:
    post.desk.new_tenant("beta")
    post.desk.must("POST", "/admin/tenants/beta/webhooks", {"url": URL})
    post.new(events=["subscription.cancelled"])
    post.happen()
    post.wait(2)
    assert post.got == []


def test_a_failure_is_tried_again_under_the_same_id_until_taken(post: Post) -> None:
    made = post.new()
    post.answers = [500, 0]
    post.happen()
    post.wait(1)
    post.wait(1)
    assert len(post.got) == 1
    post.wait(6)
    post.wait(10 * 60)
    assert len({headers["webhook-id"] for _, headers, _ in post.got}) == 1
    (delivery,) = post.log(made["details"]["endpoint_id"])
    assert [one["status"] for one in delivery["attempts"]] == [500, 0, 200]


def test_a_delivery_is_given_up_after_its_attempts(post: Post) -> None:
    made = post.new()
    post.answers = [500] * ATTEMPTS_MAX
    post.happen()
    for pause_s in (1, *PAUSES_S):
        post.wait(pause_s * 6 // 5)
    (delivery,) = post.log(made["details"]["endpoint_id"])
    assert (delivery["state"], len(delivery["attempts"])) == ("failed", ATTEMPTS_MAX)


def test_both_secrets_sign_during_a_rotation_and_only_the_new_one_after(post: Post) -> None:
    old = post.new()
    new = post.desk.must("POST", f"{HOOKS}/{old['details']['endpoint_id']}/rotate", {"overlap_s": 60})
    assert old["secret"] != new["secret"]
    post.happen()
    post.wait(1)
    post.wait(61)
    post.happen()
    post.wait(1)
    keys = [decode_secret(one["secret"]) for one in (old, new)]
    (_, first, body), (_, second, later) = post.got
    for key in keys:
        verify([key], first, body, int(first["webhook-timestamp"]))
    verify([keys[1]], second, later, int(second["webhook-timestamp"]))
    assert len(second["webhook-signature"].split()) == 1


def test_an_endpoint_that_is_gone_is_switched_off_and_can_be_switched_on(post: Post) -> None:
    endpoint = post.new()["details"]["endpoint_id"]
    post.answers = [410]
    post.happen()
    post.wait(1)
    (found,) = post.desk.must("GET", HOOKS)["items"]
    assert (found["is_enabled"], found["disabled_reason"]) == (False, "it answered 410 Gone")
    post.wait(3_600)
    assert len(post.got) == 1
    assert post.desk.must("POST", f"{HOOKS}/{endpoint}/enable")["is_enabled"]
    post.wait(1)
    assert len(post.got) == 2


def test_an_endpoint_that_fails_for_days_is_switched_off_and_a_success_starts_anew(post: Post) -> None:
    post.new()
    post.answers = [500, 200]
    post.happen()
    post.wait(1)
    post.wait(60)
    assert post.desk.must("GET", HOOKS)["items"][0]["failing_since"] is None
    post.answers = [500] * 50
    post.happen()
    post.wait(1)
    post.wait(DISABLE_AFTER_NS // NS_PER_S)
    assert not post.desk.must("GET", HOOKS)["items"][0]["is_enabled"]


def test_a_message_can_be_replayed_under_its_id(post: Post) -> None:
    endpoint = post.new()["details"]["endpoint_id"]
    post.happen()
    post.wait(1)
    delivery = post.log(endpoint)[0]["delivery_id"]
    again = post.desk.must("POST", f"{HOOKS}/deliveries/{delivery}/replay")
    assert again["delivery_id"] != delivery
    post.wait(1)
    assert post.got[0][1]["webhook-id"] == post.got[1][1]["webhook-id"]
    assert post.got[0][2] == post.got[1][2]


def test_a_name_that_leads_inside_is_not_sent_to_and_the_log_says_why(post: Post) -> None:
    endpoint = post.new()["details"]["endpoint_id"]
    inner = WebhookRunner(
        Money(post.desk.data_dir, post.desk.control.registry),
        post.desk.control.registry,
        look=lambda url: look_at(url, lambda *_: ["169.254.169.254"]),
        send=post._send,
    )
    post.happen()
    inner.tick()
    assert post.got == []
    (attempt,) = post.log(endpoint)[0]["attempts"]
    assert attempt["status"] == 0
    assert "not public" in attempt["detail"]


@pytest.mark.parametrize("url", ["http://example.com:8080/", "file:///etc/passwd", "https://u:p@example.com/"])
def test_a_bad_url_is_refused_when_it_is_given(post: Post, url: str) -> None:
    assert post.desk.ask("POST", HOOKS, {"url": url}).status_code == 422


def test_a_tenant_has_so_many_endpoints_and_no_more(post: Post) -> None:
    for _ in range(ENDPOINTS_MAX):
        post.new()
    answer = post.desk.ask("POST", HOOKS, {"url": URL})
    assert (answer.status_code, answer.json()["code"]) == (409, "limit_reached")


def test_an_endpoint_of_another_tenant_does_not_exist(post: Post) -> None:
    post.desk.new_tenant("beta")
    endpoint = post.new()["details"]["endpoint_id"]
    post.happen()
    post.wait(1)
    delivery = post.log(endpoint)[0]["delivery_id"]
    theirs = "/admin/tenants/beta/webhooks"
    for method, path in (
        ("POST", f"{theirs}/{endpoint}/rotate"),
        ("POST", f"{theirs}/{endpoint}/enable"),
        ("DELETE", f"{theirs}/{endpoint}"),
        ("GET", f"{theirs}/{endpoint}/deliveries"),
        ("POST", f"{theirs}/deliveries/{delivery}/replay"),
    ):
        body: dict[str, Any] | None = {} if path.endswith("rotate") else None
        assert post.desk.ask(method, path, body).status_code == 404, path


def test_one_slow_endpoint_takes_its_share_of_a_round_only(post: Post) -> None:
    post.new()
    post.happen(SENDS_PER_ENDPOINT + 3)
    post.wait(1)
    assert len(post.got) == SENDS_PER_ENDPOINT


def test_events_wait_in_the_ledger_while_too_many_deliveries_wait(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.control.webhook_runner.PENDING_MAX", 2)
    endpoint = post.new()["details"]["endpoint_id"]
    post.answers = [500] * 2
    post.happen(2)
    post.wait(1)
    post.happen()
    post.wait(1)
    assert len(post.log(endpoint)) == 2
    post.wait(60)
    post.wait(1)
    assert len(post.log(endpoint)) == 3
    assert PENDING_MAX == 1_000


def test_a_deleted_endpoint_takes_its_log_along_and_old_logs_are_pruned(post: Post) -> None:
    first, second = (post.new()["details"]["endpoint_id"] for _ in range(2))
    post.happen()
    post.wait(1)
    post.desk.must("DELETE", f"{HOOKS}/{first}")
    assert len(post.desk.must("GET", HOOKS)["items"]) == 1
    assert len(post.log(second)) == 1
    registry = post.desk.control.registry
    with registry.database.write() as tx:
        assert prune(tx, post.desk.clock.wall_ns() + KEPT_NS - 10 * NS_PER_S) == 0
        assert prune(tx, post.desk.clock.wall_ns() + KEPT_NS + 1) == 1


def test_no_secret_is_stored_or_audited(post: Post) -> None:
    secret = post.new()["secret"]
    raw = (post.desk.data_dir / "control.db").read_bytes()
    assert secret.encode() not in raw
    assert decode_secret(secret) not in raw
