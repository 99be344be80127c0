"""What a source is, by its bytes: each format goes to its toolchain, hostile files are refused by name."""

import io
import json
import pickle
import stat
import zipfile
from pathlib import Path

import pytest

from converters import archives, formats
from converters.errors import ConvertError, UnsafeModel, UsageFault
from converters.formats import recognise, source_files, tree_sha256


class Canary:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, ("canary",))


def zipped(**entries: bytes) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return memory.getvalue()


def keras(layer: dict[str, object]) -> bytes:
    config = {"class_name": "Sequential", "module": "keras", "registered_name": None, "config": {"layers": [layer]}}
    return zipped(config_dot_json=json.dumps(config).encode(), metadata_dot_json=b"{}", model_dot_weights_dot_h5=b"")


DENSE: dict[str, object] = {"class_name": "Dense", "module": "keras.layers", "registered_name": None, "config": {}}
KNOWN = [
    ("skops", "m.skops", zipped(schema_dot_json=b"{}")),
    ("keras", "m.keras", keras(DENSE)),
    ("pt2", "m.pt2", zipped(n__models__model_dot_json=b"{}", n__archive_format=b"pt2")),
    ("torchscript", "m.pt", zipped(n__data_dot_pkl=b"", n__code__net_dot_py=b"")),
    ("lightgbm", "m.txt", b"tree\nversion=v4\n"),
    ("xgboost", "m.json", b'{"learner":{"attributes":{}}}'),
    ("xgboost", "m.ubj", b"{L\0\0\0\0\0\0\0\x07learner{"),
    ("tflite", "m.tflite", b"\x1c\0\0\0TFL3" + b"\0" * 40),
    ("torch_code", "m.py", b"def build(weights): ...\n"),
    ("onnx", "m.onnx", b"\x08\x08" + b"\x12\x04test"),
]


