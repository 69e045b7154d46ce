"""The studies as commands, and the gallery of all of them in a real browser: silent, items reached by address."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_gpt
from in_browser import faults, overhear

from interp.text.tokenizer import Tokenizer
from reports.cli import app
from reports.commands import work
from reports.studies import discover_studies

pytestmark = pytest.mark.slow
ITEMS = {"potions": "S1.2", "wolfram": "S0.8", "illustrated": "S2.2"}


def interp(*args: str) -> float:
    """Seconds of the processor (others may be using this machine) that a command takes."""
    start = time.process_time()
    with pytest.raises(SystemExit) as stop:
        app([*args, "--quiet"])
    assert stop.value.code == 0
    return time.process_time() - start


@pytest.fixture(scope="module")
def seconds(tmp_path_factory: Any) -> Iterator[dict[str, float]]:
    """What the command of each study takes. The gallery then shows what they made."""
    made, carry_out, out = dict[str, Any](), work.study_report, tmp_path_factory.mktemp("pages")

    def once(file: Any, options: Any, **rest: Any) -> Any:
        return made.get(file.name) or made.setdefault(file.name, carry_out(file, options, **rest))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "study_report", once)
        yield {name: interp("study", name, "--out", str(out / f"{name}.html")) for name in discover_studies()}


@pytest.fixture(scope="module")
def folder(seconds: dict[str, float], toy_tokenizer: Tokenizer, tmp_path_factory: Any) -> Path:
    """The gallery, its main report of a small model."""
    path: Path = tmp_path_factory.mktemp("studies")
    make_gpt(tokenizer=toy_tokenizer, n_ctx=256).save_pretrained(path / "toy")
    interp("study", "--all", "--model", str(path / "toy"), "--out", str(path / "gallery"))
    return path / "gallery"


@pytest.mark.parametrize("name", discover_studies())
def test_each_study_takes_less_than_a_minute(seconds: dict[str, float], name: str) -> None:
    assert seconds[name] < 60


def test_the_gallery_links_every_page(folder: Path) -> None:
    index = (folder / "index.html").read_text(encoding="utf-8")
    linked = set(re.findall(r'href="([a-z0-9]+\.html)"', index))
    assert linked == {"report.html", *(f"{name}.html" for name in discover_studies())}
    assert all((folder / file).stat().st_size > 50_000 for file in linked)
    assert re.search(r"\d+ claims checked: \d+ hold", index)


@pytest.mark.browser
@pytest.mark.parametrize("name", ITEMS)
def test_an_item_is_reached_by_its_address_and_the_page_is_silent(browser: Any, folder: Path, name: str) -> None:
    heard: list[str] = []
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    overhear(page, heard, folder.as_uri())
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
    assert [text for text in heard if not text.startswith("console: Autofocus processing was blocked")] == []


@pytest.mark.browser
def test_without_javascript_the_verdicts_are_there(browser: Any, folder: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "potions.html").as_uri())
    text = page.locator("[id='S1.2-claims']").text_content()  # also of what lies out of sight and is not laid out yet
    assert "holds only if the model has one block" in text
    context.close()


@pytest.mark.browser
def test_the_gallery_leads_to_the_pages(browser: Any, folder: Path) -> None:
    heard: list[str] = []
    page = browser.new_page()
    overhear(page, heard, folder.as_uri())
    page.goto((folder / "index.html").as_uri())
    page.locator("main a", has_text="Keys, queries and values as labels").click()
    page.wait_for_url("**/potions.html")
    assert page.title().startswith("Keys, queries and values as labels")
    page.close()
    assert heard == []


@pytest.mark.browser
@pytest.mark.parametrize("name", [*ITEMS, "index"])
def test_axe_finds_no_serious_fault(browser: Any, folder: Path, name: str) -> None:
    page = browser.new_page()
    page.goto((folder / f"{name}.html").as_uri())
    page.evaluate("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    serious = [fault for fault in faults(page) if fault.impact in ("serious", "critical")]
    page.close()
    assert serious == []
