"""Results in a notebook: what is most notable and one figure at once, everything else in a sandboxed frame below.

`import reports` inside IPython makes results, panels, reports and figures show themselves. What comes first is static:
it needs no script, and viewers without frames show it too. The frame holds the page of the report and may run that
page's script and nothing else (no origin of its own, no network by the page's policy). One output is at most LIMIT
bytes; what does not fit is named, never cut off silently.
"""

import base64
import io
import sys
from dataclasses import dataclass, replace
from typing import IO, Any

import pandas as pd
from markupsafe import Markup

from analyses.shared.panels import Finding, Note, Panel, Result, Table, TokenGrid
from reports import figures, terminal
from reports.page.html import Report, Section, render
from reports.tokens import printable

LIMIT = 1_000_000
"""Bytes of one output."""
FINDINGS = 5
FRAME = 640
"""Height of the frame, in pixels."""
SPARE, LISTED = 4000, 20
"""Bytes for the words around the frame; panels named when some are left out."""
DPI = 110
DARK = Markup(
    "<style>@media (prefers-color-scheme: dark) {.interp-figure {filter: invert(.92) hue-rotate(180deg)}}</style>"
)
"""White figures on a dark notebook: lightness turned round, colours kept. Without a style they stay white."""
HTML, PLAIN = "text/html", "text/plain"


def show(thing: "Panel | Result | Report", *, file: IO[str] | None = None, width: int | None = None) -> None:
    """Show a result, a panel or a report: richly in a notebook; as text elsewhere, or with a `file` or a `width`."""
    if file is None and width is None and in_notebook():
        from IPython.display import display

        display(bundle(thing), raw=True)  # type: ignore[no-untyped-call]
    else:
        for part in [section.result for section in thing.sections] if isinstance(thing, Report) else [thing]:
            terminal.show(part, file=file, width=width)


def in_notebook() -> bool:
    """Whether output goes to a notebook's kernel, not to a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def bundle(thing: "Panel | Result | Report") -> dict[str, str]:
    """What one output holds: HTML in a notebook, and plain text for a terminal and for viewers that show no HTML."""
    return ({HTML: html(thing)} if in_notebook() else {}) | {PLAIN: plain(thing)}


def plain(thing: "Panel | Result | Report") -> str:
    """The terminal's output, without colours."""
    parts = [section.result for section in thing.sections] if isinstance(thing, Report) else [thing]
    blocks = [block for part in parts for block in terminal.blocks(part, terminal.WIDTH)]
    return "\n\n".join("\n".join(line.plain.rstrip() for line in block) for block in blocks)


def html(thing: "Panel | Result | Report", limit: int = LIMIT) -> str:
    """The output as HTML of at most `limit` bytes: findings and a figure, then the page in a frame."""
    report = thing if isinstance(thing, Report) else Report(*_named(thing))
    first = _static(report)
    room = limit - len(first.encode()) - SPARE
    page, left = render(report), []
    if _encoded(page) > room:
        sizes = _sizes(report)
        total = sum(sizes.values())
        for which in sorted(sizes, key=lambda which: -sizes[which]):
            left.append(which)
            total -= sizes[which]
            if 4 * total // 3 < room and _encoded(page := render(_without(report, left))) <= room:
                break
    if _encoded(page) <= room:
        return f"<div>{first}{_framed(page, left, report.sections[0].name if len(report.sections) == 1 else '')}</div>"
    words = Markup("<p>The page is too large for a notebook; <code>reports.render</code> gives all of it.</p>")
    return f"<div>{first if room > 0 else ''}{words}</div>"


