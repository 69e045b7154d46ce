"""Models made by writing weights for small programs, so that the edges that carry the answer are known.

The residual stream has a channel for each token, for each position, and for each token of every variable of a program.
A head looks where a query channel meets a key channel, and copies channels into others. All weights carry a little
noise, so that every edge of the model has some effect, and the program's edges have to stand out from the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT

TOKENS, LENGTH, SHARP, NOISE = 8, 9, 30.0, 0.01
WIDTH = max(TOKENS, LENGTH)


@dataclass(frozen=True)
class Program:
    """A model, pairs of texts, their answers, and the true edges as (sender, receiver)."""

    model: HookedGPT
    clean: Tensor
    corrupted: Tensor
    answer: Tensor
    wrong: Tensor
    edges: frozenset[tuple[str, str]]


def token(i: int) -> int:
    return i


def position(i: int) -> int:
    return TOKENS + i


def variable(v: int, i: int) -> int:
    """The channel of a variable's value."""
    return TOKENS + LENGTH + v * TOKENS + i


def blank(n_layers: int, variables: int, seed: int, d_mlp: int = 8) -> HookedGPT:
    """Embeddings and noise; two heads a layer."""
    width = TOKENS + LENGTH + variables * TOKENS
    model = HookedGPT(
        GPTConfig(
            n_layers=n_layers, n_heads=2, d_model=width, d_head=WIDTH, d_mlp=d_mlp, n_ctx=LENGTH, d_vocab=TOKENS,
            norm=None, act_fn="relu", positions="learned", tied=False,
        )
    ).double()  # fmt: skip
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(NOISE * torch.randn(parameter.shape, generator=drawn, dtype=torch.float64))
        for i in range(TOKENS):
            model.W_E[i, token(i)] += 1
        for i in range(LENGTH):
            model.W_pos[i, position(i)] += 1
    return model


def head(
    model: HookedGPT, layer: int, index: int, *, asks: dict[int, int], offers: dict[int, int], copies: dict[int, int],
    always: int | None = None,
) -> None:  # fmt: skip
    """Write a head: it looks where what a query asks for is offered, and copies channels from there into others.

    `asks` and `offers`: channel -> what; `always`: asked for by every query; `copies`: channel -> channel.
    """
    attn = model.blocks[layer].attn
    start = index * attn.d_head
    with torch.no_grad():
        for channel, what in asks.items():
            attn.W_Q_flat[channel, start + what] += SHARP
        if always is not None:
            attn.b_Q_flat[start + always] += SHARP
        for channel, what in offers.items():
            attn.W_K_flat[channel, start + what] += attn.d_head**0.5
        for place, (source, target) in enumerate(copies.items()):
            attn.W_V_flat[source, start + place] += 1
            attn.W_O_flat[start + place, target] += 1


def previous(model: HookedGPT, layer: int, index: int, copies: dict[int, int]) -> None:
    """A head that copies from the position before."""
    asks = {position(i): i for i in range(1, LENGTH)}
    head(model, layer, index, asks=asks, offers={position(i): i + 1 for i in range(LENGTH - 1)}, copies=copies)


def reads(model: HookedGPT, channels: dict[int, int]) -> HookedGPT:
    """Logits: channel -> token."""
    with torch.no_grad():
        for channel, tok in channels.items():
            model.unembed[tok, channel] += 5
    return model


def texts(n: int, seed: int, answer_of: Callable[[Tensor], int], make: Callable[[torch.Generator], Tensor]) -> tuple:
    """Pairs of texts with different answers."""
    drawn, rows = torch.Generator().manual_seed(seed), []
    while len(rows) < n:
        one, other = make(drawn), make(drawn)
        if answer_of(one) != answer_of(other):
            rows.append((one, other, answer_of(one), answer_of(other)))
    clean, corrupted = (torch.stack([row[i] for row in rows]) for i in (0, 1))
    return clean, corrupted, torch.tensor([row[2] for row in rows]), torch.tensor([row[3] for row in rows])


