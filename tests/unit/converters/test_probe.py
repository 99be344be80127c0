"""What is not safe is refused by name before any runtime sees it; what only looks alike passes."""

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data

from converters import probe, sniff
from converters.errors import UnsafeModel, UsageFault
from converters.probe import probe_onnx
from converters.selftest.models import CLEAN, mlp


class Canary:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("canary",))


def zipped(name: str, data: bytes) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr(name, data)
    return memory.getvalue()


def tarred() -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("data.pkl"))
    return memory.getvalue()


def object_array() -> bytes:
    memory = io.BytesIO()
    np.save(memory, np.asarray([Canary()], dtype=object), allow_pickle=True)
    return memory.getvalue()


FILES: list[tuple[str, bytes]] = [
    ("pickle", pickle.dumps(Canary(), protocol=4)),
    ("pickle", pickle.dumps(Canary(), protocol=2)),
    ("pickle", pickle.dumps(Canary(), protocol=5)),
    ("pickle", pickle.dumps(Canary(), protocol=0)),
    ("zip", zipped("archive/data.pkl", pickle.dumps(Canary()))),
    ("zip", zipped("config.json", b'{"class_name": "Lambda"}')),
    ("tar", tarred()),
    ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(200)),
    ("npy", object_array()),
    ("compressed", b"\x1f\x8b\x08" + bytes(50)),
    ("compressed", b"\x28\xb5\x2f\xfd" + bytes(50)),
    ("executable", b"\x7fELF" + bytes(50)),
    ("openvino_ir", b"<?xml version='1.0'?><net/>"),
    ("gguf", b"GGUF" + bytes(50)),
    ("tflite", b"\x1c\0\0\0TFL3" + bytes(50)),
    ("safetensors", b"\x40\0\0\0\0\0\0\0" + b'{"a":{}}' + bytes(70)),
    ("git_lfs", b"version https://git-lfs.github.com/spec/v1\n"),
    ("unknown_format", b"hello, this is no model"),
    ("empty", b""),
    ("malformed", b"\x08\x07\x3a\xff\xff\xff\xff\x0f"),
    ("no_graph", b"\x08\x07"),
]


@pytest.mark.parametrize(("rule", "data"), FILES, ids=[f"{place}-{rule}" for place, (rule, _) in enumerate(FILES)])
def test_other_formats_are_named_and_not_run(
    rule: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(UnsafeModel) as refused:
        probe_onnx(tmp_path / "model.onnx")
    assert refused.value.rule == rule
    assert refused.value.next_step
    assert not (tmp_path / "canary").exists()


def test_a_missing_file_is_a_usage_fault(tmp_path: Path) -> None:
    with pytest.raises(UsageFault):
        probe_onnx(tmp_path / "none.onnx")


def test_a_link_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real.onnx").write_bytes(mlp().SerializeToString())
    (tmp_path / "link.onnx").symlink_to("real.onnx")
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "pipe.onnx")
    rules = []
    for name in ("link", "folder", "pipe"):
        with pytest.raises(UnsafeModel) as refused:
            probe_onnx(tmp_path / f"{name}.onnx")
        rules.append(refused.value.rule)
    assert rules == ["link", "not_regular", "not_regular"]


@pytest.mark.parametrize("name", CLEAN)
def test_an_honest_model_passes(name: str, tmp_path: Path) -> None:
    model = CLEAN[name]()
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    found = probe_onnx(tmp_path / "m.onnx")
    assert (found.opset, found.nodes, found.external) == (17, len(model.graph.node), ())


def external(folder: Path) -> Any:
    model = mlp()
    convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    onnx.save_model(model, str(folder / "m.onnx"))
    return onnx.load(str(folder / "m.onnx"), load_external_data=False)


def test_external_data_beside_the_model_passes(tmp_path: Path) -> None:
    external(tmp_path)
    assert probe_onnx(tmp_path / "m.onnx").external == ("w.bin",)


def entry(key: str, value: str) -> Callable[[Path, Any], None]:
    def spoil(folder: Path, model: Any) -> None:
        entries = model.graph.initializer[0].external_data
        found = next((one for one in entries if one.key == key), None)
        found = entries.add(key=key) if found is None else found
        found.value = value

    return spoil


def as_symlink(folder: Path, model: Any) -> None:
    (folder / "w.bin").rename(folder / "elsewhere")
    (folder / "w.bin").symlink_to("elsewhere")


def as_hard_link(folder: Path, model: Any) -> None:
    os.link(folder / "w.bin", folder / "second")


def through_linked_folder(folder: Path, model: Any) -> None:
    (folder / "real").mkdir()
    (folder / "w.bin").rename(folder / "real" / "w.bin")
    (folder / "sub").symlink_to("real")
    for tensor in model.graph.initializer:
        next(one for one in tensor.external_data if one.key == "location").value = "sub/w.bin"


def as_folder(folder: Path, model: Any) -> None:
    (folder / "w.bin").unlink()
    (folder / "w.bin").mkdir()


