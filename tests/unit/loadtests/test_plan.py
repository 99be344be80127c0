"""What is run: every figure a ratio needs is in both plans, and narrowing keeps what was asked for."""

import pytest

from loadtests.plan import TOLLWAY_TMPFS, Plan, full_plan, narrow, quick_plan, rotated


@pytest.mark.parametrize("plan", [full_plan(), quick_plan()])
def test_both_plans_measure_every_part_of_every_ratio(plan: Plan) -> None:
    by_name = {scenario.name: set(scenario.contenders) for scenario in plan.scenarios}
    assert {"tollway_all", "nginx", "nginx_lua", "envoy_policy"} <= by_name["http_1k_c64"]
    assert {"tollway_all", "envoy", "grpc_aio"} <= by_name["grpc_1k_c64"]
    assert {TOLLWAY_TMPFS, "tollway_all", "nginx", "direct"} <= by_name["http_1k_c1"]
    assert plan.has_engine
    assert plan.has_memory
    assert plan.memory_calls % plan.memory_chunk == 0


def test_the_full_plan_covers_both_protocols_sizes_and_three_concurrencies() -> None:
    shapes = {(scenario.protocol, scenario.size, scenario.concurrency) for scenario in full_plan().scenarios}
    wanted = {(protocol, "1k", c) for protocol in ("http", "grpc") for c in (1, 64, 256)}
    assert wanted | {("http", "600k", 64), ("grpc", "600k", 64)} <= shapes
    assert full_plan().memory_calls == 1_000_000


def test_only_keeps_scenarios_by_the_start_of_their_name() -> None:
    plan = narrow(full_plan(), ["grpc_1k", "memory"], [])
    assert {scenario.name for scenario in plan.scenarios} == {"grpc_1k_c1", "grpc_1k_c64", "grpc_1k_c256"}
    assert (plan.has_engine, plan.has_memory) == (False, True)


def test_contenders_keeps_those_named_and_drops_what_has_none() -> None:
    plan = narrow(full_plan(), [], ["nginx_lua"])
    assert {scenario.protocol for scenario in plan.scenarios} == {"http"}
    assert all(scenario.contenders == ("nginx_lua",) for scenario in plan.scenarios)
    assert not plan.has_engine


@pytest.mark.parametrize(("only", "contenders"), [(["grpx"], []), ([], ["apache"])])
def test_a_word_that_matches_nothing_is_refused_by_name(only: list[str], contenders: list[str]) -> None:
    with pytest.raises(ValueError, match=r"grpx|apache"):
        narrow(full_plan(), only, contenders)


def test_each_round_begins_with_another_contender_and_has_them_all() -> None:
    rounds = [rotated(["a", "b", "c"], round_) for round_ in range(4)]
    assert [order[0] for order in rounds] == ["a", "b", "c", "a"]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
