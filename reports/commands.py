"""What all commands share: the texts, the model, the output; and the commands that are made from analyses.

Nothing heavy is imported until a command runs; an analysis is imported when its own command is asked for.
"""

import codecs
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from interp.errors import CheckFailed, InputError, NotFoundError, check_seed, nearest
from reports import completion
from reports.asked import Asked, measure, page_of, shape_of
from reports.discovery import Analysis, Option, discover
from reports.errors import guarded
from reports.output import check_folder, check_target, hint, progress, shown, write_text

if TYPE_CHECKING:
    from interp.model import HookedGPT
    from interp.sweep import Rounding
    from reports.html import Section

DEFAULT_MODEL = "tiny"
DEFAULT_TEXT = (
    "Sir Harold Whitcombe was born in Leeds. In 1874 Harold Whitcombe moved to London, where Harold Whitcombe "
    "became a professor of history."
)
"""A name comes back twice, so that heads which copy have something to copy."""

COMMON = {"file", "lines", "tokens", "ids", "model", "device", "dtype", "format", "out", "open"} | {
    "force", "quiet", "debug", "help",
}  # fmt: skip
"""Options that commands share."""
Format = Literal["table", "json", "csv", "html"]
Dtype = Literal["float32", "float64", "bfloat16", "float16", "auto"]

Texts = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this form in every version
    typer.Argument(metavar="TEXT", help="One text or several; without any, a short biography.", show_default=False),
]
File = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--file", metavar="<path>", help="Read the text from a file; - is stdin."),
]
ByLine = Annotated[bool, typer.Option("--lines", help="With --file: each line is a text of its own.")]
Ids = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--tokens", metavar="<ids>", help="Instead of a text: ids or symbols such as '3 1 4'; a .npy or .jsonl of rows."
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="<name>",
        help="A bundled name, a directory, a file (.gguf, .bin, .pt), or a hub id; families: interp models.",
        autocompletion=completion.models,
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="<name>", help="auto, cpu, cuda, cuda:N or mps.")]
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="What the weights are converted to; auto keeps what the files have.")
]
Out = Annotated[Optional[Path], typer.Option("--out", metavar="<path>", help="Write to this file.")]  # noqa: UP045
Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no hints.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class Group(TyperGroup):
    """The fixed commands and one for each analysis; an analysis is read only when its command is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.commands, *(analysis.command for analysis in discover().values())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        analysis = discover().get(cmd_name.replace("-", "_"))
        if analysis is not None:
            return command_of(analysis)
        known = self.list_commands(ctx)
        close = nearest(cmd_name, known)
        raise InputError(
            f"no command is called {cmd_name!r}",
            f"{'nearest' if close else 'expected one of'}: {', '.join(close or known)}",
            "see: interp --help",
        )

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Two lists; the analyses with the first line of their files, which are not imported for this."""
        fixed = [(name, (command.help or "").partition("\n")[0]) for name, command in self.commands.items()]
        analyses = [(analysis.command, analysis.help) for analysis in discover().values()]
        for title, rows in (("Commands", fixed), ("Analyses, each a command of its own", analyses)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> Any:
        if "_INTERP_COMPLETE" in os.environ:
            return super().main(args, prog_name="interp")
        given = list(sys.argv[1:] if args is None else args)

        def run() -> None:
            with self.make_context("interp", list(given)) as ctx:
                self.invoke(ctx)

        sys.exit(guarded(run, given))


class Command(TyperCommand):
    """A command whose help names its own options first, and in whose paths `~` is the home folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        ctx.params |= {name: _at_home(value) for name, value in ctx.params.items()}
        return rest

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        shown = [f"{p.metavar}" if p.required else f"[{p.metavar}]" for p in arguments]
        return ["[OPTIONS]", *(name + "..." * (p.nargs < 0) for name, p in zip(shown, arguments, strict=True))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Texts, the command's own options, the options that other commands have too."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], "Common options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if parameter.param_type_name == "argument":  # typer's own record repeats its type
                groups["Arguments"].append((str(parameter.metavar), getattr(parameter, "help", "") or ""))
            elif record is not None:
                groups["Common options" if parameter.name in COMMON else "Options"].append(record)
        for title, rows in groups.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _at_home(given: Any) -> Any:
    """A path, or each of several, with `~` as the home folder; the shell leaves the one in --out=~/x alone."""
    if isinstance(given, (list, tuple)):
        return type(given)(map(_at_home, given))
    with suppress(RuntimeError):  # nobody of that name
        return given.expanduser() if isinstance(given, Path) else given
    return given


def command_of(analysis: Analysis) -> TyperCommand:
    """The command of an analysis, its options read from the function's signature."""
    shared = list(inspect.signature(shared_options).parameters.values())
    taken = {parameter.name for parameter in shared}
    # An option that shares a name with ours goes by the analysis' name: --architecture-dtype.
    options = {
        f"{analysis.name}_{o.name}" if o.name in taken else o.name: o for o in analysis.options() if not o.hidden
    }

    def run(**values: Any) -> None:
        context = values.pop("_context")
        given = {option.name: _value(flag(name), option, values.pop(name)) for name, option in options.items()}
        for option in options.values():
            if option.alone and given[option.name] is not None:
                _refuse_beside(context, option.name)
        run_command(analysis, given, **values)

    own = [parameter(name, option) for name, option in options.items()]
    own += [PROMPTS] if analysis.takes_prompts else []
    own += [RAY] if analysis.scales else []
    own += [RESUME] if analysis.sweeps else []
    asked = inspect.Parameter("_context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    run.__signature__ = inspect.Signature([asked, shared[0], *own, *shared[1:]])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [asked, *shared, *own]}
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    example = _example(analysis, list(options.values()))
    app.command(analysis.command, cls=Command, help=_help(analysis), epilog=example)(run)
    return typer.main.get_command(app)  # type: ignore[return-value]


PROMPTS = inspect.Parameter(
    "prompts",
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    default=None,
    annotation=Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="<path>",
            help="Instead of a text: JSON lines with clean, corrupted, answer, wrong; with neither, prompts are made.",
        ),
    ],
)


