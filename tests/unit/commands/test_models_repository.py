"""`tollway models` on a repository: what a person publishes, looks at, approves, signs, compares and clears away."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway.commands.models import app
from model_repo.certificate import CERTIFICATE
from model_repo.manifest import MANIFEST
from model_repo.repository import find_model
from tests.unit.engine.certified import CONFIG, VNNI, Build, publish_build, scale_onnx, stage
from tests.unit.engine.making import write_model, write_python


class Repository:
    """Runs the verbs on one repository."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._runner = CliRunner()

    def run(self, *arguments: str, code: int = 0) -> Result:
        words = list(arguments)
        if arguments[0] not in ("keygen", "pull"):
            words += ["--repository", str(self.root)]
        result = self._runner.invoke(app, words)
        assert result.exit_code == code, result.output
        return result

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def versions(self) -> tuple[int, ...]:
        folder = find_model(self.root, "m")
        return folder.versions if folder is not None else ()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repo")


def by_hand(root: Path, factor: float = 2, name: str = "m") -> str:
    folder = write_model(root, name, CONFIG.replace('"m"', f'"{name}"'), {"1/model.onnx": scale_onnx(factor)})
    return str(folder)


def test_a_folder_made_by_hand_is_published_with_a_manifest(repository: Repository, tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "made", name="draft")
    assert repository.json("publish", folder, "--name", "m", "--alias", "stable") == {
        "model": "m",
        "version": 1,
        "is_new": True,
        "alias": "stable",
    }
    assert not repository.json("publish", folder, "--name", "m")["is_new"]
    (row,) = repository.json("list", "m")["versions"]
    assert (row["engine"], row["precision"], row["aliases"], row["fault"]) == ("onnxruntime", "as is", ["stable"], "")
    assert repository.json("verify")["versions"][0]["fault"] == ""
    assert "fits" in repository.run("list").stdout
    assert not (tmp_path / "made" / "draft" / "1" / MANIFEST).exists()


def test_a_certified_folder_keeps_its_manifest(repository: Repository, tmp_path: Path) -> None:
    staged = stage(tmp_path / "v", Build(target=VNNI), {"plain": Build(factor=3, golden=3)})
    (tmp_path / "config.pbtxt").write_text(CONFIG)
    repository.run("publish", str(staged), "--config", str(tmp_path / "config.pbtxt"), "--name", "m")
    assert (repository.root / "m" / "1" / MANIFEST).read_bytes() == (staged / MANIFEST).read_bytes()
    (row,) = repository.json("list")["versions"]
    assert row["variants"] == ["plain"]
    assert row["misfit"] == ""


def test_python_models_and_ensembles_are_published_too(repository: Repository, tmp_path: Path) -> None:
    write_python(tmp_path / "made", "p", "class TritonPythonModel: ...")
    repository.run("publish", str(tmp_path / "made" / "p"), "--name", "p")
    ensemble = CONFIG.replace('"m"', '"e"').replace("onnxruntime_onnx", "ensemble") + (
        'ensemble_scheduling { step { model_name: "p" model_version: -1 '
        'input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } } }'
    )
    write_model(tmp_path / "made", "e", ensemble, {}).joinpath("1").mkdir()
    repository.run("publish", str(tmp_path / "made" / "e"), "--name", "e")
    assert {row["engine"] for row in repository.json("list")["versions"]} == {"python", "ensemble"}


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "1" / "model.onnx").unlink(), "model.onnx: is not in"),
        (lambda folder: (folder / "config.pbtxt").unlink(), "config.pbtxt: No such file"),
        (lambda folder: (folder / "config.pbtxt").write_bytes(b"\xff"), "is not UTF-8 text"),
        (lambda folder: (folder / "config.pbtxt").write_text("platform {"), "not a model configuration"),
        (lambda folder: (folder / "1" / "more").symlink_to("/etc/hostname"), "more"),
        (lambda folder: (folder / "1" / MANIFEST).write_text("{}"), "schema is neither"),
    ],
)
def test_what_cannot_be_published_is_told_in_one_line(
    break_it: Any, said: str, repository: Repository, tmp_path: Path
) -> None:
    folder = by_hand(tmp_path / "made")
    break_it(Path(folder))
    result = repository.run("publish", folder, "--name", "m", code=1)
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not repository.versions()


def test_keys_sign_and_signatures_are_verified(repository: Repository, tmp_path: Path) -> None:
    key = str(tmp_path / "key")
    public = repository.json("keygen", key)["public"]
    assert repository.run("keygen", str(tmp_path / "other")).stdout.startswith('trusted_model_keys = ["ed25519:')
    folder = by_hand(tmp_path / "made")
    repository.run("publish", folder, "--name", "m", "--key", key)
    repository.run("publish", by_hand(tmp_path / "made2", 3), "--name", "m")
    rows = repository.json("verify", "--trusted", public, code=1)["versions"]
    assert (rows[0]["fault"], bool(rows[0]["key"])) == ("", True)
    assert "is not signed" in rows[1]["fault"]
    assert repository.json("sign", "m", "2", "--key", key)["signatures"].keys() == {"1", "2"}
    repository.run("verify", "--trusted", public)
    assert "No such file" in repository.run("sign", "m", "2", "--key", str(tmp_path / "no"), code=1).stderr
    assert "File exists" in repository.run("keygen", key, code=1).stderr


