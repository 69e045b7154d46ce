"""`interp generate`: a text, continued."""

from typing import Annotated, Optional

import typer

from interp.errors import InputError, check_seed
from reports.commands import output, work
from reports.commands.options import DEFAULT_MODEL, Debug, Device, DtypeOption, Force, Ids, Model, Out, Quiet

EXAMPLE = 'Example: interp generate "The river" --max-new-tokens 40 --temperature 0.7 --seed 3'


def generate(
    text: Annotated[Optional[str], typer.Argument(metavar="TEXT", help="What to go on from.")] = None,  # noqa: UP045
    ids: Ids = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: DtypeOption = "float32",
    max_new_tokens: Annotated[
        Optional[int], typer.Option(help="How many tokens to add; 50, or as many as fit, if not given.")  # noqa: UP045
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 1.0,
    top_k: Annotated[Optional[int], typer.Option(help="Draw from the k likeliest tokens only.")] = None,  # noqa: UP045
    top_p: Annotated[Optional[float], typer.Option(help="Draw from the likeliest tokens that hold this share.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    out: Out = None,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Continue a text."""
    if out is not None:
        output.check_target(out, force)
    check_seed(seed)
    if text is None and ids is None:
        raise InputError("nothing to go on from", "expected TEXT, or --tokens")
    given, rows = work.read_given(None if text is None else [text], None, False, ids)
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    with output.progress(quiet) as step:
        loaded = work.load_model(model, device, dtype)
        step("generating", 0, 1)
        prompt = given[0] if rows is None else work.as_tokens(rows[:1], loaded)
        if max_new_tokens is None:
            options["max_new_tokens"] = max(min(50, loaded.config.n_ctx - loaded.as_batch(prompt).tokens.shape[1]), 0)
        tokens = loaded.generate(prompt, seed=seed, **options)[0].tolist()
    if loaded.tokenizer is None:
        whole = " ".join(map(str, tokens))
    else:
        whole = loaded.to_string([token for token in tokens if token != loaded.tokenizer.bos])
    if out is None:
        print(output.shown(whole))
    else:
        output.write_text(out, whole + "\n")
        output.told(out)
