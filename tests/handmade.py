"""Models built by hand, so that what every head does is known before any analysis looks.

The residual stream has three parts: which token this is (one coordinate a token), which token came before it, and
which position this is (one coordinate a position). The unembedding reads the first part. MLPs write nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT

NAMES = (0, 1, 2, 3)
"""Tokens that the name mover and the copy-suppression head look for."""


@dataclass(frozen=True)
class Space:
    """Where the three parts lie."""

    d_vocab: int
    n_ctx: int

    @property
    def d_model(self) -> int:
        return 2 * self.d_vocab + self.n_ctx

    def token(self) -> slice:
        return slice(0, self.d_vocab)

    def previous(self) -> slice:
        return slice(self.d_vocab, 2 * self.d_vocab)

    def position(self) -> slice:
        return slice(2 * self.d_vocab, self.d_model)


def empty(space: Space, *, n_layers: int = 2, n_heads: int = 4) -> HookedGPT:
    """Embeddings that are one-hot in their part; every other weight is zero, so each head attends evenly."""
    config = GPTConfig(
        n_layers=n_layers,
        n_heads=n_heads,
        d_model=space.d_model,
        d_head=space.d_vocab + space.n_ctx,
        d_mlp=4,
        n_ctx=space.n_ctx,
        d_vocab=space.d_vocab,
    )
    model = HookedGPT(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith(".w") else 0.0)
        model.W_E[:, space.token()] = torch.eye(space.d_vocab)
        model.W_pos[:, space.position()] = torch.eye(space.n_ctx)
    return model


def put(
    model: HookedGPT, layer: int, head: int, *, q: Tensor, k: Tensor, v: Tensor | None = None, o: Tensor | None = None
) -> None:
    """Give one head its weights: q, k, v [d_model d_head], o [d_head d_model]; narrower ones are filled with zeros."""
    attention = model.blocks[layer].attn
    with torch.no_grad():
        for target, given in ((attention.W_Q, q), (attention.W_K, k), (attention.W_V, v)):
            if given is not None:
                target[head, :, : given.shape[1]] = given
        if o is not None:
            attention.W_O[head, : o.shape[0]] = o


def constant_query(model: HookedGPT, layer: int, head: int, strength: float, coordinate: int = 0) -> None:
    """Every query asks for one coordinate of the head's keys, whatever its token and position."""
    with torch.no_grad():
        model.blocks[layer].attn.b_Q[head, coordinate] = strength


def read(space: Space, part: slice) -> Tensor:
    """[d_model size]: picks a part of the residual stream."""
    return torch.eye(space.d_model)[:, part]


def induction_model(
    *, d_vocab: int = 40, n_ctx: int = 48, previous_token_head: bool = True
) -> tuple[HookedGPT, dict[str, tuple[int, int]]]:
    """A two-layer model that continues repeated text, and where each role lies as (layer, head).

    Layer 0: previous-token head (its output feeds the induction head), duplicate-token head, first-token sink, and a
    head that attends evenly and does nothing. Layer 1: induction head, a head that attends evenly and copies, a name
    mover and a copy-suppression head, which both look at NAMES. Without `previous_token_head` the induction head has
    nothing to compose with: the control.
    """
    space = Space(d_vocab, n_ctx)
    model = empty(space)
    token, previous, position = (read(space, part) for part in (space.token(), space.previous(), space.position()))
    strength = 4.0
    if previous_token_head:
        one_back = position @ torch.eye(n_ctx).roll(-1, dims=1)  # position p asks for position p - 1
        one_back[2 * d_vocab] = 0.0  # the first position has none
        put(model, 0, 0, q=strength * one_back, k=position, v=token, o=previous.T)
    same_token = torch.cat([strength * token, -strength * position], 1)  # the same token, but not the same place
    put(model, 0, 1, q=same_token, k=torch.cat([token, position], 1))
    put(model, 0, 2, q=torch.zeros(space.d_model, 1), k=position[:, :1])
    constant_query(model, 0, 2, 30.0)
    put(model, 1, 0, q=3 * strength * token, k=torch.cat([previous, position[:, :1]], 1), v=token, o=token.T)
    constant_query(model, 1, 0, -30.0, coordinate=d_vocab)  # not the first position: it has no previous token
    put(model, 1, 1, q=0 * token, k=0 * token, v=token, o=0.1 * token.T)
    names = token[:, list(NAMES)].sum(1, keepdim=True)
    for head, sign in ((2, 1.0), (3, -1.0)):
        put(model, 1, head, q=torch.zeros(space.d_model, 1), k=names, v=token, o=sign * 0.2 * token.T)
        constant_query(model, 1, head, 100.0)
    roles = {
        "previous_token": (0, 0),
        "duplicate_token": (0, 1),
        "first_token": (0, 2),
        "nothing": (0, 3),
        "induction": (1, 0),
        "copying": (1, 1),
        "name_mover": (1, 2),
        "copy_suppression": (1, 3),
    }
    return model, roles


def repeated(d_vocab: int, length: int, *, batch: int = 1, seed: int = 0) -> Tensor:
    """[batch 2 length]: random tokens without repetition, twice."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.stack([torch.randperm(d_vocab, generator=generator)[:length] for _ in range(batch)])
    return half.repeat(1, 2)
