"""What is not whole, signed, approved or fit is refused before any runtime sees it; of what fits the best is served."""

import base64
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.engine.admission import Rules, admit, choose_versions
from gateway.engine.overrides import read_override
from gateway.engine.registry import Registry
from gateway.errors import TollwayError
from model_repo.certificate import CERTIFICATE, GOLDEN
from model_repo.config import parse_config
from model_repo.errors import RepositoryError
from model_repo.manifest import MANIFEST, file_sha256
from model_repo.packing import pack
from model_repo.release import RELEASE
from model_repo.repository import find_model
from model_repo.signing import create_key, parse_trusted
from model_repo.store import change_release, publish
from tests.unit.engine.certified import CONFIG, FACTS, HERE, VNNI, Build, approve, publish_build, scale_onnx, stage
from tests.unit.engine.making import EngineUnderTest, run_engine, write_model, write_python

RULES = Rules(facts=FACTS, golden_ns_max=10**12)


async def factor(engine: EngineUnderTest, version: str = "") -> float:
    target = f"/v2/models/m{version}/infer"
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}
    exchange = await engine.call("POST", target, json.dumps(body).encode())
    assert exchange.status == 200, exchange.body
    return float(exchange.json()["outputs"][0]["data"][0])


def reason(registry: Registry) -> str:
    return "; ".join(row["reason"] for row in registry.index() if row["state"] != "READY")


def serve(root: Path, wanted: float, rules: Rules = RULES) -> None:
    """The engine serves model `m` with this factor."""

    async def test(engine: EngineUnderTest) -> None:
        assert not reason(engine.registry)
        assert engine.registry.is_ready
        assert await factor(engine) == pytest.approx(wanted)

    run_engine(root, test=test, rules=rules)


def refuse(root: Path, said: str, rules: Rules = RULES) -> None:
    async def test(engine: EngineUnderTest) -> None:
        assert said in reason(engine.registry)
        assert not engine.registry.is_ready
        exchange = await engine.infer("m", {"inputs": []})
        # Without a configuration that can be read there is no version.
        assert exchange.status in (404, 503)

    run_engine(root, test=test, rules=rules)


# -- fit ---------------------------------------------------------------------------------------------------------------


def test_a_version_without_a_manifest_loads_as_it_lies(tmp_path: Path) -> None:
    write_model(tmp_path, "m", CONFIG, {"1/model.onnx": scale_onnx(3), "1/notes/read.me": "anything"})
    serve(tmp_path, 3)


def test_a_version_that_does_not_fit_is_refused_before_its_file_is_read(tmp_path: Path) -> None:
    publish_build(tmp_path / "repo", Build(target=VNNI, is_readable=False))
    refuse(tmp_path / "repo", "verified with avx2, avx512_vnni; this CPU has avx2, and lacks avx512_vnni")


def test_the_best_variant_that_fits_is_served(tmp_path: Path) -> None:
    publish_build(
        tmp_path / "repo",
        Build(target=VNNI, is_readable=False),
        faster=Build(target=VNNI, is_readable=False),
        plain=Build(factor=4, golden=4),
        slower=Build(factor=5, golden=5),
    )
    serve(tmp_path / "repo", 4)


def test_the_own_files_come_first(tmp_path: Path) -> None:
    publish_build(tmp_path / "repo", Build(factor=2), plain=Build(factor=4, golden=4))
    serve(tmp_path / "repo", 2)


def test_where_nothing_fits_each_variant_is_named(tmp_path: Path) -> None:
    publish_build(tmp_path / "repo", Build(target=VNNI, is_readable=False), other=Build(target=VNNI, is_readable=False))
    refuse(tmp_path / "repo", "lacks avx512_vnni; variant other: verified with avx2, avx512_vnni")


def test_a_misfit_with_its_source_offers_to_rebuild(tmp_path: Path) -> None:
    staged = stage(
        tmp_path / "staged", Build(target=VNNI, is_readable=False), files={"source/model.onnx": scale_onnx(2)}
    )
    write_model(tmp_path / "repo", "m", CONFIG, {})
    shutil.copytree(staged, tmp_path / "repo" / "m" / "1")
    refuse(tmp_path / "repo", "`tollway models rebuild m 1`")


# -- golden answers ----------------------------------------------------------------------------------------------------


def test_a_version_that_answers_otherwise_here_is_refused(tmp_path: Path) -> None:
    publish_build(tmp_path / "repo", Build(factor=2, golden=2.1))
    refuse(tmp_path / "repo", "golden check: golden case 0, output 'y': error 0.1")


