"""The OCR scenario's arithmetic: which variant of the package counts, and when none does."""

from pathlib import Path

import pytest

from loadtests.contenders.model_servers import VENVS_VARIABLE, NotInstalled, environment_of
from loadtests.ocr import PAGES, OcrRun, alike, summarise_ocr

WANTED = {"one": ["Total 5", "Date: 24 May"], "two": ["Total 5"]}
NO_SPACE = {"one": ["Total 5", "Date:24 May"], "two": ["Total 5"]}


def run(side: str, rate: float, texts: dict[str, list[str]]) -> OcrRun:
    return OcrRun(side=side, pages_per_s=rate, cpu_s_per_page=1 / rate, texts=texts)


def test_lines_are_compared_within_their_page_in_any_order() -> None:
    assert alike({"one": ["b", "a", "a"]}, {"one": ["a", "b", "a"]}) == (3, 3)
    assert alike({"one": ["a", "a"]}, {"one": ["a", "b"]}) == (1, 2)
    assert alike({"one": ["a"]}, {"two": ["a"]}) == (0, 1)


def test_the_ratio_is_to_the_fastest_variant_with_the_same_text() -> None:
    runs = [run("product", 1.5, WANTED), run("source", 2.0, NO_SPACE), run("source_line_by_line", 1.0, WANTED)]
    result = summarise_ocr(runs)
    assert result.ratio == pytest.approx(1.5)
    assert result.lines_alike == {"source": (2, 3), "source_line_by_line": (3, 3)}
    assert result.problems == ()


def test_a_product_that_reads_more_or_less_than_the_package_has_no_ratio() -> None:
    more = {**WANTED, "two": ["Total 5", "ghost"]}
    result = summarise_ocr([run("product", 9.0, more), run("source", 1.0, WANTED)])
    assert result.ratio is None
    assert result.problems == ("no variant of the source package reads the product's text",)


def test_medians_are_taken_of_each_side() -> None:
    runs = [run("product", rate, WANTED) for rate in (1.0, 3.0, 2.0)] + [run("source", 1.0, WANTED)] * 3
    result = summarise_ocr(runs)
    assert result.pages_per_s == {"product": 2.0, "source": 1.0}
    assert result.rounds[1] == {"product": 3.0, "source": 1.0}


def test_every_page_is_a_sample() -> None:
    samples = Path(__file__).parents[3] / "model_repo" / "showcases" / "samples"
    assert all((samples / page).is_file() for page in PAGES)


def test_without_the_package_the_scenario_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VENVS_VARIABLE, raising=False)
    with pytest.raises(NotInstalled, match="rapidocr is not installed"):
        environment_of("rapidocr", tmp_path)
