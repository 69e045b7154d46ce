"""Training a small translation model on generated sentences (`phrases`), in minutes, with exact resumption.

Teacher forcing: the decoder reads the right translation and is asked for each next token. A batch depends on the seed
and the step alone, so that a run which stops and goes on sees what an unbroken run would have seen.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer
from tokenizers import Tokenizer as Backend
from torch import Tensor

from interp.errors import InputError
from interp.loading.sources import choose_device
from interp.models.encoder_config import EncoderDecoderConfig
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.text.source_target import SharedTokenizer
from interp.training.gpt import Progress, Run, carry_out, check_new
from interp.training.phrases import Part, Sentence, sentences

SPECIAL = ("<pad>", "</s>")
"""Tokens 0 and 1: the padding, with which targets also begin, and the end."""


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """Everything that decides the weights a run ends with."""

    corpus: Literal["phrases"] = "phrases"
    """Sentences made by `interp.training.phrases`."""
    layers: int = 3
    """Of the encoder, and of the decoder."""
    n_heads: int = 8
    d_model: int = 128
    d_mlp: int = 384
    n_ctx: int = 64
    d_vocab: int = 1024
    """Most tokens that the vocabulary may have; a small language has fewer."""
    steps: int = 3500
    batch: int = 64
    """Sentences in a step."""
    lr: float = 1.5e-3
    """AdamW's learning rate at its highest."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warm_up: int = 300
    """Steps over which the learning rate rises from zero; afterwards it falls linearly to zero."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    dtype: Literal["bfloat16", "float32"] = "float32"
    """Of the forward and backward pass (autocast); weights and optimiser are float32."""

    def __post_init__(self) -> None:
        if self.corpus != "phrases":
            raise InputError(f"corpus {self.corpus!r}", "expected 'phrases', the generated French-English sentences")
        if min(self.steps, self.batch, self.layers) < 1:
            raise InputError("training needs at least one step, one sentence in a step and one layer")

    def rate(self, step: int) -> float:
        """What the learning rate is multiplied by at a step, counted from 0."""
        down = (self.steps - step) / max(1, self.steps - self.warm_up)
        return min((step + 1) / max(1, self.warm_up), down)


def train_pairs(
    settings: PairSettings,
    *,
    out: Path,
    progress: Callable[[Progress], None] | None = None,
    evaluate: Callable[[HookedEncoderDecoder], dict[str, float]] | None = None,
    resume: bool = False,
    device: str = "auto",
    report_every: int = 50,
    evaluate_every: int = 500,
    checkpoint_seconds: float = 60.0,
) -> HookedEncoderDecoder:
    """Train a translation model and leave it in `out`, in Marian's layout, with `curve.csv` and `settings.json`.

    Args as in `interp.training.gpt.train`. Raises InputError when `out` holds a run and `resume` is off, or a run with
    other settings.
    """
    check_new(out, resume)
    run = PairRun(settings, choose_device(device), out)
    out.mkdir(parents=True, exist_ok=True)
    carry_out(
        run,
        out,
        run.advance,
        report=lambda due: run.report(evaluate if due else None, progress),  # type: ignore[arg-type]
        report_every=report_every,
        evaluate_every=evaluate_every if evaluate is not None else 0,
        checkpoint_seconds=checkpoint_seconds,
    )
    run.model.save_pretrained(out, dtype=torch.bfloat16)
    return run.model


class PairRun(Run):
    """The state of a run, told and kept as a GPT's."""

    settings: PairSettings  # type: ignore[assignment]
    model: HookedEncoderDecoder  # type: ignore[assignment]

    def __init__(self, settings: PairSettings, device: torch.device, out: Path) -> None:
        model = build(settings).to(device)
        adamw = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )
        super().__init__(settings, model, out, [adamw])  # type: ignore[arg-type]

    def advance(self) -> None:  # type: ignore[override]
        """One step on one batch."""
        begin = time.monotonic()
        settings, model = self.settings, self.model
        drawn = list(islice(sentences(f"{settings.seed} step {self.step}", "train"), settings.batch))
        narrow = settings.dtype == "bfloat16"
        with torch.autocast(model.device.type, torch.bfloat16) if narrow else nullcontext():
            loss, count = translation_loss(model, drawn)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        (optimiser,) = self.optimisers
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * settings.rate(self.step)
        optimiser.step()
        optimiser.zero_grad()
        self.sums = [self.sums[0] + float(loss.detach()), self.sums[1] + 1]
        self.step += 1
        self.tokens += count
        self.seconds += time.monotonic() - begin


def build(settings: PairSettings) -> HookedEncoderDecoder:
    """The untrained model of these settings with its tokenizer, always the same for the same seed."""
    tokenizer = SharedTokenizer(learned_tokens(settings))
    config = EncoderDecoderConfig(
        n_encoder_layers=settings.layers,
        n_decoder_layers=settings.layers,
        n_heads=settings.n_heads,
        d_model=settings.d_model,
        d_mlp=settings.d_mlp,
        n_ctx=settings.n_ctx,
        d_vocab=tokenizer.d_vocab,
        forbidden_tokens=(0,),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return HookedEncoderDecoder(config, tokenizer=tokenizer)


def learned_tokens(settings: PairSettings, count: int = 20_000) -> Backend:
    """A byte-level byte-pair encoding of both languages, learned from training sentences."""

    def texts() -> Iterator[str]:
        for one in islice(sentences(f"{settings.seed} tokens", "train"), count):
            yield " " + one.french
            yield " " + one.english

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(
        texts(), vocab_size=settings.d_vocab, min_frequency=0, special_tokens=list(SPECIAL), show_progress=False
    )
    return Backend.from_str(made.to_str())


def translation_loss(model: HookedEncoderDecoder, drawn: list[Sentence]) -> tuple[Tensor, int]:
    """Mean cross-entropy of each next token of the translations, in nats, and the number of tokens predicted."""
    tokenizer, config = model.tokenizer, model.config
    assert tokenizer is not None
    source, source_mask = model.padded([[*tokenizer.encode_source(s.french), config.end_token] for s in drawn])
    targets = [tokenizer.encode_target(s.english) for s in drawn]
    read, read_mask = model.padded([[config.start_token, *ids] for ids in targets])
    wanted, _ = model.padded([[*ids, config.end_token] for ids in targets])
    logits = model(source, read, source_mask=source_mask, target_mask=read_mask)
    wanted = wanted.masked_fill(read_mask == 0, -1)
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-1), int(read_mask.sum())


def exact_share(model: HookedEncoderDecoder, drawn: list[Sentence]) -> float:
    """Share of sentences that greedy search translates word for word as the grammar does."""
    found = model.translate([one.french for one in drawn])
    return float(np.mean([text == one.english for text, one in zip(found, drawn, strict=True)]))


def held_out_measures(model: HookedEncoderDecoder, count: int = 300) -> dict[str, float]:
    """What the curve shows: the share of exact translations, of held-out and of training sentences."""
    kinds: dict[str, Part] = {"exact_held_out": "held out", "exact_like_training": "train"}
    return {name: exact_share(model, list(islice(sentences("measure", kind), count))) for name, kind in kinds.items()}