RAY = inspect.Parameter(
    "ray",
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    default=None,
    annotation=Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="<address>", help="Share the texts out on a Ray cluster: local, auto, or host:port."),
    ],
)


RESUME = inspect.Parameter(
    "resume",
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    default=None,
    annotation=Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="<folder>", help="Keep what is finished here; the same command goes on with it after a stop."
        ),
    ],
)


def shared_options(
    texts: Texts = None,
    file: File = None,
    lines: ByLine = False,
    tokens: Ids = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: DtypeOption = "float32",
    format: Annotated[
        Optional[Format], typer.Option("--format", help="Of the output; told from --out if not given, else table.")  # noqa: UP045
    ] = None,
    out: Out = None,
    open: Open = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The parameters of every analysis command; only its signature is used."""


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parameter(name: str, option: Option) -> inspect.Parameter:
    """An analysis' option as a parameter that typer understands.

    Several words are given by repeating the option (a token may hold a comma), several numbers with commas.
    """
    words = option.many and option.type is str
    switch = option.type is bool and not option.many and not option.optional
    kind: Any = list[str] if words else str if option.many else option.type
    metavar = None
    if option.many:
        metavar = {int: "<int,...>", float: "<float,...>", str: "<text>"}.get(option.type, "<value,...>")
    known = get_args(option.type) if option.many and get_origin(option.type) is Literal else ()
    help = f"{option.help}: {', '.join(known)}" if known else option.help
    declaration = f"{flag(name)}/--no-{flag(name)[2:]}" if switch else flag(name)
    help = f"{help} (may be repeated)" if words else help
    if option.load is not None and metavar is None:
        metavar = "<name>"
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=... if option.required else _typed(option),
        annotation=Annotated[
            Optional[kind] if option.many or option.optional else kind,  # noqa: UP045
            typer.Option(
                declaration, help=help, metavar=metavar, autocompletion=completion.words(known) if known else None
            ),
        ],
    )


def _typed(option: Option) -> Any:
    """The default as it would be typed."""
    if not option.many:
        return option.default
    if not option.default:
        return None
    return list(option.default) if option.type is str else ",".join(map(str, option.default))


def _value(name: str, option: Option, given: Any) -> Any:
    """What typer parsed, as the analysis wants it."""
    if given is None or not option.many:
        return option.default if given is None else given
    if option.type is str:
        return tuple(given)
    parts = [part.strip() for part in given.split(",")]
    if not all(parts):
        raise InputError(f"{name} {given!r} has an empty part", "expected values with commas between them")
    if get_origin(option.type) is Literal:  # the analysis itself says which words it knows
        return tuple(parts)
    try:
        return tuple(option.type(part) for part in parts)
    except ValueError:
        raise InputError(f"{name} {given!r}", "expected numbers with commas between them, such as 0,1,5") from None


def _help(analysis: Analysis) -> str:
    """The first line and the paragraph after it; \\f would end it."""
    first, _, rest = analysis.doc.partition("\n")
    return "\n\n".join(part for part in (first, rest.strip().partition("\n\n")[0]) if part)


def _example(analysis: Analysis, options: list[Option]) -> str:
    simple = [o for o in options if o.default and type(o.default) in (int, float, str)]
    option = f" --{simple[0].name.replace('_', '-')} {simple[0].default}" if simple else ""
    needed = ((o.name.replace("_", "-"), 3 if o.type is int else "gpt2") for o in options if o.required)
    option = "".join(f" --{name} {value}" for name, value in needed) or option
    return f'Example: interp {analysis.command} "Mary met John, and John thanked Mary"{option} --format csv'


# Running.


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
    from reports.ids import read_ids

    return [], read_ids(tokens)


def as_tokens(rows: "list[list[int | str]]", model: Any) -> Any:
    """Rows of ids or symbols as the model takes them."""
    from reports import ids

    return ids.as_tokens(rows, model)


def _read(file: Path) -> str:
    """The text of a file, or of the standard input for "-": without a byte-order mark, lines ending in \\n alone."""
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.expanduser().read_bytes()
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        hint = "save it as UTF-8: iconv -f UTF-16 -t UTF-8" if wide else ""
        raise InputError(
            f"{file} is not UTF-8 text: {error.reason} at byte {error.start}", "expected UTF-8", hint
        ) from None
    except OSError as error:
        raise NotFoundError(f"{file} cannot be read: {error.strerror}", "expected a text file") from None


def load_any_model(name: str, device: str, dtype: Dtype) -> Any:
    """The model that the options mean, of whichever kind its directory holds."""
    from interp.loading import load

    return _told(load(name, device=device, dtype=_dtype(dtype)))


def runs_sweeps(model: Any) -> bool:
    """Whether analyses run this kind of model through the sweep engine."""
    from interp.model import HookedGPT

    return isinstance(model, HookedGPT)


def load_model(name: str, device: str, dtype: Dtype) -> "HookedGPT":
    """The decoder that the options mean."""
    from interp.model import HookedGPT

    return _told(HookedGPT.from_pretrained(name, device=device, dtype=_dtype(dtype)))


def _told(model: Any) -> Any:
    """The model, after a word on stderr about weights that are no numbers: everything made of them is none either."""
    from interp.loading import non_finite
    from reports.run import WEIGHTS_WRONG

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
) -> None:
    """One analysis on the texts, to stdout or a file."""
    form = format or _format_of(out, open)
    alone = next((o.name for o in analysis.options() if o.alone and options.get(o.name) is not None), None)
    if alone is not None and form == "html":
        raise InputError(f"a page of {flag(alone)}", "expected --format table, json or csv")
    if form == "html":
        out = out or Path(f"interp-{analysis.command}.html")
    elif open:
        raise InputError(f"--open with --format {form}", "expected --format html, the one that a browser shows")
    if out is not None:
        check_target(out, force)
    _check_values(options)
    if ray is not None and resume is not None:
        raise InputError("both --ray and --resume", "expected one of the two: workers keep nothing on disk")
    given, rows = read_given(texts, file, lines, tokens)
    if prompts is not None and (texts or file or tokens):
        raise InputError(f"both a text and --prompts {prompts}", "expected one of the two")
    written = None if prompts is None else _read(prompts)
    with _resumable(resume), progress(quiet) as step:
        step("loading the model", 0, 1)
        shape = shape_of(model) if analysis.takes_config else None
        lower = dtype if analysis.sweeps and dtype in ("bfloat16", "float16") else None
        needed = shape is None and alone is None
        loaded = load_any_model(model, device, "float32" if lower else dtype) if needed else None
        if loaded is not None and analysis.sweeps and not runs_sweeps(loaded):
            if ray is not None or resume is not None:
                option = "--ray" if ray is not None else "--resume"
                raise InputError(f"{option} for {model}", "expected a GPT: only its runs are shared or kept")
            loaded, lower = load_any_model(model, device, dtype) if lower else loaded, None
        text: Any = given if len(given) != 1 else given[0]
        if rows is not None:
            text = as_tokens(rows, loaded) if loaded is not None else None
        elif not (texts or file) and (not needed or analysis.takes_prompts):
            text = None
        step(analysis.title.lower(), 0, 1)
        asked = Asked(model, text, options, written, str(prompts), lower)
        with _cluster(ray), _lowered(lower) as rounding:
            section = measure(analysis, loaded or shape, asked)
        if form == "html":
            from reports.html import render

            page = render(page_of(section, loaded, analysis, asked, command_line()))
    if form == "table" and out is None:
        from reports.terminal import show

        show(section.result)
    elif out is None:
        print(shown(_as_text(section, form)))
    else:
        write_text(out, page if form == "html" else _as_text(section, form) + "\n")
        print(shown(str(out)))
    if lower and rounding is not None and rounding.checked:
        apart = ", ".join(f"{name} {value:.2g}" for name, value in rounding.difference.items())
        hint(quiet, f"{lower} against float32, on {rounding.checked} runs done in both, largest difference: {apart}")
    where = options[alone] if alone else model
    hint(quiet, f"{analysis.command}: {section.seconds:.1f} s on {where if loaded is None else loaded.source}")
    if open and out is not None:
        typer.launch(str(out))
    if section.result.facts().get("passed") is False:
        raise CheckFailed(f"{analysis.command}: not everything agreed on {where}", "the table says what did not")


def _refuse_beside(context: typer.Context, alone: str) -> None:
    """Raises InputError for something typed beside an option that takes the place of model, text and all the rest."""
    read = {alone, "format", "out", "force", "quiet", "debug"}
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name not in read and source is not None and source.name == "COMMANDLINE":
            what = "a text" if parameter.param_type_name == "argument" else parameter.opts[0]
            raise InputError(f"{what} beside {flag(alone)}, which does not read it", f"expected {flag(alone)} alone")


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


def _check_values(options: Mapping[str, Any]) -> None:
    """What options of these names mean everywhere."""
    if options.get("seed") is not None:
        check_seed(options["seed"])
    if options.get("memory") is not None and options["memory"] < 1:
        raise InputError(f"--memory {options['memory']}", "expected bytes, at least 1", "500000000 is 500 MB")


def _format_of(out: Path | None, open: bool) -> Format:
    endings: dict[str, Format] = {".json": "json", ".csv": "csv", ".html": "html", ".htm": "html"}
    return endings.get(out.suffix.lower(), "table") if out is not None else "html" if open else "table"


def _as_text(section: "Section", form: Format) -> str:
    """The table of a result as JSON or CSV, or its panels as plain text."""
    if form == "table":
        import io

        from reports.terminal import show

        stream = io.StringIO()
        show(section.result, file=stream)
        return stream.getvalue().rstrip("\n")
    import json

    from reports.run import csv_text, records

    frame = section.result.to_dataframe()
    if form == "csv":
        return csv_text(frame).rstrip("\n")
    facts = section.result.facts()
    return json.dumps(facts | {"rows": json.loads(records(frame))}, indent=1) if facts else records(frame)


def command_line() -> str:
    """The command as it was typed, fit to be typed again."""
    import shlex

    return shlex.join(["interp", *sys.argv[1:]])
