"""What a command does once its options are there: read the texts, load the model, run an analysis, write it out.

Nothing heavy is imported until it runs.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import CheckFailed, InputError, NotFoundError, check_seed
from interp.untrusted import as_text
from reports.commands.options import DEFAULT_TEXT, Dtype, Format, flag
from reports.commands.output import check_folder, check_target, hint, progress, shown, told, write_text
from reports.running.asked import Asked, measure, page_of, shape_of
from reports.running.discovery import Analysis
from reports.studies import StudyFile

if TYPE_CHECKING:
    from analyses.shared.panels import Result
    from interp.models.gpt import HookedGPT
    from interp.sweep import Rounding
    from reports.page.html import Section


def read_texts(texts: Sequence[str] | None, file: Path | None, lines: bool) -> list[str]:
    """The texts meant. Raises InputError for an empty one, NotFoundError for a file that cannot be read."""
    if file is None:
        if lines:
            raise InputError("--lines without --file", "expected a file whose lines are the texts")
        found = list(texts) if texts else [DEFAULT_TEXT]
    elif texts:
        raise InputError(f"both a text and --file {file}", "expected one of the two")
    else:
        whole = _read(file)
        found = [line for line in whole.split("\n") if line.strip()] if lines else [whole.removesuffix("\n")]
    if not found or not all(text.strip() for text in found):
        raise InputError(f"the text {f'in {file} ' if file else ''}is empty", "expected at least one word")
    return found


def read_given(
    texts: Sequence[str] | None, file: Path | None, lines: bool, tokens: str | None
) -> "tuple[list[str], list[list[int | str]] | None]":
    """The texts meant, and the rows of ids or symbols that stand in their place, if any."""
    if tokens is None:
        return read_texts(texts, file, lines), None
    if texts or file or lines:
        raise InputError("--tokens beside a text", "expected one of the two")
    from reports.commands.ids import read_ids

    return [], read_ids(tokens)


def as_tokens(rows: "list[list[int | str]]", model: Any) -> Any:
    """Rows of ids or symbols as the model takes them."""
    from reports.commands import ids

    return ids.as_tokens(rows, model)


def _read(file: Path) -> str:
    """The text of a file, or of the standard input for "-"."""
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.expanduser().read_bytes()
    except OSError as error:
        raise NotFoundError(f"{file} cannot be read: {error.strerror}", "expected a text file") from None
    return as_text(raw, file)


def load_any_model(name: str, device: str, dtype: Dtype) -> Any:
    """The model that the options mean, of whichever kind its directory holds."""
    from interp.loading.any import load

    return _told(load(name, device=device, dtype=_dtype(dtype)))


def load_model(name: str, device: str, dtype: Dtype) -> "HookedGPT":
    """The decoder that the options mean."""
    from interp.models.gpt import HookedGPT

    model: HookedGPT = _told(HookedGPT.from_pretrained(name, device=device, dtype=_dtype(dtype)))
    return model


def _told(model: Any) -> Any:
    """The model, after a word on stderr about weights that are no numbers: everything made of them is none either."""
    from interp.loading.digests import non_finite
    from reports.running.report import WEIGHTS_WRONG

    if bad := non_finite(model):
        print(f"warning: {WEIGHTS_WRONG.format(len(bad), bad[0])}", file=sys.stderr)
    return model


def _dtype(name: Dtype) -> Any:
    import torch

    return name if name == "auto" else getattr(torch, name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises NotFoundError or InputError."""
    import json

    try:
        data = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}", "expected the settings.json of a run") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} holds no JSON object", "expected the settings.json of a run")
    return data


def run_command(
    analysis: Analysis,
    options: Mapping[str, Any],
    *,
    texts: list[str] | None,
    file: Path | None,
    lines: bool,
    tokens: str | None,
    model: str,
    device: str,
    dtype: Dtype,
    format: Format | None,
    out: Path | None,
    open: bool,
    force: bool,
    quiet: bool,
    debug: bool,
    prompts: Path | None = None,
    ray: str | None = None,
    resume: Path | None = None,
    save: Path | None = None,
    template: str | None = None,
) -> None:
    """One analysis on the texts, to stdout or a file."""
    form = format or format_of(out, open)
    alone = next((o.name for o in analysis.options() if o.alone and options.get(o.name) is not None), None)
    if alone is not None and form == "html":
        raise InputError(f"a page of {flag(alone)}", "expected --format table, json or csv")
    if form == "html":
        out = out or Path(f"interp-{analysis.command}.html")
    elif open:
        raise InputError(f"--open with --format {form}", "expected --format html, the one that a browser shows")
    if out is not None and save is not None and out.resolve() == save.resolve():
        raise InputError(f"--out and --save name one file, {out}", "expected two")
    for target, option in ((out, "--out"), (save, "--save")):
        if target is not None:
            check_target(target, force, option)
    check_values(options)
    if ray is not None and resume is not None:
        raise InputError("both --ray and --resume", "expected one of the two: workers keep nothing on disk")
    given, rows = read_given(texts, file, lines, tokens)
    if template is not None and prompts is None:
        raise InputError("--template without --prompts", "expected a file of inputs and outputs")
    if prompts is not None and (texts or file or tokens):
        raise InputError(f"both a text and --prompts {prompts}", "expected one of the two")
    prompt_lines = None if prompts is None else _with_template(_read(prompts), template, prompts)
    with _resumable(resume), progress(quiet) as step:
        step("loading the model", 0, 1)
        shape = shape_of(model) if analysis.takes_config else None
        lower = dtype if analysis.declared.sweeps and dtype in ("bfloat16", "float16") else None
        needed = shape is None and alone is None
        loaded = load_any_model(model, device, "float32" if lower else dtype) if needed else None
        text: Any = given if len(given) != 1 else given[0]
        if rows is not None:
            text = as_tokens(rows, loaded) if loaded is not None else None
        elif not (texts or file) and (not needed or analysis.takes_prompts):
            text = None
        step(analysis.title.lower(), 0, 1)
        asked = Asked(model, text, options, prompt_lines, str(prompts), lower)
        with _cluster(ray), _lowered(lower) as rounding:
            section = measure(analysis, loaded or shape, asked)
        if form == "html":
            from reports.page.html import render

            page = render(page_of(section, loaded, analysis, asked, command_line()))
    if save is not None:
        write_text(save, section.result.saved() + "\n")
        told(save, False)
    if form == "table" and out is None:
        from reports.terminal import show

        show(section.result)
    elif out is None:
        print(shown(written(section, form)))
    else:
        write_text(out, page if form == "html" else written(section, form) + "\n")
        told(out, open)
    if lower and rounding is not None and rounding.checked:
        apart = ", ".join(f"{name} {value:.2g}" for name, value in rounding.difference.items())
        hint(quiet, f"{lower} against float32, on {rounding.checked} runs done in both, largest difference: {apart}")
    where = options[alone] if alone else model
    hint(quiet, f"{analysis.command}: {section.seconds:.1f} s on {where if loaded is None else loaded.source}")
    if section.result.facts().get("passed") is False:
        raise CheckFailed(f"{analysis.command}: not everything agreed on {where}", "the table says what did not")


