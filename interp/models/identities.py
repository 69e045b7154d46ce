"""What holds in every decoder if it was loaded right: identities that a plausible wrong guess cannot satisfy.

Each is computed anew from what one run kept, in float32 at least, and compared with what the run has there. The error
is the largest difference at any position, relative to the largest number at that position (and head), so that one
position with huge activations hides nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.cache import ActivationCache
from interp.models.gpt import HookedGPT
from interp.models.kernels import wide
from interp.residual import decompose


@dataclass(frozen=True)
class Identity:
    """One identity, in the layer where it holds worst."""

    name: str
    error: float
    """Largest difference over the largest number at its position."""
    limit: float
    """What rounding of the model's dtype may add up to."""

    @property
    def holds(self) -> bool:
        return self.error <= self.limit


@torch.no_grad()
def identities(model: HookedGPT, tokens: Int[Tensor, "batch pos"]) -> list[Identity]:
    """The identities of this model on these tokens; the last, against `transformers`, where it is installed and reads
    the directory that the model was loaded from."""
    logits, cache = model.run_with_cache(tokens)
    layers = range(model.config.n_layers)
    checks: dict[str, list[float]] = {}
    for layer in layers:
        for name, (given, kept) in _of_block(model, cache, layer).items():
            checks.setdefault(name, []).append(apart(given, kept))
    last = cache["resid_post", layers[-1]]
    parts = wide(decompose(model, cache)[0]).sum(0)
    checks["sum of all parts = last stream"] = [apart(parts, last)]
    checks["final norm and unembedding = logits"] = [apart(_logits(model, last), logits)]
    eps, exact = float(torch.finfo(model.dtype).eps), model.dtype.itemsize >= 4
    found = [Identity(name, max(errors), (64 if exact else 16) * eps) for name, errors in checks.items()]
    reference = _transformers(model)
    if reference is None:
        return found
    # Two programs that round at every step on their way to the logits, not one step taken twice.
    limit = (512 if exact else 32) * eps
    return [*found, Identity("logits = transformers, eager", apart(reference(tokens), logits), limit)]


def _of_block(model: HookedGPT, cache: ActivationCache, layer: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> what an identity gives, and what the run has."""
    block, attn = model.blocks[layer], model.blocks[layer].attn
    pre, post, written = (wide(cache[name, layer]) for name in ("resid_pre", "resid_post", "attn_out"))
    z, pattern, scores = (wide(cache[name, layer]) for name in ("z", "pattern", "attn_scores"))
    queries, keys = ("rot_q", "rot_k") if attn.prepares else ("q", "k")
    q, k, v = (wide(cache[name, layer]) for name in (queries, keys, "v"))
    group = model.config.n_heads // model.config.n_kv_heads
    by_head = range(model.config.n_heads)
    met = torch.stack([q[:, :, h] @ k[:, :, h // group].mT for h in by_head], 1) * model.config.attn_scale
    cap = model.config.attn_softcap
    met = met if cap is None else cap * torch.tanh(met / cap)
    mixed = torch.stack([pattern[:, h] @ v[:, :, h // group] for h in by_head], 2)
    out = sum(z[:, :, h] @ wide(attn.W_O[h]) for h in by_head)
    out = out if attn.b_O is None else out + attn.b_O
    found = {
        "query x key[kv_head] = scores": (met.masked_fill(scores.isinf(), 0), scores.masked_fill(scores.isinf(), 0)),
        "softmax of scores = pattern": (scores.softmax(-1), pattern),
        "pattern x value[kv_head] = z": (mixed, z),
        f"z W_O{', normed' if block.ln1_post.hooked else ''} = attn_out": (block.ln1_post(out), written),
    }
    if block.mlp is None:
        return found | {"resid_pre + attn_out = resid_post": (pre + written, post)}
    mlp = wide(cache["mlp_out", layer])
    if model.config.parallel:
        return found | {"resid_pre + attn_out + mlp_out = resid_post": (pre + written + mlp, post)}
    mid = wide(cache["resid_mid", layer])
    return found | {
        "resid_pre + attn_out = resid_mid": (pre + written, mid),
        "resid_mid + mlp_out = resid_post": (mid + mlp, post),
    }


def _logits(model: HookedGPT, stream: Tensor) -> Tensor:
    """Final norm, unembedding and soft-cap as their formulas say."""
    x, norm = wide(stream), model.ln_final
    normal = norm.share(x, norm.scale_of(x))
    logits = (normal if norm.b is None else normal + norm.b) @ wide(model.W_U)
    logits = logits if model.b_U is None else logits + model.b_U
    cap = model.config.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest number in the same row (last axis); rows far below the largest count as it.

    A number that is not finite is as wrong as can be.
    """
    found, expected = wide(found), wide(expected)
    size = expected.abs().amax(-1)
    size = size.clamp(min=max(1e-3 * float(size.max()), 1e-30))
    error = ((found - expected).abs().amax(-1) / size).max()
    return float(torch.nan_to_num(error, nan=torch.inf))


def _transformers(model: HookedGPT) -> Callable[[Tensor], Tensor] | None:
    """The logits of `transformers` for the directory that the model came from; None where that cannot be."""
    directory = model.weight_files[0].parent if model.weight_files else Path()
    if not model.weight_files or model.origin.get("model_type") == "interp" or find_spec("transformers") is None:
        return None
    library: Any = import_module("transformers")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    options = {"attn_implementation": "eager", "local_files_only": True}
    theirs = library.AutoModelForCausalLM.from_pretrained(directory, **options).to(model.device, model.dtype).eval()
    return lambda tokens: theirs(tokens, use_cache=False).logits
