"""`interp report`: all analyses on one text, written as one page."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from interp.errors import InputError, check_seed
from reports.commands import completion, output, work
from reports.commands.errors import ReportIncomplete
from reports.commands.options import (
    DEFAULT_MODEL,
    ByLine,
    Debug,
    Device,
    DtypeOption,
    File,
    Force,
    Ids,
    Model,
    Open,
    Out,
    Quiet,
    Texts,
)
from reports.commands.output import hint
from reports.running.discovery import discover, find

if TYPE_CHECKING:
    from reports.page.html import Section
    from reports.running.discovery import Analysis
    from reports.running.expected import Times

EXAMPLE = 'Example: interp report "Mary met John, and John thanked Mary" --out mary.html --open'


def report(
    texts: Texts = None,
    file: File = None,
    lines: ByLine = False,
    tokens: Ids = None,
    analyses: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="<name,...>",
            help="Only these analyses, such as logit-lens,ablation.",
            autocompletion=completion.analyses,
        ),
    ] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: DtypeOption = "float32",
    seed: Annotated[int, typer.Option(help="For everything that draws random numbers.")] = 0,
    out: Out = None,
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="<folder>", help="Also write each analysis' table and a JSON summary here."),
    ] = None,
    open: Open = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run all analyses and write one HTML page that opens offline."""
    given, rows = work.read_given(texts, file, lines, tokens)
    chosen = None if analyses is None else _chosen(analyses)
    check_seed(seed)
    target = out or Path(_default_name(model, given[0] if texts or file else ""))
    output.check_target(target, force)
    with output.progress(quiet) as step:
        step("loading the model", 0, 1)
        from interp.keeping import remembered
        from reports.page.html import render
        from reports.running import report as running
        from reports.running.expected import Times

        if chosen is None:
            chosen = [analysis.name for analysis in discover().values() if analysis.in_report]
        for path in running.data_files(chosen, data) if data is not None else ():
            output.check_target(path, force, option="--data")
        loaded = work.load_any_model(model, device, dtype)
        text = work.as_tokens(rows, loaded) if rows is not None else given if len(given) > 1 else given[0]
        lengths = [len(labels) for labels in running.labels_of(loaded, text, longer=False)]
        with remembered() as memory:
            told = _Told(step, quiet, debug, Times.of(memory, loaded, lengths, chosen))
            said = told.times.said(loaded)
            hint(quiet or not said, said)
            made = running.report(
                loaded,
                text,
                analyses=None if analyses is None else chosen,
                seed=seed,
                command=work.command_line(),
                before=told.before,
                after=told.after,
            )
            step("writing the page", len(chosen), len(chosen) + 1)
            page = render(made)
            told.times.lap()
            told.times.keep()
    output.write_text(target, page)
    if data is not None:
        running.write_data(made, data)
    left = [section.result.reasons for section in made.sections if isinstance(section.result, running.LeftOut)]
    more = f", {len(left[0])} left out (the page says why)" if left else ""
    hint(quiet, f"{len(made.sections) - len(left)} analyses{more}, {len(page.encode()) / 1e6:.1f} MB")
    output.told(target, open)
    if told.broken:
        raise ReportIncomplete(
            f"the page was written, but {', '.join(told.broken)} failed unexpectedly",
            "this is a bug in interp, or in the model's numbers; the page says what happened",
            "run it again with --debug for the traceback, and report it",
        )


@dataclass
class _Told:
    """What is said while a report runs: a bar, and a line for each section."""

    step: Callable[[str, int, int], None]
    quiet: bool
    debug: bool
    times: "Times"
    broken: list[str] = field(default_factory=list)
    """Commands of the analyses that failed unexpectedly."""
    done: int = 0

    def before(self, analysis: "Analysis") -> None:
        self.times.lap()
        self.step(analysis.title.lower(), self.done, len(self.times.asked) + 1)

    def after(self, section: "Section") -> None:
        from reports.running.report import Failed

        self.times.lap(section.name)
        self.done += 1
        name, failed = section.name.replace("_", "-"), ""
        if isinstance(section.result, Failed):
            unexpected = bool(section.result.traceback)
            failed = "  (failed: see the page)" if unexpected else "  (not run: see the page)"
            self.broken += [name] * unexpected
            if self.debug and unexpected:
                output.say(section.result.traceback)
        hint(self.quiet, f"{name:<24}{section.seconds:6.1f} s{failed}")


def _chosen(names: str) -> list[str]:
    """The analyses named, each once."""
    parts = [part.strip() for part in names.split(",")]
    if not all(parts):
        raise InputError(f"--analyses {names!r} has an empty part", "expected names, such as logit-lens,ablation")
    return list(dict.fromkeys(find(part).name for part in parts))


def _default_name(model: str, text: str) -> str:
    """Such as interp-tiny-mary-met-john.html: the model and the first words."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split()[:4]
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in Path(model).name)
    return "-".join(["interp", name.strip(".-") or "model", *(words or ["report"])])[:80] + ".html"
