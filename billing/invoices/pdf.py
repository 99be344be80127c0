"""Owns the printed form of a document: one PDF, the same bytes for the same document, CJK included.

Western text is set in Helvetica, Chinese, Japanese and Korean in the fonts that PDF readers bring along for these
scripts (built-in CID fonts), so nothing is embedded and no font file is needed. Only what the document says is printed.
"""

import io
import unicodedata
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from billing.invoices.document import Document, Line, Party
from billing.invoices.life import State
from billing.money import minor_digits

_MM: Final = 72 / 25.4
_WIDTH, _HEIGHT = 210 * _MM, 297 * _MM
_LEFT, _RIGHT, _BOTTOM = 20 * _MM, _WIDTH - 20 * _MM, 25 * _MM
_TOP: Final = _HEIGHT - 20 * _MM
#: Built into readers by the Adobe-GB1, -Japan1 and -Korea1 collections.
_CHINESE, _JAPANESE, _KOREAN = "STSong-Light", "HeiseiKakuGo-W5", "HYGothic-Medium"
_WESTERN: Final = "Helvetica"
_KANA = ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D))
#: Latin letters that no decomposition leads back to a plain one.
_PLAIN: Final = {"Ł": "L", "ł": "l", "Đ": "D", "đ": "d", "Ħ": "H", "ħ": "h", "ı": "i", "Ŧ": "T", "ŧ": "t"}
_HANGUL = ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF))
_TREATMENTS: Final = {
    "exempt": "Exempt from tax",
    "reverse_charge": "Reverse charge: the recipient accounts for the tax",
    "not_registered": "No tax is charged",
}
_TITLES: Final = {"invoice": "Invoice", "credit_note": "Credit note"}


class _Column(NamedTuple):
    title: str
    right: float
    is_right: bool = True


_COLUMNS: Final = (
    _Column("Description", _LEFT, is_right=False),
    _Column("Quantity", _RIGHT - 60 * _MM),
    _Column("Tax", _RIGHT - 35 * _MM),
    _Column("Amount", _RIGHT),
)
_DESCRIPTION_WIDTH: Final = _COLUMNS[1].right - _LEFT - 28 * _MM


def render_pdf(document: Document, state: State | None = None) -> bytes:
    """The PDF of `document`; a draft is marked as one. With `state` it says what is paid and what is due.

    Deterministic: equal arguments give equal bytes. Needs reportlab (extra "money"); raises ImportError without it.
    """
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont
    from reportlab.pdfgen.canvas import Canvas

    for name in (_CHINESE, _JAPANESE, _KOREAN):
        if name not in pdfmetrics.getRegisteredFontNames():
            pdfmetrics.registerFont(UnicodeCIDFont(name))
    target = io.BytesIO()
    canvas = Canvas(target, pagesize=(_WIDTH, _HEIGHT), invariant=1, pageCompression=1)
    canvas.setTitle(f"{_TITLES[document.kind]} {document.number or 'draft'}")
    canvas.setAuthor(document.seller.name)
    _Sheet(canvas, pdfmetrics.stringWidth, document).draw(state)
    canvas.save()
    return target.getvalue()


def format_minor(minor: int, currency: str) -> str:
    """ "1,234.50" of minor units, with the currency's number of places."""
    digits = minor_digits(currency)
    whole, rest = divmod(abs(minor), 10**digits)
    text = f"{whole:,}" + (f".{rest:0{digits}d}" if digits else "")
    return f"-{text}" if minor < 0 else text


def font_runs(text: str) -> list[tuple[str, str]]:
    """`text` in pieces (font, piece): what cp1252 holds in Helvetica, the rest by script (kana, hangul, Chinese).

    Latin letters with a mark that no built-in font has (ř, ő) lose the mark.
    """
    other = _CHINESE
    if any(first <= ord(char) <= last for char in text for first, last in _KANA):
        other = _JAPANESE
    elif any(first <= ord(char) <= last for char in text for first, last in _HANGUL):
        other = _KOREAN
    runs: list[tuple[str, str]] = []
    for char in text:
        font, shown = _glyph(char, other)
        if runs and runs[-1][0] == font:
            runs[-1] = (font, runs[-1][1] + shown)
        else:
            runs.append((font, shown))
    return runs


