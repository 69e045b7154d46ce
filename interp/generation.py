"""The outer loop: predict, choose, append, repeat. Under hooks too, with and without a KV cache alike."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError, check_seed
from interp.migration import refuse_keywords
from interp.models.gpt import HookedGPT, TextOrTokens
from interp.models.kernels import wide
from interp.models.positions import KVCache, check_tokens


def sampling_distribution(
    logits: Float[Tensor, "*batch d_vocab"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Float[Tensor, "*batch d_vocab"]:
    """The probabilities a token is drawn from.

    Args:
        temperature: divides the logits; 0 puts all mass on the largest.
        top_k: only the k most probable tokens stay.
        top_p: only the smallest set of most probable tokens that holds at least this mass stays (Holtzman et al. 2020),
            after top_k; the most probable token always stays.

    Raises InputError for values outside these meanings.
    """
    if (
        not all(isinstance(x, (int, float)) for x in (temperature, top_p or 0))
        or not isinstance(top_k or 0, int)
        or not 0 <= temperature < math.inf
        or (top_k is not None and top_k < 1)
        or (top_p is not None and not 0 < top_p <= 1)
    ):
        raise InputError(
            f"temperature = {temperature}, top_k = {top_k}, top_p = {top_p}",
            "expected a finite temperature >= 0, top_k >= 1, 0 < top_p <= 1",
        )
    logits = wide(logits)
    if temperature < torch.finfo(logits.dtype).tiny:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # the largest at 0: no temperature overflows
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        kept = torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))
        probabilities = kept / kept.sum(-1, keepdim=True)
    return probabilities


@torch.no_grad()
def steps(
    model: HookedGPT,
    tokens: Int[Tensor, "batch pos"],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    use_cache: bool = True,
    attention_mask: Tensor | None = None,
) -> Iterator[tuple[Int[Tensor, " batch"], Float[Tensor, "batch d_vocab"]]]:
    """One step of the loop at a time: the tokens chosen and the logits they were chosen from."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    past = KVCache() if use_cache else None
    unread, mask = tokens, attention_mask
    for _ in range(max_new_tokens):
        model.context.growing = True
        try:
            logits = model(unread, attention_mask=mask, past=past)[:, -1]
        finally:
            model.context.growing = False
        probabilities = sampling_distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        if temperature == 0:
            chosen = probabilities.argmax(-1)
        else:  # drawn on the CPU, so that every device gives the same tokens for the same probabilities
            chosen = torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0].to(tokens.device)
        yield chosen, logits
        unread = chosen[:, None] if use_cache else torch.cat([unread, chosen[:, None]], dim=1)
        if mask is not None:
            mask = (
                torch.ones_like(chosen[:, None])
                if use_cache
                else torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            )


def generate(
    model: HookedGPT,
    text_or_tokens: TextOrTokens,
    *,
    max_new_tokens: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    use_cache: bool = True,
    attention_mask: Tensor | None = None,
    stop_at_end: bool = True,
    **unknown: Any,
) -> Int[Tensor, "batch pos"]:
    """The tokens given, followed by up to `max_new_tokens` new ones.

    Args:
        text_or_tokens: as the model's call takes them; texts of several lengths come back padded on the left.
        temperature, top_k, top_p: see `sampling_distribution`; temperature 0 is greedy.
        seed: of the random draws; the same seed gives the same tokens.
        use_cache: keep keys and values of earlier positions; the tokens are the same either way.
        attention_mask: [batch pos], 0 for padding on the left.
        stop_at_end: stop when every sequence has produced an end token of the tokenizer's; finished ones are filled up.

    Raises InputError when text and new tokens together exceed the model's context, or for a seed out of range.
    """
    refuse_keywords("generate", unknown)
    check_seed(seed)
    tokens, mask = model.as_batch(text_or_tokens, attention_mask)
    check_tokens(tokens, model.config.n_ctx, model.config.d_vocab)
    room = model.config.n_ctx - tokens.shape[1]
    if not isinstance(max_new_tokens, int):
        raise InputError(f"max_new_tokens = {max_new_tokens!r}", "expected a whole number")
    if max_new_tokens < 0 or max_new_tokens > room:
        raise InputError(
            f"{tokens.shape[1]} tokens and {max_new_tokens} new ones",
            f"expected 0 to {max(room, 0)} new tokens: the model's context is {model.config.n_ctx}",
        )
    if mask is not None and not mask[:, -1].all():
        raise InputError(
            "an attention_mask with padding on the right", "expected it on the left, as model.to_batch(texts) puts it"
        )
    if not model.config.causal:
        raise InputError("generation by a model whose positions see later ones", "expected causal attention")
    ends = sorted(model.tokenizer.ends) if stop_at_end and model.tokenizer is not None else []
    stops = torch.tensor(ends, device=tokens.device)
    ended = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
    new = []
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "use_cache": use_cache}
    for chosen, _ in steps(model, tokens, max_new_tokens=max_new_tokens, attention_mask=mask, **options):  # type: ignore[arg-type]
        if ends:
            chosen = chosen.masked_fill(ended, ends[0])
            ended |= torch.isin(chosen, stops)
        new.append(chosen)
        if ends and bool(ended.all()):
            break
    return torch.cat([tokens, *(column[:, None] for column in new)], dim=1)
