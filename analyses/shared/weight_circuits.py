"""The low-rank factors of every head's QK and OV circuit, as they act between norms (Elhage et al. 2021).

A norm's gain is folded into what reads from the stream, and that of a norm after attention into what writes. Where
norms are layer norms, the direction that they remove (the mean) is taken out of what reads and what writes; so raw and
folded weights of one model give the same circuits. Left out are biases, the scales of norms, which depend on the text
(those of queries' and keys' own norms too, whose gains are in), and a cap on the scores. Where norms follow sums (BERT,
translation models), the gain is that of the norm passed last. Query head h is paired with the keys and values that it
reads. Products of two d_model-wide factors are never formed.

Under rotary positions a score depends on how far the key lies before the query. W_QK is then that of one `distance`:
the query is turned by as many positions, whether or not a window lets it see so far. At distance 0, a token that looks
at itself, nothing turns.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.shared.spectra import one_thread
from analyses.shared.stacks import Model, Stack, attentions
from interp.errors import InputError
from interp.models.kernels import wide
from interp.models.parts import Attention, NoNorm, Norm
from interp.residual import Reader, norm_at, stream_of, writes


@dataclass(frozen=True, eq=False)
class Circuits:
    """Factors of all heads: W_QK = q k^T and W_OV = v o. The scale of the scores is part of q."""

    q: Float[Tensor, "layer head d_model d_head"]
    k: Float[Tensor, "layer head d_model d_head"]
    v: Float[Tensor, "layer head d_model d_head"]
    o: Float[Tensor, "layer head d_head d_model"]


def circuits(model: Model, distance: int = 0, stack: Stack | None = None) -> Circuits:
    """The factors of every head of an attention (default: the first), in float32 at least, of queries that look
    `distance` positions back.

    Raises InputError for a distance in a model without rotary positions, or beyond its context.
    """
    far = model.config.n_ctx - 1 if getattr(model.config, "positions", None) == "rotary" else 0
    if not 0 <= distance <= far:
        why = "" if far else ": without rotary positions no circuit depends on it"
        raise InputError(f"distance = {distance}", f"expected {f'0 to {far}' if far else '0'}{why}")
    stack = stack or attentions(model)[0]
    layers = []
    with torch.no_grad():
        for layer, (block, attn) in enumerate(zip(stack.blocks, stack.attentions, strict=True)):
            seeing, seen, next_one = _norms_around(model, stack, layer)
            pair = torch.arange(attn.n_heads, device=model.device) // attn.group
            q, k, v = reading(seeing, attn.W_Q), reading(seen, attn.W_K), reading(seen, attn.W_V)
            q, k = _prepared(attn, q, attn.q_norm, distance) * attn.scale, _prepared(attn, k, attn.k_norm, 0)
            o = next_one.centre(added(norm_at(block, "ln1_post"), attn.W_O))
            layers.append((q, k[pair], v[pair], o))
        return Circuits(*map(torch.stack, zip(*layers, strict=True)))


def _norms_around(model: Model, stack: Stack, layer: int) -> tuple[Norm | NoNorm, Norm | NoNorm, Norm | NoNorm]:
    """The norms behind which an attention's queries, and its keys and values, read their stream; and the one that what
    it adds passes next (of a kind with all others, where norms are in front of parts)."""
    block, steps = stack.blocks[layer], writes(stack.blocks[layer])
    place = [write.part for write in steps].index(stack.part)
    if not steps[place].after:
        return block.ln1, block.ln1, block.ln1
    if place:
        queries = norm_at(block, steps[place - 1].after)
    elif layer:
        queries = norm_at(stack.blocks[layer - 1], steps[-1].after)
    else:
        queries = norm_at(getattr(model, "embed", None), "ln")
    source = attentions(model)[0].blocks[-1]
    keys = norm_at(source, writes(source)[-1].after) if stack.crosses else queries
    return queries, keys, norm_at(block, steps[place].after)


def arriving(stack: Stack, written: Float[Tensor, "layer *batch d_model"], reader: int) -> Tensor:
    """What an attention of each block adds to the stream, as that of block `reader` finds it, behind the norms between
    them: all but the gain of the last, which `Circuits` has in what reads. Of no use for `reader` and later ones."""
    steps = [(block, write) for block in stack.blocks for write in writes(block)]
    places = [n for n, (_, write) in enumerate(steps) if write.part == stack.part]
    passed = list[Tensor]()
    for place, x in zip(places, written, strict=True):
        for block, write in steps[place : max(places[reader] - 1, place)]:
            x = added(norm_at(block, write.after), x)
        block, write = steps[places[reader] - 1]
        passed.append(norm_at(block, write.after).centre(x))
    return torch.stack(passed)


def toward_logits(
    model: Reader, part: str, written: Float[Tensor, "layer *batch d_model"]
) -> Float[Tensor, "layer *batch d_model"]:
    """What this part of each block adds to the stream, behind all norms that follow, their scales left out: each scale
    is a positive number, and turns no direction."""
    (_, blocks), passed = stream_of(model), list[Tensor]()
    for layer, x in enumerate(written):
        later = [(block, write) for block in blocks[layer:] for write in writes(block)]
        first = next(n for n, (_, write) in enumerate(later) if write.part == part)
        for block, write in later[first:]:
            x = added(norm_at(block, write.after), x)
        passed.append(added(norm_at(model, "ln_final"), x))
    return torch.stack(passed)


def reading(norm: Norm | NoNorm, weight: Float[Tensor, "*batch d_model n"]) -> Float[Tensor, "*batch d_model n"]:
    """What reads from the stream through a norm, as if it read from the stream itself, the scale left out."""
    return norm.centre(wide(weight).mT * norm.gain).mT


def added(norm: Norm | NoNorm, parts: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """What parts become behind a norm, the scale left out."""
    return norm.share(wide(parts), torch.ones(1, device=parts.device))


def _prepared(
    attn: Attention, factor: Float[Tensor, "head d_model d_head"], norm: Norm | None, distance: int
) -> Tensor:
    """Queries or keys of each direction of the stream as they enter the scores."""
    if norm is not None:
        rows = factor.transpose(0, 1)  # [d_model head d_head]
        rows = added(norm, rows.flatten(1)).view(rows.shape) if attn.flat_norm else added(norm, rows)
        factor = rows.transpose(0, 1)
    if attn.rotary is None or not distance:
        return factor
    return attn.rotary.turn(factor, attn.rotary.tables(torch.tensor(distance, device=factor.device), factor.dtype))


@one_thread()
def factor_svd(
    left: Float[Tensor, "*batch n r"], right: Float[Tensor, "*batch m r"], count: int
) -> tuple[Float[Tensor, "*batch n count"], Float[Tensor, "*batch r"], Float[Tensor, "*batch m count"]]:
    """The SVD of left right^T without forming it: all singular values and the first `count` vectors of either side.

    By two thin QR decompositions and the SVD of an r x r matrix.
    """
    q1, r1 = torch.linalg.qr(left)
    q2, r2 = torch.linalg.qr(right)
    u, s, vh = torch.linalg.svd(r1 @ r2.mT)
    return q1 @ u[..., :count], s, q2 @ vh.mT[..., :count]
