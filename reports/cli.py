"""The command line `interp`. Heavy imports stand inside the commands, so that `interp --help` is quick."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from interp.errors import InputError, NotFoundError, check_seed
from reports import cli_extract, cli_models, cli_probe, cli_rerun, cli_study, commands, output
from reports.commands import (
    ByLine,
    Command,
    Debug,
    Device,
    DtypeOption,
    File,
    Force,
    Group,
    Ids,
    Model,
    Open,
    Out,
    Quiet,
    Texts,
)
from reports.discovery import discover, find
from reports.errors import ReportIncomplete
from reports.output import hint

app = typer.Typer(
    cls=Group, rich_markup_mode=None, invoke_without_command=True, context_settings={"max_content_width": 110}
)
app.add_typer(cli_study.app, name="study")


def main() -> None:
    """The console command `interp`."""
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
        Optional[str], typer.Option(metavar="<name,...>", help="Only these analyses, such as logit-lens,ablation.")  # noqa: UP045
    ] = None,
    model: Model = commands.DEFAULT_MODEL,
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
    given, rows = commands.read_given(texts, file, lines, tokens)
    chosen = None if analyses is None else _chosen(analyses)
    check_seed(seed)
    target = out or Path(_default_name(model, given[0] if texts or file else ""))
    output.check_target(target, force)
    with output.progress(quiet) as step:
        step("loading the model", 0, 1)
        from reports import run
        from reports.html import render

        if chosen is None:
            chosen = [analysis.name for analysis in discover().values() if analysis.in_report]
        for path in run.data_files(chosen, data) if data is not None else ():
            output.check_target(path, force, option="--data")
        loaded = commands.load_any_model(model, device, dtype)
        total, done = len(chosen) + 1, 0
        broken: list[str] = []

        def after(section: Any) -> None:
            nonlocal done
            done += 1
            failed = ""
            if isinstance(section.result, run.Failed):
                failed = "  (failed: see the page)" if section.result.traceback else "  (not run: see the page)"
                broken.extend([section.name.replace("_", "-")] if section.result.traceback else [])
                if debug and section.result.traceback:
                    print(section.result.traceback, file=sys.stderr)
            hint(quiet, f"{section.name.replace('_', '-'):<24}{section.seconds:6.1f} s{failed}")

        made = run.report(
            loaded,
            commands.as_tokens(rows, loaded) if rows is not None else given if len(given) > 1 else given[0],
            analyses=chosen,
            seed=seed,
            command=commands.command_line(),
            before=lambda analysis: step(analysis.title.lower(), done, total),
            after=after,
        )
        step("writing the page", total - 1, total)
        page = render(made)
    output.write_text(target, page)
    if data is not None:
        run.write_data(made, data)
    left = [section.result.reasons for section in made.sections if isinstance(section.result, run.LeftOut)]
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


app.command(cls=Command, epilog=cli_rerun.EXAMPLE)(cli_rerun.rerun)
app.command(cls=Command, epilog=cli_extract.EXAMPLE)(cli_extract.extract)
app.command(cls=Command, epilog=cli_probe.EXAMPLE)(cli_probe.probe)
app.command(cls=Command, epilog=cli_models.EXAMPLE)(cli_models.models)


@app.command(cls=Command, epilog='Example: interp generate "The river" --max-new-tokens 40 --temperature 0.7 --seed 3')
def generate(
    text: Annotated[Optional[str], typer.Argument(metavar="TEXT", help="What to go on from.")] = None,  # noqa: UP045
    ids: Ids = None,
    model: Model = commands.DEFAULT_MODEL,
    device: Device = "auto",
    dtype: DtypeOption = "float32",
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens to add.")] = 50,
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
    given, rows = commands.read_given(None if text is None else [text], None, False, ids)
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    with output.progress(quiet) as step:
        loaded = commands.load_model(model, device, dtype)
        step("generating", 0, 1)
        prompt = given[0] if rows is None else commands.as_tokens(rows[:1], loaded)
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


@app.command(cls=Command, epilog="Example: interp train enwik8.gz --out runs/mine --steps 6000")
def train(
    corpus: Annotated[
        Path,
        typer.Argument(
            metavar="CORPUS",
            help="A MediaWiki XML dump such as enwik8.gz; or the word phrases: then a small translation model learns "
            "from generated French-English sentences.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="<folder>", help="Where the model, its curve and the checkpoint go.")],
    recipe: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="<path>", help="The settings.json of a run to repeat; --layers to --seed are then unused."
        ),
    ] = None,
    layers: Annotated[int, typer.Option(help="Blocks.")] = 4,
    heads: Annotated[int, typer.Option(help="Attention heads in each block.")] = 8,
    width: Annotated[int, typer.Option(help="Of the residual stream.")] = 256,
    context: Annotated[int, typer.Option(help="Longest sequence, in tokens.")] = 256,
    vocabulary: Annotated[int, typer.Option(help="Tokens, learned from the corpus.")] = 4096,
    steps: Annotated[int, typer.Option(help="Updates of the weights.")] = 6000,
    batch: Annotated[int, typer.Option(help="Sequences in a step.")] = 32,
    repeats: Annotated[float, typer.Option(help="Share of sequences that are random tokens, repeated.")] = 0.1,
    optimiser: Annotated[Literal["muon", "adamw"], typer.Option(help="muon: for the blocks' matrices.")] = "muon",
    lr: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 3e-3,
    precision: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="Of the passes, not the weights.")
    ] = "bfloat16",
    seed: Annotated[int, typer.Option(help="Decides the first weights and every batch.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a GPT on a Wikipedia dump, or a small translation model; --resume goes on with a stopped run.

    A translation model takes its sizes from the recipe alone, or the defaults that made the bundled one.
    """
    if str(corpus) == "phrases":
        return _train_pairs(recipe, out, resume, device, quiet)
    if recipe is None:
        shape = {"n_layers": layers, "n_heads": heads, "d_model": width, "n_ctx": context, "d_vocab": vocabulary}
        stage = {"steps": steps, "batch": batch, "length": context, "repeats": repeats}
        rest = {"optimiser": optimiser, "lr": lr, "dtype": precision, "seed": seed}
        data = {"config": shape, "stages": [stage], **rest}
    else:
        data = commands.read_json(recipe)
    if not corpus.is_file():
        raise NotFoundError(f"there is no corpus at {corpus}", "expected a MediaWiki XML dump such as enwik8.gz")
    output.check_folder(out)
    with output.progress(quiet) as step:
        step("preparing the corpus", 0, 1)
        from interp import training

        settings = _settings(data | {"corpus": str(corpus)}, recipe)
        check_seed(settings.seed)
        with _going_on(out, quiet):
            training.train(
                settings, out=out, progress=_told(step, quiet), evaluate=_copying, resume=resume, device=device
            )
    print(output.shown(str(out)))


