"""`interp probe`: where in a model a label can be read off, from activations on disk."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from interp.errors import InputError, InterpError
from reports.commands import output, work
from reports.commands.options import Debug, Device, Force, Format, Open, Out, Quiet
from reports.commands.output import hint
from reports.running import probing
from reports.running.probing import KINDS

if TYPE_CHECKING:
    from interp.models.gpt import HookedGPT
    from interp.store.reading import ActivationStore

EXAMPLE = "Example: interp probe runs/sample --label seen-before --causal best --out seen-before.html"


def probe(
    store: Annotated[Path, typer.Argument(metavar="FOLDER", help="Activations that interp extract wrote.")],
    label: Annotated[
        str,
        typer.Option(
            metavar="<name>",
            help="A label column of the folder, or a built-in label: seen-before, capital, in-quotation, position, "
            "next-punctuation.",
        ),
    ] = "seen-before",
    probe: Annotated[KINDS, typer.Option(help="Kind of probe.")] = "logistic",
    names: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="<name,...>", help="Only these hook points; by default all that are there."),
    ] = None,
    causal: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="<name>",
            help="Also erase the label at this hook point and steer along it; best: where it reads best.",
        ),
    ] = None,
    towards: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="<class>", help="With --causal: the class to steer to; by default the last."),
    ] = None,
    description_length: Annotated[
        bool, typer.Option(help="Code the labels, which also gives the learning curve; doubles the time.")
    ] = True,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--model", metavar="<name>", help="The model of these activations; by default the one the folder names."
        ),
    ] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of controls, shuffling and intervals.")] = 0,
    ray: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="<address>", help="Share the passes on a Ray cluster: local, auto, or host:port."),
    ] = None,
    workers: Annotated[Optional[int], typer.Option(help="With --ray: how many.")] = None,  # noqa: UP045
    resume: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="<folder>", help="Keep what is finished here; the same command goes on with it after a stop."
        ),
    ] = None,
    format: Annotated[
        Optional[Format],  # noqa: UP045
        typer.Option("--format", help="Of the output; told from --out if not given, else table."),
    ] = None,
    out: Out = None,
    open: Open = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Where in a model a label can be read off, with every control.

    A probe at each hook point, measured on texts that were held out, beside the majority class, the token alone, the
    embedding, a model with random weights, shuffled labels and a control task; with intervals over texts.
    """
    form = format or work.format_of(out, open)
    if form == "html":
        out = out or Path(f"interp-probe-{label}.html")
    elif open:
        raise InputError(f"--open with --format {form}", "expected --format html, the one that a browser shows")
    if workers is not None and ray is None:
        raise InputError("--workers without --ray", "expected both", "try --ray local")
    if out is not None:
        output.check_target(out, force)
    chosen = None if names is None else tuple(part.strip() for part in names.split(","))
    request = probing.asked(
        store=str(store.absolute()),
        label=label,
        probe=probe,
        names=chosen,
        causal=causal,
        towards=towards,
        description_length=description_length,
        seed=seed,
    )
    with output.progress(quiet) as step:
        step("opening the store", 0, 1)
        from interp import ActivationStore, scale
        from interp.keeping import keeping

        data = ActivationStore(store)
        loaded = _model(data, model, device, quiet, needed=causal is not None)
        with keeping(resume), nullcontext() if ray is None else scale.cluster(ray, workers=workers):
            sections = probing.run(request, data, loaded, step)
    if form == "html":
        from reports.page.html import render

        text = render(probing.page_of(request, data, sections, loaded, work.command_line()))
    elif form == "json":
        parts = [work.plain(section.result) for section in sections]
        text = work.as_json(parts[0] if len(parts) == 1 else {"probe": parts[0], "causal": parts[1]})
    elif form == "csv":
        from reports.running.report import csv_text

        text = csv_text(sections[0].result.to_dataframe()).rstrip("\n")
    else:
        text = "\n".join(work.written(section, "table") for section in sections)
    if out is None and form == "table":
        from reports.terminal import show

        for section in sections:
            show(section.result)
    elif out is None:
        print(output.shown(text))
    else:
        output.write_text(out, text if form == "html" else text + "\n")
        output.told(out, open)
    for section in sections:
        for finding in section.result.findings():
            hint(quiet, finding.text)


def _model(data: "ActivationStore", given: str | None, device: str, quiet: bool, *, needed: bool) -> "HookedGPT | None":
    """The model of the activations; without it the controls that need it are left out, and that is said."""
    name = given or str(data.header["model"])
    try:
        loaded = work.load_model(name, device, "float32")
    except InterpError:
        if given is not None or needed:
            raise
        hint(quiet, f"the model {name} is not at hand: no random model, no embedding; --model names its place")
        return None
    from interp.loading.digests import weights_sha256

    if weights_sha256(loaded) != data.header["weights_sha256"]:
        raise InputError(
            f"{name} has other weights than the activations in {data.directory} were made with",
            f"expected SHA-256 {str(data.header['weights_sha256'])[:16]}...",
            "give the right --model",
        )
    return loaded
