"""What a training run is told: model, steps, rates; and what suits a text of one's own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from interp.errors import InputError
from interp.models.config import GPTConfig
from interp.training import corpus

FEW_BYTES = 10_000
"""Of text, below which it is read byte by byte."""
LARGE = 5_000_000
"""Bytes of text from which the defaults are those for a dump: a larger model, hours on two cores."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Some steps on batches of one shape."""

    steps: int
    batch: int
    """Sequences in a step."""
    length: int
    """Tokens in a sequence."""
    pairs: float = 0.0
    """Share of the sequences that are pairs of random tokens, each alternating a few times (`corpus.pairs`)."""
    pieces: float = 0.0
    """Share of the sequences that are random tokens followed by short pieces of them (`corpus.pieces`)."""
    repeats: float = 0.0
    """Share of the sequences that are random tokens repeated to the end (`corpus.periods`). All others are text."""

    @property
    def copied(self) -> tuple[float, float, float]:
        """The shares of the three kinds of random tokens."""
        return self.pairs, self.pieces, self.repeats


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything that decides the weights a run ends with."""

    config: GPTConfig
    """Architecture."""
    stages: tuple[Stage, ...]
    """What is trained on, in order."""
    corpus: str | Sequence[str] = ""
    """Path of a MediaWiki XML dump (plain or .gz), or of what `corpus.documents` takes, or several of these; not needed
    when `train` is given batches."""
    characters: bool = False
    """Whether a token is a character, not byte pairs (nor a byte, which it is with a vocabulary of 257)."""
    optimiser: Literal["muon", "adamw"] = "muon"
    """`muon`: Muon for the blocks' matrices, AdamW for all else. `adamw`: AdamW for everything."""
    matrix_lr: float = 0.02
    """Muon's learning rate: about the largest change of a matrix in one step, as a spectral norm."""
    lr: float = 3e-3
    """AdamW's learning rate."""
    embed_lr: float = 0.0
    """AdamW's learning rate for the token and position embeddings; 0 takes `lr`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's two averages."""
    momentum: float = 0.95
    """Muon's average."""
    weight_decay: float = 0.0
    """Decoupled, times the learning rate; on matrices only, unless `decay_all`."""
    decay_all: bool = False
    """Whether gains and biases decay too, as when AdamW is given all parameters alike."""
    warm_up: int = 100
    """Steps over which the learning rates rise from zero."""
    decay: int = 0
    """The last steps, over which the learning rates fall linearly to zero; 0 keeps them."""
    clip: float = 0.0
    """Largest norm of the gradient of what AdamW trains; 0 does not clip."""
    embed_std: float = 0.0
    """Standard deviation of the initial token embedding; 0 takes the config's."""
    position_std: float = 0.0
    """Standard deviation of the initial position embedding; 0 takes the config's."""
    sinusoids: bool = False
    """Whether the position embedding begins as sines and cosines (wavelengths 2 pi to 2000 pi), not as noise; it is
    trained all the same. One rotation then shifts every position by one, which previous-token heads find sooner."""
    nanogpt_draws: bool = False
    """Whether the initial weights are drawn in nanoGPT's order: its seeds then give its models."""
    seed: int = 0
    """Decides the initial weights and every batch."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the forward and backward pass (autocast); weights and optimiser are float32."""

    def __post_init__(self) -> None:
        if not self.stages or any(s.steps < 1 or s.batch < 1 or s.length < 1 + any(s.copied) for s in self.stages):
            raise InputError(
                "training needs stages of at least one step, one sequence and one token (two for random tokens)"
            )
        if max(stage.length for stage in self.stages) > self.config.n_ctx:
            raise InputError("a stage is longer than the context", f"expected length <= n_ctx = {self.config.n_ctx}")
        if any(min(stage.copied) < 0 or sum(stage.copied) > 1 for stage in self.stages):
            raise InputError("pairs, pieces and repeats are shares of a batch", "expected 0 to 1 together")

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage_of(self, step: int) -> Stage:
        """The stage that a step, counted from 0, belongs to."""
        ends = accumulate(stage.steps for stage in self.stages)
        return next((stage for stage, end in zip(self.stages, ends, strict=True) if step < end), self.stages[-1])

    def rate(self, step: int) -> float:
        """What the learning rates are multiplied by at a step: up, level, down to zero (a trapezoid)."""
        down = (self.steps - step) / self.decay if self.decay else 1.0
        return min(1.0, (step + 1) / max(1, self.warm_up), down)


def settings_for(
    texts: Sequence[str] | None, *, tokenizer: Literal["bpe", "bytes", "characters"] | None = None, **given: Any
) -> TrainSettings:
    """Settings that suit these texts, or a dump for None: minutes on two cores for less than LARGE bytes.

    Args:
        tokenizer: by default bytes for less than FEW_BYTES, else byte pairs: a token for about 200 bytes of text.
        given: `layers`, `heads`, `width`, `context`, `vocabulary`, `steps`, `batch`, `repeats` in place of those that
            suit; and fields of TrainSettings.

    Raises InputError for a vocabulary that does not go with the tokenizer, and as TrainSettings does.
    """
    size = LARGE if texts is None else sum(len(text.encode()) for text in texts)
    large = size >= LARGE
    kind = tokenizer or ("bytes" if size < FEW_BYTES and "vocabulary" not in given else "bpe")
    if (kind != "bpe" and "vocabulary" in given) or (kind == "characters" and texts is None):
        raise InputError(f"a vocabulary, or a dump, with the tokenizer {kind}", "expected bpe for them")
    suited = min(4096, max(512, 2 ** round(math.log2(max(1, size) / 200))))
    vocabulary = given.pop("vocabulary", corpus.BYTES if kind == "bytes" else suited)
    if texts is not None and kind == "characters":
        vocabulary = corpus.character_tokenizer(texts).get_vocab_size()
    elif texts is not None:
        vocabulary = corpus.train_tokenizer(corpus.split_text(texts)[0], vocabulary).get_vocab_size()
    shape = {"layers": 4, "width": 256, "context": 256, "steps": 6000, "batch": 32}
    if not large:
        fewest = 200 if kind == "bpe" or size < 5 * FEW_BYTES else 400
        shape = {"layers": 2, "width": 128, "context": 256, "batch": 8, "steps": max(fewest, min(2000, size // 1000))}
    shape |= {name: given.pop(name) for name in shape if name in given}
    stage = Stage(
        steps=shape["steps"],
        batch=shape["batch"],
        length=shape["context"],
        repeats=given.pop("repeats", 0.1 if texts is None else 0.0),
    )
    config = GPTConfig(
        n_layers=shape["layers"],
        n_heads=given.pop("heads", 8 if texts is None else max(1, shape["width"] // 32)),
        d_model=shape["width"],
        n_ctx=shape["context"],
        d_vocab=vocabulary,
    )
    pace = {"dtype": "float32", "warm_up": max(1, stage.steps // 10), "decay": stage.steps // 2} if not large else {}
    return TrainSettings(**{"config": config, "stages": (stage,), "characters": kind == "characters", **pace, **given})
