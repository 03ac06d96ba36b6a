"""The page in headless Chromium: no complaint, no request, no sideways scroll, both colour schemes, numbers read back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Page, find
from synthetic import RATES, metrics, results, rows

from erasekit.evaluation.compare import compare
from erasekit.evaluation.page import write_report
from erasekit.evaluation.page_compare import write_comparison

pytestmark = pytest.mark.skipif(find() is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
EDIT = "edit:erasepro-cat"
CELL = """(() => {{ const cell = document.querySelector('td[data-metric="{}"][data-arm="{}"][data-group="{}"]');
return [cell.querySelector("b").textContent, Number(cell.dataset.value)] }})()"""
PAPER = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    opened = Page(str(find()), tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("run")
    report = write_report(results(), rows(folder, seeds=2), folder)
    other = results(metrics=metrics({**RATES, EDIT: 30}))
    second = write_comparison(compare(other, results()), other, results(), folder / "compare.html")
    return [report.as_uri(), second.as_uri()]


def test_numbers_can_be_read_back(page: Page, reports: list[str]) -> None:
    page.open(reports[0])
    assert page.value(CELL.format("efficacy", EDIT, "plain")) == ["98.3 %", 59 / 60]
    assert page.value(CELL.format("specificity", "random:erasepro-cat", "")) == ["89.2 %", 214 / 240]
    assert page.value(CELL.format("clip_score", "base", "")) == ["0.61", 0.61]
    claims = page.value("[...document.querySelectorAll('.claim')].map(e => e.textContent)")
    assert claims[0] == "suppresses cat on the tested prompts (rate 96.7 % → 1.7 %)"
    broken = page.value("[...document.images].filter(i => !i.complete || i.naturalWidth != 64).length")
    assert page.value("document.images.length") == 70 and broken == 0


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_nothing_scrolls_sideways_but_tables(page: Page, reports: list[str], width: int) -> None:
    for address in reports:
        page.open(address, width=width)
        page.value("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.value("document.documentElement.scrollWidth") <= width, address
    if width < 600:
        wide = "[...document.querySelectorAll('.wide')].some(e => e.scrollWidth > e.clientWidth)"
        assert page.value(wide), "the widest table scrolls in its own box"


def test_light_and_dark(page: Page, reports: list[str]) -> None:
    for address in reports:
        page.open(address, dark=False)
        light = page.value(PAPER)
        page.value("document.getElementById('theme').click()")
        switched = page.value(PAPER)
        page.open(address, dark=True)
        assert page.value(PAPER) == switched != light
        assert page.value("document.getElementById('theme').textContent") == "Light"
        page.value("document.getElementById('theme').click()")
        assert page.value(PAPER) == light


def test_no_complaint_and_no_request(page: Page, reports: list[str]) -> None:
    for address in reports:
        page.open(address)
    assert page.complaints() == []
    assert set(page.requests()) == set(reports), "nothing but the pages themselves is asked for"
    page.value("console.error('heard')")
    assert page.complaints(), "a complaint would have been heard"
