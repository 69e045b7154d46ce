"""Tuned-lens translators: an affine map per layer from the residual stream there to the one at the end.

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens": h -> h + h A + b, read by the
model's own final norm and unembedding, trained so that the prediction read at the layer comes close to the final one
(KL divergence). A = 0 and b = 0 is the plain logit lens. Layer l reads the residual stream that enters block l.

`fit` finds the maps at once by ridge regression on the final residual stream; `train` goes on from there by gradient
descent on the divergence itself, on as much text as there is, and can be stopped and resumed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.errors import InputError, LoadError, NotFoundError
from interp.files import atomic_path
from interp.models.gpt import HookedGPT
from interp.models.kernels import wide

RIDGES = (10.0, 1.0, 0.1, 0.01, 0.001)
"""Strengths that `fit` chooses from, relative to the mean variance of a coordinate."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Translators:
    """One affine map per layer, applied to the residual stream that enters the block."""

    FILE_NAME: ClassVar[str] = "tuned_lens.safetensors"
    """Translators that lie beside a model's weights go by this name."""

    weight: Float[Tensor, "layer d_model d_model"]
    """A, right-multiplied; zero leaves the residual stream as it is."""
    bias: Float[Tensor, "layer d_model"]
    tokens: int = 0
    """Tokens they were trained on."""
    model: str = ""
    """Fingerprint of the weights they were trained for."""

    def __call__(self, residual: Float[Tensor, "*batch d_model"], layer: int) -> Float[Tensor, "*batch d_model"]:
        """The residual stream that enters block `layer`, translated to what leaves the last block."""
        return residual + residual @ self.weight[layer].to(residual) + self.bias[layer].to(residual)

    def check(self, model: HookedGPT) -> None:
        """Raises InputError when the maps do not fit the model's layers and width."""
        c = model.config
        if self.weight.shape != (c.n_layers, c.d_model, c.d_model) or self.bias.shape != (c.n_layers, c.d_model):
            layers, width = self.bias.shape
            raise InputError(
                f"translators for {layers} layers of width {width}",
                f"expected {c.n_layers} layers of width {c.d_model}, as the model has",
            )

    def save(self, path: str | Path) -> None:
        """Write them as safetensors."""
        facts = {"tokens": self.tokens, "model": self.model}
        _write(Path(path), {"weight": self.weight, "bias": self.bias}, facts)

    @classmethod
    def load(cls, path: str | Path) -> "Translators":
        """Read what `save` wrote. Raises NotFoundError or LoadError."""
        tensors, facts = _read(Path(path))
        told = {"tokens": int(facts.get("tokens", 0)), "model": str(facts.get("model", ""))}
        return cls(weight=tensors["weight"], bias=tensors["bias"], **told)  # type: ignore[arg-type]

    @classmethod
    def identity(cls, model: HookedGPT) -> "Translators":
        """Maps that change nothing: the plain logit lens."""
        c = model.config
        weight = torch.zeros(c.n_layers, c.d_model, c.d_model, device=model.device)
        return cls(weight=weight, bias=weight[:, 0].clone(), model=fingerprint(model))


