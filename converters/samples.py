"""Owns the inputs a variant is judged on: shapes, seeded noise, hostile values, and the rows a person gave."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from converters.engines import Array, Feeds
from converters.errors import UsageFault
from converters.job import Job
from converters.signature import DTYPES, Signature, Tensor

BATCHES: Final = (1, 2, 3, 7, 32)
#: Sizes tried for a variable axis without a range; those that the source itself refuses do not count.
AXIS_SIZES: Final = (1, 7, 16, 33, 64)
CASE_ELEMENTS_MAX: Final = 1 << 24
DATA_ROWS_MIN: Final = 10
DATA_BYTES_MAX: Final = 4 << 30
_JUDGED_SHARE: Final = 0.25
#: Of integers whose range is not told: valid as indices wherever an axis has two entries.
_INDICES: Final = (0, 1)
#: The kind of the cases that an importer gives: rows at and beside the splits of trees.
THRESHOLD: Final = "threshold"
#: Kinds of inputs → how a standard normal draw becomes them.
_FLOATS: Final[Mapping[str, Callable[[Array], Array]]] = {
    "normal": lambda noise: noise,
    "positive": np.abs,
    "small": lambda noise: noise * 1e-3,
    "large": lambda noise: noise * 8,
    "zeros": np.zeros_like,
    "extreme": lambda noise: np.sign(noise) * 1e4,
    "denormal": lambda noise: noise * 1e-39,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`kind`: one of the kinds above, `data`, `nan` or `threshold`. `rows` 0: the model has no batch."""

    kind: str
    rows: int
    sizes: Mapping[str, int]
    feeds: Feeds

    @property
    def label(self) -> str:
        sizes = "".join(f" {name}={size}" for name, size in self.sizes.items())
        return f"{self.kind} rows={self.rows}{sizes}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Rows given by a person, in two disjoint parts. Arrays by input name, rows first. `sha256` of both parts.

    `labels`: of the judged rows, one a row.
    """

    calibration: Feeds
    judged: Feeds
    rows_calibration: int
    rows_judged: int
    duplicates: int
    sha256: str
    labels: Array | None = None


def make_cases(signature: Signature, job: Job, data: Data | None) -> Iterator[Case]:
    """All cases, the same for the same seed. A model without float inputs gets no float kinds but `normal`."""
    _check_values(signature, job)
    batches = BATCHES if signature.batch_axis else (0,)
    has_floats = any(tensor.datatype.startswith("FP") for tensor in signature.inputs)
    for sizes in axis_sizes(signature, job):
        for rows in batches:
            yield make_case("normal", rows, sizes, signature, job)
        if has_floats:
            for kind in list(_FLOATS)[1:]:
                yield make_case(kind, min(3, batches[-1]), sizes, signature, job)
            if signature.batch_axis:
                yield _with_nan(make_case("normal", 3, sizes, signature, job))
    if data is not None:
        yield from _data_cases(signature, data)


def _check_values(signature: Signature, job: Job) -> None:
    kinds: dict[str, Any] = {tensor.name: np.dtype(DTYPES[tensor.datatype]) for tensor in signature.inputs}
    for name, (low, high) in job.values.items():
        kind = kinds.get(name)
        if kind is None or kind.kind not in "iu" or not np.iinfo(kind).min <= low <= high <= np.iinfo(kind).max:
            text = f"--values {name}: the model has no input of integers of that name that hold {low} to {high}"
            raise UsageFault("values", text, next_step=f"one of {', '.join(kinds)}")


def _with_nan(case: Case) -> Case:
    """The first row becomes NaN; the others must not notice."""
    feeds = {name: array.copy() for name, array in case.feeds.items()}
    for array in feeds.values():
        if array.dtype.kind == "f":
            array[0] = np.nan
    return Case(kind="nan", rows=case.rows, sizes=case.sizes, feeds=feeds)


def axis_sizes(signature: Signature, job: Job) -> list[dict[str, int]]:
    """Sizes of the variable axes: from all at their least to all at their greatest; one empty if there are none."""
    names = signature.variable_axes
    unknown = set(job.dims) - set(names) - {signature.batch_axis}
    if unknown:
        text = f"--dim {min(unknown)}: the model has no such variable axis; it has {', '.join(names) or 'none'}"
        raise UsageFault("dims", text, next_step="name one of them")
    if not names:
        return [{}]
    found: list[dict[str, int]] = []
    for place, size in enumerate(AXIS_SIZES):
        share = place / (len(AXIS_SIZES) - 1)
        sizes = {}
        for name in names:
            low, high = job.dims.get(name, (size, size))
            sizes[name] = low + round((high - low) * share)
        if sizes not in found:
            found.append(sizes)
    return found


def make_case(kind: str, rows: int, sizes: Mapping[str, int], signature: Signature, job: Job) -> Case:
    """One case of a generated kind: seeded by job, kind, rows and sizes."""
    seed = hashlib.sha256(f"{job.seed} {kind} {rows} {sorted(sizes.items())}".encode()).digest()
    noise = np.random.default_rng(int.from_bytes(seed[:8]))
    bound = {**sizes, signature.batch_axis or "": rows}
    feeds = {
        tensor.name: _fill(tensor, kind, bound, noise, job.values.get(tensor.name, _INDICES))
        for tensor in signature.inputs
    }
    return Case(kind=kind, rows=rows, sizes=dict(sizes), feeds=feeds)


def _fill(
    tensor: Tensor, kind: str, sizes: Mapping[str, int], noise: np.random.Generator, values: tuple[int, int]
) -> Array:
    shape = tuple(size if isinstance(size, int) else sizes[size] for size in tensor.shape)
    if np.prod(shape, dtype=np.int64) > CASE_ELEMENTS_MAX:
        text = f"input '{tensor.name}' of shape {list(shape)} has more than {CASE_ELEMENTS_MAX} elements"
        raise UsageFault("case_size", text, next_step="bound its variable axes with --dim")
    dtype = DTYPES[tensor.datatype]
    if tensor.datatype.startswith("FP"):
        drawn = _FLOATS[kind](noise.standard_normal(shape))
        limit = float(np.finfo(dtype).max)
        return np.clip(drawn, -limit, limit).astype(dtype)
    return noise.integers(values[0], values[1] + 1, shape).astype(dtype)


def _data_cases(signature: Signature, data: Data) -> Iterator[Case]:
    step = BATCHES[-1] if signature.batch_axis else 1
    sizes: dict[str, int] = {}
    for start in range(0, data.rows_judged, step):
        part = {name: array[start : start + step] for name, array in data.judged.items()}
        rows = min(step, data.rows_judged - start)
        feeds = part if signature.batch_axis else {name: array[0] for name, array in part.items()}
        yield Case(kind="data", rows=rows if signature.batch_axis else 0, sizes=sizes, feeds=feeds)


def read_data(path: Path, signature: Signature, seed: int, *, labels: str = "") -> Data:
    """The rows of an npz file (one array an input, rows first), split into calibration and judged parts.

    Without a batch axis each row is one whole input. Equal rows count once, so that no row is on both sides.
    `labels`: name of a further array with a label a row.

    Raises:
        UsageFault: missing, no npz, objects in it, tensors that do not fit, or too few rows.
    """
    arrays = _load(path)
    for tensor in signature.inputs:
        _check_fit(tensor, arrays, signature)
    counts = {len(arrays[tensor.name]) for tensor in signature.inputs}
    if len(counts) != 1:
        raise UsageFault("data", f"{path.name}: its inputs have different numbers of rows", next_step="make them equal")
    if labels:
        _check_labels(arrays, labels, min(counts))
    names = sorted(tensor.name for tensor in signature.inputs)
    digests = [_row_digest(arrays, names, row) for row in range(counts.pop())]
    rows = list(dict(zip(reversed(digests), reversed(range(len(digests))), strict=True)).values())
    rows.sort()
    if len(rows) < DATA_ROWS_MIN:
        text = f"{path.name}: {len(rows)} distinct rows, fewer than {DATA_ROWS_MIN}"
        raise UsageFault("data_rows", text, next_step="give more rows")
    order = np.random.default_rng(seed).permutation(rows)
    cut = max(2, round(len(rows) * _JUDGED_SHARE))
    judged, calibration = np.sort(order[:cut]), np.sort(order[cut:])
    return Data(
        calibration={name: arrays[name][calibration] for name in names},
        judged={name: arrays[name][judged] for name in names},
        rows_calibration=len(calibration),
        rows_judged=len(judged),
        duplicates=len(digests) - len(rows),
        sha256=hashlib.sha256(b"".join(digests)).hexdigest(),
        labels=arrays[labels][judged] if labels else None,
    )


def _check_labels(arrays: Mapping[str, Array], name: str, rows: int) -> None:
    found = arrays.get(name)
    if found is None or found.ndim == 0 or len(found) != rows:
        said = "is not there" if found is None else f"has shape {list(found.shape)}"
        text = f"the data's labels '{name[:80]}': {said}, and there are {rows} rows"
        raise UsageFault("labels", text, next_step="put an array with one label a row into the npz file")


def _load(path: Path) -> dict[str, Array]:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > DATA_BYTES_MAX:
        raise UsageFault(
            "data", f"{path} is no regular file of at most {DATA_BYTES_MAX} bytes", next_step="give an npz file"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        # zipfile, zlib and numpy each raise their own on a file that is none.
        raise UsageFault(
            "data", f"{path.name} is no npz file of plain arrays: {error}", next_step="numpy.savez"
        ) from error


def _check_fit(tensor: Tensor, arrays: Mapping[str, Any], signature: Signature) -> None:
    array = arrays.get(tensor.name)
    if array is None:
        raise UsageFault("data", f"the data has no array '{tensor.name}'", next_step="name arrays as the inputs")
    sizes = tensor.shape[1:] if signature.batch_axis else tensor.shape
    fits = array.ndim == len(sizes) + 1 and all(
        isinstance(size, str) or size == real for size, real in zip(sizes, array.shape[1:], strict=False)
    )
    if not fits or array.dtype != DTYPES[tensor.datatype]:
        found = f"{array.dtype}{list(array.shape)}"
        text = f"the data's '{tensor.name}' is {found}, not {tensor.datatype} rows of {list(sizes)}"
        raise UsageFault("data", text, next_step="give rows of the input's own shape and type")


def _row_digest(arrays: Mapping[str, Array], names: list[str], row: int) -> bytes:
    digest = hashlib.sha256()
    for name in names:
        digest.update(np.ascontiguousarray(arrays[name][row]).tobytes())
    return digest.digest()