def test_a_variant_that_answers_rightly_takes_the_place_of_one_that_does_not(tmp_path: Path) -> None:
    publish_build(tmp_path / "repo", Build(factor=2, golden=2.1), plain=Build(factor=4, golden=4))
    serve(tmp_path / "repo", 4)


def test_without_time_for_it_nothing_is_checked_and_with_little_one_case_is(tmp_path: Path) -> None:
    publish_build(tmp_path / "repo", Build(factor=2, golden=2.1))
    serve(tmp_path / "repo", 2, Rules(facts=FACTS, golden_ns_max=0))
    refuse(tmp_path / "repo", "golden case 0", Rules(facts=FACTS, golden_ns_max=1))


def test_a_certificate_that_cannot_be_read_is_no_certificate_at_all(tmp_path: Path) -> None:
    folder = stage(tmp_path / "staged", Build())
    (folder / GOLDEN).write_bytes(b"nothing")
    (folder / MANIFEST).unlink()
    shutil.copytree(folder, tmp_path / "repo" / "m" / "1")
    (tmp_path / "repo" / "m" / "config.pbtxt").write_text(CONFIG)
    serve(tmp_path / "repo", 2)
    publish_build(tmp_path / "other", Build(cases=1))
    (tmp_path / "other" / "m" / "1" / CERTIFICATE).write_bytes(b"{}")
    refuse(tmp_path / "other", "certificate.json: sha256")


# -- whole -------------------------------------------------------------------------------------------------------------


def test_a_changed_added_or_missing_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    path = publish_build(root, Build()).path
    (path / "model.onnx").write_bytes(scale_onnx(9))
    refuse(root, "model.onnx: sha256")
    (path / "model.onnx").unlink()
    refuse(root, "model.onnx: is missing")
    (path / "model.onnx").write_bytes(scale_onnx(2))
    (path / "more").write_bytes(b"")
    refuse(root, "more: is not in the manifest")
    (path / "more").unlink()
    (path / "model.onnx").unlink()
    (path / "model.onnx").symlink_to(tmp_path / "elsewhere")
    refuse(root, "model.onnx: is no regular file")


def test_a_file_that_changes_between_check_and_load_is_refused(tmp_path: Path) -> None:
    path = publish_build(tmp_path / "repo", Build()).path / "model.onnx"
    folder = find_model(tmp_path / "repo", "m")
    assert folder is not None
    (build,) = admit(folder, 1, parse_config(CONFIG, name="m"), RULES)
    build.seal.check()
    times = path.stat()
    path.write_bytes(scale_onnx(9))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(RepositoryError, match=r"model\.onnx: was changed while it was loaded"):
        build.seal.check()


def test_a_version_that_is_loaded_again_is_checked_again(tmp_path: Path) -> None:
    """As a model that comes and goes is."""
    root = tmp_path / "repo"
    path = publish_build(root, Build()).path / "model.onnx"

    async def test(engine: EngineUnderTest) -> None:
        path.write_bytes(scale_onnx(9))
        with pytest.raises(TollwayError, match=r"model\.onnx: sha256"):
            await engine.registry.changes.load("m", read_override("m", {}))
        assert await factor(engine) == 2

    run_engine(root, test=test, rules=RULES)


# -- signatures --------------------------------------------------------------------------------------------------------


def test_only_what_a_trusted_key_signed_is_loaded_where_keys_are_set(tmp_path: Path) -> None:
    key, other = create_key(tmp_path / "key"), create_key(tmp_path / "other")
    root = tmp_path / "signed"
    publish_build(root, Build(), signer=key)
    serve(root, 2, Rules(facts=FACTS, trusted=parse_trusted([key.public, other.public])))
    refuse(root, f"is signed by {key.key_id}", Rules(facts=FACTS, trusted=parse_trusted([other.public])))
    trusted = Rules(facts=FACTS, trusted=parse_trusted([key.public]))
    publish_build(tmp_path / "bare", Build())
    refuse(tmp_path / "bare", "is not signed", trusted)
    write_model(tmp_path / "hand", "m", CONFIG, {"1/model.onnx": scale_onnx(3)})
    refuse(tmp_path / "hand", "manifest.json: is missing, so it cannot be signed", trusted)


