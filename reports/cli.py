"""The command line `interp`: a table of contents. Each command is a file in `commands`, each analysis a command."""

import os
from typing import Annotated

import typer

from reports.commands import extract, generate, machine, models, probe, report, rerun, schema, study, train, train_lens
from reports.commands.analysis import Command, Group

app = typer.Typer(
    cls=Group, rich_markup_mode=None, invoke_without_command=True, context_settings={"max_content_width": 110}
)
app.add_typer(study.app, name="study")
for command, example in (
    (report.report, report.EXAMPLE),
    (rerun.rerun, rerun.EXAMPLE),
    (extract.extract, extract.EXAMPLE),
    (probe.probe, probe.EXAMPLE),
    (models.models, models.EXAMPLE),
    (generate.generate, generate.EXAMPLE),
    (train.train, train.EXAMPLE),
    (train_lens.train_lens, train_lens.EXAMPLE),
    (schema.schema, schema.EXAMPLE),
):
    app.command(cls=Command, epilog=example)(command)


def main() -> None:
    """The console command `interp`."""
    # Threads that wait for each other give the processor away: where others work too, up to a hundred times as fast.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


def _version(wanted: bool) -> None:
    if wanted:
        print("\n".join(machine.lines()))
        raise typer.Exit


@app.callback(epilog='Start with: interp report "any text"')
def root(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show versions, devices, threads and folders, and exit."
        ),
    ] = False,
) -> None:
    """Open up GPT-style language models: run analyses and write reports that open offline."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


if __name__ == "__main__":
    main()
