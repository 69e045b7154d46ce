"""The numbers of a report's first cards once more, slowly: loops over sequences and places, weights set to zero, whole
matrices in float64. Of the project only the model itself is used: its weights and one run that keeps its activations.
"""

import re
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from analyses.shared.panels import Finding
from interp.models.gpt import HookedGPT

SAMPLES, LENGTH = 12, 16
"""Sequences of random tokens, and the length of what is repeated, as the documentation of `head_roles` has them."""


class ByHand:
    """One model and one text."""

    def __init__(self, model: HookedGPT, text: str) -> None:
        self.model, self.tokens = model, model.to_tokens(text)

    @cached_property
    def run(self) -> tuple[Tensor, dict]:
        """Logits [1 pos d_vocab] and activations of the text."""
        with torch.no_grad():
            return self.model.run_with_cache(self.tokens)

    @cached_property
    def random(self) -> tuple[Tensor, Tensor, dict, dict]:
        """Random tokens, twice [sample pos]; the order [sample pos] that shuffles each; activations of both."""
        generator = torch.Generator().manual_seed(0)
        bos = self.model.tokenizer.bos
        known = [token for token in range(self.model.config.d_vocab) if token != bos]
        halves = [torch.randperm(len(known), generator=generator)[:LENGTH] for _ in range(SAMPLES)]
        ids = torch.tensor([[bos, *(known[i] for i in half), *(known[i] for i in half)] for half in halves])
        orders = [[0, *(1 + torch.randperm(2 * LENGTH, generator=generator)).tolist()] for _ in range(SAMPLES)]
        shuffled = torch.tensor([[row[i] for i in order] for row, order in zip(ids.tolist(), orders, strict=True)])
        with torch.no_grad():
            return ids, shuffled, self.model.run_with_cache(ids)[1], self.model.run_with_cache(shuffled)[1]

    def number(self, finding: Finding, analysis: str) -> float:
        """The finding's number; KeyError where no slow way is known."""
        return NUMBERS[analysis, finding.key](self, finding)

    # Where heads look: on random tokens and on the text

    def looks(self, pattern: Tensor, ids: list[int], keys: Callable[[list[int], int], list[int]]) -> float:
        """Mean attention of one pattern [query key] to some keys, over the queries that have any."""
        found = [float(pattern[query, keys(ids, query)].sum()) for query in range(1, len(ids)) if keys(ids, query)]
        return sum(found) / len(found)

    def role(self, finding: Finding, keys: Callable[[list[int], int], list[int]]) -> float:
        layer, head = head_of(finding.about)
        ids, _, cache, _ = self.random
        pairs = zip(cache["pattern", layer][:, head].double(), ids.tolist(), strict=True)
        return mean(self.looks(pattern, row, keys) for pattern, row in pairs)

    def on_text(self, finding: Finding, keys: Callable[[list[int], int], list[int]]) -> float:
        layer, head = head_of(finding.about)
        return self.looks(self.run[1]["pattern", layer][0, head].double(), self.tokens[0].tolist(), keys)

    def positional(self, finding: Finding) -> float:
        layer, head = head_of(finding.about)
        _, _, one, other = self.random
        a, b = (cache["pattern", layer][:, head].double() for cache in (one, other))
        return mean(
            sum(min(p, q) for p, q in zip(a[i, query].tolist(), b[i, query].tolist(), strict=True))
            for i in range(SAMPLES)
            for query in range(2, a.shape[1])
        )

    @torch.no_grad()
    def copying(self, finding: Finding) -> float:
        """How often the value at a place, through W_O and the unembedding, raises the place's own token most, counted
        from the mean of all places."""
        layer, head = head_of(finding.about)
        ids, _, cache, _ = self.random
        attn, hits = self.model.blocks[layer].attn, []
        for row, values in zip(ids.tolist(), cache["v", layer].double(), strict=True):
            written = values[1:, head // attn.group] @ attn.W_O[head].double()  # [place d_model]
            raised = written @ self.unembedded[:, row[1:]]  # [place token]
            raised = raised - raised.mean(0)
            hits += [own_is_best(raised[place], row[1:], place) for place in range(len(row) - 1)]
        return mean(hits)

    @cached_property
    def unembedded(self) -> Tensor:
        """[d_model d_vocab] what adds to each logit, behind the last norm but for its scale."""
        norm = self.model.ln_final
        folded = (norm.gain[:, None] * self.model.W_U).double()
        return folded - folded.mean(0) if norm.centred else folded

    def resting(self, finding: Finding) -> float:
        """Heads that give more than half of their attention to the first token."""
        cache, config = self.run[1], self.model.config
        shares = [cache["pattern", layer][0, head, 1:, 0].mean() for layer in range(config.n_layers)
                  for head in range(config.n_heads)]  # fmt: skip
        return sum(float(share) > 0.5 for share in shares)

    # What heads are built to do

    def circuits(self, name: str) -> tuple[Tensor, Tensor]:
        """W_QK and W_OV [d_model d_model] of a head, the gain before it and the mean's direction taken in."""
        layer, head = head_of(name)
        block = self.model.blocks[layer]
        attn, one = block.attn, torch.eye(self.model.config.d_model, dtype=torch.float64)
        away = one - 1 / len(one) if block.ln1.centred else one
        read = away @ torch.diag(block.ln1.gain.double())
        q, k, v = (w.double() for w in (attn.W_Q[head], attn.W_K[head // attn.group], attn.W_V[head // attn.group]))
        return read @ q @ k.T @ read.T, read @ v @ attn.W_O[head].double() @ away

    @torch.no_grad()
    def composition(self, finding: Finding) -> float:
        kind, writer = re.search(r"reads its (query|key|value) from (L\d+H\d+)", finding.short).groups()
        (qk, ov), (_, first) = self.circuits(finding.about), self.circuits(writer)
        second = {"query": qk, "key": qk.T, "value": ov}[kind]
        return float((first @ second).norm() / first.norm() / second.norm())

    @torch.no_grad()
    def copies(self, finding: Finding) -> float:
        """Eigenvalues of W_E W_OV W_U, as those of W_OV W_U W_E (the others are zero); the logits centred."""
        _, ov = self.circuits(finding.about)
        vocabulary = self.unembedded - self.unembedded.mean(1, keepdim=True)
        eigenvalues = torch.linalg.eigvals(ov @ vocabulary @ self.model.W_E.double())
        return float(eigenvalues.sum().real / eigenvalues.abs().sum())

    # What the text shows

    def loss_of(self) -> float:
        with torch.no_grad():
            chances = self.model(self.tokens)[0].double().log_softmax(-1)
        following = self.tokens[0, 1:].tolist()
        return mean(-float(chances[place, token]) for place, token in enumerate(following))

    @torch.no_grad()
    def without(self, finding: Finding) -> float:
        """What the loss rises by where the head's W_O, or the MLP's W_out and bias, are zero."""
        block = self.model.blocks[int(re.search(r"\d+", finding.about)[0])]
        if finding.about.startswith("mlp"):
            out = [weight for name, weight in block.mlp.named_parameters() if name.endswith(("W_out", "b_out"))]
        else:
            heads = block.attn.W_O_flat.view(self.model.config.n_heads, self.model.config.d_head, -1)
            out = [heads[head_of(finding.about)[1]]]
        before, kept = self.loss_of(), [weight.clone() for weight in out]
        for weight in out:
            weight.zero_()
        after = self.loss_of()
        for weight, was in zip(out, kept, strict=True):
            weight.copy_(was)
        return after - before

    @torch.no_grad()
    def direct(self, finding: Finding) -> float:
        """What one head or MLP adds to the most likely token's logit, counted from the mean of all tokens."""
        logits, cache = self.run
        layer = int(re.search(r"\d+", finding.about)[0])
        if finding.about.startswith("mlp"):
            written = cache["mlp_out", layer][0, -1].double()
        else:
            head = head_of(finding.about)[1]
            written = cache["z", layer][0, -1, head].double() @ self.model.blocks[layer].attn.W_O[head].double()
        added = written @ self.unembedded / float(cache["ln_final.hook_scale"][0, -1])
        return float(added[logits[0, -1].argmax()] - added.mean())

    def lens(self, place: str) -> Tensor:
        """Log-probabilities [pos d_vocab] read after a half-block such as "L2 attn"."""
        layer, part = re.fullmatch(r"L(\d+) (attn|mlp)", place).groups()
        stream = self.run[1]["resid_mid" if part == "attn" else "resid_post", int(layer)]
        with torch.no_grad():
            logits = self.model.ln_final(stream)[0] @ self.model.W_U
            return (logits if self.model.b_U is None else logits + self.model.b_U).double().log_softmax(-1)

    def half(self, finding: Finding) -> float:
        final = self.run[0][0].double().log_softmax(-1)
        lens = self.lens(re.search(r"half formed after (L\d+ \w+):", finding.text)[1])
        return mean(float((p.exp() * (p - q)).sum()) for p, q in zip(final, lens, strict=True))

    def stands(self, finding: Finding) -> float:
        """The share of places where the lens has the final choice from a half-block on."""
        named = re.search(r"stands from (L\d+ \w+) on", finding.text)[1]
        places = [f"L{layer} {part}" for layer in range(self.model.config.n_layers) for part in ("attn", "mlp")]
        final = self.run[0][0].argmax(-1)
        agreed = torch.stack([self.lens(place).argmax(-1) == final for place in places[places.index(named) :]])
        return float(agreed.all(0).double().mean())

    def chances(self, finding: Finding) -> float:
        """Mean probability of the token that comes next."""
        given = self.run[0][0].double().softmax(-1)
        return mean(float(given[place, token]) for place, token in enumerate(self.tokens[0, 1:].tolist()))

    def largest(self, finding: Finding) -> float:
        """The activation of the stream that is furthest from zero."""
        streams = [self.run[1]["resid_post", layer][0] for layer in range(self.model.config.n_layers)]
        values = torch.stack(streams).flatten()
        return float(values[values.abs().argmax()])


def head_of(name: str) -> tuple[int, int]:
    layer, head = re.fullmatch(r"L(\d+)H(\d+)", name).groups()
    return int(layer), int(head)


def mean(values: Iterator[float] | list[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def own_is_best(raised: Tensor, row: list[int], place: int) -> bool:
    return all(raised[place] > raised[k] for k, token in enumerate(row) if token != row[place])


def earlier(ids: list[int], query: int) -> list[int]:
    return [key for key in range(query) if ids[key] == ids[query]]


def after_earlier(ids: list[int], query: int) -> list[int]:
    return [key + 1 for key in earlier(ids, query) if key + 1 < query]


def before(ids: list[int], query: int) -> list[int]:
    return [query - 1]


def not_first(keys: Callable[[list[int], int], list[int]]) -> Callable[[list[int], int], list[int]]:
    """From query 2 on: before, the token before is the first."""
    return lambda ids, query: keys(ids, query) if query >= 2 else []


NUMBERS: dict[tuple[str, str], Callable[[ByHand, Finding], float]] = {
    ("head_roles", "induction"): lambda hand, one: hand.role(one, after_earlier),
    ("head_roles", "duplicate-token"): lambda hand, one: hand.role(one, earlier),
    ("head_roles", "previous-token"): lambda hand, one: hand.role(one, not_first(before)),
    ("head_roles", "first-token"): lambda hand, one: hand.role(one, not_first(lambda ids, query: [0])),
    ("head_roles", "positional"): ByHand.positional,
    ("head_roles", "copying"): ByHand.copying,
    ("attention_patterns", "after-same"): lambda hand, one: hand.on_text(one, after_earlier),
    ("attention_patterns", "same"): lambda hand, one: hand.on_text(one, earlier),
    ("attention_patterns", "previous"): lambda hand, one: hand.on_text(one, before),
    ("attention_patterns", "first"): ByHand.resting,
    ("composition", "strongest"): ByHand.composition,
    ("head_circuits", "copying"): ByHand.copies,
    ("ablation", "loss-zero-heads"): ByHand.without,
    ("ablation", "loss-zero-others"): ByHand.without,
    ("direct_logit_attribution", "strongest"): ByHand.direct,
    ("logit_lens", "kl"): ByHand.half,
    ("logit_lens", "settled"): ByHand.stands,
    ("logit_lens", "probability"): ByHand.chances,
    ("residual_stream", "massive"): ByHand.largest,
    ("next_token", "distribution"): lambda hand, _: float(hand.run[0][0, -1].double().softmax(-1).max()),
    ("surprise", "loss"): lambda hand, _: hand.loss_of(),
}
"""Analysis and key of a finding -> its number, a slow way."""