def test_a_signed_version_under_another_number_name_or_configuration_is_refused(tmp_path: Path) -> None:
    key = create_key(tmp_path / "key")
    root = tmp_path / "repo"
    publish_build(root, Build(factor=2), signer=key)
    publish_build(root, Build(factor=3, golden=3), signer=key)
    rules = Rules(facts=FACTS, trusted=parse_trusted([key.public]))
    serve(root, 3, rules)
    # The old one in the new one's place.
    shutil.rmtree(root / "m" / "2")
    shutil.copytree(root / "m" / "1", root / "m" / "2")
    refuse(root, "is not of this: model m, version 2", rules)
    shutil.rmtree(root / "m" / "2")
    serve(root, 2, rules)
    (root / "m" / "config.pbtxt").write_text(
        CONFIG + 'parameters { key: "intra_op_thread_count" value { string_value: "2" } }'
    )
    refuse(root, "is not of this: model m, version 1", rules)
    (root / "m" / "config.pbtxt").write_text(CONFIG + "dynamic_batching { preferred_batch_size: 4 }")
    serve(root, 2, rules)


def test_a_load_that_brings_files_brings_no_signature(tmp_path: Path) -> None:
    key = create_key(tmp_path / "key")
    publish_build(tmp_path / "repo", Build(), signer=key)

    async def test(engine: EngineUnderTest) -> None:
        tensor = {"data_type": "TYPE_FP32", "dims": [2]}
        config: dict[str, object] = {"platform": "onnxruntime_onnx", "max_batch_size": 8}
        config.update(input=[{"name": "x", **tensor}], output=[{"name": "y", **tensor}])
        files = {"config": json.dumps(config)}
        files["file:1/model.onnx"] = base64.b64encode(scale_onnx(9)).decode()
        with pytest.raises(TollwayError, match="cannot be signed"):
            await engine.registry.changes.load("m", read_override("m", files))
        assert await factor(engine) == 2

    run_engine(tmp_path / "repo", test=test, rules=Rules(facts=FACTS, trusted=parse_trusted([key.public])))


# -- approvals and aliases ---------------------------------------------------------------------------------------------

APPROVED = Rules(facts=FACTS, is_approval_required=True)


def sha256(root: Path, number: int) -> str:
    return file_sha256(root / "m" / str(number) / MANIFEST)


