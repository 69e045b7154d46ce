"""`interp train`: a model from text files, from a dump, or a small translation model."""

from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from interp.errors import InputError, check_seed
from reports.commands import output, work
from reports.commands.options import Debug, Device, Quiet
from reports.commands.output import hint

_ONE_THREAD = 128 * 2048
"""Width times tokens of a step, up to which a second thread mostly waits (and, on a busy machine, stalls the first)."""
_SUITED = "Without one, this and the next six suit the size of the corpus."

EXAMPLE = "Example: interp train mine.txt --out runs/mine"


def train(
    corpus: Annotated[
        list[Path],
        typer.Argument(
            metavar="CORPUS",
            help="Text files, folders of them, JSON lines (texts, or objects with a text); or one MediaWiki XML dump "
            "such as enwik8.gz; or the word phrases: then a small translation model learns from generated "
            "French-English sentences.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="<folder>", help="Where the model, its curve and the checkpoint go.")],
    recipe: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="<path>", help="The settings.json of a run to repeat; --tokenizer to --seed are then unused."
        ),
    ] = None,
    tokenizer: Annotated[
        Optional[Literal["bpe", "bytes", "characters"]],  # noqa: UP045
        typer.Option(help="By default bpe (pairs of bytes, learned from the text); bytes for less than 10 kB."),
    ] = None,
    layers: Annotated[Optional[int], typer.Option(help=f"Blocks. {_SUITED}")] = None,  # noqa: UP045
    heads: Annotated[Optional[int], typer.Option(help="Attention heads in each block.")] = None,  # noqa: UP045
    width: Annotated[Optional[int], typer.Option(help="Of the residual stream.")] = None,  # noqa: UP045
    context: Annotated[Optional[int], typer.Option(help="Longest sequence, in tokens.")] = None,  # noqa: UP045
    vocabulary: Annotated[Optional[int], typer.Option(help="Tokens that bpe learns, at most.")] = None,  # noqa: UP045
    steps: Annotated[Optional[int], typer.Option(help="Updates of the weights.")] = None,  # noqa: UP045
    batch: Annotated[Optional[int], typer.Option(help="Sequences in a step.")] = None,  # noqa: UP045
    repeats: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Share of sequences that are random tokens, repeated: 0 for text, 0.1 for a dump."),
    ] = None,
    optimiser: Annotated[Literal["muon", "adamw"], typer.Option(help="muon: for the blocks' matrices.")] = "muon",
    lr: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 3e-3,
    precision: Annotated[
        Optional[Literal["bfloat16", "float32"]],  # noqa: UP045
        typer.Option(help="Of the passes, not the weights: float32 below 5 MB of text, else bfloat16."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the first weights and every batch.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a GPT on your own text or a Wikipedia dump, or a small translation model; --resume goes on with a run.

    The last tenth of a text is held out: curve.csv in --out has the loss on both parts, in nats per token and bits per
    byte, and the weights saved are those of the lowest held-out loss. A dump has the copying scores there, and the last
    weights are saved. A translation model takes its sizes from the recipe alone, or those of the bundled one.
    """
    if corpus == [Path("phrases")]:
        return _train_pairs(recipe, out, resume, device, quiet)
    output.check_folder(out)
    with output.progress(quiet) as step:
        step("preparing the corpus", 0, 1)
        import torch

        from interp.training import gpt
        from interp.training.corpus import documents, is_dump
        from interp.training.evaluation import held_out
        from interp.training.settings import settings_for

        texts = None if is_dump(corpus) else documents(corpus)
        if recipe is not None:
            settings = _settings(work.read_json(recipe) | {"corpus": [*map(str, corpus)]}, recipe)
        else:
            sizes: dict[str, Any] = {
                "layers": layers,
                "heads": heads,
                "width": width,
                "context": context,
                "vocabulary": vocabulary,
            }
            sizes |= {"steps": steps, "batch": batch, "repeats": repeats, "dtype": precision}
            settings = settings_for(
                texts,
                tokenizer=tokenizer,
                **{name: value for name, value in sizes.items() if value is not None},
                corpus=[*map(str, corpus)],
                optimiser=optimiser,
                lr=lr,
                seed=seed,
            )
        check_seed(settings.seed)
        if texts is not None:
            for line in _outline(texts, settings):
                hint(quiet, line)
        if settings.config.d_model * max(s.batch * s.length for s in settings.stages) <= _ONE_THREAD:
            torch.set_num_threads(1)
        last: dict[str, float] = {}
        gpt.train(
            settings,
            out=out,
            progress=_told(step, quiet, last),
            evaluate=_copying if texts is None else held_out(out / "corpus"),
            evaluate_every=1000 if texts is None else max(1, min(1000, settings.steps // 20)),
            resume=resume,
            device=device,
            checkpoint_seconds=180 if texts is None else 20,
        )
    if last.get("best_step", settings.steps) < settings.steps:
        best = int(last["best_step"])
        hint(quiet, f"held-out loss rose since step {best}: the model saved is that of step {best}")
    output.told(out)


def _outline(texts: list[str], settings: Any) -> list[str]:
    """What is about to be trained: the defaults may have chosen it."""
    from interp.training.corpus import BYTES

    config, size = settings.config, sum(len(text.encode()) for text in texts)
    kind = "characters" if settings.characters else "bytes" if config.d_vocab == BYTES else "bpe"
    return [
        f"{size:,} bytes of text, the last tenth held out; tokenizer: {kind} ({config.d_vocab} tokens)",
        f"{config.n_layers} layers, width {config.d_model}, {config.n_heads} heads, context {config.n_ctx}; "
        f"{settings.steps} steps of {settings.stages[0].batch} sequences",
    ]


def _train_pairs(recipe: Path | None, out: Path, resume: bool, device: str, quiet: bool) -> None:
    """`interp train phrases`."""
    output.check_folder(out)
    with output.progress(quiet) as step:
        step("learning the tokens", 0, 1)
        from interp.training import translation

        data = {} if recipe is None else work.read_json(recipe)
        try:
            settings = translation.PairSettings(**{**data, "betas": tuple(data.get("betas", (0.9, 0.98)))})
        except TypeError as error:
            raise InputError(f"{recipe} is no recipe: {error}", "expected the settings.json of such a run") from error
        check_seed(settings.seed)
        translation.train_pairs(
            settings,
            out=out,
            progress=_told(step, quiet),
            evaluate=translation.held_out_measures,
            resume=resume,
            device=device,
        )
    output.told(out)


def _told(step: Any, quiet: bool, last: dict[str, float] | None = None) -> Any:
    """What training tells, as progress and now and then a line; the latest measures stay in `last`."""

    def tell(state: Any) -> None:
        measures = dict(state.measures)
        best = measures.pop("best_step", state.step)
        shown = "".join(f"  {name.replace('_', ' ')} {value:.3f}" for name, value in measures.items())
        if last is not None:
            last.update(state.measures)
        step(f"loss {state.loss:.3f}", state.step, state.steps)
        if measures.keys() - {"bits_per_byte"} or state.step % 500 == 0:
            risen = f"  (rose since step {best})" if best < state.step else ""
            passed = output.duration(state.seconds)
            hint(quiet, f"step {state.step:>6} of {state.steps}  loss {state.loss:.3f}  {passed}{shown}{risen}")

    return tell


def _settings(data: dict[str, Any], recipe: Path | None) -> Any:
    from interp.models.config import GPTConfig
    from interp.training.settings import Stage, TrainSettings

    try:
        parts: dict[str, Any] = {
            "config": GPTConfig(**data["config"]),
            "stages": tuple(Stage(**stage) for stage in data["stages"]),
        }
        pairs = {name: tuple(data[name]) for name in ("betas",) if name in data}
        return TrainSettings(**{**data, **parts, **pairs})
    except (KeyError, TypeError) as error:
        raise InputError(f"{recipe} is no recipe: {error}", "expected the settings.json of a training run") from error


def _copying(model: Any) -> dict[str, float]:
    from interp.training.evaluation import head_scores

    scores = head_scores(model, half=min(50, (model.config.n_ctx - 1) // 2), sequences=8)
    return {"induction": float(scores.induction.max()), "previous_token": float(scores.previous_token.max())}
