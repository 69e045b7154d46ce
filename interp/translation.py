"""Translation: the encoder reads the source once, the decoder writes one token at a time. Under hooks too.

Greedy takes the most likely token; beam search follows the `num_beams` most likely beginnings. Keys and values of the
source and of what is already written are kept, which changes no token.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.models.encoder_decoder import HookedEncoderDecoder, PairCache
from interp.models.kernels import wide

NEVER = -1.0e9
"""A score below every real one, and still finite: what cannot be chosen keeps an order."""


def translate(
    model: HookedEncoderDecoder,
    text: str | Sequence[str],
    *,
    num_beams: int = 1,
    max_length: int | None = None,
    use_cache: bool = True,
) -> str | list[str]:
    """The translation of a text; of several texts a list.

    Args:
        num_beams: 1 is greedy; more is beam search. `model.config.num_beams` is what the model's makers advise.
        max_length: longest translation in tokens, start and end included; by default the model's context.
        use_cache: keep keys and values of earlier positions; the tokens are the same either way.

    Raises InputError for an empty or too long text, or options below 1.
    """
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        return []
    tokens, mask = model.to_batch(texts)
    rows = translate_tokens(model, tokens, mask, num_beams=num_beams, max_length=max_length, use_cache=use_cache)
    written = [model.to_string(row) for row in rows]
    return written[0] if isinstance(text, str) else written


@torch.no_grad()
def translate_tokens(
    model: HookedEncoderDecoder,
    source: Int[Tensor, "batch source_pos"],
    source_mask: Tensor | None = None,
    *,
    num_beams: int = 1,
    max_length: int | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """One list of token ids for each source: the start token, the translation, the end token. Options as above."""
    longest = model.config.n_ctx if max_length is None else max_length
    if num_beams < 1 or not 2 <= longest <= model.config.n_ctx:
        raise InputError(
            f"num_beams = {num_beams}, max_length = {longest}",
            f"expected at least 1 beam, and a length of 2 to {model.config.n_ctx}",
        )
    if num_beams == 1:
        return _greedy(_Decoder(model, source, source_mask, 1, use_cache), longest)
    rows = []
    for row in range(len(source)):  # one by one: sentences finish at different times
        mask = None if source_mask is None else source_mask[row : row + 1]
        rows.append(_beam(_Decoder(model, source[row : row + 1], mask, num_beams, use_cache), longest))
    return rows


class _Decoder:
    """The decoder, step by step: what was written so far in, log-probabilities of the next token out."""

    def __init__(
        self, model: HookedEncoderDecoder, source: Tensor, source_mask: Tensor | None, copies: int, cache: bool
    ) -> None:
        self.model = model
        self.memory = model.encode(source, source_mask).repeat_interleave(copies, 0)
        self.mask = None if source_mask is None else source_mask.repeat_interleave(copies, 0)
        self.past = PairCache() if cache else None

    def logits(self, written: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch d_vocab"]:
        unread = written if self.past is None else written[:, self.past.length :]
        self.model.context.growing = True
        try:
            logits = self.model.decode(unread, self.memory, source_mask=self.mask, past=self.past)[:, -1]
        finally:
            self.model.context.growing = False
        return wide(logits)


def _restrict(model: HookedEncoderDecoder, scores: Tensor, last: bool) -> Tensor:
    """Scores with what may not be written at minus infinity."""
    config = model.config
    if config.forbidden_tokens:
        scores[:, list(config.forbidden_tokens)] = -torch.inf
    if last and config.forced_end_token is not None:
        scores = torch.full_like(scores, -torch.inf)
        scores[:, config.forced_end_token] = 0.0
    return scores


def _greedy(decoder: _Decoder, longest: int) -> list[list[int]]:
    model, batch, end = decoder.model, len(decoder.memory), decoder.model.config.end_token
    written = torch.full((batch, 1), model.config.start_token, device=model.device)
    ended = torch.zeros(batch, dtype=torch.bool, device=model.device)
    while written.shape[1] < longest and not bool(ended.all()):
        scores = _restrict(model, decoder.logits(written), written.shape[1] == longest - 1)
        chosen = scores.argmax(-1).masked_fill(ended, end)
        ended |= chosen == end
        written = torch.cat([written, chosen[:, None]], dim=1)
    return [_until_end(row, end) for row in written.tolist()]


def _until_end(row: list[int], end: int) -> list[int]:
    """Without what was filled in after the end; the start token may be the same token as the end."""
    return row[: row.index(end, 1) + 1] if end in row[1:] else row


def _beam(decoder: _Decoder, longest: int) -> list[int]:
    """The best of the hypotheses that ended, by log-probability over length to the power of `length_penalty`.

    Each step takes the 2 x beams best continuations: those among the first `beams` that end join the ended ones, and
    the best that do not end go on. It is over when no hypothesis that goes on can beat the worst of `beams` ended ones.
    """
    model, config, beams = decoder.model, decoder.model.config, len(decoder.memory)
    written = torch.full((beams, 1), config.start_token, device=model.device)
    scores = torch.full((beams,), NEVER, device=model.device)
    scores[0] = 0.0  # all beginnings are the same: follow one
    ended: list[tuple[float, list[int]]] = []
    while True:
        length = written.shape[1]
        step = _restrict(model, decoder.logits(written).log_softmax(-1), length == longest - 1)
        step = step.log_softmax(-1) if config.renormalize else step
        best, places = (step + scores[:, None]).flatten().topk(2 * beams)
        rows, tokens = places // config.d_vocab, places % config.d_vocab
        finished = (tokens == config.end_token) | (length + 1 == longest)
        for place in finished[:beams].nonzero()[:, 0].tolist():
            row = [*written[rows[place]].tolist(), int(tokens[place])]
            ended.append((float(best[place]) / length**config.length_penalty, row))
        ended = sorted(ended, key=lambda one: -one[0])[:beams]
        if bool(finished.all()):
            break
        scores, kept = (best + finished * NEVER).topk(beams)
        rows = rows[kept]
        written = torch.cat([written[rows], tokens[kept, None]], dim=1)
        if decoder.past is not None:
            decoder.past.select(rows)
        if len(ended) == beams and float(scores[0]) / length**config.length_penalty <= ended[-1][0]:
            break
    return ended[0][1]
