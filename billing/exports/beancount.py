"""Owns the beancount form of the ledger: a file that `bean-check` accepts, with the closing balances as assertions.

Account names are made so that two of ours never become one of theirs: the chart's words capitalised, then the subject
behind an "S", its other characters as `-hex-`. Our own name stands at every account as metadata.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from typing import Final

from billing.exports.rows import ExportRow
from billing.ledger.accounts import kind_of

_OPENED: Final = "1970-01-01"
_NS_PER_S: Final = 1_000_000_000


def beancount_lines(rows: Iterable[ExportRow]) -> Iterator[str]:
    """The file's lines, without line ends. Raises LedgerError for an account that is not in the chart."""
    yield 'option "title" "Tollway ledger"'
    balances: dict[tuple[str, str], int] = {}
    opened: set[str] = set()
    last_day = date(1970, 1, 1)
    for _, group in groupby(rows, key=lambda row: row.entry.tx_id):
        whole = list(group)
        entries = [row.entry for row in whole]
        for account in dict.fromkeys(row.account for row in entries):
            if account not in opened:
                opened.add(account)
                yield f"{_OPENED} open {account_name(account)}"
                yield f"  account: {_text(account)}"
        yield ""
        day = datetime.fromtimestamp(entries[0].posted_ns // _NS_PER_S, UTC).date()
        last_day = max(day, last_day)
        yield f"{day.isoformat()} * {_text(entries[0].tenant)} {_text(entries[0].kind)}"
        yield f'  tx: "{entries[0].tx_id}"'
        yield f'  seal: "{whole[0].seal}"'
        for row in entries:
            yield f"  {account_name(row.account)}  {_amount(row.amount_nanos)} {row.currency}"
            key = (row.account, row.currency)
            balances[key] = balances.get(key, 0) + row.amount_nanos
    yield ""
    after = (last_day + timedelta(days=1)).isoformat()
    for (account, currency), nanos in sorted(balances.items()):
        yield f"{after} balance {account_name(account)}  {_amount(nanos)} {currency}"


def account_name(account: str) -> str:
    """Beancount's name for one of our accounts. Raises LedgerError for one that is not in the chart."""
    kind = kind_of(account)
    words = "".join(f":{_word(word)}" for word in kind.name.split(":"))
    subject = f":S{_escaped(account[len(kind.name) + 1 :])}" if kind.subject else ""
    return f"{kind.account_class.value}{words}{subject}"


def _word(word: str) -> str:
    return "".join(part.capitalize() for part in word.split("_"))


def _escaped(subject: str) -> str:
    return "".join(
        character if character.isascii() and character.isalnum() else f"-{ord(character):x}-" for character in subject
    )


def _amount(nanos: int) -> str:
    """All nine decimals: beancount's tolerance is half of the last digit that is written."""
    units, rest = divmod(abs(nanos), 1_000_000_000)
    return f"{'-' if nanos < 0 else ''}{units}.{rest:09d}"


def _text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
