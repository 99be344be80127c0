"""Pickles of weights: names of tensors pass, anything else is refused by its opcodes, before anything reads it."""

import collections
import io
import os
import pickle
import zipfile

import pytest

from converters.errors import UnsafeModel
from converters.importers import pickles
from converters.importers.pickles import check_weights


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: object) -> None:
        self._function = function

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (self._function, ("touch canary",))


def archive(data: bytes) -> io.BytesIO:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as file:
        file.writestr("n/data.pkl", data)
    return memory


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_ordered_numbers_pass(protocol: int) -> None:
    check_weights(archive(pickle.dumps(collections.OrderedDict(a=1, b=[2.5, "x"]), protocol)), "m.pth")


@pytest.mark.parametrize(
    "text",
    [b"ctorch._utils\n_rebuild_tensor_v2\n.", b"ctorch\nFloatStorage\n.", b"ctorch\nfloat32\n.", b"ctorch\nSize\n."],
)
def test_what_torch_save_writes_passes(text: bytes) -> None:
    check_weights(archive(text), "m.pth")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("function", [os.system, eval, getattr, io.open])
def test_a_call_of_anything_else_is_refused(protocol: int, function: object) -> None:
    with pytest.raises(UnsafeModel) as refused:
        check_weights(archive(pickle.dumps({"w": Call(function)}, protocol)), "m.pth")
    assert refused.value.rule == "pickle"


@pytest.mark.parametrize(
    "data",
    [
        b"(S'x'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93.",
        # The names fetched from the memo, in an order that the last strings do not show.
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x8c\x01a\x94\x8c\x01b\x94h\x00h\x01\x93.",
        # Allowed names on top, taken off again before the import.
        b"\x80\x04\x8c\x02os\x8c\x06system\x8c\x05torch\x8c\x04Size00\x93.",
        # A list in the memo moves the numbers of the names.
        b"\x80\x04]\x94\x8c\x05torch\x94\x8c\x04Size\x94\x8c\x02os\x94\x8c\x06system\x94h\x03h\x04\x93.",
        # A first harmless pickle with another behind it.
        b"\x80\x02].\x80\x02cos\nsystem\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x04\x93.",
        b"ctorch\nload\n.",
        b"ctorch.storage\n_load_from_bytes\n.",
        b"cnumpy.core.multiarray\n_reconstruct\n.",
    ],
)
def test_hidden_imports_are_refused(data: bytes) -> None:
    with pytest.raises(UnsafeModel):
        check_weights(archive(data), "m.pth")


def test_a_broken_pickle_is_refused() -> None:
    with pytest.raises(UnsafeModel) as refused:
        check_weights(archive(b"\x80\x02]"), "m.pth")
    assert refused.value.rule == "pickle"


def old_form(last: bytes) -> io.BytesIO:
    """Magic number, protocol, system, the object, its keys; then raw weights that are no pickle."""
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return io.BytesIO(b"".join([*parts, last, pickle.dumps(["0"], 2)]) + b"\xff" * 64)


def test_the_older_form_is_read_up_to_its_weights() -> None:
    check_weights(old_form(pickle.dumps(collections.OrderedDict(a=1), 2)), "m.pth")
    with pytest.raises(UnsafeModel) as refused:
        check_weights(old_form(pickle.dumps(Call(os.system), 2)), "m.pth")
    assert "system" in str(refused.value)


def test_a_pickle_is_read_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(["x" * 100], 2)
    monkeypatch.setattr(pickles, "PICKLE_BYTES_MAX", len(data))
    check_weights(archive(data), "m.pth")
    monkeypatch.setattr(pickles, "PICKLE_BYTES_MAX", len(data) - 1)
    with pytest.raises(UnsafeModel) as refused:
        check_weights(archive(data), "m.pth")
    assert refused.value.rule == "pickle_size"