def test_an_unapproved_version_loads_nowhere_and_is_no_fault(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish_build(root, Build())
    refuse(root, "version 1 is not approved; `tollway models approve m 1`", APPROVED)
    approve(root, 1, "0" * 64)
    refuse(root, "not approved", APPROVED)
    approve(root, 1, sha256(root, 1))
    serve(root, 2, APPROVED)
    publish_build(root, Build(factor=3, golden=3))
    serve(root, 2, APPROVED)
    serve(root, 3, RULES)
    approve(root, 2, sha256(root, 2))
    serve(root, 3, APPROVED)


def test_a_model_that_waits_for_approval_leaves_the_engine_ready_for_others(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish_build(root, Build())
    approve(root, 1, sha256(root, 1))
    shutil.copytree(root / "m", root / "waiting")
    (root / "waiting" / "config.pbtxt").write_text(CONFIG.replace('"m"', '"waiting"'))
    (root / "waiting" / RELEASE).unlink()

    async def test(engine: EngineUnderTest) -> None:
        assert engine.registry.is_ready
        assert (await engine.infer("waiting", {"inputs": []})).status == 503

    run_engine(root, test=test, rules=APPROVED)


def test_an_approved_version_that_the_policy_names_must_be_approved_too(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish_build(root, Build())
    publish_build(root, Build(factor=3, golden=3))
    approve(root, 2, sha256(root, 2))
    (root / "m" / "config.pbtxt").write_text(CONFIG + "version_policy { specific { versions: [1] } }")
    refuse(root, "version 1 is not approved", APPROVED)


def test_stable_is_what_a_call_without_a_version_gets_and_aliases_are_versions(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    for own in (2.0, 3.0, 4.0):
        publish_build(root, Build(factor=own, golden=own))
    change_release(root, "m", lambda release: release.with_alias("stable", 1).with_alias("canary", 3))

    async def test(engine: EngineUnderTest) -> None:
        assert [version.number for version in engine.registry.versions_of("m")] == [1, 3]
        assert await factor(engine) == 2
        assert await factor(engine, "/versions/3") == 4
        assert engine.registry.get("m", "canary").number == 3
        assert engine.registry.get("m", "stable").number == 1
        with pytest.raises(TollwayError, match="no version 'beta'"):
            engine.registry.get("m", "beta")

    run_engine(root, test=test, rules=RULES)


def test_an_alias_of_an_unapproved_or_missing_version_leads_nowhere(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    for own in (2.0, 3.0):
        publish_build(root, Build(factor=own, golden=own))
    approve(root, 2, sha256(root, 2))
    change_release(root, "m", lambda release: release.with_alias("stable", 1).with_alias("old", 9))
    folder = find_model(root, "m")
    assert folder is not None
    config = parse_config(CONFIG, name="m")
    assert choose_versions(folder, config, APPROVED) == {2: frozenset()}
    assert choose_versions(folder, config, RULES) == {1: frozenset({"stable"}), 2: frozenset()}


def test_an_alias_is_a_step_of_an_ensemble_too(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    for own in (2.0, 3.0):
        publish_build(root, Build(factor=own, golden=own))
    change_release(root, "m", lambda release: release.with_alias("stable", 1))
    ensemble = CONFIG.replace('"m"', '"e"').replace("onnxruntime_onnx", "ensemble") + (
        'ensemble_scheduling { step { model_name: "m" model_version: -1 '
        'input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } } }'
    )
    write_model(root, "e", ensemble, {"1/.keep": ""})

    async def test(engine: EngineUnderTest) -> None:
        for _ in range(2):
            body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}
            exchange = await engine.infer("e", body)
            assert exchange.json()["outputs"][0]["data"] == [2, 2]
            await engine.registry.changes.load("m", read_override("m", {}))

    run_engine(root, test=test, rules=RULES)


def test_a_release_that_cannot_be_read_refuses_its_model(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish_build(root, Build())
    (root / "m" / RELEASE).write_bytes(b"{")
    refuse_all = "release.json: malformed"

    async def test(engine: EngineUnderTest) -> None:
        assert refuse_all in reason(engine.registry)

    run_engine(root, test=test, rules=RULES)


def test_admitting_says_what_may_be_loaded(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish_build(root, Build(target=VNNI, is_readable=False), plain=Build(golden=None))
    folder = find_model(root, "m")
    assert folder is not None
    (build,) = admit(folder, 1, parse_config(CONFIG, name="m"), RULES)
    assert (build.name, build.parts, build.has_golden) == ("plain", ("variants", "plain"), False)
    with pytest.raises(RepositoryError, match="lacks avx2"):
        admit(folder, 1, parse_config(CONFIG, name="m"), Rules(facts=replace(FACTS, isa=())))


def test_golden_arrays_are_what_they_seem(tmp_path: Path) -> None:
    folder = stage(tmp_path / "staged", Build(target=HERE))
    with np.load(folder / GOLDEN) as file:
        assert np.array_equal(file["0.out.y"], file["0.in.x"] * 2)


COMPLETING = """
import triton_python_backend_utils as pb_utils
open({canary!r}, "w").close()


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_output({{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}})
        return config
"""


@pytest.mark.parametrize("rules", [APPROVED, Rules(facts=FACTS, trusted={"0" * 16: b"0" * 32})])
def test_no_code_of_a_version_that_is_not_admitted_runs_to_look_at_it(rules: Rules, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    write_python(tmp_path / "repo", "m", COMPLETING.format(canary=str(canary)))
    refuse(tmp_path / "repo", "not approved" if rules.is_approval_required else "cannot be signed", rules)
    assert not canary.exists()

    async def look(engine: EngineUnderTest) -> None:
        assert canary.exists()

    # It does run where nothing is asked for.
    run_engine(tmp_path / "repo", test=look, rules=RULES)


@pytest.mark.parametrize("rules", [APPROVED, Rules(facts=FACTS, trusted={"0" * 16: b"0" * 32})])
def test_no_file_is_read_by_a_library_to_complete_its_configuration(rules: Rules, tmp_path: Path) -> None:
    (tmp_path / "repo" / "m" / "1").mkdir(parents=True)
    (tmp_path / "repo" / "m" / "1" / "model.onnx").write_bytes(b"no model")
    refuse(tmp_path / "repo", "config.pbtxt: No such file", rules)
    refuse(tmp_path / "repo", "ONNX Runtime cannot load it")


HELPED = """
import helper
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        xs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x * helper.FACTOR)]) for x in xs]
"""


def test_a_python_model_leaves_its_version_as_it_was_published(tmp_path: Path) -> None:
    """It is loaded again and again, and no compiled form comes to lie beside it or is taken instead of it."""
    root = tmp_path / "repo"
    write_python(tmp_path / "made", "m", HELPED)
    (tmp_path / "made" / "m" / "1" / "helper.py").write_text("FACTOR = 5")
    text = (tmp_path / "made" / "m" / "config.pbtxt").read_text()
    publish(root, "m", pack(tmp_path / "made" / "m" / "1", parse_config(text, name="m"), tmp_path / "staged"), text)
    for _ in range(2):
        serve(root, 5)
        assert not list(root.rglob("__pycache__"))
    shutil.rmtree(root / "m" / "1")
    (root / "m" / "1" / "__pycache__").mkdir(parents=True)
    shutil.copytree(tmp_path / "staged", root / "m" / "1", dirs_exist_ok=True)
    refuse(root, "__pycache__: is no regular file")
