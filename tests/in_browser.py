"""A real Chromium (fixture `browser` of conftest), pages that are overheard, and axe; what lacks them is skipped."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

POLICY = "document.addEventListener('securitypolicyviolation', e => console.log('policy: ' + e.violatedDirective))"


@contextmanager
def chromium() -> Iterator[Any]:
    """Skips where there is none; CI must have one."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path and "CI" not in os.environ:
        pytest.skip("no Chromium on this machine")
    assert path, "CI must have a Chromium"
    with sync_api.sync_playwright() as play:
        quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
        running = play.chromium.launch(executable_path=path, args=quiet)
        yield running
        running.close()


def overhear(page: Any, heard: list[str], own: str) -> None:
    """Notes what a page says, what its policy refuses, and what it asks for that does not begin with `own`."""
    page.on("console", lambda message: heard.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on(
        "request",
        lambda request: (
            heard.append(f"request: {request.url[:80]}")
            if not request.url.startswith((own, "data:", "blob:"))
            else None
        ),
    )
    page.add_init_script(POLICY)


def address(page: Any) -> str:
    """The page's own, which Playwright's `page.url` may lag behind."""
    return str(page.evaluate("location.href"))


def arrives(page: Any, text: str, *, end: bool = False, there: bool = True) -> None:
    """Waits until the address holds (or ends in) this text, or no longer does."""
    test = "([text, end, there]) => (end ? location.href.endsWith(text) : location.href.includes(text)) === there"
    page.wait_for_function(test, arg=[text, end, there])


class Fault(NamedTuple):
    """A rule of axe that a page breaks, with the first place."""

    rule: str
    impact: str
    html: str


def faults(page: Any, within: str = "") -> list[Fault]:
    """What axe finds, of any level, in the page as it stands or in the parts that a selector names."""
    axe = pytest.importorskip("axe_playwright_python")
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    violations = "within => axe.run(within || document, {resultTypes: ['violations']}).then(found => found.violations)"
    return [Fault(one["id"], one["impact"], one["nodes"][0]["html"]) for one in page.evaluate(violations, within)]