@pytest.mark.parametrize(("kind", "name", "data"), KNOWN, ids=[f"{kind}-{name}" for kind, name, _ in KNOWN])
def test_each_format_is_told_by_its_bytes(kind: str, name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert recognise(tmp_path / name) == kind


WEIGHTS = [
    ("torch_weights", "", "m.pth", zipped(n__data_dot_pkl=b"")),
    ("torch_weights", "", "m.pth", pickle.dumps({}, protocol=2)),
    ("torch_weights", "", "m.safetensors", (2).to_bytes(8, "little") + b"{}" + b"\0" * 9),
    ("jax_weights", "jax", "m.safetensors", (2).to_bytes(8, "little") + b"{}" + b"\0" * 9),
    ("mindspore_weights", "mindspore", "m.ckpt", b"\x0a\x20weights"),
]


@pytest.mark.parametrize(("kind", "framework", "name", "data"), WEIGHTS)
def test_weights_need_the_code_around_them(kind: str, framework: str, name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "net.py").write_text("def build(weights): ...\n")
    assert recognise(tmp_path / name, tmp_path / "net.py", framework) == kind
    with pytest.raises(ConvertError) as refused:
        recognise(tmp_path / name, None, framework)
    assert refused.value.exit_code == 4


HOSTILE = [
    ("zip", "m.zip", zipped(anything=b"")),
    ("zip", "m.skops", zipped(schema_dot_json=b"{}")[:40]),
    ("pickle", "m.joblib", pickle.dumps(Canary())),
    ("pickle", "m.npy", pickle.dumps(Canary(), protocol=0)),
    ("hdf5", "m.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 8),
    ("keras_code", "m.keras", keras({**DENSE, "class_name": "Lambda"})),
    ("keras_code", "m.keras", keras({**DENSE, "class_name": "TFSMLayer"})),
    ("keras_code", "m.keras", keras({**DENSE, "config": {"activation": {"class_name": "__lambda__"}}})),
    ("keras_code", "m.keras", keras({**DENSE, "module": "os"})),
    ("keras_code", "m.keras", keras({**DENSE, "module": "keras.src.utils", "registered_name": "mine>Dense"})),
    ("keras_config", "m.keras", zipped(config_dot_json=b"{", metadata_dot_json=b"")),
    ("keras_config", "m.keras", zipped(config_dot_json=b"[" * 100_000, metadata_dot_json=b"")),
    ("zip_names", "m.skops", zipped(schema_dot_json=b"{}", **{"..__x": b""})),
    ("zip_names", "m.skops", zipped(schema_dot_json=b"{}", __etc__x=b"")),
    ("zip_names", "m.skops", zipped(schema_dot_json=b"{}", **{"a\\b": b""})),
    ("empty", "m.bin", b""),
    ("unknown_format", "m.bin", b"\xffhello"),
]


@pytest.mark.parametrize(("rule", "name", "data"), HOSTILE, ids=[f"{n}-{one[0]}" for n, one in enumerate(HOSTILE)])
def test_a_hostile_file_is_refused_and_never_run(
    rule: str, name: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnsafeModel) as refused:
        recognise(tmp_path / name)
    assert refused.value.rule == rule
    assert not (tmp_path / "canary").exists()


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.skops", "w") as archive:
        archive.writestr("schema.json", "{}")
        entry = zipfile.ZipInfo("data")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(UnsafeModel) as refused:
        recognise(tmp_path / "m.skops")
    assert refused.value.rule == "zip_link"


def test_an_archive_that_unpacks_to_too_much_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.skops", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", "{}")
        archive.writestr("weights", bytes(65 << 20))
    with pytest.raises(UnsafeModel) as refused:
        recognise(tmp_path / "m.skops")
    assert refused.value.rule == "zip_bomb"


def test_entries_of_an_archive_are_counted_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.skops").write_bytes(zipped(schema_dot_json=b"{}", a=b"", b=b""))
    monkeypatch.setattr(archives, "ENTRIES_MAX", 3)
    assert recognise(tmp_path / "m.skops") == "skops"
    monkeypatch.setattr(archives, "ENTRIES_MAX", 2)
    with pytest.raises(UnsafeModel) as refused:
        recognise(tmp_path / "m.skops")
    assert refused.value.rule == "zip_entries"


def folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_bytes(b"x")
    return path


def test_folders_are_told_by_their_files(tmp_path: Path) -> None:
    assert recognise(folder(tmp_path / "saved", "saved_model.pb")) == "savedmodel"
    paddle = folder(tmp_path / "paddle", "model.json", "model.pdiparams")
    assert recognise(paddle) == "paddle"
    assert recognise(paddle / "model.json") == "paddle"
    assert source_files(paddle / "model.json") == [paddle / "model.json", paddle / "model.pdiparams"]
    with pytest.raises(UnsafeModel) as refused:
        recognise(folder(tmp_path / "other", "readme"))
    assert refused.value.rule == "folder"


def test_links_in_a_folder_are_refused(tmp_path: Path) -> None:
    saved = folder(tmp_path / "saved", "saved_model.pb")
    (saved / "variables").symlink_to("/etc")
    with pytest.raises(UnsafeModel) as refused:
        recognise(saved)
    assert refused.value.rule == "link"


def test_files_of_a_folder_are_counted_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = folder(tmp_path / "saved", "saved_model.pb", "a")
    monkeypatch.setattr(formats, "FOLDER_FILES_MAX", 2)
    assert len(source_files(saved)) == 2
    (saved / "b").write_bytes(b"")
    with pytest.raises(UnsafeModel) as refused:
        source_files(saved)
    assert refused.value.rule == "folder"


def test_a_source_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_bytes(b"tree\n")
    (tmp_path / "link.txt").symlink_to("m.txt")
    with pytest.raises(UnsafeModel) as refused:
        recognise(tmp_path / "link.txt")
    assert refused.value.rule == "link"


@pytest.mark.parametrize(
    ("rule", "name", "code", "framework"),
    [
        ("missing", "nothing.onnx", None, ""),
        ("framework", "m.txt", None, "caffe"),
        ("framework", "m.py", None, "sklearn"),
        ("code", "m.txt", "m.py", ""),
        ("code", "m.pth", "nothing.py", ""),
    ],
)
def test_what_does_not_go_together_is_a_usage_fault(
    rule: str, name: str, code: str | None, framework: str, tmp_path: Path
) -> None:
    (tmp_path / "m.txt").write_bytes(b"tree\n")
    (tmp_path / "m.py").write_bytes(b"")
    (tmp_path / "m.pth").write_bytes(zipped(n__data_dot_pkl=b""))
    with pytest.raises(UsageFault) as refused:
        recognise(tmp_path / name, tmp_path / code if code else None, framework)
    assert refused.value.rule == rule


def test_code_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_bytes(b"#" * formats.CODE_BYTES_MAX)
    assert recognise(tmp_path / "m.py") == "torch_code"
    (tmp_path / "m.py").write_bytes(b"#" * (formats.CODE_BYTES_MAX + 1))
    with pytest.raises(UsageFault) as refused:
        recognise(tmp_path / "m.py")
    assert refused.value.rule == "code"


def test_the_digest_sees_every_file_its_name_and_the_code(tmp_path: Path) -> None:
    saved = folder(tmp_path / "saved", "saved_model.pb", "a")
    code = tmp_path / "net.py"
    code.write_text("1")
    seen = {tree_sha256(saved), tree_sha256(saved, code)}
    code.write_text("2")
    seen.add(tree_sha256(saved, code))
    (saved / "a").write_bytes(b"y")
    seen.add(tree_sha256(saved))
    (saved / "a").rename(saved / "b")
    seen.add(tree_sha256(saved))
    assert len(seen) == 5
