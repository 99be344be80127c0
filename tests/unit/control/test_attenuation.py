"""A key never has more rights than any key above it: checked when issued and again when published."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.control.attenuation import CHAIN_MAX, Grant, effective, find_chain_excess, find_excess, meet

SCOPES = ("infer", "read", "admin", "operate")
names = st.frozensets(st.sampled_from(("a", "b", "c")), max_size=3)
grants = st.builds(
    Grant,
    tenant=st.sampled_from(("acme", "beta")),
    scopes=st.frozensets(st.sampled_from(SCOPES)),
    models=st.none() | names,
    expires_ns=st.none() | st.integers(0, 5),
    is_revoked=st.booleans(),
)


def may(grant: Grant, tenant: str, scope: str, model: str, at_ns: int) -> bool:
    """Whether `grant` lets a call through: the meaning of a grant, written independently of the code under test."""
    return (
        not grant.is_revoked
        and grant.tenant == tenant
        and scope in grant.scopes
        and (grant.models is None or model in grant.models)
        and (grant.expires_ns is None or at_ns < grant.expires_ns)
    )


def every_call() -> list[tuple[str, str, str, int]]:
    return [
        (tenant, scope, model, at_ns)
        for tenant in ("acme", "beta")
        for scope in SCOPES
        for model in ("a", "b", "c", "other")
        for at_ns in range(7)
    ]


@given(grants, grants)
def test_a_grant_without_excess_allows_nothing_that_its_parent_refuses(child: Grant, parent: Grant) -> None:
    if find_excess(child, parent) is None:
        assert not [one for one in every_call() if may(child, *one) and not may(parent, *one)]


@given(grants, grants)
def test_a_live_grant_that_allows_more_than_its_parent_has_an_excess(child: Grant, parent: Grant) -> None:
    if [one for one in every_call() if may(child, *one) and not may(parent, *one)]:
        assert find_excess(child, parent) is not None


@given(grants, grants)
def test_meet_allows_exactly_what_both_allow(child: Grant, parent: Grant) -> None:
    both = meet(child, parent)
    for one in every_call():
        assert may(both, *one) == (may(child, *one) and may(parent, *one))


@given(st.lists(grants, min_size=1, max_size=CHAIN_MAX + 1))
def test_effective_rights_are_those_of_the_whole_chain(chain: list[Grant]) -> None:
    by_id = {str(place): grant for place, grant in enumerate(chain)}
    parents = {str(place): str(place - 1) for place in range(1, len(chain))}
    last = effective(str(len(chain) - 1), by_id, parents)
    for one in every_call():
        assert may(last, *one) == all(may(grant, *one) for grant in chain)


@given(grants)
def test_a_cycle_or_a_lost_parent_leaves_nothing(grant: Grant) -> None:
    assert effective("a", {"a": grant, "b": grant}, {"a": "b", "b": "a"}).is_revoked
    assert effective("a", {"a": grant}, {"a": "lost"}).is_revoked


def test_a_chain_has_an_end() -> None:
    parents = {str(place): str(place - 1) for place in range(1, CHAIN_MAX + 1)}
    assert find_chain_excess(str(CHAIN_MAX - 1), parents) is None
    assert find_chain_excess(str(CHAIN_MAX), parents) is not None


def test_every_chain_that_may_be_issued_can_be_followed() -> None:
    grant = Grant(tenant="acme", scopes=frozenset({"infer"}))
    length = CHAIN_MAX + 1
    parents = {str(place): str(place - 1) for place in range(1, length)}
    assert find_chain_excess(str(length - 2), parents) is None
    assert not effective(str(length - 1), {str(place): grant for place in range(length)}, parents).is_revoked
