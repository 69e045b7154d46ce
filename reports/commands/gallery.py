"""Every study and the main report in one folder, with a page that links them. `interp study --all`."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from reports.commands import output, work
from reports.commands.options import DEFAULT_TEXT
from reports.page import html
from reports.page.html import Report
from reports.running import report, study
from reports.studies import discover_studies
from reports.tokens import printable

INDEX, REPORT = "index.html", "report.html"


@dataclass(frozen=True)
class Entry:
    """One page of the gallery."""

    file: str
    title: str
    about: str
    """What it is, a sentence."""
    outcome: str
    """How many claims got which verdict; of a report, how many analyses it holds."""


def write_gallery(out: Path, *, model: str, device: str, force: bool, quiet: bool) -> Path:
    """Writes all pages into the folder and returns the index. Raises InputError for files that are there already."""
    output.check_folder(out)
    studies = discover_studies()
    for name in (INDEX, REPORT, *(f"{name}.html" for name in studies)):
        output.check_target(out / name, force)
    entries = []
    with output.progress(quiet) as step:
        step("loading the model", 0, 1)
        loaded = work.load_model(model, device, "float32")
        for file in studies.values():
            output.hint(quiet, f"study {file.name}")
            made = work.study_report(file, {}, model=loaded if file.takes_model else None, quiet=quiet, step=step)
            output.write_text(out / f"{file.name}.html", html.render(made))
            entries.append(Entry(f"{file.name}.html", made.title, file.help, verdicts(made)))
        step("the main report", 0, 1)
        output.hint(quiet, "main report")
        made = report.report(loaded, DEFAULT_TEXT, command=work.command_line())
        output.write_text(out / REPORT, html.render(made))
        about = "All analyses of one model on one text."
        entries.append(Entry(REPORT, made.title, about, f"{len(made.sections)} analyses"))
    output.write_text(out / INDEX, index(entries))
    return out / INDEX


def verdicts(made: Report) -> str:
    """How many claims of a study got which verdict, such as "12 hold, 3 hold only if"."""
    count: Counter[str] = Counter(
        checked.verdict
        for section in made.sections
        if isinstance(section.result, study.ItemResult)
        for checked in section.result.checked
    )
    total = count.total()
    plural = {"holds": "hold", "holds only if": "hold only if", "does not hold": "do not hold",
              "not measured": "not measured"}  # fmt: skip
    parts = [f"{count[verdict]} {verdict if count[verdict] == 1 else words}" for verdict, words in plural.items()
             if count[verdict]]  # fmt: skip
    return f"{total} claims checked: {', '.join(parts)}"


def index(entries: list[Entry]) -> str:
    """The page that links the others; it has no script."""
    style = html._static(("page.css",))
    policy = (
        f"default-src 'none'; style-src '{html._sha256(style)}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    shown = [Entry(e.file, printable(e.title), printable(e.about), printable(e.outcome)) for e in entries]
    return html._environment().get_template("gallery.html").render(entries=shown, policy=policy, style=Markup(style))