def test_a_damaged_version_is_found_and_neither_approved_nor_signed(repository: Repository, tmp_path: Path) -> None:
    key = str(tmp_path / "key")
    repository.run("keygen", key)
    publish_build(repository.root, Build())
    path = repository.root / "m" / "1" / CERTIFICATE
    path.write_bytes(path.read_bytes() + b" ")
    assert "certificate.json: sha256" in repository.json("verify", "m", "1", code=1)["versions"][0]["fault"]
    for words in (("approve", "m", "1"), ("sign", "m", "1", "--key", key)):
        assert "certificate.json: sha256" in repository.run(*words, code=1).stderr


def test_versions_are_approved_named_and_both_taken_back(repository: Repository) -> None:
    publish_build(repository.root, Build())
    publish_build(repository.root, Build(factor=3, golden=3))
    answer = repository.json("approve", "m", "2", "--by", "ann")
    assert answer["approvals"]["2"]["by"] == "ann"
    assert repository.json("alias", "m", "stable", "2")["aliases"] == {"stable": 2}
    assert "stable is version 1" in repository.run("alias", "m", "stable", "1").stdout
    assert [row["is_approved"] for row in repository.json("list")["versions"]] == [False, True]
    assert "no longer approved" in repository.run("approve", "m", "2", "--withdraw").stdout
    assert repository.json("alias", "m", "stable", "--remove")["aliases"] == {}
    assert "there is none" in repository.run("alias", "m", "stable", "--remove", code=1).stderr
    assert "give a version, or --remove" in repository.run("alias", "m", "stable", code=1).stderr
    assert "has no version 7" in repository.run("alias", "m", "stable", "7", code=1).stderr
    assert "must match" in repository.run("alias", "m", "Stable", "1", code=1).stderr
    assert "is not in" in repository.run("alias", "n", "stable", "1", code=1).stderr


def test_two_versions_are_compared(repository: Repository) -> None:
    publish_build(repository.root, Build())
    publish_build(repository.root, Build(factor=3, golden=3, target=VNNI))
    answer = repository.json("diff", "m", "1", "2")
    paths = {one["path"] for one in answer["differences"]}
    assert "manifest.target.isa" in paths
    assert "manifest.files.model.onnx.sha256" in paths
    assert "avx512_vnni" in repository.run("diff", "m", "1", "2").stdout
    assert "has no version 3" in repository.run("diff", "m", "1", "3", code=1).stderr


def test_old_versions_go_and_what_is_needed_stays(repository: Repository, tmp_path: Path) -> None:
    for number in range(5):
        publish_build(repository.root, Build(factor=number, golden=number))
    repository.run("alias", "m", "canary", "2")
    data = ("--data-dir", str(tmp_path / "data"))
    planned = repository.json("gc", "--keep", "1", "--dry-run", *data)
    assert repository.versions() == (1, 2, 3, 4, 5)
    done = repository.json("gc", "--keep", "1", "--offline", *data)
    assert planned["versions"] == done["versions"]
    assert repository.versions() == (2, 5)
    assert "nothing runs on" in repository.run("gc", *data).stderr
    (repository.root / "m" / "config.pbtxt").write_text(CONFIG + "version_policy { all {} }")
    publish_build(repository.root, Build(factor=9, golden=9))
    repository.run("alias", "m", "canary", "--remove")
    repository.run("gc", "--keep", "1", "--offline")
    assert repository.versions() == (2, 5, 6)


def test_a_folder_is_brought_in_line_with_a_store(repository: Repository, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    publish_build(repository.root, Build())
    words = ("pull", "--from", f"file://{repository.root}", "--into", str(mirror))
    assert repository.json(*words)["models"][0]["added"] == [1]
    publish_build(repository.root, Build(factor=3, golden=3))
    repository.run("alias", "m", "stable", "2")
    assert "in line" in repository.run(*words).stdout
    found = Repository(mirror)
    assert found.versions() == (1, 2)
    assert found.json("list")["versions"][1]["aliases"] == ["stable"]
    publish_build(mirror, Build(factor=4, golden=4))
    publish_build(repository.root, Build(factor=5, golden=5))
    assert "a mirror has one source" in repository.json(*words, code=1)["models"][0]["fault"]


@pytest.mark.parametrize("verb", ["list", "verify"])
def test_an_address_that_is_none_is_told_in_one_line(verb: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [verb, "--repository", "ftp://host/models"])
    assert result.exit_code == 1
    assert "neither a path nor" in result.stderr
