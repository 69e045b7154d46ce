"""`interp extract`: activations of many texts, written to a folder."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from interp.errors import InputError, check_seed
from reports.commands import output, work
from reports.commands.ids import as_ids, read_ids
from reports.commands.options import DEFAULT_MODEL, Debug, Device, Ids, Model, Quiet
from reports.commands.output import hint

if TYPE_CHECKING:
    from interp.store.cost import ExtractionPlan
    from interp.store.writing import Extraction

EXAMPLE = "Example: interp extract reviews.jsonl --out runs/reviews --names resid_post,z --plan"


def extract(
    source: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(
            metavar="FILE",
            help="Plain text (documents with form feeds between them), JSON lines or Parquet with text, words or "
            "tokens; other entries are labels. Without one, the text that ships with the bundled model.",
            show_default=False,
        ),
    ] = None,
    tokens: Ids = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="<folder>", help="Where the shards go. Needed, but for --plan."),
    ] = None,
    names: Annotated[
        str, typer.Option(metavar="<name,...>", help="Hook points: short names, full names, or patterns with *.")
    ] = "embed,resid_post",
    lines: Annotated[bool, typer.Option("--lines", help="Each line of a plain text is a text of its own.")] = False,
    packed: Annotated[
        bool, typer.Option("--packed", help="Join texts into rows as long as the context; faster for short ones.")
    ] = False,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: Annotated[Literal["float16", "bfloat16", "float32"], typer.Option(help="Of the files.")] = "float16",
    split: Annotated[
        str, typer.Option(metavar="<a,b,c>", help="Shares of train, validation and test; by text.")
    ] = "0.8,0.1,0.1",
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    shard_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Positions of a shard; by default as many as make 256 MB."),
    ] = None,
    batch_tokens: Annotated[int, typer.Option(help="Positions of a forward pass.")] = 4096,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say how many bytes and how long; measured on a sample.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in --out.")] = False,
    shard_index: Annotated[int, typer.Option(help="Which part of the work this process does: 0, 1, ...")] = 0,
    num_shards: Annotated[int, typer.Option(help="Into how many parts the work is divided.")] = 1,
    ray: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="<address>", help="Share the work on a Ray cluster: local, auto, or host:port."),
    ] = None,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="With --ray: how many; by default one a device."),
    ] = None,
    format: Annotated[Literal["table", "json"], typer.Option(help="Of the plan.")] = "table",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write activations of many texts to a folder, for probes."""
    if out is None and not plan:
        raise InputError("no --out", "expected the folder to write", "try --out runs/activations, or --plan")
    if workers is not None and ray is None:
        raise InputError("--workers without --ray", "expected both", "try --ray local")
    if out is not None:
        output.check_folder(out)
    check_seed(seed)
    if tokens is not None and (source is not None or lines):
        raise InputError("--tokens beside a file of texts", "expected one of the two")
    rows = None if tokens is None else read_ids(tokens)
    shares, hooks = _shares(split), _names(names)
    with output.progress(quiet) as step:
        step("reading the texts", 0, 1)
        from interp import scale
        from interp.store import writing
        from interp.store.texts import read_texts
        from interp.training.evaluation import SAMPLE

        texts: Any = () if rows is not None else read_texts(source or SAMPLE, lines=lines)
        step("loading the model", 0, 1)
        loaded = work.load_model(model, device, "float32")
        step("dividing the work", 0, 1)
        texts = as_ids(rows, loaded) if rows is not None else texts
        job = writing.plan(
            loaded, texts, hooks, out or Path("."), dtype=dtype, packed=packed, split=shares, seed=seed,
            shard_tokens=shard_tokens, batch_tokens=batch_tokens,
        )  # fmt: skip
        if plan:
            step("measuring a sample", 0, 1)
            from interp.store.cost import measure

            expected = measure(job, shard_index=shard_index, num_shards=num_shards)
        else:
            step("extracting", 0, 1)
            start = time.perf_counter()
            with nullcontext() if ray is None else scale.cluster(ray, workers=workers):
                written = writing.run(job, resume=resume, shard_index=shard_index, num_shards=num_shards)
            seconds = time.perf_counter() - start
    if plan:
        _show(expected, format)
        hint(quiet, f"measured on {expected.sampled:,} positions; {expected.free / 1e9:,.3g} GB are free there")
        return
    hint(quiet, _summary(job, written, seconds))
    print(output.shown(str(out)))


def _shares(text: str) -> tuple[float, float, float]:
    try:
        train, validation, test = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--split {text!r}", "expected three shares, such as 0.8,0.1,0.1") from None
    return train, validation, test


def _names(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InputError(f"--names {text!r} has an empty part", "expected names, such as embed,resid_post")
    return parts


def _show(plan: "ExtractionPlan", format: str) -> None:
    import json
    from dataclasses import asdict

    if format == "json":
        print(json.dumps(asdict(plan), indent=1))
        return
    import pandas as pd

    from analyses.shared.panels import Table
    from reports.terminal import show

    rows = [
        ("texts", f"{plan.texts:,}"),
        ("rows the model runs", f"{plan.sequences:,}"),
        ("positions", f"{plan.positions:,}"),
        ("hook points", f"{len(plan.hook_points):,}"),
        ("shards", f"{plan.shards:,}"),
        ("bytes", f"{plan.bytes:,}  ({plan.bytes / 1e9:.3g} GB)"),
        ("time", f"about {output.duration(plan.seconds)}"),
    ]
    show(Table(key="plan", title="", frame=pd.DataFrame(rows, columns=["what", "how much"])))


def _summary(job: "Extraction", shards: int, seconds: float) -> str:
    import numpy as np

    from interp.store.texts import SPLITS

    counts = np.bincount(job.corpus.split, minlength=len(SPLITS))
    parts = ", ".join(f"{count:,} {name}" for count, name in zip(counts, SPLITS, strict=True))
    done = f"{shards} of {len(job.shards)} shards in {output.duration(seconds)}" if shards else "nothing was left to do"
    return (
        f"{job.header['n_rows']:,} positions of {sum(counts):,} texts ({parts}), {len(job.names)} hook points; {done}"
    )