def _train_pairs(recipe: Path | None, out: Path, resume: bool, device: str, quiet: bool) -> None:
    """`interp train phrases`."""
    output.check_folder(out)
    with output.progress(quiet) as step:
        step("learning the tokens", 0, 1)
        from interp import pair_training

        data = {} if recipe is None else commands.read_json(recipe)
        try:
            settings = pair_training.PairSettings(**{**data, "betas": tuple(data.get("betas", (0.9, 0.98)))})
        except TypeError as error:
            raise InputError(f"{recipe} is no recipe: {error}", "expected the settings.json of such a run") from error
        check_seed(settings.seed)
        with _going_on(out, quiet):
            pair_training.train_pairs(
                settings,
                out=out,
                progress=_told(step, quiet),
                evaluate=pair_training.held_out_measures,
                resume=resume,
                device=device,
            )
    print(output.shown(str(out)))


@contextmanager
def _going_on(out: Path, quiet: bool) -> Iterator[None]:
    """Says after Ctrl-C how training goes on."""
    try:
        yield
    except KeyboardInterrupt:
        hint(quiet, f"stopped; the same command with --resume goes on with {out}")
        raise


def _told(step: Any, quiet: bool) -> Any:
    """What training tells, as progress and now and then a line."""

    def tell(state: Any) -> None:
        measures = "".join(f"  {name} {value:.3f}" for name, value in state.measures.items())
        step(f"loss {state.loss:.3f}", state.step, state.steps)
        if state.measures or state.step % 500 == 0:
            passed = output.duration(state.seconds)
            hint(quiet, f"step {state.step:>6} of {state.steps}  loss {state.loss:.3f}  {passed}{measures}")

    return tell


@app.command("train-lens", cls=Command, epilog="Example: interp train-lens text.txt --out tuned_lens.safetensors")
def train_lens(
    text: Annotated[Path, typer.Argument(metavar="TEXT", help="A text file, the longer the better.")],
    out: Annotated[Path, typer.Option(metavar="<path>", help="Where the translators go, as safetensors.")],
    model: Model = commands.DEFAULT_MODEL,
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
    (whole,) = commands.read_texts(None, text, False)
    output.check_target(out, force)
    with output.progress(quiet) as step:
        step("loading the model", 0, 1)
        from interp import translators

        loaded = commands.load_model(model, device, "float32")

        def tell(state: translators.TrainState) -> None:
            mean = sum(state.loss) / len(state.loss)
            step(f"divergence {mean:.3f}", state.step, state.steps)
            if state.step % 50 == 0:
                hint(quiet, f"step {state.step:>6} of {state.steps}  mean divergence {mean:.4f} nats")

        ids = loaded.to_tokens(whole)[0].cpu()
        try:
            translators.train(
                loaded, ids, steps=steps, batch=batch, lr=lr, seed=seed, out=out, resume=resume, progress=tell
            )
        except KeyboardInterrupt:
            hint(quiet, "stopped; the same command with --resume goes on")
            raise
    print(output.shown(str(out)))


def _settings(data: dict[str, Any], recipe: Path | None) -> Any:
    from interp.config import GPTConfig
    from interp.training import Stage, TrainSettings

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
    from interp.evaluation import head_scores

    scores = head_scores(model, half=min(50, (model.config.n_ctx - 1) // 2), sequences=8)
    return {"induction": float(scores.induction.max()), "previous_token": float(scores.previous_token.max())}


if __name__ == "__main__":
    main()
