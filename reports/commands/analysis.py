"""The commands that are made from analyses, and how help shows any command.

Nothing heavy is imported until a command runs; an analysis is imported when its own command is asked for.
"""

import inspect
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from interp.errors import InputError, nearest
from reports.commands import completion
from reports.commands.errors import EXIT_CODES, guarded
from reports.commands.options import COMMON, PROMPTS, RAY, RESUME, SAVE, TEMPLATE, TextsOrPrompts, flag, shared_options
from reports.commands.work import run_command
from reports.running.discovery import Analysis, Option, discover


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
        """What there is, and the exit codes; analyses with the first line of their files, which are not imported."""
        fixed = [(name, (command.help or "").partition("\n")[0]) for name, command in self.commands.items()]
        analyses = [(analysis.command, analysis.help) for analysis in discover().values()]
        codes = [(str(code), meaning) for code, meaning in EXIT_CODES.items()]
        lists = {"Commands": fixed, "Analyses, each a command of its own": analyses, "Exit codes": codes}
        for title, rows in lists.items():
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
    taken = {one.name for one in shared}
    # An option that shares a name with ours goes by the analysis' name: --architecture-dtype.
    options = {
        f"{analysis.name}_{o.name}" if o.name in taken else o.name: o for o in analysis.options() if not o.hidden
    }

    def run(**values: Any) -> None:
        context = values.pop("_context")
        given = {option.name: value_of(flag(name), option, values.pop(name)) for name, option in options.items()}
        for option in options.values():
            if option.alone and given[option.name] is not None:
                _refuse_beside(context, option.name)
        run_command(analysis, given, **values)

    own = [parameter(name, option) for name, option in options.items()]
    own += [PROMPTS, TEMPLATE] if analysis.takes_prompts else []
    own += [SAVE] if analysis.declared.saves else []
    own += [RAY] if analysis.declared.scales else []
    own += [RESUME] if analysis.declared.sweeps else []
    texts = shared[0].replace(annotation=TextsOrPrompts) if analysis.takes_prompts else shared[0]
    asked = inspect.Parameter("_context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    run.__signature__ = inspect.Signature([asked, texts, *own, *shared[1:]])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [asked, *shared[1:], texts, *own]}
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    example = _example(analysis, list(options.values()))
    app.command(analysis.command, cls=Command, help=_help(analysis), epilog=example)(run)
    return typer.main.get_command(app)  # type: ignore[return-value]


def parameter(name: str, option: Option) -> inspect.Parameter:
    """An analysis' option as a parameter that typer understands.

    Several words are given by repeating the option (a token may hold a comma), several numbers with commas.
    """
    words = option.many and option.type is str
    switch = option.type is bool and not option.many and not option.optional
    kind: Any = list[str] if words else str if option.many else option.type
    metavar = None
    if option.many:
        metavar = {int: "<int,...>", float: "<float,...>", str: "TEXT"}.get(option.type, "<value,...>")
    known = get_args(option.type) if option.many and get_origin(option.type) is Literal else ()
    help = f"{option.help}: {', '.join(known)}" if known else option.help
    declaration = f"{flag(name)}/--no-{flag(name)[2:]}" if switch else flag(name)
    help = f"{help} (may be repeated)" if words else help
    if metavar is None and option.load is not None:
        metavar = "<name>"
    elif metavar is None and option.type is str:
        metavar = "TEXT"
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


def value_of(name: str, option: Option, given: Any) -> Any:
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


def _refuse_beside(context: typer.Context, alone: str) -> None:
    """Raises InputError for something typed beside an option that takes the place of model, text and all the rest."""
    read = {alone, "format", "out", "force", "quiet", "debug"}
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name not in read and source is not None and source.name == "COMMANDLINE":
            what = "a text" if parameter.param_type_name == "argument" else parameter.opts[0]
            raise InputError(f"{what} beside {flag(alone)}, which does not read it", f"expected {flag(alone)} alone")
