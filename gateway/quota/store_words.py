"""Owns what a quota owner and `store.lua` say to each other: arguments out, replies in. Pure.

Instants are nanoseconds here and microseconds there; both are exact, as windows begin at whole seconds. -1 stands for
"no such limit" on the wire and `UNLIMITED` here.
"""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final, NamedTuple

from gateway.errors import Code
from gateway.quota.allowance import UNLIMITED
from gateway.quota.calendar import Window
from gateway.quota.protocol import Ask
from gateway.quota.share import Share

NS_PER_US: Final = 1_000
#: After an epoch began, hosts have this long to say what they hold; until then nothing that depends on it is decided.
SETTLE_S: Final = 1.0
#: What a host that is not heard of for so long held is free.
LEASE_S: Final = 10.0
HOSTS_MAX: Final = 64
#: The server's own clock, as a Lua function body; tests put theirs in its place.
SERVER_CLOCK: Final = "local t = redis.call('TIME') return t[1] * 1000000 + t[2]"

Argument = str | int


class Decided(NamedTuple):
    """The store's answer to an ask; as `Taken` of an allowance, with what is left."""

    calls: int
    spare: int
    slots: int
    code: Code | None
    retry_after_ms: int
    rate_left: int
    day_left: int
    month_left: int
    slots_left: int
    day: Window
    month: Window
    now_ns: int


class CountsMissing(NamedTuple):
    """Caps cannot be decided: this host (`is_own`) or only others must count these windows first."""

    is_own: bool
    day: Window
    month: Window


class OtherWindow(NamedTuple):
    """The store's clock lies in another window than the asker thought."""

    now_ns: int


class Settling(NamedTuple):
    """Other hosts may not have told yet what they hold."""


class Short(NamedTuple):
    """It would not fit, so nothing was taken, as asked: somebody at this host may hold spares."""


AskReply = Decided | CountsMissing | OtherWindow | Settling | Short


class SessionLost(Exception):
    """The store does not know this session (any more): register again, then tell everything."""


class Wanted(NamedTuple):
    """A tenant that another host wants to have counted here."""

    tenant: str
    day: Window
    month: Window


class Beat(NamedTuple):
    """The store's answer to a beat."""

    now_ns: int
    hosts: int
    wanted: list[Wanted]


class Registered(NamedTuple):
    """The store's answer to a registration."""

    epoch: str
    is_member: bool
    now_ns: int
    hosts: int


def script_text(clock: str = SERVER_CLOCK) -> str:
    """The whole script. `clock` is the body of a Lua function that returns microseconds."""
    body = files("gateway.quota").joinpath("store.lua").read_text(encoding="ascii")
    constants = (
        f"local function server_us() {clock} end\n"
        f"local SETTLE_US, LEASE_US, HOSTS_MAX = {round(SETTLE_S * 1e6)}, {round(LEASE_S * 1e6)}, {HOSTS_MAX}\n"
    )
    return constants + body


# -- out ---------------------------------------------------------------------------------------------------------------


def ask_arguments(ask: Ask, share: Share, windows: tuple[Window, Window], *, is_holding_back: bool) -> list[Argument]:
    """`is_holding_back`: take nothing where a cap or the slots would refuse a call."""
    plan = share.plan
    assert plan is not None
    ttl = share.terms.ttl_ns
    return [
        ask.need,
        ask.slots_need,
        ask.spare,
        ask.spare_slots,
        int(is_holding_back),
        _limit(plan.concurrency),
        _limit(plan.rate_calls),
        share.window_us,
        share.terms.burst,
        -1 if ttl < 0 else ttl // NS_PER_US,
        _limit(plan.calls_per_day),
        *_microseconds(windows[0]),
        _limit(plan.calls_per_month),
        *_microseconds(windows[1]),
        int(share.leases_slots),
    ]


def give_arguments(slots: int, calls: int, day_start_ns: int, month_start_ns: int) -> list[Argument]:
    """`slots` is what the host holds now, absolutely."""
    return [slots, calls, day_start_ns // NS_PER_US, month_start_ns // NS_PER_US]


def count_arguments(counts: tuple[tuple[Window, int], tuple[Window, int]], *, has_meter: bool) -> list[Argument]:
    """Day and month, each a window and the calls in it; a window (0, 0) is left alone.

    Without a meter only what the store has nothing of is set.
    """
    (day, day_calls), (month, month_calls) = counts
    return [*_microseconds(day), day_calls, *_microseconds(month), month_calls, int(not has_meter)]


def _limit(limit: int | None) -> int:
    return -1 if limit is None else limit


def _microseconds(window: Window) -> tuple[int, int]:
    return window[0] // NS_PER_US, window[1] // NS_PER_US


# -- in ----------------------------------------------------------------------------------------------------------------


def read_ask(reply: Sequence[Any]) -> AskReply:
    """Raises SessionLost."""
    match _word(reply):
        case "OK":
            return _decided(reply)
        case "COUNT":
            return CountsMissing(bool(reply[1]), _window(reply[2], reply[3]), _window(reply[4], reply[5]))
        case "WINDOW":
            return OtherWindow(int(reply[1]) * NS_PER_US)
        case "SETTLING":
            return Settling()
        case "SHORT":
            return Short()
        case word:
            raise _unknown(word)


def read_done(reply: Sequence[Any]) -> None:
    """Raises SessionLost unless the store did it."""
    if _word(reply) != "OK":
        raise _unknown(_word(reply))


def read_beat(reply: Sequence[Any]) -> Beat:
    """Raises SessionLost."""
    read_done(reply)
    wanted = [Wanted(_text(name), _window(*day_month[:2]), _window(*day_month[2:])) for name, *day_month in reply[3]]
    return Beat(int(reply[1]) * NS_PER_US, int(reply[2]), wanted)


def read_registered(reply: Sequence[Any]) -> Registered:
    """Raises SessionLost when there are too many hosts."""
    read_done(reply)
    return Registered(_text(reply[1]), _text(reply[2]) == "m", int(reply[3]) * NS_PER_US, int(reply[4]))


def _decided(reply: Sequence[Any]) -> Decided:
    code = _text(reply[4])
    return Decided(
        calls=int(reply[1]),
        spare=int(reply[2]),
        slots=int(reply[3]),
        code=Code(code) if code else None,
        retry_after_ms=int(reply[5]),
        rate_left=_left(reply[6]),
        day_left=_left(reply[7]),
        month_left=_left(reply[8]),
        slots_left=_left(reply[9]),
        day=_window(reply[10], reply[11]),
        month=_window(reply[12], reply[13]),
        now_ns=int(reply[14]) * NS_PER_US,
    )


def _unknown(word: str) -> SessionLost:
    reasons = {
        "LOST": "the store was flushed, restarted or failed over",
        "FENCED": "this host's session has ended, or another process registered for it",
        "HOSTS": f"more than {HOSTS_MAX} hosts share the store",
    }
    return SessionLost(reasons.get(word, f"the store said {word!r}"))


def _word(reply: Sequence[Any]) -> str:
    return _text(reply[0])


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _window(start: bytes | str | int, end: bytes | str | int) -> Window:
    return int(start) * NS_PER_US, int(end) * NS_PER_US


def _left(value: int) -> int:
    return UNLIMITED if value < 0 else value
