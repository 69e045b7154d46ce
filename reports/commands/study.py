"""`interp study NAME`: one command a study, made from its file's signature; `--list`; `--all` writes the gallery."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from reports.commands import analysis, output, work
from reports.commands.analysis import Command, parameter
from reports.commands.options import DEFAULT_MODEL, Debug, Device, Force, Model, Open, Out, Quiet, flag
from reports.commands.output import hint
from reports.studies import StudyFile, discover_studies, find_study


class StudyGroup(TyperGroup):
    """The studies as commands; a study's file is imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(discover_studies())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return command_of(find_study(cmd_name))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Studies"):
            formatter.write_dl([(file.name, file.help) for file in discover_studies().values()])


app = typer.Typer(cls=StudyGroup, rich_markup_mode=None, add_completion=False, invoke_without_command=True)


@app.callback(
    help="Rebuild what an article shows on a real model, and check what it claims.",
    epilog="Example: interp study potions --query feeling --out potions.html",
)
def root(
    ctx: typer.Context,
    list_: Annotated[bool, typer.Option("--list", help="Which studies there are, and exit.")] = False,
    all_: Annotated[
        bool, typer.Option("--all", help="Write every study, the main report and a page that links them.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="<folder>", help="With --all: where the pages go.")] = Path(
        "interp-gallery"
    ),
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    open: Open = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    if ctx.invoked_subcommand is not None:
        return
    if list_:
        width = max(map(len, discover_studies()))
        print(*(f"{file.name:<{width}}  {file.help}" for file in discover_studies().values()), sep="\n")
    elif all_:
        from reports.commands.gallery import write_gallery

        index = write_gallery(out, model=model, device=device, force=force, quiet=quiet)
        output.told(index, open)
    else:
        print(ctx.get_help())


def shared_options(
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    out: Out = None,
    open: Open = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The parameters of every study's command; only its signature is used."""


def command_of(file: StudyFile) -> Any:
    """The command of a study, its options read from its function's signature."""
    shared = list(inspect.signature(shared_options).parameters.values())
    if not file.takes_model:
        shared = [p for p in shared if p.name not in ("model", "device")]
    options = {option.name: option for option in file.options() if not option.hidden}
    for name in options:
        if name in {p.name for p in shared}:
            raise TypeError(f"study {file.name}: option {name} is every command's own")

    def run(**values: Any) -> None:
        given = {name: analysis.value_of(flag(name), option, values.pop(name)) for name, option in options.items()}
        run_command(file, given, **values)

    own = [parameter(name, option) for name, option in options.items()]
    run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*own, *shared]}
    single = typer.Typer(rich_markup_mode=None, add_completion=False)
    text = "\n\n".join(file.doc.split("\n\n")[:2])
    single.command(file.name, cls=Command, help=text, epilog=f"Example: interp study {file.name} --open")(run)
    return typer.main.get_command(single)


def run_command(
    file: StudyFile,
    options: dict[str, Any],
    *,
    out: Path | None,
    open: bool,
    force: bool,
    quiet: bool,
    debug: bool,
    model: str | None = None,
    device: str = "auto",
) -> None:
    """One study, written as a page."""
    target = out or Path(f"interp-study-{file.name}.html")
    output.check_target(target, force)
    work.check_values(options)
    with output.progress(quiet) as step:
        step("loading the model", 0, 1)
        from reports.page.html import render

        loaded = work.load_model(model or DEFAULT_MODEL, device, "float32") if file.takes_model else None
        page = render(work.study_report(file, options, model=loaded, quiet=quiet, step=step))
    output.write_text(target, page)
    hint(quiet, f"study {file.name}: {len(page.encode()) / 1e6:.1f} MB")
    output.told(target, open)
