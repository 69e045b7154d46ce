"""`interp rerun`: make a page again from the page itself; `--check` compares the numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from interp.errors import CheckFailed, InputError
from reports.commands import output
from reports.commands.options import Debug, Force, Open, Out, Quiet
from reports.commands.output import hint

if TYPE_CHECKING:
    import pandas as pd

    from reports.running.record import Difference
    from reports.running.rerun import Kept

EXAMPLE = "Example: interp rerun report.html --check"


def rerun(
    page: Annotated[Path, typer.Argument(metavar="PAGE", help="A page that interp wrote.")],
    check: Annotated[
        bool, typer.Option("--check", help="Compare every table with the page's; exit 5 when one differs.")
    ] = False,
    model: Annotated[
        Optional[str],  # noqa: UP045 - typer reads this form in every version
        typer.Option("--model", metavar="<name>", help="Where the page's model is now; its weights must be the same."),
    ] = None,
    load: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--load",
            metavar="<option=name>",
            help="In place of what an option of the page loads: other=gpt2 says that you trust it (may be repeated).",
        ),
    ] = None,
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--device", metavar="<name>", help="auto, cpu, cuda, cuda:N or mps; by default the page's."),
    ] = None,
    tolerance: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Share of a column's largest value that a number may be off; 0.001 for float32."),
    ] = None,
    format: Annotated[Literal["table", "json", "csv"], typer.Option(help="Of the comparison.")] = "table",
    out: Out = None,
    open: Open = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make a page again from the page itself: model, text, options and seed are in it.

    The same machine gives the same bytes, date and times aside; another may differ in the last digits, which the
    tolerance allows. What the page asks to load is said before. With --check nothing is written, unless --out is given.
    """
    if tolerance is not None and not 0 <= tolerance < 1:
        raise InputError(f"--tolerance {tolerance}", "expected a share from 0 up to 1, such as 0.001")
    target = out if out is not None or check else page.with_name(f"{page.stem}-again.html")
    if target is None and open:
        raise InputError("--open with --check", "expected --out too, so that there is a page to open")
    if target is not None:
        output.check_target(target, force)
    with output.progress(quiet) as step:
        step("reading the page", 0, 1)
        from reports.page.html import render
        from reports.running import rerun as again

        kept = again.read(page)
        loads = _named(load or ())
        for what, name in kept.loads(model):
            word = what.strip("_")
            hint(quiet, f"{word}: {loads.get(word, name)}")
        made = again.make(kept, model=model, device=device, loads=loads, step=step)
        found = again.check(kept, made, tolerance) if check else []
        text = render(made) if target is not None else ""
    if target is not None:
        output.write_text(target, text)
        output.told(target, open, named=not check)
    if check:
        _show(found, format)
        _judge(kept, found, tolerance)


def _named(given: Sequence[str]) -> dict[str, str]:
    """What --load says: option -> name."""
    parts = [one.partition("=") for one in given]
    for name, _, value in parts:
        if not (name and value):
            raise InputError(f"--load {name}", "expected an option and a name, such as other=gpt2")
    return {name.replace("-", "_"): value for name, _, value in parts}


def comparison(found: "list[Difference]") -> "pd.DataFrame":
    """One row a table that was made again."""
    import pandas as pd

    return pd.DataFrame({
        "table": [one.table.replace("_", "-") for one in found],
        "rows": [one.rows for one in found],
        "compared": [one.compared for one in found],
        "outcome": [one.outcome for one in found],
        "largest difference": [one.largest for one in found],
        "where": [one.where for one in found],
    })  # fmt: skip


def _show(found: "list[Difference]", format: Literal["table", "json", "csv"]) -> None:
    from reports.running.report import csv_text, records

    frame = comparison(found)
    if format != "table":
        print(records(frame) if format == "json" else output.shown(csv_text(frame).rstrip("\n")))
        return
    from analyses.shared.panels import Table
    from reports.terminal import show

    caption = (
        "identical: all rows, to the last bit; empty: no row, now as then. close or differs: the largest difference, "
        "as a share of the largest value of its column, is within the tolerance or beyond it; words must be equal."
    )
    shown = frame if any(frame["where"]) else frame.drop(columns="where")
    counts = frame["outcome"].value_counts()
    print(f"{len(frame)} tables: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}", end="\n\n")
    show(Table(key="check", title="Every table, made again", frame=shown, caption=caption))


def _judge(kept: "Kept", found: "list[Difference]", tolerance: float | None) -> None:
    """Raises CheckFailed when a table differs, or when the page keeps none."""
    wrong = sorted((one for one in found if one.outcome == "differs"), key=lambda one: -one.largest)
    if not found:
        raise CheckFailed(f"{kept.path} holds no numbers to compare", "expected at least one table")
    if wrong:
        names = ", ".join(one.table.replace("_", "-") for one in wrong)
        allowed = kept.tolerance if tolerance is None else tolerance
        worst: Any = wrong[0]
        size = (
            "" if worst.largest == float("inf") else f" (off by {worst.largest:.2g} of the column, allowed {allowed:g})"
        )
        raise CheckFailed(
            f"{kept.path}: {len(wrong)} of {len(found)} tables differ: {names}",
            f"{worst.table.replace('_', '-')}: {worst.where}{size}",
            "; ".join(kept.versions()) or "the same versions as then: another machine, or another model",
        )
