"""Algebra of the residual stream: it is a sum, so what is in it can be split by who wrote it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.cache import ActivationCache
from interp.errors import InputError
from interp.hooks import select_positions
from interp.models.gpt import HookedGPT


def decompose_names(model: HookedGPT) -> list[str]:
    """What `decompose` needs: `run_with_cache(..., names=decompose_names(model))`; for shares of a logit also
    "ln_final.hook_scale"."""
    short = {"hook_embed", "hook_pos_embed"}
    ends = ("attn.hook_z", "hook_mlp_out", "ln1_post.hook_scale")
    return [name for name in model.hook_points if name in short or (name.startswith("blocks.") and name.endswith(ends))]


def _layers(model: HookedGPT, layer: int | None) -> int:
    """How many blocks lie before a place. Raises InputError where the model has fewer."""
    layers = model.config.n_layers if layer is None else layer
    if not isinstance(layers, int) or not 0 <= layers <= model.config.n_layers:
        raise InputError(f"layer {layer!r}", f"expected 0 to {model.config.n_layers}")
    return layers


def decompose(
    model: HookedGPT,
    cache: ActivationCache,
    layer: int | None = None,
    *,
    heads: bool = True,
    pos: int | slice | None = None,
) -> tuple[Float[Tensor, "component batch pos d_model"], list[str]]:
    """The residual stream that enters block `layer` (None: that leaves the last block), split by who wrote it.

    Components in order: `embed`, `pos_embed` (where positions are learned), then for each earlier block its heads
    `L0H0` ... (or `attn 0` when heads are not split), its output bias `bias 0`, its MLP `mlp 0` (which includes b_out).
    Their sum is the residual stream. Where a norm follows attention, a head's component is its share at this scale.
    `pos` takes these positions only (an int keeps the axis, with length one).

    Raises HookNameError when the cache lacks one of `decompose_names`.
    """
    layers = _layers(model, layer)
    if pos is not None:
        cache = ActivationCache({name: select_positions(x, name, pos) for name, x in cache.items()}, model.stack_sizes)
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


def accumulated(
    model: HookedGPT,
    cache: ActivationCache,
    layer: int | None = None,
    *,
    mid: bool = False,
    pos: int | slice | None = None,
) -> tuple[Float[Tensor, "place batch pos d_model"], list[str]]:
    """The residual stream as it grows: entering each block up to `layer` (None: and leaving the last), with labels.

    `mid` puts the stream between attention and MLP in too, where blocks have one. Raises HookNameError when the cache
    lacks one of these.
    """
    layers = _layers(model, layer)
    names, labels = list[str](), list[str]()
    for index in range(min(layers + 1, model.config.n_layers)):
        names.append(f"blocks.{index}.hook_resid_pre")
        labels.append(f"{index} pre")
        if mid and index < layers and f"blocks.{index}.hook_resid_mid" in model.hook_points:
            names.append(f"blocks.{index}.hook_resid_mid")
            labels.append(f"{index} mid")
    if layers == model.config.n_layers:
        names.append(f"blocks.{layers - 1}.hook_resid_post")
        labels.append("final post")
    return torch.stack([select_positions(cache[name], name, pos) for name in names]), labels


def logit_attrs(
    model: HookedGPT,
    cache: ActivationCache,
    parts: Float[Tensor, "component batch pos d_model"],
    answer: int | Int[Tensor, " batch"],
    wrong: int | Int[Tensor, " batch"] | None = None,
    *,
    pos: int | slice | None = None,
) -> Float[Tensor, "component batch pos"]:
    """What each part of the last residual stream adds to the answer's logit (minus a wrong answer's).

    The final norm's scale is held at the run's value, so that the parts of a stream add up to the whole; its bias, b_U
    and a soft-cap are apart (Elhage et al. 2021). `pos` are the positions that `parts` have of the run's.
    """
    batch, name = parts.shape[1], "ln_final.hook_scale"
    ids = [torch.as_tensor(x, device=parts.device) for x in (answer, wrong) if x is not None]
    for given in ids:
        if given.is_floating_point() or given.shape not in ((), (1,), (batch,)) or given.min() < 0:
            raise InputError(f"answers {given.tolist()!r}"[:100], f"expected one token id, or {batch}")
        if given.max() >= model.config.d_vocab_out:
            raise InputError(f"token id {int(given.max())}", f"expected 0 to {model.config.d_vocab_out - 1}")
    ids = [given.expand(batch) for given in ids]
    scale = select_positions(cache[name], name, pos) if model.ln_final.hooked else parts.new_ones(())
    if scale.ndim and scale.shape[1] != parts.shape[2]:
        raise InputError(
            f"parts at {parts.shape[2]} positions, and a run of {scale.shape[1]}", "expected pos= as for the parts"
        )
    towards = logit_direction(model, ids[0], ids[1] if len(ids) > 1 else None)  # [batch d_model]
    return torch.einsum("cbpd,bd->cbp", model.ln_final.share(parts, scale), towards)


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
