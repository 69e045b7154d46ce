"""Running analyses and collecting what a report needs: sections, provenance, data files.

`report(model, text)` is the Python way to what `interp report` does; `reports.render` makes the page of it.
"""

import csv
import json
import math
import platform
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import interp
from analyses.shared.capabilities import lacking
from analyses.shared.clean_corrupted import Pairs, remembering
from analyses.shared.findings import established
from analyses.shared.inputs import TextOrTokens, check_finite, sequences, token_labels
from analyses.shared.panels import AttentionGrid, Note, Panel, Result, Table, Tokens
from analyses.shared.stacks import readings
from interp.errors import InputError, InterpError, NotApplicable, check_seed
from interp.files import atomic_path
from interp.loading.any import AnyModel, load
from interp.loading.digests import non_finite, parameters_sha256, weights_sha256
from interp.models.config import GPTConfig
from interp.models.gpt import Batch, HookedGPT
from reports.commands.errors import first_line, out_of_memory
from reports.page import viewers
from reports.page.html import FOLDED, Report, Section
from reports.running import record
from reports.running.discovery import Analysis, discover, find, of_function
from reports.tokens import printable

NUMERICAL = (ValueError, ArithmeticError, RuntimeError, np.linalg.LinAlgError)
"""What one analysis may raise on numbers that nobody foresaw; a report goes on without it."""


NOT_SERVED = "does not read this kind of model"
"""What an analysis says of a model whose kind it does not know."""
NOT_RUN = "Not run, and why"
"""The last chapter: analyses that this model or this text left out."""
LEFT_OUT = "What a report on another model would show besides."


@dataclass(frozen=True)
class LeftOut(Result):
    """Stands in a report for the analyses that do not know the model's kind, or ask for what it does not have."""

    reasons: Mapping[str, str]
    """Command -> why."""

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame({"analysis": list(self.reasons), "why": list(self.reasons.values())})

    def panels(self) -> list[Panel]:
        panels: list[Panel] = []
        other_kind = [name for name, why in self.reasons.items() if why == NOT_SERVED]
        if other_kind:
            text = f"Each of these {NOT_SERVED}: {', '.join(other_kind)}."
            panels.append(Note(key="names", title="Left out", text=text))
        frame = self.to_dataframe()
        lacking = frame[frame["why"] != NOT_SERVED]
        if len(lacking):
            caption = "The question makes no sense for this model, or is about a part that it does not have."
            panels.append(Table(key="reasons", title="Left out, and why", caption=caption, frame=lacking))
        return panels


@dataclass(frozen=True)
class Failed(Result):
    """Stands in for the result of an analysis that could not use this input, or broke on it."""

    message: str
    """What it said, at most three lines."""
    traceback: str = ""
    """Of an error that nobody expected: a bug."""

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame({"error": [self.message]})

    def panels(self) -> list[Panel]:
        return [
            Note(
                key="failed",
                title="Failed" if self.traceback else "Not run on this input",
                text=". ".join(self.message.splitlines()),
            )
        ]


def run(analysis: Analysis, model: Any, tokens: Any, options: Mapping[str, Any] | None = None) -> Section:
    """One analysis with its time. Options that the analysis does not have are an error (TypeError)."""
    function = analysis.function()
    if not analysis.serves(model) and not isinstance(model, GPTConfig):
        raise InputError(f"{analysis.command} {NOT_SERVED}", "expected another kind, such as gpt2")
    start = time.perf_counter()
    given = dict(options or {})
    given |= _beside(analysis, model, given)
    try:
        result = function(model, tokens, **given)
    except InterpError:
        raise
    except NUMERICAL:
        if isinstance(model, HookedGPT):
            check_finite(model)
        raise
    return _section(analysis, result, start)


CHAPTERS = (
    (40, "This text"),
    (52, "Where the answer travels"),
    (72, "What the heads and neurons are"),
    (math.inf, FOLDED),
)
"""Of a report: places before which an analysis belongs to it."""


def _section(analysis: Analysis, result: Result, start: float) -> Section:
    chapter = next(name for end, name in CHAPTERS if analysis.declared.place < end)
    return Section(analysis.name, analysis.title, analysis.doc, result, time.perf_counter() - start, chapter)


