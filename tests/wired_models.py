"""Models made by writing their weights, so that it is known through which edges they get their answers.

The residual stream is divided into parts: which token this is, which position, what heads and MLPs put there for one
another, `out`, which the logits read, and `junk`, which nobody reads but heads and MLPs that write to junk themselves.
What writes into one part and reads another speaks to nobody else, so the true edges can be listed. A norm is made
harmless by one coordinate that is far larger than all others: it scales every stream by nearly the same number.

Clean and corrupted texts differ in their tokens, never in their length. So an edge is true if what differs travels
along it: how a head finds the position before its own, say, is the same in both.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from handmade import constant_query, put
from jaxtyping import Int
from torch import Tensor

from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT

NormKind = Literal["rms"] | None
SHARP, LOUD = 12.0, 10.0
"""Attention scores of what a head looks for, and logits of the answer; all else is at 0."""
LARGE = 1000.0
"""The coordinate that decides every norm."""
Edge = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Wired:
    """A model, what it is asked, and what it is known to do."""

    model: HookedGPT
    clean: Int[Tensor, "pair pos"]
    corrupted: Int[Tensor, "pair pos"]
    answer: Int[Tensor, " pair"]
    """The model's next token after the clean text."""
    wrong: Int[Tensor, " pair"]
    """The model's next token after the corrupted text; never the answer."""
    edges: frozenset[Edge]
    """Sender and receiver of each edge that what differs travels along; names as in `analyses.shared.paths`."""


