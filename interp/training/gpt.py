"""Training a GPT: the loop behind `interp train`.

What a step sees depends on its number and the seed alone, so a run that was stopped, killed or cut off and then
resumed ends with the same weights as one that was not (on the same machine with the same number of threads).
"""

import csv
import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError, LoadError
from interp.files import atomic_path, atomic_write
from interp.loading.sources import choose_device
from interp.models.gpt import HookedGPT
from interp.stopping import Stopped, held_back
from interp.text.tokenizer import Tokenizer
from interp.training import corpus
from interp.training.nanogpt_draws import nanogpt_weights
from interp.training.optimisers import optimisers
from interp.training.settings import TrainSettings

Batches: TypeAlias = Callable[[int], tuple[Tensor, Tensor]]
"""Step number -> tokens and targets, both [batch pos]; a target of -1 is not counted. The number alone decides them."""

CHECKPOINT = "checkpoint.pt"
CURVE = "curve.csv"
COMPILED_FROM = 500
"""Steps from which a run on the CPU is compiled first; that takes ten seconds or more."""


@dataclass(frozen=True)
class Progress:
    """What `train` tells its caller now and then."""

    step: int
    steps: int
    tokens: int
    loss: float
    """Mean cross-entropy over the targets since the last report, in nats."""
    lr: float
    """The factor on the learning rates."""
    seconds: float
    """Time spent training, over all resumed runs."""
    measures: dict[str, float]
    """What `evaluate` returned, when it was called at this step."""


class TextAndCopies:
    """Batches of windows of a token file and of copied random tokens, every sequence behind the beginning token 0.

    In a copied sequence only what can be known counts: the targets whose token and predecessor have been seen together.
    Raises InputError for fewer tokens than the longest sequence.
    """

    def __init__(self, tokens: np.ndarray, settings: TrainSettings) -> None:
        longest = max(stage.length for stage in settings.stages)
        if len(tokens) < longest:
            raise InputError(
                f"the corpus has {len(tokens)} tokens to train on",
                f"expected at least {longest}, one sequence",
                "take a longer corpus, or a shorter context",
            )
        self.tokens, self.settings = tokens, settings

    def __call__(self, step: int) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        stage = self.settings.stage_of(step)
        rng = np.random.default_rng((self.settings.seed, step))
        shares = zip((corpus.pairs, corpus.pieces, corpus.periods), stage.copied, strict=True)
        kinds = [kind for kind, share in shares for _ in range(round(stage.batch * share))]
        x, y = np.zeros((2, stage.batch, stage.length), np.int64)
        for row in range(stage.batch):
            if row < len(kinds):
                order, known = kinds[row](rng, stage.length)
                sequence = rng.integers(1, self.settings.config.d_vocab, stage.length)[order]
                y[row] = np.where(known, sequence, -1)
            else:
                start = int(rng.integers(0, len(self.tokens) - stage.length + 1))
                sequence = self.tokens[start : start + stage.length]
                y[row] = sequence
            x[row, 1:] = sequence[:-1]
        return torch.from_numpy(x), torch.from_numpy(y)