def induction(seed: int = 0) -> Program:
    """ "A B ... A" -> B: a previous-token head, and a head whose keys it feeds."""
    model = blank(2, 2, seed)
    previous(model, 0, 0, {token(i): variable(0, i) for i in range(TOKENS)})
    head(
        model, 1, 1, asks={token(i): i for i in range(TOKENS)}, offers={variable(0, i): i for i in range(TOKENS)},
        copies={token(i): variable(1, i) for i in range(TOKENS)},
    )  # fmt: skip
    reads(model, {variable(1, i): i for i in range(TOKENS)})

    def make(drawn: torch.Generator) -> Tensor:
        order = torch.randperm(TOKENS, generator=drawn)
        at = int(torch.randint(1, TOKENS - 1, (1,), generator=drawn))
        return torch.cat([order, order[at : at + 1]])

    def answer(row: Tensor) -> int:
        return int(row[int((row[:-1] == row[-1]).nonzero()[0]) + 1])

    edges = {("embed", "L0H0.v"), ("L0H0", "L1H1.k"), ("embed", "L1H1.q"), ("embed", "L1H1.v"), ("L1H1", "logits")}
    return Program(model, *texts(24, seed, answer, make), frozenset(edges))


def after_marker(seed: int = 0) -> Program:
    """The token after the marker, token 0, wherever that stands; the query asks the same everywhere."""
    model = blank(2, 2, seed)
    previous(model, 0, 1, {token(i): variable(0, i) for i in range(TOKENS)})
    head(
        model, 1, 0, asks={}, always=0, offers={variable(0, 0): 0},
        copies={token(i): variable(1, i) for i in range(TOKENS)},
    )  # fmt: skip
    reads(model, {variable(1, i): i for i in range(TOKENS)})

    def make(drawn: torch.Generator) -> Tensor:
        row = torch.randint(1, TOKENS, (LENGTH,), generator=drawn)
        row[int(torch.randint(1, LENGTH - 2, (1,), generator=drawn))] = 0
        return row

    def answer(row: Tensor) -> int:
        return int(row[int((row == 0).nonzero()[0]) + 1])

    edges = {("embed", "L0H1.v"), ("L0H1", "L1H0.k"), ("embed", "L1H0.v"), ("L1H0", "logits")}
    return Program(model, *texts(24, seed, answer, make), frozenset(edges))


def exclusive_or(seed: int = 0) -> Program:
    """Tokens 0 and 1 at the first two positions, fetched by two heads; an MLP says whether they differ."""
    model = blank(2, 1, seed)
    for index in (0, 1):
        asks = {position(i): 0 for i in range(LENGTH)}
        copies = {token(1): variable(0, index)}
        head(model, 0, index, asks=asks, offers={position(index): 0}, copies=copies)
    mlp = model.blocks[0].mlp
    with torch.no_grad():
        for unit, (bias, out) in enumerate([(0.0, 1.0), (-1.0, -2.0)]):  # relu(a + b) - 2 relu(a + b - 1)
            mlp.W_in[[variable(0, 0), variable(0, 1)], unit] += 1
            mlp.b_in[unit] += bias
            mlp.W_out[unit, variable(0, 2)] += out
        model.unembed[1, variable(0, 2)] += 10
        model.unembed[0, variable(0, 2)] -= 10
        model.blocks[0].mlp.b_out[variable(0, 2)] -= 0.5

    def make(drawn: torch.Generator) -> Tensor:
        row = torch.randint(2, TOKENS, (LENGTH,), generator=drawn)
        row[:2] = torch.randint(0, 2, (2,), generator=drawn)
        return row

    edges = {("embed", "L0H0.v"), ("embed", "L0H1.v"), ("L0H0", "mlp 0"), ("L0H1", "mlp 0"), ("mlp 0", "logits")}
    return Program(model, *texts(24, seed, lambda row: int(row[0] != row[1]), make), frozenset(edges))


def two_back(seed: int = 0) -> Program:
    """The token two positions before, by one previous-token head that copies what another has copied."""
    model = blank(3, 2, seed)
    previous(model, 0, 0, {token(i): variable(0, i) for i in range(TOKENS)})
    previous(model, 2, 1, {variable(0, i): variable(1, i) for i in range(TOKENS)})
    reads(model, {variable(1, i): i for i in range(TOKENS)})

    def make(drawn: torch.Generator) -> Tensor:
        return torch.randint(0, TOKENS, (LENGTH,), generator=drawn)

    edges = {("embed", "L0H0.v"), ("L0H0", "L2H1.v"), ("L2H1", "logits")}
    return Program(model, *texts(24, seed, lambda row: int(row[-3]), make), frozenset(edges))


PROGRAMS = {"induction": induction, "after the marker": after_marker, "exclusive or": exclusive_or, "two back": two_back}


def shuffled(model: HookedGPT, seed: int) -> HookedGPT:
    """The control: the same numbers in other places of each matrix of the blocks."""
    from copy import deepcopy

    out, drawn = deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in out.blocks.parameters():
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel(), generator=drawn)].view_as(parameter))
    return out