def _with_template(lines: str, template: str | None, where: Path) -> str:
    """A file of inputs and outputs with the sentence that makes prompts of them, as such a file may have it itself."""
    if template is None:
        return lines
    try:
        examples = json.loads(lines)
    except ValueError:
        examples = None
    if not isinstance(examples, list):
        raise InputError(f"--template beside {where}", 'expected a file of inputs and outputs: [{"input": ...}, ...]')
    return json.dumps({"template": template, "examples": examples}, ensure_ascii=False)


def _cluster(address: str | None) -> AbstractContextManager[object]:
    """The workers at this address; without one, this process alone."""
    if address is None:
        return nullcontext()
    from interp import scale

    return scale.cluster(address)


def _resumable(folder: Path | None) -> AbstractContextManager[object]:
    """Sweeps keep what they finish in this folder, if there is one."""
    if folder is None:
        return nullcontext()
    check_folder(folder, "--resume")
    from interp.sweep import resumable

    return resumable(folder)


def _lowered(dtype: str | None) -> "AbstractContextManager[Rounding | None]":
    """Sweeps run in this dtype, if one is given, and measure what that costs in exactness."""
    if dtype is None:
        return nullcontext()
    import torch

    from interp.sweep import lowered

    return lowered(getattr(torch, dtype))


def check_values(options: Mapping[str, Any]) -> None:
    """What options of these names mean everywhere."""
    if options.get("seed") is not None:
        check_seed(options["seed"])
    if options.get("memory") is not None and options["memory"] < 1:
        raise InputError(f"--memory {options['memory']}", "expected bytes, at least 1", "500000000 is 500 MB")


def format_of(out: Path | None, open: bool) -> Format:
    endings: dict[str, Format] = {".json": "json", ".csv": "csv", ".html": "html", ".htm": "html"}
    return endings.get(out.suffix.lower(), "table") if out is not None else "html" if open else "table"


def written(section: "Section", form: Format) -> str:
    """The table of a result as JSON or CSV, or its panels as plain text."""
    if form == "table":
        import io

        from reports.terminal import show

        stream = io.StringIO()
        show(section.result, file=stream)
        return stream.getvalue().rstrip("\n")
    from reports.running.report import csv_text

    if form == "csv":
        return csv_text(section.result.to_dataframe()).rstrip("\n")
    return as_json(plain(section.result))


def as_json(data: Any) -> str:
    """In plain ASCII, what would steer a terminal as codes."""
    return json.dumps(data, indent=1, allow_nan=False).replace("\x7f", "\\u007f")


def plain(result: "Result") -> Any:
    """The table's rows, within the facts where there are any; null for what is no finite number."""
    from reports.running.record import jsonable
    from reports.running.report import records

    rows, facts = json.loads(records(result.to_dataframe())), jsonable(result.facts())
    return facts | {"rows": rows} if facts else rows


def command_line() -> str:
    """The command as it was typed, fit to be typed again."""
    import shlex

    return shlex.join(["interp", *sys.argv[1:]])


def study_report(file: StudyFile, options: dict[str, Any], *, model: Any, quiet: bool, step: Any) -> Any:
    """The study's report on a loaded model (None where it makes its own); odd verdicts are told on stderr."""
    from reports.running import study

    declared = study.made(file, model, options)

    def after(section: Any) -> None:
        hint(quiet, f"{section.title:<60.60}{section.seconds:6.1f} s")
        for checked in section.result.checked:
            if checked.verdict != "holds":
                hint(quiet, f"    {checked.claim.text} {checked.sentence}")

    return study.carry_out(
        declared,
        file=file,
        command=command_line(),
        options=options,
        before=lambda item, number: step(f"{item.address} {item.title}", number, len(declared.items)),
        after=after,
    )
