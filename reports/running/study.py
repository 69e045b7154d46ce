"""Running studies: from a declaration to a report with one section an item, verdicts first.

`study("wolfram")` is the Python way to what `interp study wolfram` does; `reports.render` makes the page of it.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses.shared.panels import Finding, Headline, Note, Panel, Result, Table, Tokens
from interp.errors import InputError, InterpError
from interp.loading.any import AnyModel
from interp.models.gpt import HookedGPT
from reports.commands.errors import first_line, out_of_memory
from reports.page.html import Report, Section
from reports.running import record
from reports.running.report import NUMERICAL, provenance
from reports.studies import StudyFile, find_study
from reports.studies._parts import Checked, Item, Results, Show, Study, counted

DEFAULT_MODEL = "tiny"
WEIGHTS = {"does not hold": 0.9, "holds only if": 0.8, "not measured": 0.6, "holds": 0.5}
"""How notable a verdict is: the page's summary begins with the highest."""
CLAIMS = 7
"""Most claims in one table."""


class Runs(Mapping[str, Any]):
    """The results of a study by name, each computed when it is first asked for. A failure is kept and raised again."""

    def __init__(self, runs: Mapping[str, Callable[[], Result]]) -> None:
        self._runs = runs
        self._done: dict[str, Result | Exception] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._done:
            try:
                self._done[name] = self._runs[name]()
            except (InterpError, *NUMERICAL) as error:
                if out_of_memory(error):
                    raise
                self._done[name] = error
        found = self._done[name]
        if isinstance(found, Exception):
            raise found
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)


