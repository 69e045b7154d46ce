"""`interp train-lens`: translators of a tuned lens."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from interp.errors import InputError, check_seed
from reports.commands import output, work
from reports.commands.options import DEFAULT_MODEL, Debug, Device, Force, Ids, Model, Quiet
from reports.commands.output import hint

EXAMPLE = "Example: interp train-lens text.txt --out tuned_lens.safetensors"


def train_lens(
    out: Annotated[Path, typer.Option(metavar="<path>", help="Where the translators go, as safetensors.")],
    text: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="TEXT", help="A text file, the longer the better.", show_default=False),
    ] = None,
    tokens: Ids = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    steps: Annotated[int, typer.Option(help="Updates of the translators.")] = 250,
    batch: Annotated[int, typer.Option(help="Sequences in a step, each as long as the model's context.")] = 8,
    lr: Annotated[float, typer.Option(help="Adam's learning rate; it falls to zero.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Decides every batch.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run whose state lies beside --out.")] = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a tuned lens on a text file; `interp tuned-lens --translators` uses it."""
    check_seed(seed)
    if text is None and tokens is None:
        raise InputError("neither a text file nor --tokens", "expected one of the two")
    texts, rows = work.read_given(None, text, False, tokens)
    output.check_target(out, force)
    with output.progress(quiet) as step:
        step("loading the model", 0, 1)
        from interp import lens_maps

        loaded = work.load_model(model, device, "float32")

        def tell(state: lens_maps.TrainState) -> None:
            mean = sum(state.loss) / len(state.loss)
            step(f"divergence {mean:.3f}", state.step, state.steps)
            if state.step % 50 == 0:
                hint(quiet, f"step {state.step:>6} of {state.steps}  mean divergence {mean:.4f} nats")

        from reports.commands.ids import one_row

        ids = loaded.to_tokens(texts[0])[0].cpu() if rows is None else one_row(rows, loaded)
        lens_maps.train(loaded, ids, steps=steps, batch=batch, lr=lr, seed=seed, out=out, resume=resume, progress=tell)
    output.told(out)
