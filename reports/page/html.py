"""One self-contained page for one report: no network, no third-party code, nothing executed but its own script.

`render` is a pure function: the same report gives the same bytes.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from analyses.shared.findings import established
from analyses.shared.panels import Panel, Result, Tokens
from reports.numbers import SHADES
from reports.page import circuits, heads, viewers  # noqa: F401  (they register their views)
from reports.page.chapters import Arranged, arranged, on_one_scale
from reports.page.overview import first_screen
from reports.page.views import View, prose
from reports.running import record
from reports.tokens import markup, printable

HERE = Path(__file__).parent
STYLES = ("page.css", "viewers.css", "circuit.css")
SCRIPTS = ("page.js", "heads.js", "table.js", "lens.js", "circuit.js", "attention.js")
OWN = {"circuit"}
"""Kinds of panel whose style and script a page holds only where it has such a panel."""
CARDS = 5
"""Findings shown as cards; the others are a list."""
FOLDED = "The model itself"
"""The chapter that is the same for every text: closed at first."""


@dataclass(frozen=True)
class Section:
    """One analysis in a report."""

    name: str  # as in its file name, "logit_lens"
    title: str
    intro: str  # the question and how to read the answer; blank lines separate paragraphs
    result: Result
    seconds: float
    chapter: str = ""  # sections of one chapter follow each other
    beside: tuple[viewers.Compared, ...] = ()  # shown in place of the result's own panels of these keys

    def panels(self) -> list[Panel]:
        """What the page shows of it."""
        beside = {panel.key: panel for panel in self.beside}
        return [beside.get(panel.key, panel) for panel in self.result.panels()]


@dataclass(frozen=True)
class Report:
    """All that a page shows."""

    title: str
    tokens: tuple[Tokens, ...]  # one per text
    sections: tuple[Section, ...]
    provenance: Mapping[str, Any]  # command, seed, model, weight hash, versions, device, dtype, ...
    kind: str = "report"  # what the page calls itself beside the contents


@dataclass(frozen=True)
class _Block:
    """A paragraph, or a list."""

    items: list[Markup]
    is_list: bool = False


@dataclass(frozen=True)
class _Part:
    name: str
    title: str
    lead: str
    intro: list["_Block"]
    more: list["_Block"]
    groups: list[list[View]]  # panels of a group stand side by side
    moved: list[View]  # its panels that stand elsewhere in the chapter
    seconds: float


@dataclass(frozen=True)
class _Chapter:
    name: str
    head: list[View]  # what several of its sections begin with
    members: list[_Part]

    def views(self) -> list[View]:
        return [*self.head, *(view for part in self.members for group in part.groups for view in group)]


def render(report: Report) -> str:
    """The whole page as text."""
    shown, chapters = [], []
    for _, of in groupby(report.sections, key=lambda section: section.chapter or section.name):
        members = list(of)
        panels = on_one_scale([(section.name, section.panels()) for section in members])
        shown += [(section, those) for section, (_, those) in zip(members, panels, strict=True)]
        chapters.append(_chapter(members, arranged(panels)))
    parts = [part for chapter in chapters for part in chapter.members]
    shades = "".join(f".q{step}{{--q:{100 * step // SHADES}%}}" for step in range(1, SHADES + 1))
    left_out = OWN - {view.kind for chapter in chapters for view in chapter.views()}
    style, script = (_static(tuple(n for n in names if Path(n).stem not in left_out)) for names in (STYLES, SCRIPTS))
    style += shades
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src '{_sha256(style)}'; script-src '{_sha256(script)}'; base-uri 'none'; form-action 'none'"
    )
    seconds = {section.name: round(section.seconds, 3) for section in report.sections}
    results = [(section.name, section.result) for section in report.sections]
    found = established((finding, name) for name, result in results for finding in result.findings())
    told = [(section.name, section.title, panels) for section, panels in shown]
    head_pages = heads.gather(told, [(finding, f"{name}-{finding.key}") for finding, name in found])
    headline = next((headline for _, result in results if (headline := result.headline())), None)
    marks = [(name, mark) for name, result in results if (mark := result.marks())]
    first = first_screen(told, headline, marks, found)
    page = _environment().get_template("page.html").render(
        title=printable(report.title),
        kind=report.kind,
        texts=[[(markup(token, None), "\n" in token) for token in tokens] for tokens in report.tokens],
        first=first,
        n_cards=CARDS,
        chapters=chapters,
        folded=FOLDED,
        sections=parts,
        heads=head_pages,
        provenance=list(_readable({k: v for k, v in report.provenance.items() if k not in record.FOR_MACHINES})),
        provenance_json=record.block({**report.provenance, "seconds": seconds}),
        policy=policy,
        style=Markup(style),
        script=Markup(script),
    )  # fmt: skip
    return record.sealed(page.encode("utf-8", "backslashreplace").decode("utf-8"))


def _chapter(sections: Sequence[Section], shown: Arranged) -> _Chapter:
    parts = [_part(sections[i], shown.members[i], shown.moved[i]) for i in shown.order]
    return _Chapter(sections[0].chapter, shown.head, parts)


def _part(section: Section, views: Sequence[View], moved: list[View]) -> _Part:
    first, *rest = _blocks(section.intro) or [_Block([])]
    groups: list[list[View]] = []
    for shown in views:
        if groups and (shown.beside or (shown.is_small and groups[-1][-1].is_small)):
            groups[-1].append(shown)
        else:
            groups.append([shown])
    lead = first.items[0] if first.items else Markup()
    title = printable(section.title)
    return _Part(section.name, title, lead, rest[:1], rest[1:], groups, moved, section.seconds)


def _blocks(text: str) -> list[_Block]:
    """Plain text as it stands in docstrings: blank lines part paragraphs, lines that start with "- " are a list."""
    blocks = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        before, *items = re.split(r"(?:^|\n)\s*- ", paragraph)
        if before.strip():
            blocks.append(_Block([prose(before)]))
        if items:
            blocks.append(_Block([prose(item) for item in items], is_list=True))
    return blocks


def _readable(provenance: Mapping[str, Any], prefix: str = "") -> Any:
    for key, value in provenance.items():
        name = f"{prefix}{printable(str(key)).replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _readable(value, f"{name}: ")
        elif isinstance(value, (list, tuple)):
            yield name, printable(", ".join(map(str, value)))
        else:
            yield name, printable(str(value))


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _static(names: tuple[str, ...]) -> str:
    """The files as one text, without indents and the lines that only explain; style without spaces that say nothing."""
    files = ((HERE / "static" / name).read_text(encoding="utf-8") for name in names)
    lines = [line.strip() for text in files for line in text.splitlines()]
    text = "\n".join(line for line in lines if line and not line.startswith("//"))
    text = re.sub(r"\s*([{};,])\s*|(?<=:) |/\*.*?\*/", r"\1", text) if names[0].endswith(".css") else text
    if any(mark in text.lower() for mark in ("</script", "</style", "<!--")):
        raise ValueError("a static file contains a mark that would end the element that holds it")
    return text


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
