"""The pages in headless Chromium: at the width of a desk and of a phone, light and dark, printed,
and without scripts.

Skipped where there is no browser, or no playwright to drive it; the part that asks axe-core, where
that is not found: `npm install --no-save axe-core`, or `AXE_CORE=…/axe.min.js`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from conformance.bench.report.html import comparison_page
from conformance.places import DOCUMENTATION
from conformance.report.html import html
from conformance.report.matrix import entries_in, write_site
from conformance.verdict.certificate import serialise
from conformance.verdict.load import read_certificate
from conformance.verdict.outcomes import Outcome
from tests import ROOT
from tests.bench.samples import compared_recordings
from tests.verdict.samples import nasty

pytestmark = pytest.mark.slow

CERTIFICATES = Path(__file__).with_name("certificates")
REPORTS = (*sorted(path.stem for path in CERTIFICATES.glob("*.json")), "nasty")
PAGES = (*REPORTS, "benchmarks", "matrix")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTHS = {"desk": (1280, 900), "phone": (390, 844)}
PRINTED_PAGES = 4
"""The most sheets of A4 that a report may take."""
LEAST_COLUMN = 40
"""Pixels: a column of text that is narrower shows a letter or two a line."""


@pytest.fixture(autouse=True)
def a_small_catalogue() -> None:
    """The certificates here are of the real catalogue."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=OPTIONS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def axe() -> str:
    named = os.environ.get("AXE_CORE")
    place = Path(named) if named else ROOT / "node_modules" / "axe-core" / "axe.min.js"
    if not place.is_file():
        pytest.skip(f"axe-core is not installed: there is no {place}")
    return place.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    written = {name: folder / f"{name}.html" for name in PAGES}
    for name in REPORTS:
        judged = nasty() if name == "nasty" else read_certificate(CERTIFICATES / f"{name}.json")
        written[name].write_text(html(judged), encoding="utf-8")
    written["matrix"] = site(folder)
    written["benchmarks"].write_text(comparison_page(*compared_recordings()), encoding="utf-8")
    return written


def site(folder: Path) -> Path:
    """The index of a site of all certificates here, of an id under two releases among them."""
    found = [read_certificate(path) for path in sorted(CERTIFICATES.glob("*.json"))]
    packages = {"packages": {"transformers": "4.40.1"}}
    older = replace(found[0], assessment=replace(found[0].assessment, environment=packages))
    for number, judged in enumerate([*found, older, nasty()]):
        text = serialise(judged.as_certificate())
        (folder / f"{number}").mkdir()
        (folder / f"{number}" / "certificate.json").write_text(text, encoding="utf-8")
    write_site(entries_in([folder]), folder / "site")
    return folder / "site" / "index.html"


class Visit:
    """A page in a browser, and what it did that no page of ours should do."""

    def __init__(self, browser: Any, page: Path, width: str = "desk", **options: Any) -> None:
        across, down = WIDTHS[width]
        self._context = browser.new_context(
            viewport={"width": across, "height": down}, bypass_csp=options.pop("bypass", False),
            **options,
        )  # fmt: skip
        self.page = self._context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(page.as_uri())

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def asks(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)


def in_any_light(names: tuple[str, ...]) -> Any:
    def parametrised(test: Any) -> Any:
        for argument, values in (
            ("scheme", ("light", "dark")), ("width", tuple(WIDTHS)), ("name", names),
        ):  # fmt: skip
            test = pytest.mark.parametrize(argument, values)(test)
        return test

    return parametrised