def _beside(analysis: Analysis, model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options not given whose value lies beside the model's weights, such as a tuned lens trained for them."""
    folders = [file.parent for file in getattr(model, "weight_files", ())[:1]]
    wanted = [option for option in analysis.options() if option.beside and given.get(option.name) is None]
    found = [(option, folder / option.beside) for option in wanted for folder in folders]
    return {option.name: option.load(str(path)) for option, path in found if option.load and path.is_file()}


@remembering()
def report(
    model: AnyModel,
    text: TextOrTokens,
    *,
    analyses: Iterable[str | Callable[..., Result]] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    title: str = "",
    command: str = "",
    before: Callable[[Analysis], None] = lambda analysis: None,
    after: Callable[[Section], None] = lambda section: None,
) -> Report:
    """All analyses, or those named, on one model and text.

    Args:
        text: a text, several, or token ids [batch pos].
        analyses: names such as "logit_lens", or functions, of yours too; by default all that need nothing but a model
            and a text.
        options: by analysis, in place of what a report asks of it (`in_report` of its declaration).
        seed: given to every analysis that draws random numbers.
        title: of the page; by default the model and the beginning of the text.
        command: for the provenance.
        before, after: called around each analysis, to show progress.

    An analysis that needs what the model does not have (NotApplicable) is left out, and a last section says why. One
    that cannot use this input (InterpError), or breaks on its numbers (ValueError, ArithmeticError, RuntimeError), gets
    a section that says so. Raises the first of these errors when no analysis is left, and InterpError when the text
    does not fit the model, for an unknown name, for no name at all, or for a seed out of range; anything else that an
    analysis raises, lack of memory included, is passed on.
    """
    check_seed(seed)
    tokens = labels_of(model, text, longer=False)
    chosen = _chosen(analyses)
    sections: list[Section] = []
    errors: list[Exception] = []
    wanted = [analysis.name for analysis in chosen]
    left_out = {analysis.command: why for analysis in chosen if (why := unfit(analysis, model))}
    chosen = [analysis for analysis in chosen if analysis.command not in left_out]
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise NotApplicable(reasons, "expected another kind, such as gpt2")
    used = {analysis.name: _options(analysis, options or {}, seed) for analysis in chosen}
    for analysis in chosen:
        before(analysis)
        start = time.perf_counter()
        try:
            section = run(analysis, model, text, used[analysis.name])
        except (InterpError, *NUMERICAL) as error:
            if out_of_memory(error):
                raise
            errors.append(error)
            if isinstance(error, NotApplicable):
                left_out[analysis.command] = first_line(error)
                continue
            failed = _failed(error)
            section = _section(analysis, failed, start)
        sections.append(section)
        after(section)
    if errors and len(errors) == len(chosen):
        raise errors[0]
    sections = _with_corrupted(model, sections, {one.name: partial(one.function(), **used[one.name]) for one in chosen})
    if left_out:
        sections.append(Section("left_out", "Not for this model", LEFT_OUT, LeftOut(left_out), 0.0, NOT_RUN))
    beginning, name = _beginning(text), Path(model.source).name
    return Report(
        title=title or (f"{name}: {beginning}" if beginning else name),
        tokens=tokens,
        sections=tuple(sections),
        provenance=provenance(model, [len(labels) for labels in tokens], seed=seed, command=command)
        | record.kept(
            sections,
            record.request(
                "report",
                text,
                {one.name: record.effective(one, used[one.name]) for one in chosen if one.command not in left_out},
                analyses=wanted,
                seed=seed,
                title=title,
            ),
        ),
    )


def _chosen(analyses: Iterable[str | Callable[..., Result]] | None) -> list[Analysis]:
    """Those named, once each; by default all that a report runs. Raises InputError for one that needs options."""
    if analyses is None:
        return [analysis for analysis in discover().values() if analysis.in_report]
    chosen = {one.name: one for one in map(_asked_for, analyses)}
    if not chosen:
        raise InputError("no analyses", "expected at least one name, such as logit-lens")
    for analysis in chosen.values():
        if not analysis.stands_alone:
            missing = ", ".join(option.name.replace("_", "-") for option in analysis.options() if option.required)
            raise InputError(
                f"{analysis.command} needs more than a model and a text: {missing}",
                "expected analyses that run without options",
                f"see: interp {analysis.command} --help",
            )
    return list(chosen.values())


def _with_corrupted(
    model: AnyModel, sections: Sequence[Section], ran: Mapping[str, Callable[..., Result]]
) -> list[Section]:
    """The sections; where one is about a pair, attention viewers of its clean text have the corrupted one too.

    Args:
        ran: the analysis of each section, with its options.
    """
    found = (getattr(section.result, "pairs", None) for section in sections)
    pairs = next((one for one in found if isinstance(one, Pairs)), None)
    if pairs is None or len(pairs.rows) > 1 or not isinstance(model, HookedGPT):
        return list(sections)
    names = ("the clean text", f"the corrupted text: {pairs.changes[0]}")
    out = list[Section]()
    for section in sections:
        grids = _viewers(section.result, pairs.first[0]) if section.chapter == CHAPTERS[0][1] else {}
        if grids:
            again = _viewers(ran[section.name](model, pairs.corrupted[0]), pairs.first[1])
            both = [viewers.compared(grids[key], again[key], names) for key in grids if key in again]
            section = replace(section, beside=tuple(both))
        out.append(section)
    return out


def _viewers(result: Result, tokens: Tokens) -> dict[str, AttentionGrid]:
    """Attention viewers of this one text, by key."""
    grids = [panel for panel in result.panels() if isinstance(panel, AttentionGrid)]
    return {grid.key: grid for grid in grids if grid.tokens == (tokens,)}


def _asked_for(analysis: str | Callable[..., Result]) -> Analysis:
    return find(analysis) if isinstance(analysis, str) else of_function(analysis)


def unfit(analysis: Analysis, model: Any) -> str:
    """Why an analysis is not for this model, in words; "" when it is."""
    if not analysis.serves(model):
        return NOT_SERVED
    missing = lacking(model, analysis.needs_in_report)
    return f"this model has no {missing}" if missing else ""


def _options(analysis: Analysis, given: Mapping[str, Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """What a report asks of an analysis."""
    seeded = {"seed": seed} if any(option.name == "seed" for option in analysis.options()) else {}
    return {**given.get(analysis.name, analysis.report_options), **seeded}


def _failed(error: Exception) -> Failed:
    if isinstance(error, InterpError):
        return Failed(str(error))
    return Failed(f"{type(error).__name__}: {first_line(error)}", "".join(traceback.format_exception(error)))


def _beginning(text: TextOrTokens, limit: int = 60) -> str:
    if isinstance(text, (torch.Tensor, Batch)):
        return ""
    first, *others = [text] if isinstance(text, str) else text
    first = " ".join(first.split())
    more = f" (and {len(others)} more)" if others else ""
    return (first if len(first) <= limit else first[: limit - 1] + "…") + more


def labels_of(model: Any, text: Any, *, longer: bool = True) -> tuple[Tokens, ...]:
    """The tokens of each text, of a translation model those of each source and each target; of images none.

    Args:
        longer: whether a decoder's text may be longer than its context.

    Raises InputError for a text that does not fit the model.
    """
    if longer and isinstance(model, HookedGPT):  # `readings` are what is read whole
        return tuple(token_labels(model, row) for row in sequences(model, text, longer=True))
    return tuple(one.labels[side] for one in readings(model, text) for side in one.ids)


def _shape(model: Any) -> str:
    c, sizes = model.config, model.stack_sizes
    layers = " + ".join(f"{size} {stack}" for stack, size in sizes.items()).replace(" blocks", "")
    heads = f"{c.n_heads} heads" + ("" if c.n_kv_heads == c.n_heads else f" over {c.n_kv_heads} of keys and values")
    return f"{layers} layers, {heads}, width {c.d_model}, context {c.n_ctx:,}, vocabulary {c.d_vocab:,}"


def provenance(model: AnyModel, tokens: Sequence[int], *, seed: int, command: str) -> dict[str, Any]:
    """Where the numbers come from. Date and times stand here and nowhere else in a report.

    Args:
        tokens: the number of tokens of each text.
    """
    edited, bad = not command and _edited(model), non_finite(model)
    return {
        "command": command or "(from Python)",
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "seed": seed,
        "model": model.source,
        "shape": _shape(model),
        "weights_sha256": _digest(model, edited),
        **({"warning": WEIGHTS_WRONG.format(len(bad), bad[0])} if bad else {}),
        **({"weights": "not those of its files: changed in memory, and the digest is of what ran"} if edited else {}),
        "tokens": list(tokens),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": versions(),
    }


WEIGHTS_WRONG = "{} of the model's tensors hold NaN or infinity, {} among them; the numbers here mean nothing"
"""What is said, here and on stderr, of weights that are no numbers."""


def _digest(model: Any, edited: bool) -> str:
    if model.device.type == "meta":
        return "no weights"
    return parameters_sha256(model) if edited else weights_sha256(model)


def _edited(model: Any) -> bool:
    """Whether a model that came from files holds other weights now than they do."""
    if not model.weight_files:
        return False
    stored = dict(load(model.source, device="cpu", dtype=model.dtype).named_parameters())
    now = dict(model.named_parameters())
    return stored.keys() != now.keys() or not all(torch.equal(stored[name], x.cpu()) for name, x in now.items())


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {
        "interp": interp.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "numpy", "pandas")},
    }


def records(frame: pd.DataFrame) -> str:
    """A table as a JSON array of objects, one a row; what is not a number is null. In plain ASCII."""
    return str(frame.to_json(orient="records", double_precision=15, indent=1)).replace("\x7f", "\\u007f")


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV, words in quotes: unquoted, a carriage return within a token would end the row."""
    return str(frame.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"))


def data_files(names: Iterable[str], folder: Path) -> list[Path]:
    """What `write_data` writes for analyses of these names, `report.json` last."""
    return [*(folder / f"{name}.{ending}" for name in names for ending in ("parquet", "json")), folder / "report.json"]


def write_data(made: Report, folder: Path) -> list[Path]:
    """Each analysis as NAME.parquet, its table, and NAME.json, the table with title, options, time and single values;
    `report.json`: texts, findings, which file holds what, provenance.

    Raises InterpError when the folder cannot be written.
    """
    files = data_files([section.name for section in made.sections], folder)
    options = _options_of(made)
    tables = []
    for section, table, whole in zip(made.sections, files[0:-1:2], files[1:-1:2], strict=True):
        frame = section.result.to_dataframe()
        about = {
            "analysis": section.name, "title": section.title, "options": options.get(section.name, {}),
            "seconds": round(section.seconds, 3), "facts": section.result.facts(),
            "columns": list(map(str, frame.columns)),
        }  # fmt: skip
        with atomic_path(table) as temporary:
            frame.to_parquet(temporary, index=False)
        _write_json(whole, about | {"rows": json.loads(records(frame))})
        tables.append(about | {"file": table.name, "rows": len(frame)})
    summary = {
        "title": made.title,
        "texts": ["".join(labels) for labels in made.tokens],
        "findings": findings(made.sections),
        "tables": tables,
        "provenance": {key: value for key, value in made.provenance.items() if key != "numbers"},
    }
    _write_json(files[-1], summary)
    return files


def _options_of(made: Report) -> dict[str, Any]:
    """The options of each analysis, by its name."""
    asked = made.provenance.get("request", {})
    options: dict[str, Any] = dict(asked.get("options", {}))
    return options if asked.get("command") == "report" else {section.name: options for section in made.sections}


def _write_json(path: Path, data: Any) -> None:
    with atomic_path(path) as temporary:
        text = json.dumps(record.jsonable(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def findings(sections: Iterable[Section]) -> list[dict[str, Any]]:
    """The findings that a page of these sections shows, the most notable first, as plain values."""
    found = established((finding, section.name) for section in sections for finding in section.result.findings())
    return [
        {
            "analysis": name, "panel": finding.key, "text": printable(finding.text), "value": _number(finding.value),
            "unit": finding.unit, "low": _number(finding.low), "high": _number(finding.high), "kind": finding.kind,
            "null": finding.null, "p": _number(finding.p), "about": finding.about,
            "held_out": None if finding.held is None else asdict(finding.held),
        }
        for finding, name in found
    ]  # fmt: skip


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
