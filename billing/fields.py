"""Owns how catalogue files are read: TOML or JSON in, typed fields out; every error names file, path, fault and remedy.

A field that nobody asked for is refused by `Table.end`, so a misspelt limit cannot silently mean "unlimited".
"""

import tomllib
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from billing.money import MoneyError, parse_nanos

FILE_BYTES_MAX: Final = 1024 * 1024
#: Units, counts and periods in a file: far above any plan, and far below 64 bits.
COUNT_MAX: Final = 10**12
_TEXT_MAX: Final = 200
_SHOWN_MAX: Final = 100
_REQUIRED: Final = object()


def shown(value: Any) -> str:
    """A value for an error message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…"


class FileError(ValueError):
    """A catalogue file that cannot be used. The message names the field by its path, what is wrong and what to do."""


def decode_file(data: bytes, *, is_json: bool) -> "Table":
    """The root table of `data`. Raises FileError."""
    if len(data) > FILE_BYTES_MAX:
        raise FileError(f"{len(data)} bytes are more than the {FILE_BYTES_MAX} allowed: split the file")
    kind = "JSON" if is_json else "TOML"
    try:
        raw = msgspec.json.decode(data) if is_json else tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        # ValueError is the parent of both decoders' errors, and what an integer of too many digits raises by itself.
        raise FileError(f"not readable as {kind}: {error}") from error
    return Table(raw, "")


class Table:
    """One table of a file. Each getter takes a field once; `end` refuses what was not taken."""

    def __init__(self, raw: Any, path: str) -> None:
        self.path = path
        if not isinstance(raw, dict):
            raise FileError(f"{path or 'the file'}: {shown(raw)} must be a table of named fields")
        self._raw: dict[str, Any] = raw
        self._taken: set[str] = set()

    def where(self, name: str) -> str:
        """The full path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def fail(self, name: str, message: str) -> FileError:
        """The error to raise for a field."""
        return FileError(f"{self.where(name)}: {message}")

    def has(self, name: str) -> bool:
        return name in self._raw

    def text(self, name: str, default: Any = _REQUIRED, *, choices: Iterable[str] = ()) -> str:
        """Text of at most 200 characters, one of `choices` when there are any."""
        value = self._take(name, default)
        if not isinstance(value, str) or not len(value) <= _TEXT_MAX:
            raise self.fail(name, f"{shown(value)} must be text of at most {_TEXT_MAX} characters")
        known = tuple(choices)
        if known and value not in known:
            raise self.fail(name, f"{shown(value)} is unknown: use one of {', '.join(known)}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of different, non-empty texts; empty when the field is absent."""
        value = self._take(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) and 0 < len(one) <= 256 for one in value):
            raise self.fail(name, f"{shown(value)} must be a list of names of 1 to 256 characters")
        if len(set(value)) != len(value):
            raise self.fail(name, "names an entry twice: keep one")
        return tuple(value)

    def integer(self, name: str, default: Any = _REQUIRED, *, low: int = 0, high: int = COUNT_MAX) -> int:
        """A whole number from `low` to `high`."""
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(name, f"{shown(value)} must be a whole number")
        if not low <= value <= high:
            raise self.fail(name, f"{shown(value)} must be from {low} to {high}")
        return value

    def optional_integer(self, name: str) -> int | None:
        """A whole number >= 0, or None when it is absent."""
        return self.integer(name) if name in self._raw else self._take(name, None)

    def flag(self, name: str, *, default: bool) -> bool:
        """true or false."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise self.fail(name, f"{shown(value)} must be true or false")
        return value

    def amount(self, name: str, default: Any = _REQUIRED, *, high: int) -> int:
        """Nanos of an amount in decimal text of the major unit ("0.0015"), from 0 to `high` nanos."""
        value = self._take(name, default)
        if value is default and isinstance(value, int):
            return value
        if not isinstance(value, str) or len(value) > _SHOWN_MAX:
            raise self.fail(name, f'{shown(value)} must be decimal text in quotes, such as "0.0015"')
        try:
            nanos = parse_nanos(value)
        except MoneyError as error:
            raise self.fail(name, str(error)) from error
        if nanos < 0:
            raise self.fail(name, f"{value} is negative: prices and amounts are 0 or more")
        if nanos > high:
            raise self.fail(name, f"{value} is more than the {high} nanos allowed")
        return nanos

    def ppm(self, name: str) -> int:
        """Parts per million of a percentage in (0, 100], a whole number or decimal text with at most 4 places."""
        value = self._take(name, _REQUIRED)
        text = str(value) if type(value) is int and 0 < value <= 100 else value
        try:
            nanos = parse_nanos(text) if isinstance(text, str) and len(text) <= _SHOWN_MAX else -1
        except MoneyError as error:
            raise self.fail(name, str(error)) from error
        ppm, rest = divmod(nanos, 100_000)
        if rest or not 0 < ppm <= 1_000_000:
            raise self.fail(name, f'{shown(value)} must be above 0 and at most 100, with at most 4 places ("12.5")')
        return ppm

    def table(self, name: str) -> "Table | None":
        """The table `name`, or None when it is absent."""
        value = self._take(name, None)
        return Table(value, self.where(name)) if self.has(name) else None

    def rows(self, name: str) -> list["Table"]:
        """A non-empty list of tables."""
        value = self._take(name, _REQUIRED)
        if not isinstance(value, list) or not value:
            raise self.fail(name, f"{shown(value)} must be a list of at least one table")
        return [Table(one, f"{self.where(name)}[{index}]") for index, one in enumerate(value)]

    def named(self, name: str, *, at_most: int) -> dict[str, "Table"]:
        """The tables below `name` by their names; empty when it is absent."""
        found = self.table(name)
        if found is None:
            return {}
        if len(found._raw) > at_most:
            raise self.fail(name, f"{len(found._raw)} entries are more than the {at_most} allowed")
        return {key: Table(value, found.where(key)) for key, value in found._raw.items()}

    def rest(self) -> dict[str, Any]:
        """What was not taken yet; takes it."""
        found = {name: value for name, value in self._raw.items() if name not in self._taken}
        self._taken |= set(found)
        return found

    def end(self) -> None:
        """Raises FileError for the first field that was not taken."""
        for name, value in self._raw.items():
            if name not in self._taken:
                known = ", ".join(sorted(self._taken))
                raise self.fail(name, f"unknown field (value {shown(value)}): remove it or use one of {known}")

    def _take(self, name: str, default: Any) -> Any:
        self._taken.add(name)
        value = self._raw.get(name, default)
        if value is _REQUIRED:
            raise self.fail(name, "is missing: add it")
        return value
