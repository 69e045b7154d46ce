"""A study's page in a real browser: silent, its items reached by address, readable without JavaScript."""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from reports import render, study
from reports.commands.gallery import Entry, index

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM and "CI" not in os.environ, reason="no Chromium on this machine"),
]
ITEMS = {"potions": "S1.2", "wolfram": "S0.8", "illustrated": "S2.2"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    assert CHROMIUM, "CI must have a Chromium"
    with sync_api.sync_playwright() as play:
        quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
        running = play.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield running
        running.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("studies")
    for name in ITEMS:
        (path / f"{name}.html").write_text(render(study(name, model="tiny")), encoding="utf-8")
    entries = [Entry(f"{name}.html", name, "What it is.", "3 claims checked: 3 hold") for name in ITEMS]
    (path / "index.html").write_text(index(entries), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ITEMS)
def test_an_item_is_reached_by_its_address_and_the_page_is_silent(browser: Any, folder: Path, name: str) -> None:
    heard: list[str] = []
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.goto(f"{(folder / f'{name}.html').as_uri()}#{ITEMS[name]}")
    top = f"document.getElementById('{ITEMS[name]}').getBoundingClientRect().top"
    page.wait_for_function(f"-5 < {top} && {top} < 120")
    tables = page.locator("[id$='claims'] .scroll").all()
    assert tables
    for table in tables:  # verdicts are read without scrolling inside a table
        assert table.evaluate("node => node.scrollHeight - node.clientHeight") <= 1
        assert table.evaluate("node => node.scrollWidth - node.clientWidth") <= 1
    page.close()
    # Chromium may remark that a button of a closed dialog cannot have the focus when the address names an item.
    assert [text for text in heard if not text.startswith("Autofocus processing was blocked")] == []


def test_without_javascript_the_verdicts_are_there(browser: Any, folder: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "potions.html").as_uri())
    text = page.locator("[id='S1.2-claims']").text_content()  # also of what lies out of sight and is not laid out yet
    assert "holds only if the model has one block" in text
    context.close()


def test_the_gallery_leads_to_the_pages(browser: Any, folder: Path) -> None:
    heard: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: heard.append(message.text))
    page.goto((folder / "index.html").as_uri())
    page.locator("main a", has_text="potions").click()
    page.wait_for_url("**/potions.html")
    assert page.title().startswith("Keys, queries and values as labels")
    page.close()
    assert heard == []


@pytest.mark.parametrize("name", [*ITEMS, "index"])
def test_axe_finds_no_serious_fault(browser: Any, folder: Path, name: str) -> None:
    axe = pytest.importorskip("axe_playwright_python")
    page = browser.new_page()
    page.goto((folder / f"{name}.html").as_uri())
    page.evaluate("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    page.evaluate((Path(find_spec(axe.__name__).origin).parent / "axe.min.js").read_text(encoding="utf-8"))  # type: ignore[union-attr,arg-type]
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    page.close()
    serious = [
        (v["id"], v["nodes"][0]["html"][:90]) for v in found["violations"] if v["impact"] in ("serious", "critical")
    ]
    assert serious == []