@dataclass(frozen=True, kw_only=True)
class ItemResult(Result):
    """One item of the article: its panels and its claims with their verdicts."""

    item: Item
    shown: tuple[Panel, ...]
    checked: tuple[Checked, ...]
    opening: tuple[tuple[str, str], ...] = ()
    """Of the first item: what the page says on top, names and values."""

    def headline(self) -> Headline | None:
        """Credit and the count of verdicts, at the top of the page."""
        if not self.opening:
            return None
        return Headline(facts=self.opening, strips=(), following=Tokens(()), probabilities=np.zeros(0))

    def to_dataframe(self) -> pd.DataFrame:
        """One row a claim: item claim measured value expected verdict correction."""
        columns = ("item", "claim", "measured", "value", "expected", "verdict", "correction")
        rows = [
            (self.item.address, c.claim.text, c.claim.measured, c.value, str(c.claim.holds), c.verdict, c.correction)
            for c in self.checked
        ]
        return pd.DataFrame(rows, columns=list(columns))

    def panels(self) -> list[Panel]:
        """The figures, what differs from the article, and the claims."""
        differs = [Note(key="differs", title="Not as in the article", text=self.item.differs)]
        return [*self.shown, *(differs if self.item.differs else []), *self._claims()]

    def _claims(self) -> list[Table]:
        """Tables short enough to be shown whole."""
        rows = [
            (c.claim.text, c.sentence, c.value, f"{c.claim.measured} (expected: {c.claim.holds})") for c in self.checked
        ]
        names = ["claim", "verdict", "value", "what was measured"]
        return [
            Table(
                key=self._key(start),
                title="Claims and verdicts" + (", continued" if start else ""),
                frame=pd.DataFrame(rows[start : start + self._in_table], columns=names),
            )
            for start in range(0, len(rows), self._in_table)
        ]

    @property
    def _in_table(self) -> int:
        """Claims in one table: all tables of an item have about the same."""
        tables = -(-len(self.checked) // CLAIMS)
        return max(1, -(-len(self.checked) // max(1, tables)))

    def _key(self, number: int) -> str:
        """The panel that shows the claim of that number."""
        table = number // self._in_table
        return f"claims-{table + 1}" if table else "claims"

    def findings(self) -> list[Finding]:
        """The idea of the first item; every claim that does not simply hold; of an item without any, that all do."""
        return [*self._idea(), *self._verdicts()]

    def _idea(self) -> list[Finding]:
        """What the study is about, beside its first picture: on the page's first screen."""
        picture = next((panel.key for panel in self.shown if not isinstance(panel, (Note, Table))), "")
        if not self.opening or not picture:
            return []
        text = self.item.words.partition("\n\n")[0]
        return [Finding(text, picture, 1.0, len(self.checked), "claims checked beside this picture", kind="size")]

    def _verdicts(self) -> list[Finding]:
        odd = [
            Finding(
                text=f"{self.item.address} \N{LEFT DOUBLE QUOTATION MARK}{c.claim.text.rstrip('.')}"
                f"\N{RIGHT DOUBLE QUOTATION MARK} {c.sentence.rstrip('.')}.",
                key=self._key(number),
                weight=WEIGHTS[c.verdict],
                value=c.value,
                unit=f"({c.claim.measured})",
            )
            for number, c in enumerate(self.checked)
            if c.verdict != "holds" and math.isfinite(c.value)
        ]
        total = len(self.checked)
        if not total or any(c.verdict != "holds" for c in self.checked):
            return odd
        text = f"{self.item.title}: {f'all {total} claims hold' if total > 1 else '1 claim, and it holds'}."
        return [Finding(text=text, key="claims", weight=WEIGHTS["holds"], value=total, unit=f"of {total}")]


def study(name: str, *, model: HookedGPT | str | Path | None = None, command: str = "", **options: Any) -> Report:
    """The study of that name as a report.

    Args:
        model: a model or what `HookedGPT.from_pretrained` takes; by default the bundled one. Only for studies that are
            about any model (`interp study --list` says which).
        command: for the provenance.
        options: as in the study's file, such as query="feeling".

    Raises InputError for an unknown study, for an option that it does not have, and for a model where it takes none.
    """
    file = find_study(name)
    return carry_out(made(file, model, options), file=file, command=command, options=options)


def made(file: StudyFile, model: AnyModel | str | Path | None, options: Mapping[str, Any]) -> Study:
    """The declaration of a study for a model and options."""
    known = [option.name for option in file.options()]
    for name in options:
        if name not in known:
            raise InputError(f"study {file.name} has no option {name!r}", f"expected one of {', '.join(known)}")
    if not file.takes_model:
        if model is not None:
            raise InputError(f"study {file.name} takes no model", "it makes its own")
        return file.function()(**options)
    loaded = (
        HookedGPT.from_pretrained(model or DEFAULT_MODEL) if model is None or isinstance(model, (str, Path)) else model
    )
    return file.function()(loaded, **options)


def carry_out(
    declared: Study,
    *,
    file: StudyFile | None = None,
    command: str = "",
    options: Mapping[str, Any] | None = None,
    before: Callable[[Item, int], None] = lambda item, number: None,
    after: Callable[[Section], None] = lambda section: None,
) -> Report:
    """Every item in order, as a report; `before` and `after` are called around each to show progress.

    With `file` and `options`, where the declaration came from, the page can be run again (`interp rerun`).
    """
    results = Runs(declared.runs)
    sections: list[Section] = []
    found: list[ItemResult] = []
    for number, item in enumerate(declared.items):
        before(item, number)
        start = time.perf_counter()
        result = run_item(item, results)
        title = f"{item.address} {item.title}"
        section = Section(item.address, title, item.words, result, time.perf_counter() - start)
        sections.append(section)
        found.append(result)
        after(section)
    if found:
        checked = [c for result in found for c in result.checked]
        opening = [("Claims", counted(checked))] if checked else []
        opening += [("After", declared.after)] if declared.after else []
        sections[0] = replace(sections[0], result=replace(found[0], opening=tuple(opening)))
    used = _used(file, options or {})
    facts = provenance(
        declared.model, [len(text) for text in declared.texts], seed=int(used.get("seed", 0)), command=command
    )
    facts |= {"options": {name: value for name, value in used.items() if value is not None}} | dict(declared.facts)
    if file is not None:
        asked = record.request("study", None, used, study=file.name, own_model=not file.takes_model)
        facts |= {"study": file.name} | record.kept(sections, asked)
    return Report(declared.title, declared.texts, tuple(sections), facts, kind="study")


def _used(file: StudyFile | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of the study with the value it had."""
    return dict(given) if file is None else {o.name: given.get(o.name, o.default) for o in file.options()}


def run_item(item: Item, results: Results) -> ItemResult:
    """The item's panels and verdicts. Where an analysis cannot use the input, a note stands for it."""
    shown = tuple(_panel(show, results, number) for number, show in enumerate(item.shows))
    checked = tuple(Checked(claim=claim, value=_value(claim.value, results)) for claim in item.claims)
    return ItemResult(item=item, shown=shown, checked=checked)


def _panel(show: Show, results: Results, number: int) -> Panel:
    try:
        if isinstance(show, Panel):
            return show
        if callable(show):
            return show(results)
        run, _, key = show.partition(".")
        found: dict[str, Panel] = {panel.key: panel for panel in results[run].panels()}
        if key not in found:
            raise KeyError(f"run {run!r} has no panel {key!r}, only {', '.join(found)}")
        return replace(found[key], key=f"{run.replace('_', '-')}-{key}")
    except (InterpError, *NUMERICAL) as error:
        text = ". ".join(str(error).splitlines()) if isinstance(error, InterpError) else first_line(error)
        return Note(key=f"failed-{number}", title="Not run on this input", text=text)


def _value(measure: Callable[[Results], float], results: Results) -> float:
    try:
        return float(measure(results))
    except (InterpError, *NUMERICAL):
        return math.nan