@in_any_light(PAGES)
def test_nothing_is_asked_for_cut_off_or_one_letter_wide(
    browser: Any, pages: dict[str, Path], name: str, width: str, scheme: str
) -> None:
    with Visit(browser, pages[name], width, color_scheme=scheme) as visit:
        visit.asks("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert visit.asks("document.documentElement.scrollWidth <= innerWidth"), "it scrolls across"
        narrow = visit.asks(
            """(least) => [...document.querySelectorAll("dd, td, p, li, summary > :last-child")]
                .filter((one) => one.offsetParent !== null && one.textContent.trim().length > 12)
                .filter((one) => one.getBoundingClientRect().width < least)
                .map((one) => one.outerHTML)""",
            LEAST_COLUMN,
        )
        assert narrow == []
        cut = visit.asks(
            """() => [...document.querySelectorAll("body *")]
                .filter((one) => !one.closest(".scroll, svg"))
                .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
                .map((one) => one.outerHTML.slice(0, 200))"""
        )
        assert cut == []
        background = visit.asks("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 384) == (scheme == "dark")
    assert visit.complaints == []
    # A site shows its badges.
    assert visit.requests[0] == pages[name].as_uri()
    assert all(request.endswith("/badge.svg") for request in visit.requests[1:])
    assert name == "matrix" or len(visit.requests) == 1


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [("desk", "light"), ("phone", "dark")])
def test_everybody_can_read_it(
    browser: Any, axe: str, pages: dict[str, Path], name: str, width: str, scheme: str
) -> None:
    # The page's own policy keeps axe out, as it should.
    with Visit(browser, pages[name], width, color_scheme=scheme, bypass=True) as visit:
        visit.asks("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        visit.page.add_script_tag(content=axe)
        found = visit.asks("axe.run(document)")
        told = [
            (violation["id"], [node["html"][:200] for node in violation["nodes"]][:3])
            for violation in found["violations"]
        ]
        assert told == []


@pytest.mark.parametrize("name", PAGES)
def test_what_scrolls_is_reached_by_the_keyboard(
    browser: Any, pages: dict[str, Path], name: str
) -> None:
    with Visit(browser, pages[name], "phone") as visit:
        visit.asks("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        unreached = visit.asks(
            """() => [...document.querySelectorAll("body *")]
                .filter((one) => one.scrollWidth > one.clientWidth + 1 && one.clientWidth > 0)
                .filter((one) => ["auto", "scroll"].includes(getComputedStyle(one).overflowX))
                .filter((one) => one.tabIndex < 0).map((one) => one.outerHTML.slice(0, 200))"""
        )
        assert unreached == []


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_is_printed_on_few_sheets(browser: Any, pages: dict[str, Path], name: str) -> None:
    with Visit(browser, pages[name]) as visit:
        assert 1 <= sheets(visit) <= PRINTED_PAGES


def test_few_sheets_are_enough_for_a_backbone_that_fails_everything(
    browser: Any, tmp_path: Path
) -> None:
    judged = read_certificate(CERTIFICATES / "certified.json")
    evidence = {
        "observed": "a long sentence about what was observed " * 4,
        "expected": "'another'",
        "mend": "do `this`, and then that " * 4,
        "traceback": "Traceback\n" * 40,
    }
    outcomes = tuple(
        replace(one, outcome=Outcome.FAILED, evidence={**one.evidence, **evidence})
        for one in judged.outcomes
    )
    page = tmp_path / "report.html"
    failing = replace(judged, assessment=replace(judged.assessment, outcomes=outcomes))
    page.write_text(html(failing), encoding="utf-8")
    with Visit(browser, page) as visit:
        assert sheets(visit) <= PRINTED_PAGES


def sheets(visit: Visit) -> int:
    """How many sheets of A4 the page is printed on."""
    return len(re.findall(rb"/Type\s*/Page\b", visit.page.pdf(format="A4")))


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(browser: Any, pages: dict[str, Path], name: str) -> None:
    with Visit(browser, pages[name]) as visit:
        links = visit.asks("[...document.links].map((one) => one.getAttribute('href'))")
        for link in dict.fromkeys(links):
            if link.startswith("#"):
                assert visit.asks("(id) => document.getElementById(id) !== null", link[1:]), link
            elif not link.startswith("https:"):
                assert (pages[name].parent / unquote(link)).is_file(), link
            else:
                assert link.startswith(f"{DOCUMENTATION}/")
                document = ROOT / "docs" / link.removeprefix(f"{DOCUMENTATION}/")
                assert document.is_file(), f"{link} has no document"


def test_search_and_filters_leave_what_was_asked_for(browser: Any, pages: dict[str, Path]) -> None:
    def shown() -> list[str]:
        found: list[str] = visit.asks(
            """[...document.querySelectorAll(".clause")]
                .filter((one) => one.checkVisibility()).map((one) => one.id)"""
        )
        return found

    with Visit(browser, pages["window"]) as visit:
        at_first = shown()
        visit.page.get_by_role("button", name="2 failed").click()
        assert shown() == ["CON-17", "FWD-04"]
        visit.page.get_by_role("searchbox").fill("receptive WINDOW")
        assert shown() == ["FWD-04"]
        assert visit.page.locator(".find output").inner_text() == "1 of 104 clauses"
        visit.page.get_by_role("button", name="2 failed").click()
        visit.page.get_by_role("searchbox").fill("")
        assert shown() == at_first
    assert visit.complaints == []


def test_an_anchor_unfolds_its_clause(browser: Any, pages: dict[str, Path]) -> None:
    with Visit(browser, pages["certified"]) as visit:
        assert not visit.page.locator("#PAD-03").is_visible()
        visit.asks("location.hash = 'PAD-03'")
        visit.page.wait_for_selector("#PAD-03[open]")
        assert visit.page.locator("#PAD-03").is_visible()


def test_without_scripts_everything_is_there_to_unfold(
    browser: Any, pages: dict[str, Path]
) -> None:
    with Visit(browser, pages["prompt"], java_script_enabled=False) as visit:
        assert not visit.page.locator(".find").is_visible()
        assert visit.page.locator("#cause-PRM-10").is_visible()
        visit.page.locator("#area-Tokenizer > summary").click()
        visit.page.locator("#TOK-04 > summary").click()
        assert visit.page.locator("#TOK-04 .body").is_visible()


def test_the_filters_of_a_site_leave_what_was_asked_for(
    browser: Any, pages: dict[str, Path]
) -> None:
    with Visit(browser, pages["matrix"]) as visit:
        listed = json.loads((pages["matrix"].parent / "matrix.json").read_text(encoding="utf-8"))
        ids = {(one["family"], one["id"]) for one in listed}
        rows = visit.page.locator("tbody tr:visible")
        told = visit.page.locator(".filters output")
        assert rows.count() == len(ids)
        standing = next(
            one["standing"] for one in listed if one["standing"].startswith("certified")
        )
        visit.page.get_by_label("Standing").select_option(standing)
        wanted = {(one["family"], one["id"]) for one in listed if one["standing"] == standing}
        assert 0 < rows.count() == len(wanted) < len(ids)
        assert told.inner_text() == f"{len(wanted)} of {len(ids)}"
        visit.page.get_by_label("Standing").select_option("")
        visit.page.get_by_role("searchbox").fill("no such id")
        assert rows.count() == 0
        visit.page.get_by_role("searchbox").fill("")
        visit.page.get_by_label("Profile").select_option("default")
        assert rows.count() == len(
            {(one["family"], one["id"]) for one in listed if one["profiles"] == ["default"]}
        )
    assert visit.complaints == []


def test_a_badge_is_copied_with_the_address_of_its_site(
    browser: Any, pages: dict[str, Path]
) -> None:
    with Visit(browser, pages["matrix"]) as visit:
        visit.page.locator("details summary").first.click()
        shown = visit.page.locator("details pre code").first.inner_text()
        site = pages["matrix"].parent.as_uri()
        assert re.fullmatch(rf"\[!\[conformance: .*\]\({site}/.*badge.svg\)\]\({site}/.*\)", shown)
        assert visit.asks(
            "[...document.images].filter((one) => one.complete && one.naturalWidth > 0).length > 0"
        )
