"""Algebra of the residual stream: it is a sum, so what is in it can be split by who wrote it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.cache import ActivationCache
from interp.errors import InputError
from interp.model import HookedGPT


def decompose_names(model: HookedGPT) -> list[str]:
    """What `decompose` needs: `run_with_cache(..., names=decompose_names(model))`; for shares of a logit also
    "ln_final.hook_scale"."""
    short = {"hook_embed", "hook_pos_embed"}
    ends = ("attn.hook_z", "hook_mlp_out", "ln1_post.hook_scale")
    return [name for name in model.hook_points if name in short or (name.startswith("blocks.") and name.endswith(ends))]


def decompose(
    model: HookedGPT, cache: ActivationCache, layer: int | None = None, *, heads: bool = True
) -> tuple[Float[Tensor, "component batch pos d_model"], list[str]]:
    """The residual stream that enters block `layer` (None: that leaves the last block), split by who wrote it.

    Components in order: `embed`, `pos_embed` (where positions are learned), then for each earlier block its heads
    `L0H0` ... (or `attn 0` when heads are not split), its output bias `bias 0`, its MLP `mlp 0` (which includes b_out).
    Their sum is the residual stream. Where a norm follows attention, a head's component is its share at this scale.

    Raises HookNameError when the cache lacks one of `decompose_names`.
    """
    layers = model.config.n_layers if layer is None else layer
    if not 0 <= layers <= model.config.n_layers:
        raise InputError(f"layer {layer}", f"expected 0 to {model.config.n_layers}")
    parts, labels = [cache["embed"][None]], ["embed"]
    if model.config.positions == "learned":
        parts, labels = [*parts, cache["pos_embed"][None]], [*labels, "pos_embed"]
    for index in range(layers):
        result = head_results(model, cache, index)
        parts.append(result if heads else result.sum(0, keepdim=True))
        labels += [f"L{index}H{head}" for head in range(model.config.n_heads)] if heads else [f"attn {index}"]
        bias = output_bias(model, cache, index)
        if bias is not None:
            parts.append(bias.expand_as(parts[0]))
            labels.append(f"bias {index}")
        if model.blocks[index].mlp is not None:
            parts.append(cache["mlp_out", index][None])
            labels.append(f"mlp {index}")
    return torch.cat(parts), labels


def head_results(model: HookedGPT, cache: ActivationCache, layer: int) -> Float[Tensor, "head batch pos d_model"]:
    """What each head of a block adds to the residual stream, its share of the output bias left out."""
    attn = model.blocks[layer].attn
    results = torch.einsum("bphd,hdm->hbpm", cache["z", layer], attn.W_O)
    return attn_share(model, cache, layer, results)


def output_bias(model: HookedGPT, cache: ActivationCache, layer: int) -> Float[Tensor, "*batch d_model"] | None:
    """What the attention's output bias (and that of a norm after it) adds to the stream; None where there is none."""
    block = model.blocks[layer]
    bias = None if block.attn.b_O is None else attn_share(model, cache, layer, block.attn.b_O)
    if block.ln1_post.b is None:
        return bias
    return block.ln1_post.b if bias is None else bias + block.ln1_post.b


def attn_share(
    model: HookedGPT, cache: ActivationCache, layer: int, parts: Float[Tensor, "*part d_model"]
) -> Float[Tensor, "*part d_model"]:
    """What parts of a block's attention output become in the stream: their shares of the norm that follows, if any."""
    post = model.blocks[layer].ln1_post
    return post.share(parts, cache["scale", layer, "ln1_post"]) if post.hooked else parts


def logit_direction(
    model: HookedGPT, answer: Int[Tensor, " batch"], wrong: Int[Tensor, " batch"] | None = None
) -> Float[Tensor, "batch d_model"]:
    """The direction of the normalised stream that a logit (minus a wrong answer's) reads; b_U and soft-cap apart."""
    columns = model.W_U.T
    return columns[answer] if wrong is None else columns[answer] - columns[wrong]