def train(
    settings: TrainSettings,
    *,
    out: Path,
    batches: Batches | None = None,
    progress: Callable[[Progress], None] | None = None,
    evaluate: Callable[[HookedGPT], dict[str, float]] | None = None,
    resume: bool = False,
    device: str = "auto",
    report_every: int = 50,
    evaluate_every: int = 1000,
    checkpoint_seconds: float = 180.0,
) -> HookedGPT:
    """Train a model and leave it in `out`, in Hugging Face layout, with `curve.csv` and `settings.json`.

    The weights are the last, or, where `evaluate` gives a `held_out_loss`, those for which that was lowest (the curve's
    `best_step`).

    Args:
        settings: what decides the weights.
        out: a directory; also holds the checkpoint while the run is going.
        batches: where batches come from; by default the settings' corpus, prepared once in `out/corpus`.
        progress: called every `report_every` steps.
        evaluate: called every `evaluate_every` steps and at the end; its numbers go into the curve.
        resume: go on from the checkpoint in `out`, if there is one.
        checkpoint_seconds: time between checkpoints; one is also written on Ctrl-C (SIGTERM, SIGHUP) and at the end.

    Raises InputError when `out` holds a run and `resume` is off, or a run with other settings.
    """
    check_new(out, resume)
    model = build(settings).to(choose_device(device))
    run = Run(settings, model, out, optimisers(settings, model))
    if batches is None:
        folder, d_vocab = out / "corpus", settings.config.d_vocab
        sources = [settings.corpus] if isinstance(settings.corpus, str) else settings.corpus
        corpus.prepare(
            [Path(source) for source in sources],
            folder,
            d_vocab,
            characters=settings.characters,
            check=lambda tokens: TextAndCopies(tokens, settings),
        )
        model.tokenizer = Tokenizer.from_directory(folder)
        tokens = np.memmap(folder / "train.bin", dtype="<u2", mode="r")
        batches = TextAndCopies(tokens, settings)
        if not any(any(stage.copied) for stage in settings.stages):
            run.tokens_per_byte = len(tokens) / (folder / "train.txt").stat().st_size
    out.mkdir(parents=True, exist_ok=True)  # not before the corpus is known to do
    if settings.steps >= COMPILED_FROM and _compiler() and model.device.type == "cpu":
        run.loss = torch.compile(next_token_loss, dynamic=False)
    carry_out(
        run,
        out,
        lambda: run.advance(*batches(run.step)),
        report=lambda due: run.report(evaluate if due else None, progress),
        report_every=report_every,
        evaluate_every=evaluate_every if evaluate is not None else 0,
        checkpoint_seconds=checkpoint_seconds,
    )
    if run.best:
        model.load_state_dict(run.best["weights"])
    model.save_pretrained(out, dtype=torch.bfloat16 if settings.dtype == "bfloat16" else None)
    return model


def check_new(out: Path, resume: bool) -> None:
    """Raises InputError when `out` holds a run that is not to be resumed."""
    if (out / CHECKPOINT).exists() and not resume:
        raise InputError(
            f"{out} already holds a training run", "expected a new directory", "use --resume to go on with it"
        )


def carry_out(
    run: "Run",
    out: Path,
    advance: Callable[[], None],
    *,
    report: Callable[[bool], None],
    report_every: int,
    evaluate_every: int,
    checkpoint_seconds: float,
) -> None:
    """Every step of a run, from its checkpoint in `out` if there is one; Ctrl-C, SIGTERM and SIGHUP leave a checkpoint.

    `report` is told whether an evaluation is due: every `evaluate_every` steps and at the end, or never for 0.
    """
    checkpoint, steps = out / CHECKPOINT, run.settings.steps
    if checkpoint.exists():
        run.restore(checkpoint)
    atomic_write(out / "settings.json", json.dumps(asdict(run.settings), indent=2) + "\n")
    saved, stopped = time.monotonic(), list[int]()
    with ExitStack() as stack:
        for number in range(steps - run.step):
            advance()
            if number == 0:  # which may compile for minutes: a stop there loses nothing
                stopped = stack.enter_context(held_back())
            last = run.step == steps
            due = evaluate_every > 0 and (run.step % evaluate_every == 0 or last)
            if run.step % report_every == 0 or due or last:
                report(due)
            if last or stopped or time.monotonic() - saved > checkpoint_seconds:
                run.save(checkpoint)
                saved = time.monotonic()
            if stopped:
                raise Stopped(stopped[0])