EXTERNAL: list[tuple[str, Callable[[Path, Any], None]]] = [
    ("external_path", entry("location", "../secret")),
    ("external_path", entry("location", "a/../../secret")),
    ("external_path", entry("location", "/etc/hostname")),
    ("external_path", entry("location", "..\\secret")),
    ("external_path", entry("location", "")),
    ("external_path", entry("location", "./w.bin")),
    ("external_missing", entry("location", "none.bin")),
    ("external_link", as_symlink),
    ("external_link", as_hard_link),
    ("external_link", through_linked_folder),
    ("external_link", as_folder),
    ("external_range", entry("offset", "999999999")),
    ("external_range", entry("length", "999999999")),
    ("external_range", entry("offset", "-4")),
    ("external_range", entry("length", "0x10")),
]


@pytest.mark.parametrize(("rule", "spoil"), EXTERNAL, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(EXTERNAL)])
def test_external_data_that_is_not_beside_the_model_is_refused(
    rule: str, spoil: Callable[[Path, Any], None], tmp_path: Path
) -> None:
    model = external(tmp_path)
    spoil(tmp_path, model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeModel) as refused:
        probe_onnx(tmp_path / "m.onnx")
    assert refused.value.rule == rule


def huge(model: Any) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 20, 1 << 20])


def negative(model: Any) -> None:
    model.graph.initializer[0].dims[0] = -5


def hollow(model: Any) -> None:
    model.graph.initializer[0].raw_data = b""


def hidden_in_a_subgraph(model: Any) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1 << 40])
    inner = helper.make_graph([helper.make_node("Identity", ["t"], ["i"])], "inner", [], [], [tensor])
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))


def nested(depth: int) -> Callable[[Any], None]:
    def spoil(model: Any) -> None:
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["z0"])], "g", [], [])
        for _ in range(depth):
            graph = helper.make_graph([helper.make_node("If", ["c"], ["z"], then_branch=graph)], "g", [], [])
        model.graph.node.extend(graph.node)

    return spoil


def custom(model: Any) -> None:
    model.opset_import.add(domain="evil.example", version=1)
    model.graph.node[0].domain = "evil.example"


def opset(version: int) -> Callable[[Any], None]:
    def spoil(model: Any) -> None:
        model.opset_import[0].version = version

    return spoil


GRAPHS: list[tuple[str, Callable[[Any], None]]] = [
    ("tensor_size", huge),
    ("tensor_shape", negative),
    ("tensor_data", hollow),
    ("tensor_size", hidden_in_a_subgraph),
    ("nesting", nested(17)),
    ("custom_domain", custom),
    ("opset", opset(6)),
    ("opset", opset(999)),
    ("opset", opset(0)),
]


@pytest.mark.parametrize(("rule", "spoil"), GRAPHS, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(GRAPHS)])
def test_a_hostile_graph_is_refused(rule: str, spoil: Callable[[Any], None], tmp_path: Path) -> None:
    model = mlp()
    spoil(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeModel) as refused:
        probe_onnx(tmp_path / "m.onnx")
    assert refused.value.rule == rule


def test_ten_thousand_nested_graphs_are_refused_by_the_parser(tmp_path: Path) -> None:
    """Encoded by hand, as no library writes it: graph(7) { node(1) { attribute(5) { g(6) { … } } } }."""

    def field(number: int, data: bytes) -> bytes:
        size, rest = b"", len(data)
        while rest >= 128:
            size, rest = size + bytes([rest % 128 + 128]), rest // 128
        return bytes([number << 3 | 2]) + size + bytes([rest]) + data

    graph = b""
    for _ in range(10_000):
        graph = field(1, field(5, field(6, graph)))
    (tmp_path / "m.onnx").write_bytes(b"\x08\x09" + field(7, graph))
    with pytest.raises(UnsafeModel) as refused:
        probe_onnx(tmp_path / "m.onnx")
    assert refused.value.rule == "malformed"


def test_graphs_nested_as_deep_as_allowed_pass(tmp_path: Path) -> None:
    model = mlp()
    nested(probe.GRAPH_DEPTH_MAX)(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert probe_onnx(tmp_path / "m.onnx").nodes == len(mlp().graph.node) + 1 + probe.GRAPH_DEPTH_MAX


def test_a_file_beyond_the_limit_is_refused_without_being_read(tmp_path: Path) -> None:
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(sniff.MODEL_BYTES_MAX + 1)
    with pytest.raises(UnsafeModel) as refused:
        sniff.sniff(tmp_path / "m.onnx")
    assert refused.value.rule == "too_large"


def test_the_nodes_are_counted_up_to_the_limit(tmp_path: Path) -> None:
    model = mlp()
    more = helper.make_node("Identity", ["x"], ["z"])
    model.graph.node.extend([more] * (probe.NODES_MAX - len(model.graph.node)))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert probe_onnx(tmp_path / "m.onnx").nodes == probe.NODES_MAX
    model.graph.node.append(more)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeModel) as refused:
        probe_onnx(tmp_path / "m.onnx")
    assert refused.value.rule == "nodes"