def _encoded(page: str) -> int:
    return 4 * (len(page.encode()) // 3 + 1)


def _named(thing: Panel | Result) -> tuple[str, tuple[()], tuple[Section, ...], dict[str, Any]]:
    result = _Alone((thing,)) if isinstance(thing, Panel) else thing
    name = type(thing).__module__.rpartition(".")[2] if isinstance(thing, Result) else "panel"
    title = name.replace("_", " ").capitalize()
    if isinstance(thing, Panel):
        title = thing.title or "Panel"
    return title, (), (Section(name, title, "", result, 0.0),), {}


@dataclass(frozen=True)
class _Alone(Result):
    """Some panels, with the findings that rest on them."""

    parts: tuple[Panel, ...]
    notable: tuple[Finding, ...] = ()

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame()

    def panels(self) -> list[Panel]:
        return list(self.parts)

    def findings(self) -> list[Finding]:
        return list(self.notable)


def _static(report: Report) -> Markup:
    """Title, findings and one figure, in tags that every notebook viewer lets through."""
    found = [f for section in report.sections for f in section.result.findings()]
    found.sort(key=lambda finding: -finding.weight)
    parts = [Markup("<p><b>{}</b></p>").format(printable(report.title))]
    if found:
        items = Markup().join(Markup("<li>{}</li>").format(printable(f.text)) for f in found[:FINDINGS])
        more = len(found) - FINDINGS
        rest = Markup("<p>{} more below.</p>").format(f"{more} finding{'s' * (more != 1)}") if more > 0 else Markup()
        parts.append(Markup("<ul>{}</ul>").format(items) + rest)
    panels = [panel for section in report.sections for panel in section.result.panels()]
    drawn = _first_figure(panels, {finding.key for finding in found[:1]})
    if drawn is not None:
        parts.append(DARK)
        source = "data:image/png;base64," + base64.b64encode(figures.png(drawn, dpi=DPI)).decode("ascii")
        title, caption = printable(drawn.title), printable(drawn.caption)
        alt = f"{title}. {caption}".strip(". ") or "Figure"
        parts += [
            Markup("<p><b>{}</b></p>").format(title) if title and title != report.title else Markup(),
            Markup('<p><img class="interp-figure" src="{}" alt="{}" width="{}"></p>').format(source, alt[:300], 720),
            Markup("<p>{}</p>").format(caption) if caption else Markup(),
        ]
    return Markup().join(parts)


def _first_figure(panels: list[Panel], notable: set[str]) -> Panel | None:
    """What was predicted where, if that is shown; the panel that the first finding rests on; or the first picture."""
    pictures = [panel for panel in panels if not isinstance(panel, (Note, Table))]
    lens = next((panel for panel in pictures if isinstance(panel, TokenGrid)), None)
    if lens is not None:
        return lens
    return next((panel for panel in pictures if panel.key in notable), pictures[0] if pictures else None)


def _framed(page: str, left: list[tuple[str, str]], start: str) -> Markup:
    """The page in a frame that opens on demand, at the part called `start`; what was left out, by name.

    As a data address: within `srcdoc` a link to a part of the page would leave the page.
    """
    data = page.encode()
    words = f"All figures and tables, {len(data) / 1e6:.1f} MB" if len(data) >= 1e5 else "All figures and tables"
    missing = Markup()
    if left:
        names = [f"{printable(section).replace('_', ' ')}: {key}" for section, key in left]
        listed = "; ".join(names[:LISTED]) + (f"; and {len(names) - LISTED} more" if len(names) > LISTED else "")
        missing = Markup("<p>Left out, too large for a notebook: {}. <code>reports.figure</code> draws a panel, "
                         "<code>reports.render</code> gives the whole page.</p>").format(listed)  # fmt: skip
    return missing + Markup(
        '<details><summary>{}</summary><iframe sandbox="allow-scripts allow-downloads" title="{}" width="100%" '
        'height="{}" loading="lazy" style="border: 1px solid #8888" src="data:text/html;charset=utf-8;base64,{}#{}">'
        "</iframe></details>"
    ).format(words, words, FRAME, base64.b64encode(data).decode("ascii"), start)


def _without(report: Report, left: list[tuple[str, str]]) -> Report:
    """The report without those panels."""
    names = set(left)
    sections = []
    for section in report.sections:
        panels = section.result.panels()
        keep = tuple(panel for panel in panels if (section.name, panel.key) not in names)
        if len(keep) < len(panels):
            found = tuple(f for f in section.result.findings() if any(panel.key == f.key for panel in keep))
            section = replace(section, result=_Alone(keep, found))
        sections.append(section)
    return replace(report, sections=tuple(sections))


def _sizes(report: Report) -> dict[tuple[str, str], int]:
    """Bytes that each panel, by section and key, adds to a page."""
    empty = len(render(Report("", (), (), {})).encode())
    return {
        (section.name, panel.key): len(
            render(Report("", (), (replace(section, intro="", result=_Alone((panel,))),), {})).encode()
        )
        - empty
        for section in report.sections
        for panel in section.result.panels()
    }


def figure_png(drawn: Any) -> bytes:
    """A matplotlib figure that no pyplot knows, as notebooks show it."""
    out = io.BytesIO()
    drawn.savefig(out, format="png", dpi=DPI, facecolor="white", bbox_inches="tight")
    return out.getvalue()
