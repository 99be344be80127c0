"""What is decided about a model that this host cannot run: every answer, and that none is given twice."""

from dataclasses import replace
from typing import Any

import pytest

from model_repo.host import HostFacts
from model_repo.rebuild_plan import Attempt, Blocked, Rebuild, VersionFacts, decide, find_missing, find_obstacle

HOST = HostFacts(arch="x86_64", os="linux", glibc="2.36", isa=("avx2",), runtimes={"onnxruntime": "1.31.1"})
ILL = VersionFacts(number=3, digest="d3", misfit="lacks avx512_vnni", has_source=True)
WELL = VersionFacts(number=4, digest="d4")
DONE = Attempt(number=3, conversion_id="cnv_a", outcome="cnv_a made version 4 of it", made=4)


def plan(*versions: VersionFacts, attempts: tuple[Attempt, ...] = (), missing: Any = ()) -> Rebuild | Blocked | None:
    return decide("m", "onnxruntime", versions, attempts, missing)


def blocked(*versions: VersionFacts, **more: Any) -> Blocked:
    found = plan(*versions, **more)
    assert isinstance(found, Blocked)
    return found


def test_a_version_that_does_not_fit_is_made_anew() -> None:
    assert plan(ILL) == Rebuild(number=3, why="lacks avx512_vnni")


def test_one_that_the_engine_refused_is_made_anew() -> None:
    assert plan(replace(ILL, misfit="", refusal="golden check: y")) == Rebuild(number=3, why="golden check: y")


@pytest.mark.parametrize(
    "versions",
    [
        (),
        (WELL,),
        # Something of the model serves.
        (ILL, WELL),
        (WELL, replace(ILL, number=5)),
        # Nothing is asked to serve: it waits as any new model does.
        (replace(WELL, lacks="approval"),),
        (replace(ILL, lacks="approval"),),
        # What is not trusted is not run through the converters.
        (replace(ILL, lacks="signature"),),
        # Damaged: for `verify`, not for a conversion.
        (replace(ILL, misfit="", fault="manifest.json: malformed"),),
    ],
)
def test_nothing_is_done_where_nothing_helps_or_something_serves(versions: tuple[VersionFacts, ...]) -> None:
    assert plan(*versions) is None


def test_the_newest_that_holds_its_source_is_taken() -> None:
    newer = replace(ILL, number=5, has_source=False)
    assert plan(replace(ILL, number=2), ILL, newer) == Rebuild(number=3, why="lacks avx512_vnni")


def test_without_source_or_toolchain_the_command_is_told() -> None:
    found = blocked(replace(ILL, has_source=False))
    assert (found.obstacle, found.command) == (
        "it does not hold its source",
        "tollway convert MODEL --name m --keep-source",
    )
    found = blocked(ILL, missing=("onnx", "openvino"))
    assert found.obstacle == "not installed here: onnx, openvino"
    assert found.command == "pip install 'tollway[converters,openvino]'"
    assert "without being asked" in blocked(ILL, missing=None).obstacle


@pytest.mark.parametrize("outcome", ["cnv_a ended: failed: no_variant: none fits", "cnv_a is running"])
def test_none_is_made_twice(outcome: str) -> None:
    found = blocked(ILL, attempts=(Attempt(number=3, conversion_id="cnv_a", outcome=outcome),))
    assert (found.obstacle, found.command, found.conversion_id) == (outcome, "tollway models rebuild m 3", "cnv_a")


def test_an_attempt_for_another_version_does_not_count() -> None:
    assert plan(ILL, attempts=(Attempt(number=2, conversion_id="cnv_a", outcome="failed"),)) == Rebuild(
        number=3, why="lacks avx512_vnni"
    )


@pytest.mark.parametrize(
    ("lacks", "command"),
    [
        ("approval", "tollway models approve m 4"),
        ("signature", "tollway models sign m 4 --key FILE"),
        ("choice", "tollway models alias m stable 4"),
    ],
)
def test_what_came_of_it_waits_to_be_let_in(lacks: str, command: str) -> None:
    found = blocked(ILL, replace(WELL, lacks=lacks), attempts=(DONE,))
    assert found.obstacle == f"version 4 fits, and waits for its {lacks}"
    assert (found.command, found.conversion_id) == (command, "cnv_a")
    # By hand on this host: told as well, and nothing is made anew beside it.
    assert blocked(ILL, replace(WELL, lacks=lacks)).command == command


def test_an_unsigned_one_that_took_the_place_of_its_origin_is_told() -> None:
    found = blocked(replace(ILL, lacks="choice"), replace(WELL, lacks="signature"), attempts=(DONE,))
    assert found.command == "tollway models sign m 4 --key FILE"


def test_what_came_of_a_rebuild_is_not_made_anew_in_turn() -> None:
    refused = replace(WELL, refusal="golden check: y", has_source=True)
    found = blocked(ILL, refused, attempts=(DONE,))
    assert (found.number, found.obstacle) == (4, "it was made on this host by cnv_a")


def test_an_older_version_that_fits_but_is_not_chosen_does_not_stand_in_the_way() -> None:
    assert plan(replace(WELL, number=2, lacks="choice"), ILL) == Rebuild(number=3, why="lacks avx512_vnni")


def test_missing_packages_are_those_of_the_engine_and_of_the_reference() -> None:
    everything = {"onnx", "onnxslim"}
    assert find_missing("onnxruntime", HOST, everything.__contains__) == ()
    assert find_missing("onnxruntime", HOST, {"onnx"}.__contains__) == ("onnxslim",)
    assert find_missing("openvino", HOST, everything.__contains__) == ("openvino",)
    bare = replace(HOST, runtimes={})
    assert find_missing("openvino", bare, everything.__contains__) == ("onnxruntime", "openvino")
    assert find_missing("tensorrt_rtx", HOST, everything.__contains__) is None
    assert find_missing("python", HOST, everything.__contains__) is None


def test_an_obstacle_names_the_extra_that_brings_the_package() -> None:
    assert find_obstacle("m", 1, "onnxruntime", has_source=True, missing=()) == ("", "tollway models rebuild m 1")
    found = find_obstacle("m", 1, "onnxruntime", has_source=True, missing=("onnxruntime", "onnx"))
    assert found[1] == "pip install 'tollway[converters,engine]'"