def blank(
    parts: Mapping[str, int], *, d_vocab: int, n_ctx: int, n_layers: int, n_heads: int, d_mlp: int = 0, norm: NormKind
) -> tuple[HookedGPT, dict[str, Tensor]]:
    """A model whose logits are the part `out`, all else zero; and what picks a part of the stream [d_model size].

    Args:
        parts: sizes of what programs need beside token, position, out, junk and the large coordinate.
    """
    sizes = {"token": d_vocab, "position": n_ctx, **parts, "out": d_vocab, "junk": 6, "large": 1}
    d_model = sum(sizes.values())
    config = GPTConfig(
        n_layers=n_layers, n_heads=n_heads, d_model=d_model, d_head=max(d_vocab, n_ctx), d_vocab=d_vocab, n_ctx=n_ctx,
        d_mlp=d_mlp or -1, attn_only=not d_mlp, norm=norm, act_fn="relu", tied=False, attn_scale=1.0,
    )  # fmt: skip
    model = HookedGPT(config)
    pick = dict(zip(sizes, torch.eye(d_model).split(list(sizes.values()), dim=1), strict=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(LARGE / d_model**0.5 if name.endswith(".w") else 0.0)
        model.W_E.copy_(pick["token"].T)
        model.W_pos.copy_(pick["position"].T + LARGE * pick["large"].T)
        model.W_U.copy_(pick["out"])
    return model, pick


def distract(model: HookedGPT, pick: Mapping[str, Tensor], busy: set[str], seed: int = 0) -> None:
    """Gives every head and MLP that is not busy random weights: it reads everything, and writes junk."""
    generator, config = torch.Generator().manual_seed(seed), model.config
    seen = 1.0 - pick["large"].sum(1, keepdim=True)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    for layer, block in enumerate(model.blocks):
        for head in range(config.n_heads):
            if f"L{layer}H{head}" not in busy:
                q, k, v = (seen * drawn(config.d_model, 4) for _ in range(3))
                put(model, layer, head, q=q, k=k, v=0.5 * v, o=0.5 * drawn(4, 6) @ pick["junk"].T)
        if block.mlp is not None and f"mlp {layer}" not in busy:
            with torch.no_grad():
                block.mlp.W_in.copy_(seen * drawn(config.d_model, config.d_mlp))
                block.mlp.W_out.copy_(drawn(config.d_mlp, 6) @ pick["junk"].T / config.d_mlp)


def look_at(model: HookedGPT, pick: Mapping[str, Tensor], layer: int, head: int, position: int) -> None:
    """Makes a head attend to one position from everywhere."""
    put(model, layer, head, q=torch.zeros(model.config.d_model, 1), k=pick["position"][:, [position]])
    constant_query(model, layer, head, SHARP)


def shuffled(model: HookedGPT, seed: int = 0) -> HookedGPT:
    """A copy with the entries of each weight in another order: the same sizes, and no program."""
    generator, other = torch.Generator().manual_seed(seed), deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return other


def induction(n: int = 16, *, norm: NormKind = None, d_mlp: int = 0, letters: int = 12, seed: int = 0) -> Wired:
    """start ... A B ... A -> B: a head that fetches the token before, and a head that looks for it and copies.

    `d_mlp`: with MLPs of this width, which write junk.
    """
    length, start = 6, letters
    model, pick = blank(
        {"previous": letters + 1}, d_vocab=letters + 1, n_ctx=length + 2, n_layers=2, n_heads=3, d_mlp=d_mlp, norm=norm
    )
    token, position, previous = pick["token"], pick["position"], pick["previous"]
    one_back = position @ torch.eye(length + 2).roll(-1, dims=1)
    put(model, 0, 1, q=SHARP * one_back, k=position, v=token, o=previous.T)
    put(model, 1, 0, q=SHARP * token, k=previous, v=token, o=LOUD * pick["out"].T)
    distract(model, pick, {"L0H1", "L1H0"}, seed)
    edges = [("embed", "L0H1.v"), ("L0H1", "L1H0.k"), ("embed", "L1H0.q"), ("embed", "L1H0.v"), ("L1H0", "logits")]
    generator = torch.Generator().manual_seed(seed)

    def text() -> list[int]:
        order = torch.randperm(letters, generator=generator)[:length].tolist()
        return [start, *order, order[int(torch.randint(length - 1, (), generator=generator))]]

    def answer(ids: list[int]) -> int:
        return ids[ids.index(ids[-1]) + 1]

    return _wired(model, text, answer, edges, n, different=[-1])


def lookup(n: int = 16, *, norm: NormKind = None, keys: int = 4, values: int = 5, seed: int = 0) -> Wired:
    """Items, each with a key and a value, then a question for a key: one head finds the item by its key.

    Token key * values + value is an item, then come the questions, then the values as answers.
    """
    items, d_vocab = keys * values, keys * values + keys + values
    model, pick = blank({}, d_vocab=d_vocab, n_ctx=keys + 1, n_layers=2, n_heads=2, norm=norm)
    of_key, of_value = (torch.zeros(d_vocab, size) for size in (keys, values))
    of_key[range(items), [item // values for item in range(items)]] = 1.0
    of_value[range(items), [item % values for item in range(items)]] = 1.0
    asked = torch.zeros(d_vocab, keys)
    asked[items : items + keys] = torch.eye(keys)
    token, spoken = pick["token"], pick["out"][:, items + keys :].T
    put(model, 0, 0, q=SHARP * token @ asked, k=token @ of_key, v=token @ of_value, o=LOUD * spoken)
    distract(model, pick, {"L0H0"}, seed)
    edges = [("embed", "L0H0.q"), ("embed", "L0H0.k"), ("embed", "L0H0.v"), ("L0H0", "logits")]
    generator = torch.Generator().manual_seed(seed)

    def text() -> list[int]:
        order, chosen = (torch.randperm(size, generator=generator)[:keys] for size in (keys, values))
        question = items + int(torch.randint(keys, (), generator=generator))
        return [*(order * values + chosen).tolist(), question]

    def answer(ids: list[int]) -> int:
        (item,) = [item for item in ids[:-1] if item // values == ids[-1] - items]
        return items + keys + item % values

    return _wired(model, text, answer, edges, n, different=[-1])


def addition(n: int = 16, *, norm: NormKind = None, modulus: int = 3, seed: int = 0) -> Wired:
    """The tokens at positions 1 and 2, added: two heads fetch them, an MLP has a unit for each pair of numbers."""
    d_vocab, length = modulus + 4, 6
    model, pick = blank(
        {"first": modulus, "second": modulus}, d_vocab=d_vocab, n_ctx=length, n_layers=2, n_heads=3, d_mlp=modulus**2,
        norm=norm,
    )  # fmt: skip
    numbers = pick["token"][:, :modulus]
    for head, part in ((0, "first"), (2, "second")):
        look_at(model, pick, 0, head, 1 + head // 2)
        put(model, 0, head, q=torch.zeros(1, 0), k=torch.zeros(1, 0), v=numbers, o=pick[part].T)
    mlp = model.blocks[0].mlp
    with torch.no_grad():
        for unit in range(modulus**2):
            a, b = divmod(unit, modulus)
            mlp.W_in[:, unit] = pick["first"][:, a] + pick["second"][:, b]
            mlp.b_in[unit] = -1.0
            mlp.W_out[unit] = LOUD * pick["out"][:, (a + b) % modulus]
    distract(model, pick, {"L0H0", "L0H2", "mlp 0"}, seed)
    edges = [(f"L0H{head}", "mlp 0") for head in (0, 2)] + [("embed", f"L0H{head}.v") for head in (0, 2)]
    generator = torch.Generator().manual_seed(seed)

    def text() -> list[int]:
        a, b = torch.randint(modulus, (2,), generator=generator).tolist()
        return [modulus, a, b, *(modulus + torch.randint(4, (length - 3,), generator=generator)).tolist()]

    def answer(ids: list[int]) -> int:
        return (ids[1] + ids[2]) % modulus

    return _wired(model, text, answer, [*edges, ("mlp 0", "logits")], n, different=[1, 2])


def backup(n: int = 16, *, norm: NormKind = None, seed: int = 0) -> Wired:
    """Whether a 1 stands at position 1 or at position 2: two heads look, an MLP is content with either.

    In clean texts it stands at both, in corrupted ones at neither, so neither head is missed alone.
    """
    length = 6
    model, pick = blank({"seen": 1}, d_vocab=5, n_ctx=length, n_layers=2, n_heads=3, d_mlp=2, norm=norm)
    for head in (0, 1):
        look_at(model, pick, 0, head, 1 + head)
        put(
            model, 0, head, q=torch.zeros(1, 0), k=torch.zeros(1, 0), v=pick["token"][:, [1]], o=pick["seen"].T
        )  # fmt: skip
    mlp = model.blocks[0].mlp
    with torch.no_grad():  # min(1, x) = relu(x) - relu(x - 1)
        mlp.W_in.copy_(pick["seen"].expand(-1, 2))
        mlp.b_in.copy_(torch.tensor([0.0, -1.0]))
        answer = LOUD * (pick["out"][:, 1] - pick["out"][:, 0])
        mlp.W_out.copy_(torch.stack([answer, -answer]))
        mlp.b_out.copy_(-answer / 2)
    distract(model, pick, {"L0H0", "L0H1", "mlp 0"}, seed)
    edges = [(f"L0H{head}", "mlp 0") for head in (0, 1)] + [("embed", f"L0H{head}.v") for head in (0, 1)]
    others = 2 + torch.randint(3, (n, length), generator=torch.Generator().manual_seed(seed))
    clean, corrupted = others.clone(), others.clone()
    clean[:, 1:3], corrupted[:, 1:3] = 1, 0
    answers = torch.ones(n, dtype=torch.long)
    return Wired(model, clean, corrupted, answers, 1 - answers, frozenset([*edges, ("mlp 0", "logits")]))


def _wired(model, text, answer, edges, n, *, different) -> Wired:
    """Pairs of texts that differ at certain places and in their answers."""
    pairs: list[tuple[list[int], list[int]]] = []
    while len(pairs) < n:
        one, other = text(), text()
        if answer(one) != answer(other) and all(one[i] != other[i] for i in different):
            pairs.append((one, other))
    clean, corrupted = (list(texts) for texts in zip(*pairs, strict=True))
    ids = [torch.tensor([answer(one) for one in texts]) for texts in (clean, corrupted)]
    return Wired(model, torch.tensor(clean), torch.tensor(corrupted), *ids, frozenset(edges))


PROGRAMS = {"induction": induction, "lookup": lookup, "addition": addition}
"""Those whose true edges are all found by patching one at a time."""