def fingerprint(model: HookedGPT) -> str:
    """Which weights these are, told quickly: a hash of the shape, the final norm and the first embeddings."""
    norm = [parameter for _, parameter in model.ln_final.named_parameters()]
    parts = (*norm, *([model.W_pos[:8]] if model.config.positions == "learned" else []), model.W_E[:8])
    digest = hashlib.sha256(repr(model.config).encode())
    for part in parts:
        digest.update(part.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def streams(model: HookedGPT, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "place batch pos d_model"]:
    """The residual stream that enters each block, and last the one that leaves the last block."""
    residual, frame = model.embed(tokens)
    kept = [residual]
    for layer in range(model.config.n_layers):
        kept.append(model.run_blocks(kept[-1], frame, first=layer, last=layer))
    return torch.stack(kept)


def read(model: HookedGPT, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
    """Log-probabilities of the next token, read off a residual stream as if it were the last."""
    return wide(model.unembedded(model.ln_final(residual))).log_softmax(-1)


def divergence(
    log_p: Float[Tensor, "*batch d_vocab"], log_q: Float[Tensor, "*batch d_vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(p || q) in nats."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@torch.no_grad()
def fit(model: HookedGPT, rows: Sequence[Int[Tensor, "1 pos"]]) -> Translators:
    """Ridge regression from each layer's residual stream to the last one.

    The strength of the ridge is chosen for each layer by the divergence on the last quarter of the positions, which the
    regression for that choice does not see; then all positions are used.

    Raises InputError for fewer than 8 positions.
    """
    places = torch.cat([streams(model, row)[:, 0] for row in rows], dim=1).float()
    n = places.shape[1]
    if n < 8:
        raise InputError(f"{n} tokens to fit translators on", "expected at least 8")
    cut, last = n - n // 4, places[-1]
    known = read(model, last[cut:].to(model.dtype))
    weights, biases = [], []
    for residual in places[:-1]:
        seen, scores = _Ridge(residual[:cut], last[:cut]), []
        for strength in RIDGES:
            a, b = seen.solve(strength)
            guess = residual[cut:] + residual[cut:] @ a + b
            scores.append(float(divergence(known, read(model, guess.to(model.dtype))).mean()))
        best = min(range(len(RIDGES)), key=scores.__getitem__)
        a, b = _Ridge(residual, last).solve(RIDGES[best])
        weights.append(a)
        biases.append(b)
    return Translators(weight=torch.stack(weights), bias=torch.stack(biases), tokens=n, model=fingerprint(model))


class _Ridge:
    """Regression of last - residual on residual, for several strengths at the cost of one decomposition."""

    def __init__(self, residual: Float[Tensor, "pos d_model"], last: Float[Tensor, "pos d_model"]) -> None:
        self.mean, change = residual.mean(0), last - residual
        self.change_mean = change.mean(0)
        centred = residual - self.mean
        u, self.s, self.v = torch.linalg.svd(centred, full_matrices=False)
        self.projected = u.T @ (change - self.change_mean)
        self.scale = float(centred.pow(2).sum()) / centred.shape[1]

    def solve(self, strength: float) -> tuple[Tensor, Tensor]:
        shrunk = self.s / (self.s**2 + strength * self.scale + 1e-12)
        a = self.v.T @ (shrunk[:, None] * self.projected)
        return a, self.change_mean - self.mean @ a


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """How far training is."""

    step: int
    steps: int
    loss: list[float]
    """Mean KL of each layer in nats, on the batch just seen, before the update."""


def train(
    model: HookedGPT,
    tokens: Int[Tensor, " token"],
    *,
    steps: int = 250,
    batch: int = 8,
    length: int | None = None,
    lr: float = 1e-3,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    save_every: int = 50,
    progress: Callable[[TrainState], None] | None = None,
) -> Translators:
    """Translators trained on a long text by Adam on the divergence, the learning rate falling linearly to zero.

    A step's batch depends on the seed and its number alone: a run that was stopped and resumed ends with the same
    numbers as one that was not.

    Args:
        tokens: the ids of the whole text.
        batch, length: sequences in a step and tokens in each; by default the model's context, or the text's length.
        out: where the translators go; beside it lies `NAME.state`, until the end, to resume from.
        resume: go on from that state where there is one.
        progress: called after every step.

    Raises InputError for too short a text or values out of range, LoadError for a state of other settings.
    """
    length = min(model.config.n_ctx, len(tokens)) if length is None else length
    if steps < 1 or batch < 1 or not 2 <= length <= min(model.config.n_ctx, len(tokens)):
        raise InputError(
            f"steps = {steps}, batch = {batch}, length = {length} on {len(tokens)} tokens",
            f"expected steps and batch of at least 1, and 2 to {min(model.config.n_ctx, len(tokens))} tokens in a "
            "sequence",
        )
    settings = {"steps": steps, "batch": batch, "length": length, "lr": lr, "seed": seed, "model": fingerprint(model)}
    state_path = None if out is None else Path(out).with_name(Path(out).name + ".state")
    if resume and state_path is not None and state_path.exists():
        tensors, done = _resumed(state_path, settings, model)
    else:
        first = fit(model, list(_batch(tokens, 0, batch, length, seed).to(model.device).split(1)))
        tensors, done = {"weight": first.weight, "bias": first.bias}, 0
        tensors |= {f"{name}_{of}": torch.zeros_like(tensors[of]) for of in ("weight", "bias") for name in ("m", "v")}
    for step in range(done, steps):
        losses = _step(model, tensors, _batch(tokens, step, batch, length, seed).to(model.device), step, lr, steps)
        if progress is not None:
            progress(TrainState(step=step + 1, steps=steps, loss=losses))
        if state_path is not None and (step + 1) % save_every == 0 and step + 1 < steps:
            _write(state_path, tensors, settings | {"done": step + 1})
    made = Translators(
        weight=tensors["weight"], bias=tensors["bias"], tokens=steps * batch * length, model=fingerprint(model)
    )
    if out is not None and state_path is not None:
        made.save(out)
        state_path.unlink(missing_ok=True)
    return made


def _batch(tokens: Tensor, step: int, batch: int, length: int, seed: int) -> Int[Tensor, "batch pos"]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(tokens) - length + 1, (batch,), generator=generator)
    return torch.stack([tokens[start : start + length] for start in starts.tolist()])


def _step(model: HookedGPT, tensors: dict[str, Tensor], ids: Tensor, step: int, lr: float, steps: int) -> list[float]:
    """One update of Adam, in place, layer by layer: layers do not share parameters, so one lies in memory at a time."""
    places = streams(model, ids).flatten(1, 2)
    with torch.no_grad():
        final = read(model, places[-1])
    losses = []
    for layer, residual in enumerate(places[:-1]):
        a, b = (tensors[name][layer].clone().requires_grad_() for name in ("weight", "bias"))
        with torch.enable_grad():
            loss = divergence(final, read(model, (residual.float() + residual.float() @ a + b).to(model.dtype))).mean()
        gradients = torch.autograd.grad(loss, [a, b])
        losses.append(float(loss.detach()))
        for name, gradient in zip(("weight", "bias"), gradients, strict=True):
            _adam(tensors, name, layer, gradient, step + 1, lr * (1 - step / steps))
    return losses


@torch.no_grad()
def _adam(tensors: dict[str, Tensor], name: str, layer: int, gradient: Tensor, step: int, lr: float) -> None:
    """Kingma & Ba 2015, algorithm 1."""
    m, v = tensors[f"m_{name}"][layer], tensors[f"v_{name}"][layer]
    m.lerp_(gradient, 0.1)
    v.lerp_(gradient**2, 0.001)
    tensors[name][layer] -= lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)


def _resumed(path: Path, settings: dict[str, object], model: HookedGPT) -> tuple[dict[str, Tensor], int]:
    tensors, facts = _read(path)
    other = [name for name, value in settings.items() if facts.get(name) != value]
    if other:
        raise LoadError(
            f"{path} was made with another {', '.join(other)}",
            f"expected {', '.join(f'{name} = {settings[name]}' for name in other)}",
            "give the same settings, or start anew without resuming",
        )
    return {name: x.to(model.device) for name, x in tensors.items()}, int(facts["done"])


def _write(path: Path, tensors: dict[str, Tensor], facts: dict[str, object]) -> None:
    kept = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(kept, str(temporary), metadata={"facts": json.dumps(facts)})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise NotFoundError(f"there are no translators at {path}", "expected a file that `Translators.save` wrote")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads((file.metadata() or {})["facts"])
        if not isinstance(facts, dict) or not {"weight", "bias"} <= tensors.keys():
            raise KeyError("weight, bias")
        if tensors["weight"].ndim != 3 or tensors["bias"].shape != tensors["weight"].shape[:2]:
            raise KeyError("[layer d_model d_model] and [layer d_model]")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise LoadError(
            f"{path} holds no translators: {error}", "expected a file that `Translators.save` wrote"
        ) from error
    return tensors, facts
