"""The PDF says what the document says, has the same bytes each time, and sets CJK text in built-in CID fonts."""

import re
import zlib
from base64 import a85decode
from pathlib import Path

import msgspec
import pytest

from billing.invoices.document import Document, Line
from billing.invoices.life import State
from billing.invoices.pdf import font_runs, format_minor, render_pdf
from tests.unit.billing.invoices.office import open_office


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    with open_office(tmp_path_factory.mktemp("pdf")) as office:
        office.set_up(buyer={"name": "株式会社アクメ", "tax": {"country": "DE"}, "address": ["Größe 1 – Łódź"]})
        office.post_usage(1_000)
        return office.document(office.bill()["number"])


def contents(pdf: bytes) -> str:
    """The drawing operators of every page."""
    streams = re.findall(rb"/ASCII85Decode /FlateDecode.*?stream\r?\n(.*?)endstream", pdf, re.DOTALL)
    return "".join(
        zlib.decompress(a85decode(one.strip(), adobe=False)).decode("latin-1") for one in map(_bare, streams)
    )


def _bare(stream: bytes) -> bytes:
    return stream.strip().removesuffix(b"~>")


def test_equal_documents_have_equal_bytes(document: Document) -> None:
    state = State("open", document.total_minor, 0, 0, 0)
    assert render_pdf(document, state) == render_pdf(document, state)
    assert render_pdf(document, state) != render_pdf(document, state._replace(paid_minor=1))


def test_number_amounts_and_dates_are_printed(document: Document) -> None:
    text = contents(render_pdf(document))
    for expected in (
        "INV-000001",
        "1.50",
        "0.29",
        "1.79",
        "2026-02-02",
        "2026-02-16",
        "1,000 calls",
        "USt 19 % of 1.50",
    ):
        assert f"({expected})" in text, expected


def test_japanese_is_set_in_its_own_font(document: Document) -> None:
    pdf = render_pdf(document)
    assert b"HeiseiKakuGo-W5" in pdf
    assert "株式会社アクメ".encode("utf-16-be").decode("latin-1") in _unescaped(contents(pdf))


def _unescaped(text: str) -> str:
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), text).replace("\\(", "(").replace("\\)", ")")


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("Größe – 5 €", [("Helvetica", "Größe – 5 €")]),
        ("Łódź ř", [("Helvetica", "Lódz r")]),
        ("北京 27 号", [("STSong-Light", "北京"), ("Helvetica", " 27 "), ("STSong-Light", "号")]),
        ("アクメ", [("HeiseiKakuGo-W5", "アクメ")]),
        ("서울", [("HYGothic-Medium", "서울")]),
        ("", []),
    ],
)
def test_fonts_follow_the_script(text: str, runs: list[tuple[str, str]]) -> None:
    assert font_runs(text) == runs


@pytest.mark.parametrize(
    ("minor", "currency", "text"),
    [
        (123456, "USD", "1,234.56"),
        (-5, "USD", "-0.05"),
        (1234, "JPY", "1,234"),
        (1234, "KWD", "1.234"),
        (0, "EUR", "0.00"),
    ],
)
def test_amounts_are_written_with_the_places_of_their_currency(minor: int, currency: str, text: str) -> None:
    assert format_minor(minor, currency) == text


def test_many_lines_go_over_several_pages(document: Document) -> None:
    line = Line(kind="adjustment", description="word " * 60, account="a", exact_nanos=0, amount_minor=1)
    long = msgspec.structs.replace(document, lines=(line,) * 40)
    assert len(re.findall(rb"/Type /Page\b(?!s)", render_pdf(long))) > 3


def test_a_draft_says_so(document: Document) -> None:
    draft = msgspec.structs.replace(document, number="", issued_ns=0, due_ns=0)
    assert "(Invoice \\(draft\\))" in contents(render_pdf(draft))


def test_a_page_needs_no_file(document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    render_pdf(document)
    assert list(tmp_path.iterdir()) == []
