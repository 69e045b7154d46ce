"""The command line `interp`. Heavy imports stand inside the commands, so that `interp --help` is quick."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from interp.errors import InputError, check_seed
from reports.commands import completion, extract, models, output, probe, rerun, study, work
from reports.commands.analysis import Command, Group
from reports.commands.errors import ReportIncomplete
from reports.commands.options import (
    DEFAULT_MODEL,
    ByLine,
    Debug,
    Device,
    DtypeOption,
    File,
    Force,
    Ids,
    Model,
    Open,
    Out,
    Quiet,
    Texts,
)
from reports.commands.output import hint
from reports.running.discovery import discover, find

app = typer.Typer(
    cls=Group, rich_markup_mode=None, invoke_without_command=True, context_settings={"max_content_width": 110}
)
app.add_typer(study.app, name="study")
_ONE_THREAD = 128 * 2048
"""Width times tokens of a step, up to which a second thread mostly waits (and, on a busy machine, stalls the first)."""
_SUITED = "Without one, this and the next six suit the size of the corpus."


def main() -> None:
    """The console command `interp`."""
    # Threads that wait for each other give the processor away: where others work too, up to a hundred times as fast.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from interp import __version__

        print(f"interp {__version__}")
        raise typer.Exit


@app.callback(epilog='Start with: interp report "any text"')
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Open up GPT-style language models: run analyses and write reports that open offline."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command(cls=Command, epilog='Example: interp report "Mary met John, and John thanked Mary" --out mary.html --open')
def report(
    texts: Texts = None,
    file: File = None,
    lines: ByLine = False,
    tokens: Ids = None,
    analyses: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="<name,...>",
            help="Only these analyses, such as logit-lens,ablation.",
            autocompletion=completion.analyses,
        ),
    ] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: DtypeOption = "float32",
    seed: Annotated[int, typer.Option(help="For everything that draws random numbers.")] = 0,
    out: Out = None,
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="<folder>", help="Also write each analysis' table and a JSON summary here."),
    ] = None,
    open: Open = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run all analyses and write one HTML page that opens offline."""
    given, rows = work.read_given(texts, file, lines, tokens)
    chosen = None if analyses is None else _chosen(analyses)
    check_seed(seed)
    target = out or Path(_default_name(model, given[0] if texts or file else ""))
    output.check_target(target, force)
    with output.progress(quiet) as step:
        step("loading the model", 0, 1)
        from reports.page.html import render
        from reports.running import report

        if chosen is None:
            chosen = [analysis.name for analysis in discover().values() if analysis.in_report]
        for path in report.data_files(chosen, data) if data is not None else ():
            output.check_target(path, force, option="--data")
        loaded = work.load_any_model(model, device, dtype)
        total, done = len(chosen) + 1, 0
        broken: list[str] = []

        def after(section: Any) -> None:
            nonlocal done
            done += 1
            failed = ""
            if isinstance(section.result, report.Failed):
                failed = "  (failed: see the page)" if section.result.traceback else "  (not run: see the page)"
                broken.extend([section.name.replace("_", "-")] if section.result.traceback else [])
                if debug and section.result.traceback:
                    output.say(section.result.traceback)
            hint(quiet, f"{section.name.replace('_', '-'):<24}{section.seconds:6.1f} s{failed}")

        made = report.report(
            loaded,
            work.as_tokens(rows, loaded) if rows is not None else given if len(given) > 1 else given[0],
            analyses=chosen,
            seed=seed,
            command=work.command_line(),
            before=lambda analysis: step(analysis.title.lower(), done, total),
            after=after,
        )
        step("writing the page", total - 1, total)
        page = render(made)
    output.write_text(target, page)
    if data is not None:
        report.write_data(made, data)
    left = [section.result.reasons for section in made.sections if isinstance(section.result, report.LeftOut)]
    more = f", {len(left[0])} left out (the page says why)" if left else ""
    hint(quiet, f"{len(made.sections) - len(left)} analyses{more}, {len(page.encode()) / 1e6:.1f} MB")
    print(output.shown(str(target)))
    if open:
        typer.launch(str(target))
    if broken:
        raise ReportIncomplete(
            f"the page was written, but {', '.join(broken)} failed unexpectedly",
            "this is a bug in interp, or in the model's numbers; the page says what happened",
            "run it again with --debug for the traceback, and report it",
        )


def _chosen(names: str) -> list[str]:
    """The analyses named, each once."""
    parts = [part.strip() for part in names.split(",")]
    if not all(parts):
        raise InputError(f"--analyses {names!r} has an empty part", "expected names, such as logit-lens,ablation")
    return list(dict.fromkeys(find(part).name for part in parts))


def _default_name(model: str, text: str) -> str:
    """Such as interp-tiny-mary-met-john.html: the model and the first words."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split()[:4]
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in Path(model).name)
    return "-".join(["interp", name.strip(".-") or "model", *(words or ["report"])])[:80] + ".html"


app.command(cls=Command, epilog=rerun.EXAMPLE)(rerun.rerun)
app.command(cls=Command, epilog=extract.EXAMPLE)(extract.extract)
app.command(cls=Command, epilog=probe.EXAMPLE)(probe.probe)
app.command(cls=Command, epilog=models.EXAMPLE)(models.models)


@app.command(cls=Command, epilog='Example: interp generate "The river" --max-new-tokens 40 --temperature 0.7 --seed 3')
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
        print(output.shown(str(out)))


@app.command(cls=Command, epilog="Example: interp train mine.txt --out runs/mine")
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
            sizes = {"layers": layers, "heads": heads, "width": width, "context": context, "vocabulary": vocabulary}
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
    print(output.shown(str(out)))


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
    print(output.shown(str(out)))


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


@app.command("train-lens", cls=Command, epilog="Example: interp train-lens text.txt --out tuned_lens.safetensors")
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
    print(output.shown(str(out)))


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


if __name__ == "__main__":
    main()