def _glyph(char: str, other: str) -> tuple[str, str]:
    if _is_western(char):
        return _WESTERN, char
    base = _PLAIN.get(char) or unicodedata.normalize("NFKD", char)[:1]
    if base.isascii() and base.isalpha() and unicodedata.name(char, "").startswith("LATIN"):
        return _WESTERN, base
    return other, char


def _is_western(char: str) -> bool:
    try:
        char.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True


class _Sheet:
    """Draws one document from top to bottom; `_y` is where the next line goes."""

    def __init__(self, canvas: Any, width: Callable[[str, str, float], float], document: Document) -> None:
        self._canvas = canvas
        self._width = width
        self._document = document
        self._zone = UTC if document.zone == "UTC" else ZoneInfo(document.zone)
        self._y = _TOP
        self._page = 1

    def draw(self, state: State | None) -> None:
        self._head()
        self._line_heads()
        for line in self._document.lines:
            self._line(line)
        self._totals(state)
        self._notes()
        self._foot()

    def _head(self) -> None:
        document, is_draft = self._document, not self._document.number
        self._text(_LEFT, _TITLES[document.kind] + (" (draft)" if is_draft else ""), size=20)
        self._text(_RIGHT, document.seller.name, size=11, is_right=True)
        self._y -= 8 * _MM
        facts = [("Number", document.number or "not yet given")]
        if document.issued_ns:
            facts.append(("Issued", self._day(document.issued_ns)))
        if document.kind == "invoice" and document.due_ns:
            facts.append(("Due", self._day(document.due_ns)))
        if document.corrects:
            facts.append(("Corrects", document.corrects))
        facts.append(("Period", f"{self._day(document.start_ns)} to {self._day(document.end_ns)}"))
        facts.append(("Currency", document.currency))
        for name, value in facts:
            self._text(_LEFT, name, size=9, grey=0.4)
            self._text(_LEFT + 25 * _MM, value, size=9)
            self._y -= 4.5 * _MM
        self._y -= 4 * _MM
        top = self._y
        self._party("From", document.seller, _LEFT)
        low, self._y = self._y, top
        self._party("To", document.buyer, _LEFT + 85 * _MM)
        self._y = min(low, self._y) - 6 * _MM

    def _party(self, title: str, party: Party, left: float) -> None:
        rows = [party.name, *party.address, " ".join(filter(None, (party.tax.region, party.tax.country)))]
        if party.tax.tax_id:
            rows.append(f"Tax id {party.tax.tax_id}")
        self._text(left, title, size=8, grey=0.4)
        self._y -= 4.5 * _MM
        for row in rows:
            for part in self._wrapped(row, 10, 78 * _MM):
                self._text(left, part, size=10)
                self._y -= 4.8 * _MM

    def _line_heads(self) -> None:
        for column in _COLUMNS:
            self._text(column.right, column.title, size=8, is_right=column.is_right, grey=0.4)
        self._rule(2 * _MM)

    def _line(self, line: Line) -> None:
        parts = self._wrapped(line.description, 9.5, _DESCRIPTION_WIDTH)
        self._need((len(parts) + 1) * 5 * _MM, heads=True)
        quantity = f"{line.quantity:,} {line.unit}{'s' if line.quantity != 1 else ''}" if line.unit else ""
        cells = ("", quantity, self._rate(line), format_minor(line.amount_minor, self._document.currency))
        for column, text in zip(_COLUMNS[1:], cells[1:], strict=True):
            self._text(column.right, text, size=9.5, is_right=True)
        for part in parts:
            self._text(_LEFT, part, size=9.5)
            self._y -= 4.8 * _MM
        self._y -= 1 * _MM

    def _rate(self, line: Line) -> str:
        taxes = [tax for tax in self._document.taxes if tax.category == line.tax_category]
        return " + ".join(_percent(tax.rate_ppm) for tax in taxes if tax.treatment == "taxed") or "-"

    def _totals(self, state: State | None) -> None:
        document = self._document
        rows = [("Net", document.net_minor)]
        for tax in document.taxes:
            if tax.treatment == "taxed":
                of = format_minor(tax.base_minor, document.currency)
                rows.append((f"{tax.name} {_percent(tax.rate_ppm)} of {of}", tax.tax_minor))
        self._need((len(rows) + 5) * 6 * _MM, heads=False)
        self._rule(1 * _MM)
        for name, minor in rows:
            self._amount(name, minor, size=9.5)
        self._amount(f"Total {document.currency}", document.total_minor, size=12)
        if state is not None and document.kind == "invoice":
            for name, minor in (
                ("Paid", -state.paid_minor),
                ("Credited", -state.credited_minor),
                ("Refunded", state.refunded_minor),
            ):
                if minor:
                    self._amount(name, minor, size=9.5)
            self._amount(_DUE[state.status], state.due_minor if state.status != "void" else 0, size=10.5)

    def _amount(self, name: str, minor: int, *, size: float) -> None:
        self._text(_RIGHT - 35 * _MM, name, size=size, is_right=True)
        self._text(_RIGHT, format_minor(minor, self._document.currency), size=size, is_right=True)
        self._y -= 6 * _MM

    def _notes(self) -> None:
        notes = [_TREATMENTS[tax.treatment] for tax in self._document.taxes if tax.treatment in _TREATMENTS]
        if self._document.prices_include_tax:
            notes.append("Amounts of the lines include tax")
        notes += [self._document.note] if self._document.note else []
        self._y -= 3 * _MM
        for note in dict.fromkeys(notes):
            for part in self._wrapped(note, 9, _RIGHT - _LEFT):
                self._need(5 * _MM, heads=False)
                self._text(_LEFT, part, size=9)
                self._y -= 4.5 * _MM

    def _foot(self) -> None:
        y, self._y = self._y, 15 * _MM
        self._text(_LEFT, f"{self._document.number or self._document.document_id}", size=8, grey=0.4)
        self._text(_RIGHT, f"Page {self._page}", size=8, is_right=True, grey=0.4)
        self._y = y

    def _need(self, height: float, *, heads: bool) -> None:
        """Begin a new page unless `height` is left on this one."""
        if self._y - height > _BOTTOM:
            return
        self._foot()
        self._canvas.showPage()
        self._page += 1
        self._y = _TOP
        if heads:
            self._line_heads()

    def _rule(self, gap: float) -> None:
        self._y -= gap
        self._canvas.setStrokeGray(0.7)
        self._canvas.setLineWidth(0.5)
        self._canvas.line(_LEFT, self._y, _RIGHT, self._y)
        self._y -= 5 * _MM

    def _text(self, x: float, text: str, *, size: float, is_right: bool = False, grey: float = 0) -> None:
        self._canvas.setFillGray(grey)
        at = x - self._wide(text, size) if is_right else x
        for font, piece in font_runs(text):
            self._canvas.setFont(font, size)
            self._canvas.drawString(at, self._y, piece)
            at += self._width(piece, font, size)

    def _wide(self, text: str, size: float) -> float:
        return sum(self._width(piece, font, size) for font, piece in font_runs(text))

    def _wrapped(self, text: str, size: float, room: float) -> Sequence[str]:
        """`text` in lines no wider than `room`: broken at blanks, and inside words that are wider than a line."""
        lines, current = list[str](), ""
        for word in text.split() or [""]:
            tried = f"{current} {word}".strip()
            if self._wide(tried, size) <= room:
                current = tried
                continue
            if current:
                lines.append(current)
            current = ""
            for char in word:
                if self._wide(current + char, size) > room and current:
                    lines.append(current)
                    current = ""
                current += char
        return [*lines, current]

    def _day(self, at_ns: int) -> str:
        return datetime.fromtimestamp(at_ns // 1_000_000_000, self._zone).date().isoformat()


def _percent(rate_ppm: int) -> str:
    whole, rest = divmod(rate_ppm, 10_000)
    return f"{whole}.{rest:04d}".rstrip("0").rstrip(".") + " %"


_DUE: Final = {"open": "Due", "paid": "Due (paid)", "void": "Void", "uncollectible": "Due (written off)"}
