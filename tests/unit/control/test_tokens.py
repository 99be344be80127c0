"""The admin token: made once, rotated, ended, and never stored."""

from pathlib import Path

from gateway.clock import FakeClock
from tests.unit.control.support import NS_PER_S, Desk, open_desk

DAY_NS = 24 * 3600 * NS_PER_S


def is_let_in(desk: Desk, token: str) -> bool:
    return desk.ask_tcp("GET", "/admin/status", token=token).status_code == 200


def test_first_start_leaves_one_private_token_that_must_be_rotated(desk: Desk) -> None:
    path = desk.data_dir / "run" / "bootstrap-token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert is_let_in(desk, desk.bootstrap_token)
    assert desk.must("GET", "/admin/status")["admin_token"]["must_rotate"] is True


def test_later_starts_make_no_other_token(tmp_path: Path) -> None:
    with open_desk(tmp_path) as desk:
        token = desk.bootstrap_token
        (tmp_path / "run" / "bootstrap-token").unlink()
    with open_desk(tmp_path) as desk:
        assert not (tmp_path / "run" / "bootstrap-token").exists()
        assert is_let_in(desk, token)


def test_a_bootstrap_token_ends_after_a_day_and_the_next_start_makes_another(tmp_path: Path) -> None:
    clock = FakeClock()
    with open_desk(tmp_path, clock=clock) as desk:
        first = desk.bootstrap_token
        clock.advance(DAY_NS - 1)
        assert is_let_in(desk, first)
        clock.advance(1)
        assert not is_let_in(desk, first)
    with open_desk(tmp_path, clock=clock) as desk:
        assert is_let_in(desk, desk.bootstrap_token)
        assert not is_let_in(desk, first)


def test_rotation_ends_the_old_token_at_once_and_outlives_the_day(desk: Desk) -> None:
    old = desk.bootstrap_token
    answer = desk.ask_tcp("POST", "/admin/token/rotate", token=old).json()
    assert not is_let_in(desk, old)
    assert is_let_in(desk, answer["token"])
    desk.clock.advance(400 * DAY_NS)
    assert is_let_in(desk, answer["token"])
    assert desk.must("GET", "/admin/status")["admin_token"]["must_rotate"] is False


def test_a_rotated_token_holds_over_a_restart(tmp_path: Path) -> None:
    with open_desk(tmp_path) as desk:
        token = desk.must("POST", "/admin/token/rotate")["token"]
    with open_desk(tmp_path) as desk:
        assert is_let_in(desk, token)


def test_both_tokens_work_during_an_overlap_and_only_the_new_one_after(desk: Desk) -> None:
    old = desk.bootstrap_token
    new = desk.must("POST", "/admin/token/rotate", {"overlap_s": 60})["token"]
    desk.clock.advance(59 * NS_PER_S)
    assert is_let_in(desk, old)
    assert is_let_in(desk, new)
    desk.clock.advance(NS_PER_S)
    assert not is_let_in(desk, old)
    assert is_let_in(desk, new)


def test_a_token_can_be_given_an_end(desk: Desk) -> None:
    token = desk.must("POST", "/admin/token/rotate", {"expires_s": 60})["token"]
    assert is_let_in(desk, token)
    desk.clock.advance(60 * NS_PER_S)
    assert not is_let_in(desk, token)


def test_an_overlap_never_lengthens_an_old_token(desk: Desk) -> None:
    short = desk.must("POST", "/admin/token/rotate", {"expires_s": 60})["token"]
    desk.must("POST", "/admin/token/rotate", {"overlap_s": 3600})
    desk.clock.advance(60 * NS_PER_S)
    assert not is_let_in(desk, short)
