"""The self-test tells a gate that catches from one that does not, and converts honest models in full."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from converters.selftest.faults import FAULTS
from converters.selftest.more_models import MORE
from converters.selftest.run import HONEST, selftest, try_honest


def test_there_are_as_many_models_and_faults_as_the_acceptance_test_asks_for() -> None:
    assert len(FAULTS) >= 24
    assert len(HONEST) >= 24
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_a_fault_that_changes_nothing_is_not_called_caught() -> None:
    harmless = replace(FAULTS[0], name="harmless", spoil=lambda model: None)
    value = selftest(lambda event: None, faults=[FAULTS[0], harmless], honest=[])
    assert [one["is_caught"] for one in value["faults"]] == [True, False]
    assert (value["caught"], value["nodes_named"]) == (1, 1)
    assert value["faults"][0]["repro_nodes"] == 1


@pytest.mark.parametrize("name", MORE)
def test_the_further_honest_models_raise_no_alarm(name: str) -> None:
    found = try_honest(name, HONEST[name]())
    assert found["alarms"] == []
    assert found["judged"] == 2


def test_progress_is_told_and_an_unknown_verb_is_refused() -> None:
    events: list[dict[str, object]] = []
    selftest(lambda event: events.append(dict(event)), faults=[], honest=["mlp"])
    assert events == [{"ev": "progress", "step": "honest: mlp", "done": 0, "total": 1}]
    assert json.dumps(events)
    done = subprocess.run(
        [sys.executable, "-m", "converters", "selftests"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "selftest" in done.stderr
