"""`interp probe`: where in a model a label can be read off, from activations on disk."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from interp.errors import InputError, InterpError, check_seed
from reports.commands import output, work
from reports.commands.options import Debug, Device, Force, Format, Open, Out, Quiet
from reports.commands.output import hint

if TYPE_CHECKING:
    from analyses.shared.panels import Result
    from interp.models.gpt import HookedGPT
    from interp.store.reading import ActivationStore
    from reports.page.html import Section

EXAMPLE = "Example: interp probe runs/sample --label seen-before --causal best --out seen-before.html"
KINDS = Literal["logistic", "ridge", "lda", "mass-mean", "nearest-centroid", "mlp"]


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
    if towards is not None and causal is None:
        raise InputError("--towards without --causal", "expected both", "try --causal best")
    if out is not None:
        output.check_target(out, force)
    check_seed(seed)
    with output.progress(quiet) as step:
        step("opening the store", 0, 1)
        from analyses.probes import causal_check, probe_layers
        from interp import ActivationStore, scale

        data = ActivationStore(store)
        chosen = None if names is None else [part.strip() for part in names.split(",")]
        loaded = _model(data, model, device, quiet, needed=causal is not None)
        step(f"probing for {label}", 0, 2 if causal else 1)
        with nullcontext() if ray is None else scale.cluster(ray, workers=workers):
            found = probe_layers(
                data, label, probe=probe, names=chosen, model=loaded, description_length=description_length, seed=seed
            )
        results: list[Result] = [found]
        if causal is not None and loaded is not None:
            step("erasing and steering", 1, 2)
            place = found.names[_last_best(found)] if causal == "best" else causal
            results.append(causal_check(loaded, data, label, place, towards=towards, seed=seed))
    sections = _sections(results)
    if form == "html":
        text = _page(data, label, sections, loaded, seed)
    elif form == "json":
        text = _json(results)
    elif form == "csv":
        from reports.running.report import csv_text

        text = csv_text(found.to_dataframe()).rstrip("\n")
    else:
        text = "\n".join(work.written(section, "table") for section in sections)
    if out is None and form == "table":
        from reports.terminal import show

        for result in results:
            show(result)
    elif out is None:
        print(output.shown(text))
    else:
        output.write_text(out, text if form == "html" else text + "\n")
        output.told(out, open)
    for result in results:
        for finding in result.findings():
            hint(quiet, finding.text)


def _last_best(found: Any) -> int:
    """Of hook points of the residual stream the best on the validation texts."""
    residual = [i for i, name in enumerate(found.names) if "hook_resid" in name or name == "hook_embed"]
    if not residual:
        raise InputError("--causal best", "expected a hook point of the residual stream among those stored")
    return min(residual, key=lambda i: found.validation_loss[i])


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


def _sections(results: "list[Result]") -> "list[Section]":
    from analyses.probes import causal, probe_layers
    from reports.page.html import Section

    about = [
        ("probe", "Probes at every layer", probe_layers.__doc__),
        ("causal", "Does the model use it?", causal.__doc__),
    ]
    return [
        Section(name, title, (doc or "").strip(), result, 0.0)
        for (name, title, doc), result in zip(about, results, strict=False)
    ]


def _page(data: "ActivationStore", label: str, sections: "list[Section]", loaded: "HookedGPT | None", seed: int) -> str:
    from reports.page.html import Report, render
    from reports.running.report import provenance

    facts: dict[str, Any]
    if loaded is not None:
        facts = provenance(loaded, [], seed=seed, command=work.command_line())
    else:
        facts = {"command": work.command_line(), "seed": seed, "model": data.header["model"]}
    facts |= {"activations": f"{data.n_texts:,} texts, {data.n_rows:,} positions, {data.header['dtype']}"}
    return render(Report(f"{data.header['model']}: {label}", (), tuple(sections), facts))


def _json(results: "list[Result]") -> str:
    from reports.running.report import records

    parts = [result.facts() | {"rows": json.loads(records(result.to_dataframe()))} for result in results]
    return json.dumps(parts[0] if len(parts) == 1 else {"probe": parts[0], "causal": parts[1]}, indent=1)
