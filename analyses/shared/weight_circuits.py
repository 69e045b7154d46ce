"""The low-rank factors of every head's QK and OV circuit, as they act between norms (Elhage et al. 2021).

A norm's gain is folded into what reads from the stream, and that of a norm after attention into what writes. Where
norms are layer norms, the direction that they remove (the mean) is taken out of what reads and what writes; so raw and
folded weights of one model give the same circuits. Left out are biases, the scales of norms, which depend on the text
(those of queries' and keys' own norms too, whose gains are in), and a cap on the scores. Query head h is paired with
the keys and values that it reads. Products of two d_model-wide factors are never formed.

Under rotary positions a score depends on how far the key lies before the query. W_QK is then that of one `distance`:
the query is turned by as many positions, whether or not a window lets it see so far. At distance 0, a token that looks
at itself, nothing turns.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.shared.distributions import one_thread
from interp.errors import InputError
from interp.models.gpt import HookedGPT
from interp.models.kernels import wide
from interp.models.parts import Attention, NoNorm, Norm


@dataclass(frozen=True, eq=False)
class Circuits:
    """Factors of all heads: W_QK = q k^T and W_OV = v o. The scale of the scores is part of q."""

    q: Float[Tensor, "layer head d_model d_head"]
    k: Float[Tensor, "layer head d_model d_head"]
    v: Float[Tensor, "layer head d_model d_head"]
    o: Float[Tensor, "layer head d_head d_model"]


def circuits(model: HookedGPT, distance: int = 0) -> Circuits:
    """The factors of every head, in float32 at least, of queries that look `distance` positions back.

    Raises InputError for a distance in a model without rotary positions, or beyond its context.
    """
    far = model.config.n_ctx - 1 if model.config.positions == "rotary" else 0
    if not 0 <= distance <= far:
        why = "" if far else ": without rotary positions no circuit depends on it"
        raise InputError(f"distance = {distance}", f"expected {f'0 to {far}' if far else '0'}{why}")
    layers = []
    with torch.no_grad():
        for block in model.blocks:
            attn, heads = block.attn, torch.arange(model.config.n_heads, device=model.device)
            q, k, v = (reading(block.ln1, weight) for weight in (attn.W_Q, attn.W_K, attn.W_V))
            q, k = _prepared(attn, q, attn.q_norm, distance) * attn.scale, _prepared(attn, k, attn.k_norm, 0)
            pair = heads // attn.group
            layers.append((q, k[pair], v[pair], block.ln1.centre(added(block.ln1_post, attn.W_O))))
        return Circuits(*map(torch.stack, zip(*layers, strict=True)))


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
