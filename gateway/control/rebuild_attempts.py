"""Owns which rebuilds control has tried: a file beside the conversions, replaced by a rename, so that none is repeated.

An attempt is written after its conversion was queued: a crash in between leaves the conversion, which tells the same.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from gateway.control.conversion_store import FINAL, Conversion, ConversionStore

FILE: Final = "rebuilds.json"
#: The oldest go first.
ATTEMPTS_MAX: Final = 1_000
_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """`digest`: of the version's manifest; `host`: of the host's facts; `state` and `fault`: the conversion's.

    `made`: the version that came of it, or 0.
    """

    repository: str
    name: str
    version: int
    digest: str
    host: str
    conversion_id: str
    state: str
    fault: str = ""
    made: int = 0

    @property
    def is_under_way(self) -> bool:
        return self.state not in FINAL

    @property
    def outcome(self) -> str:
        """For people."""
        if self.made:
            return f"{self.conversion_id} made version {self.made} of it"
        said = f": {self.fault}" if self.fault else ""
        return f"{self.conversion_id} {'is' if self.is_under_way else 'ended:'} {self.state}{said}"


class Attempts:
    """Blocks; belongs to one thread at a time."""

    def __init__(self, conversions: ConversionStore) -> None:
        self._conversions = conversions
        self._path = conversions.root / FILE
        self._known: dict[str, Tried] | None = None

    def refresh(self) -> tuple[Tried, ...]:
        """All attempts as the conversions stand now, the oldest first. Raises: OSError: of the disk, or malformed."""
        known = self._read() if self._known is None else self._known
        after = {**known, **{own.conversion_id: own for own in _of(self._conversions.list())}}
        after = dict(list(after.items())[-ATTEMPTS_MAX:])
        if after != known:
            _write(self._path, after)
        self._known = after
        return tuple(after.values())

    def _read(self) -> dict[str, Tried]:
        try:
            value = json.loads(self._path.read_bytes())
            if value["schema"] != _SCHEMA:
                raise OSError(0, "is of a newer release", str(self._path))
            return {own["conversion_id"]: Tried(**own) for own in value["attempts"]}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise OSError(0, "is malformed; remove it to begin anew", str(self._path)) from error


def _of(conversions: list[Conversion]) -> Iterator[Tried]:
    for one in reversed(conversions):
        own = one.request.get("rebuild")
        if own is None:
            continue
        tried = Tried(**own, name=one.request["name"], conversion_id=one.conversion_id, state=one.state)
        if one.result is not None:
            tried = replace(tried, made=one.result["version"])
        elif one.error is not None:
            tried = replace(tried, fault=f"{one.error['rule']}: {one.error['message']}")
        yield tried


def _write(path: Path, attempts: Mapping[str, Tried]) -> None:
    data = json.dumps({"schema": _SCHEMA, "attempts": [asdict(own) for own in attempts.values()]}).encode()
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