def build(settings: TrainSettings) -> HookedGPT:
    """The untrained model of these settings, always the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = nanogpt_weights(settings.config) if settings.nanogpt_draws else HookedGPT(settings.config)
    for weight, std in ((model.W_E, settings.embed_std), (model.W_pos, settings.position_std)):
        if std:
            weight.data.mul_(std / settings.config.init_std)
    if settings.sinusoids:
        std = settings.position_std or settings.config.init_std
        model.W_pos.data.copy_(sinusoids(settings.config.n_ctx, settings.config.d_model) * math.sqrt(2) * std)
    return model


def sinusoids(positions: int, width: int) -> Float[Tensor, "pos d_model"]:
    """Sines, then cosines, of position / 1000^(i / half the width) (Vaswani et al. 2017, with 1000 for 10000)."""
    speed = 1000.0 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(positions)[:, None] * speed
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width]


def next_token_loss(model: HookedGPT, tokens: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy in nats over the targets that are not -1: the model's forward pass without its checks of the
    input, which a compiler cannot follow."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    frame = model.frame(None, positions, tokens.shape[1])
    x = model.run_blocks(model.embedded(tokens, positions), frame)
    logits = model.unembedded(model.ln_final(x))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")


_COUNTS = ("step", "tokens", "seconds", "sums", "rows", "best")
"""What a checkpoint keeps of a run, besides weights, optimisers and settings."""


class Run:
    """The state of a run: what a checkpoint holds."""

    def __init__(
        self, settings: TrainSettings, model: HookedGPT, out: Path, optimisers: list[torch.optim.Optimizer]
    ) -> None:
        self.settings, self.model, self.out, self.optimisers = settings, model, out, optimisers
        self.base = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.optimisers]
        self.step = self.tokens = 0
        self.seconds = 0.0
        self.sums = [0.0, 0.0]  # loss and number of targets since the last report
        self.rows: list[dict[str, float]] = []
        self.tokens_per_byte = 0.0
        """Of the text, where all that is trained on is text: the curve then has the loss in bits per byte too."""
        self.best: dict[str, Any] = {}
        """Loss, step and weights of the lowest held-out loss so far."""
        self.loss = next_token_loss

    def advance(self, tokens: Tensor, targets: Tensor) -> None:
        """One step of the optimisers on one batch."""
        begin = time.monotonic()
        device = self.model.device
        with torch.autocast(device.type, torch.bfloat16) if self.settings.dtype == "bfloat16" else nullcontext():
            total = self.loss(self.model, tokens.to(device), targets.to(device))
        count = int((targets >= 0).sum())
        (total / max(1, count)).backward()
        if self.settings.clip:
            params = [weight for group in self.optimisers[0].param_groups for weight in group["params"]]
            torch.nn.utils.clip_grad_norm_(params, self.settings.clip)
        factor = self.settings.rate(self.step)
        for optimiser, base in zip(self.optimisers, self.base, strict=True):
            for group, lr in zip(optimiser.param_groups, base, strict=True):
                group["lr"] = lr * factor
            optimiser.step()
            optimiser.zero_grad()
        self.sums[0] += float(total.detach())
        self.sums[1] += count
        self.step += 1
        self.tokens += tokens.numel()
        self.seconds += time.monotonic() - begin
        if not math.isfinite(self.sums[0]):
            raise InputError(f"the loss is {self.sums[0]} at step {self.step}", "lower the learning rates")

    def report(
        self, evaluate: Callable[[HookedGPT], dict[str, float]] | None, tell: Callable[[Progress], None] | None
    ) -> None:
        """Add a row to the curve."""
        measures = {} if evaluate is None else dict(evaluate(self.model))
        held_out = measures.get("held_out_loss", math.inf)
        if held_out < self.best.get("loss", math.inf):
            weights = {name: weight.clone() for name, weight in self.model.state_dict().items()}
            self.best = {"loss": held_out, "step": self.step, "weights": weights}
        if "held_out_loss" in measures:
            measures["best_step"] = self.best.get("step", 0)
        loss, rate = self.sums[0] / max(1.0, self.sums[1]), self.settings.rate(self.step - 1)
        self.sums = [0.0, 0.0]
        if self.tokens_per_byte:
            measures = {"bits_per_byte": loss / math.log(2) * self.tokens_per_byte, **measures}
        state = Progress(self.step, self.settings.steps, self.tokens, loss, rate, self.seconds, measures)
        row = {name: value for name, value in asdict(state).items() if name not in ("steps", "measures")}
        self.rows.append(row | measures)
        write_curve(self.rows, self.out / CURVE)
        if tell is not None:
            tell(state)

    def save(self, path: Path) -> None:
        state = {name: getattr(self, name) for name in _COUNTS}
        state |= {"settings": fingerprint(self.settings), "model": self.model.state_dict()}
        state["optimisers"] = [optimiser.state_dict() for optimiser in self.optimisers]
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            torch.save(state, stream)

    def restore(self, path: Path) -> None:
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.model.device, weights_only=True)
        except Exception as error:
            raise LoadError(f"{path} cannot be read", "expected a checkpoint of this project") from error
        if state["settings"] != fingerprint(self.settings):
            raise InputError(f"{path} is of a run with other settings", "resume with the settings in settings.json")
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        for name in _COUNTS:
            setattr(self, name, state.get(name, getattr(self, name)))


def write_curve(rows: list[dict[str, float]], path: Path) -> None:
    """The curve as CSV; columns that a row lacks are left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    texts = [{name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()} for row in rows]
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(texts)


def fingerprint(settings: TrainSettings) -> str:
    """What a checkpoint must agree in with the settings it is resumed with: all but where the corpus lies."""
    return json.dumps(asdict(settings) | {"corpus": ""})


def _compiler() -> bool:
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))
