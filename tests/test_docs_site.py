"""docs/ as a site, built without a warning, offline, without a dead link; and the code in its pages runs."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from documents import PAGES, ROOT, blocks, command, faults, run

sys.path.append(str(ROOT / "docs" / "site"))
import generate

ELSEWHERE = {
    "README.md": "test_readme.py",
    "circuits.md": "test_docs_circuits.py",
    "probing.md": "test_docs_probing.py",
    "programs.md": "test_schema.py",
    "your_own_analysis.md": "test_outside.py",
}
"""Pages that a test of their own runs, which looks at what comes out."""
SLOW = {"activations.md", "start.md", "your_own_model.md"}
CODE = [page for page in PAGES if page.name not in ELSEWHERE and blocks(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_and_command_of_a_page_is_right_and_runs_or_says_why_not(page: Path) -> None:
    assert faults(page.read_text()) == []


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page.name in SLOW), id=page.name) for page in CODE]
)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    run(page.name, page.read_text(), tmp_path)


def test_pages_with_a_test_of_their_own_have_one() -> None:
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / "tests" / test).read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("    interp logit-lens x --top-q 3\n", "--top-q"),
        ("```sh\ninterp logit-lens x --format pdf\n```\n", "pdf"),
        ("Try `interp logit-lenz`.\n", "logit-lenz"),
        ("Try `interp study potions --quary x`.\n", "--quary"),
        ("    make nothing\n", "no target"),
        ("    python tests/nothing.py\n", "tests/nothing.py"),
        ("    make test\n", "no reason"),
        ("<!-- not run: a reason -->\n\nBut not just before.\n\n    make test\n", "no reason"),
        ("<!-- not run (check): a reason -->\n\n    make check\n    make test\n", "no reason"),
        ("```\nwhat is this\n```\n", "no language"),
        ("- item\n\n    ```sh\n    interp logit-lens x --top-q 3\n    ```\n", "--top-q"),
        ("    interp logit-lens x | grep y\n", "no reason"),
    ],
)
def test_what_is_wrong_in_a_page_is_said(text: str, said: str) -> None:
    assert said in "\n".join(faults(text))


def test_what_is_right_in_a_page_passes() -> None:
    text = "Try `interp study potions --query x`, `interp COMMAND --help`.\n\n<!-- not run: why -->\n\n    make test\n"
    assert (
        faults(text + "\n    interp logit-lens x --top-k 3   # comment\n\n- item\n\n    its second paragraph\n") == []
    )


def test_code_that_fails_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run("a.md", "```python\na = 1\n```\n\n```python\na / 0\n```\n", tmp_path)
    with pytest.raises(AssertionError, match="nowhere"):
        run("a.md", "    interp logit-lens x --model nowhere/at/all\n", tmp_path)
    assert "a" not in run("a.md", "<!-- not run: no -->\n```python\na = 1\n```\n", tmp_path)
    assert command(["--version"]).startswith("interp ")
    run("a.md", "    interp --version > version.txt\n", tmp_path)
    assert (tmp_path / "version.txt").read_text().startswith("interp ")


@pytest.mark.parametrize("name", ["commands.md", pytest.param("families.md", marks=pytest.mark.slow)])
def test_pages_made_from_code_are_what_the_code_says(name: str) -> None:
    written = (ROOT / "docs" / name).read_text()
    assert written == generate.PAGES[name](), "write them anew: make pages"


def test_the_page_of_commands_has_every_option_with_its_default() -> None:
    """Not by the code that writes the page: by what a command's signature says."""
    from reports.commands.options import flag
    from reports.running.discovery import discover

    text = (ROOT / "docs" / "commands.md").read_text()
    for one in discover().values():
        section = text.partition(f"\n## {one.command}\n")[2].partition("\n## ")[0]
        for option in (option for option in one.options() if not option.hidden and not option.many):
            row = next(line for line in section.splitlines() if re.match(rf"\| `{flag(option.name)}\b", line))
            if type(option.default) in (int, float) and one.name != "architecture":
                assert f"`{option.default}`" in row, row


class Page(HTMLParser):
    """What a built page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.unsaid: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.anchors |= {str(told[key]) for key in ("id", "name") if told.get(key)}
        target = told.get("href") or told.get("src") or ""
        if tag == "a":
            self.links += [target] if told.get("href") else []
        elif target and told.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(target)
        if tag == "img" and not told.get("alt"):
            self.unsaid.append(target)


def hosts(page: Page, styles: str = "") -> list[str]:
    """What a page, or a style sheet, would load from another host."""
    loads = [*page.loads, *re.findall(r"(?:url\(|@import )\s*['\"]?([^'\")\s]+)", styles)]
    return [target for target in loads if urlsplit(target).netloc]


def dead(pages: dict[Path, Page]) -> list[str]:
    """Links and files of the pages that lead nowhere, anchors included."""
    found = []
    for path, page in pages.items():
        for target in (*page.links, *page.loads):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not there.is_file() or (there in pages and anchor and anchor not in pages[there].anchors):
                found.append(f"{path.name}: {target}")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The site, built as `make docs` does, and what was said."""
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site").resolve()
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_loads_nothing_from_elsewhere_and_has_no_dead_link(
    site: tuple[Path, str],
) -> None:
    folder, said = site
    assert "WARNING" not in said
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    assert len(pages) > 20
    assert [(path.name, found) for path, page in pages.items() if (found := hosts(page))] == []
    assert [path.name for path in folder.rglob("*.css") if hosts(Page(""), path.read_text(encoding="utf-8"))] == []
    assert dead(pages) == []
    assert [(path.name, page.unsaid) for path, page in pages.items() if page.unsaid] == []
    for face in ("interp", "analyses", "analyses.probes", "reports"):  # every public name has its section
        text = (folder / "api" / f"{face}.html").read_text(encoding="utf-8")
        module = __import__(face, fromlist=["x"])
        for name in set(module.__all__) - {"__version__"}:
            assert re.search(rf'id="(?:[\w.]+\.)?{name}"', text), f"{face}.{name}"
    assert sum(len(page.anchors) for page in pages.values()) > 1000


def test_a_script_from_elsewhere_and_a_dead_link_are_seen(tmp_path: Path) -> None:
    text = '<script src="https://cdn.example/x.js"></script><img src="d.png">'
    text += '<a href="b.html#no">b</a><a href="b.html#yes">b</a><a href="c.html">c</a>'
    page = Page(text)
    assert hosts(page) == ["https://cdn.example/x.js"]
    assert hosts(Page(""), "@font-face { src: url('//fonts.example/a.woff') }") == ["//fonts.example/a.woff"]
    (tmp_path / "b.html").write_text('<p id="yes">')
    paths = {tmp_path / "a.html": page, tmp_path / "b.html": Page('<p id="yes">')}
    assert dead(paths) == ["a.html: b.html#no", "a.html: c.html", "a.html: d.png"]
    assert page.unsaid == ["d.png"]
