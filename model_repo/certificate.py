"""Owns certificate.json: where a version comes from, how it was verified, and golden answers to check it again."""

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model_repo.errors import RepositoryError

SCHEMA: Final = 1
CERTIFICATE: Final = "certificate.json"
GOLDEN: Final = "golden.npz"
CERTIFICATE_BYTES_MAX: Final = 4 << 20
GOLDEN_BYTES_MAX: Final = 16 << 20
CASES_MAX: Final = 32

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """All JSON values. `golden`: {"cases": n, "tolerance": {output: greatest absolute error}}.

    `created` is UTC. `calibration` None: no data was used. `evidence`: `samples` of a person, or `generated` only.
    """

    created: str
    source: Mapping[str, Any]
    tools: Mapping[str, str]
    host: Mapping[str, Any]
    variant: Mapping[str, str]
    calibration: Mapping[str, Any] | None
    evidence: str
    parity: Mapping[str, Any]
    speed: Mapping[str, Any]
    golden: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        return (json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2, sort_keys=True) + "\n").encode()


def read_certificate(version: Path) -> Certificate:
    """Raises: RepositoryError: missing, a link, too large, of another schema, or malformed."""
    path = version / CERTIFICATE
    try:
        if path.is_symlink() or path.stat().st_size > CERTIFICATE_BYTES_MAX:
            raise RepositoryError(f"{CERTIFICATE}: a link, or more than {CERTIFICATE_BYTES_MAX} bytes")
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict) or value.pop("schema", None) != SCHEMA:
            raise RepositoryError(f"{CERTIFICATE}: schema is not {SCHEMA}")
        return Certificate(**value)
    except (OSError, ValueError, TypeError) as error:
        raise RepositoryError(f"{CERTIFICATE}: unreadable ({type(error).__name__}: {str(error)[:100]})") from error


def write_golden(version: Path, cases: list[tuple[Tensors, Tensors]]) -> None:
    """Inputs and outputs of each case into `GOLDEN`: arrays `i.in.<name>` and `i.out.<name>`."""
    arrays = {}
    for number, (inputs, outputs) in enumerate(cases):
        arrays.update({f"{number}.in.{name}": array for name, array in inputs.items()})
        arrays.update({f"{number}.out.{name}": array for name, array in outputs.items()})
    np.savez(version / GOLDEN, **arrays)  # type: ignore[arg-type]


def read_golden(version: Path) -> list[tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]]:
    """(inputs, outputs) of each case. Raises: RepositoryError."""
    path = version / GOLDEN
    try:
        if path.is_symlink() or path.stat().st_size > GOLDEN_BYTES_MAX:
            raise RepositoryError(f"{GOLDEN}: a link, or more than {GOLDEN_BYTES_MAX} bytes")
        _check_unpacked(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RepositoryError(f"{GOLDEN}: unreadable ({type(error).__name__}: {str(error)[:100]})") from error
    cases: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    for key, array in arrays.items():
        number, _, rest = key.partition(".")
        kind, _, name = rest.partition(".")
        if not number.isdigit() or int(number) >= CASES_MAX or kind not in {"in", "out"} or not name:
            raise RepositoryError(f"{GOLDEN}: array '{key[:80]}' belongs to no case")
        cases.setdefault(int(number), ({}, {}))[kind == "out"][name] = array
    return [cases[number] for number in sorted(cases)]


def _check_unpacked(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > GOLDEN_BYTES_MAX:
        raise RepositoryError(f"{GOLDEN}: unpacks to {size} bytes, more than {GOLDEN_BYTES_MAX}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenResult:
    """`fault`: the first difference in words, empty if none. `done` of `cases` were run."""

    fault: str
    done: int
    cases: int


def verify_golden(version: Path, run: Callable[[Tensors], Tensors]) -> str | None:
    """`check_golden` of all cases: the first difference in words, None if all agree. Raises as it does."""
    return check_golden(version, run).fault or None


def check_golden(
    version: Path, run: Callable[[Tensors], Tensors], *, is_due: Callable[[], bool] = lambda: False
) -> GoldenResult:
    """Run the golden inputs of a version's folder by `run` (inputs → outputs, by name) and compare.

    All must agree within the certificate's tolerances. `is_due` is asked between cases: True ends the check early, but
    never before the first case. Whatever `run` raises passes through.

    Raises:
        RepositoryError: certificate or golden file cannot be read, or there is no case.
    """
    golden = read_certificate(version).golden
    tolerances = golden.get("tolerance")
    cases = read_golden(version)
    if not cases or not isinstance(tolerances, Mapping) or golden.get("cases") != len(cases):
        raise RepositoryError(f"{GOLDEN}: its cases are not those of the certificate")
    for number, (inputs, outputs) in enumerate(cases):
        if number and is_due():
            return GoldenResult(fault="", done=number, cases=len(cases))
        found = run(inputs)
        for name, wanted in outputs.items():
            fault = _difference(wanted, found.get(name), _tolerance(tolerances, name))
            if fault is not None:
                said = f"golden case {number}, output '{name}': {fault}"
                return GoldenResult(fault=said, done=number + 1, cases=len(cases))
    return GoldenResult(fault="", done=len(cases), cases=len(cases))


def _tolerance(tolerances: Mapping[str, Any], name: str) -> float:
    value = tolerances.get(name, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise RepositoryError(f"{CERTIFICATE}: the tolerance of '{name[:80]}' is no number of 0 or more")
    return float(value)


def _text_difference(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> str | None:
    """Texts as they are certified; engines give them as objects, of bytes in UTF-8 or of text."""
    own = [value.decode() if isinstance(value, bytes) else str(value) for value in found.ravel().tolist()]
    is_equal = found.shape == wanted.shape and own == wanted.ravel().tolist()
    return None if is_equal else "differs, and has to be equal"


def _difference(wanted: npt.NDArray[Any], found: npt.NDArray[Any] | None, tolerance: float) -> str | None:
    if found is None:
        return "missing"
    if wanted.dtype.kind == "U":
        return _text_difference(wanted, found)
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{found.dtype}{list(found.shape)}, certified is {wanted.dtype}{list(wanted.shape)}"
    if wanted.dtype.kind not in "fiub":
        return None if np.array_equal(wanted, found) else "differs, and has to be equal"
    own, other = wanted.astype(np.float64), found.astype(np.float64)
    is_finite = np.isfinite(own)
    if not np.isfinite(other[is_finite]).all():
        return "not finite where the certified answer is"
    error = float(np.max(np.abs(own[is_finite] - other[is_finite]), initial=0.0))
    return f"error {error:.3g}, allowed is {tolerance:.3g}" if error > tolerance else None
