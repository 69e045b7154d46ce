"""Numbers read from logits: loss, logit difference, KL divergence, probability, rank; and bundles of them for sweeps.

Shapes: logits [... d_vocab], targets [...]; results [...]. Losses and divergences are in nats, ranks start at 1 (most
likely). Everything here is differentiable except the rank.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError, nearest

if TYPE_CHECKING:
    from interp.models.encoder import HookedEncoder
    from interp.models.encoder_decoder import HookedEncoderDecoder
    from interp.models.gpt import HookedGPT

MetricName = Literal["loss", "kl", "logit_diff", "logit", "prob", "prob_diff", "rank"]
METRICS: tuple[str, ...] = get_args(MetricName)
TokenChoice: TypeAlias = str | int | Sequence[str] | Sequence[int] | Tensor
"""A token as text or id, for all texts or one for each."""

UNITS: Mapping[str, str] = {
    "loss": "nats",
    "kl": "nats",
    "logit_diff": "logits",
    "logit": "logits",
    "prob": "probability",
    "prob_diff": "probability",
    "rank": "rank",
}
TITLES: Mapping[str, str] = {
    "loss": "loss",
    "kl": "KL divergence from the clean prediction",
    "logit_diff": "logit difference",
    "logit": "answer's logit",
    "prob": "answer's probability",
    "prob_diff": "probability of the right answers minus that of the wrong ones",
    "rank": "answer's rank",
}


def target_logits(logits: Float[Tensor, "... d_vocab"], target: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The logit of one token in each place."""
    return logits.gather(-1, target.expand(logits.shape[:-1])[..., None])[..., 0]


def log_probability(logits: Float[Tensor, "... d_vocab"], target: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The log-probability of one token in each place, in nats."""
    return target_logits(logits, target) - logits.logsumexp(-1)


def probability(logits: Float[Tensor, "... d_vocab"], target: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The probability of one token in each place."""
    return log_probability(logits, target).exp()


def rank(logits: Float[Tensor, "... d_vocab"], target: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """1 for the most likely token; the number of tokens with a strictly higher logit, plus one."""
    return (logits > target_logits(logits, target)[..., None]).sum(-1) + 1


def logit_difference(
    logits: Float[Tensor, "... d_vocab"], answer: Int[Tensor, "..."], wrong: Int[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """The answer's logit minus the wrong answer's."""
    return target_logits(logits, answer) - target_logits(logits, wrong)


def probability_difference(
    logits: Float[Tensor, "... d_vocab"], right: Int[Tensor, "... right"], wrong: Int[Tensor, "... wrong"]
) -> Float[Tensor, "..."]:
    """The probability of all right tokens minus that of all wrong ones (Hanna et al. 2023, greater-than); -1: none."""
    chances = logits.softmax(-1)

    def of(tokens: Tensor) -> Tensor:
        known = tokens.expand(*logits.shape[:-1], -1)
        return (chances.gather(-1, known.clamp(min=0)) * (known >= 0)).sum(-1)

    return of(right) - of(wrong)


def token_loss(logits: Float[Tensor, "... pos d_vocab"], tokens: Int[Tensor, "... pos"]) -> Float[Tensor, "... pos-1"]:
    """Cross-entropy of each actual next token, in nats; the last position has no next token and is left out."""
    return -log_probability(logits[..., :-1, :], tokens[..., 1:])


def kl_divergence(log_p: Float[Tensor, "... d_vocab"], log_q: Float[Tensor, "... d_vocab"]) -> Float[Tensor, "..."]:
    """KL(p || q) in nats, of log-probabilities; terms with p = 0 count as zero."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def check_metrics(names: Sequence[str], known: Sequence[str] = METRICS) -> tuple[str, ...]:
    """The names as a tuple. Raises InputError for an empty list or an unknown metric."""
    if not names:
        raise InputError("no metrics given", f"expected some of {', '.join(known)}")
    for name in names:
        if name not in known:
            close = nearest(str(name), list(known), 1)
            raise InputError(
                f"unknown metric {name!r}",
                f"expected {', '.join(known)}",
                f"did you mean {close[0]!r}?" if close else "",
            )
    return tuple(names)


@dataclass(frozen=True, kw_only=True, eq=False)
class Readout:
    """Metrics of one batch as a function of its logits; what a sweep calls for every variant.

    `loss` is the mean over the text's tokens and `kl` the mean over the positions read; `logit_diff`, `logit`, `prob`
    and `rank` concern `answer` (and `wrong`) at the last position, or at `at`; `log_prob` too, unless `following` is
    given: then it is that of all its tokens together. `prob_diff` is of `sets` where given, else of the two answers.
    `losses`, beside `loss`, are those of the single tokens.
    """

    names: tuple[str, ...]
    tokens: Int[Tensor, "batch pos"]
    answer: Int[Tensor, " batch"] | None = None
    wrong: Int[Tensor, " batch"] | None = None
    sets: tuple[Int[Tensor, "batch right"], Int[Tensor, "batch wrong"]] | None = None
    """All tokens that are right, and all that are wrong, -1 where there are fewer."""
    clean: Float[Tensor, "batch read d_vocab"] | None = None
    """Log-probabilities of the unchanged run at the positions read; needed for `kl`."""
    everywhere: bool = True
    """Whether `kl` reads every position, or only the last."""
    vocab: tuple[int, ...] | None = None
    """Token ids of the columns of the logits; None means the whole vocabulary. See `narrowed`."""
    at: int | None = None
    """The position of the answer's logits; None: the last."""
    following: Int[Tensor, "batch pos"] | None = None
    """The token whose loss counts at each position, -1 (in all texts) where none does; None: the next of `tokens`."""

    def narrowed(self) -> "Readout":
        """The same metrics, asking for the logits of the answers alone where these suffice (`sweep(vocab=...)`)."""
        if not set(self.names) <= {"logit_diff", "logit"} or self.answer is None:
            return self
        wrong = self.answer if self.wrong is None else self.wrong
        ids = torch.cat([self.answer, wrong]).unique()
        at, wrong_at = torch.searchsorted(ids, self.answer), torch.searchsorted(ids, wrong)
        return replace(self, vocab=tuple(ids.tolist()), answer=at, wrong=wrong_at)

    @cached_property
    def read(self) -> list[int]:
        """The positions whose logits are needed."""
        length, asked = self.tokens.shape[1], set(self.names)
        if ("loss" in asked and self.following is None) or ("kl" in asked and self.everywhere):
            return list(range(length))
        return sorted({*(self._spots if asked & {"loss", "log_prob"} else ()), self._place})

    @property
    def _place(self) -> int:
        return self.tokens.shape[1] - 1 if self.at is None else self.at

    @cached_property
    def _spots(self) -> list[int]:
        """Where a token is following."""
        return [] if self.following is None else (self.following[0] >= 0).nonzero()[:, 0].tolist()

    def __call__(self, logits: Float[Tensor, "batch read d_vocab"]) -> dict[str, Float[Tensor, "batch *token"]]:
        found = {name: self._one(name, logits) for name in self.names if name not in ("loss", "losses", "kl")}
        if "kl" in self.names:  # it and the loss read the same log-probabilities
            clean = self._given(self.clean, "the clean log-probabilities")
            same = clean.shape[1] == logits.shape[1]
            log_q = (logits if same else self._answering(logits)[:, None]).log_softmax(-1)
            if "loss" in self.names and self.following is None and log_q.shape[1] == self.tokens.shape[1]:
                found["losses"] = -target_logits(log_q[:, :-1], self.tokens[:, 1:])
            found["kl"] = self._divergence(clean, log_q).mean(-1)
        if "loss" in self.names:
            if "losses" not in found:
                wanted = self.following is not None
                found["losses"] = self._wanted(logits) if wanted else token_loss(logits, self.tokens)
            found["loss"] = found["losses"].mean(-1)
        return {name: found[name] for name in self.names}

    def _answering(self, logits: Tensor) -> Tensor:
        """[batch d_vocab] where the answer is predicted."""
        return logits[:, -1 if self.at is None else self.read.index(self.at)]

    def _wanted(self, logits: Tensor) -> Tensor:
        """[batch spot] the loss of each token of `following`."""
        following = self._given(self.following, "tokens that follow")
        columns = [self.read.index(spot) for spot in self._spots]
        return -log_probability(logits[:, columns], following[:, self._spots])

    def _divergence(self, clean: Tensor, log_q: Tensor) -> Tensor:
        """`kl_divergence` in fewer passes over the vocabulary, unless gradients are wanted or logits are infinite."""
        if torch.is_grad_enabled() or clean.dtype != log_q.dtype:
            return kl_divergence(clean, log_q)
        found = (clean - log_q).mul_(self._probability).sum(-1)
        return found if found.isfinite().all() else kl_divergence(clean, log_q)

    @cached_property
    def _probability(self) -> Tensor:
        """Of the unchanged run, as `clean`."""
        return self._given(self.clean, "the clean log-probabilities").exp()

    def _one(self, name: str, logits: Tensor) -> Tensor:
        if name == "log_prob" and self.following is not None:
            return -self._wanted(logits).sum(-1)
        last, answer = self._answering(logits), self._given(self.answer, "an answer token")
        if name == "log_prob":
            return log_probability(last, answer)
        if name in ("logit_diff", "prob_diff"):
            wrong = self._given(self.wrong, "a wrong answer token")
            if name == "logit_diff":
                return logit_difference(last, answer, wrong)
            return probability_difference(last, *(self.sets or (answer[:, None], wrong[:, None])))
        if name == "rank":
            return rank(last, answer).to(logits.dtype)
        return target_logits(last, answer) if name == "logit" else probability(last, answer)

    @staticmethod
    def _given(value: Tensor | None, what: str) -> Tensor:
        if value is None:
            raise InputError(f"the metric needs {what}")
        return value


@dataclass(frozen=True, kw_only=True, eq=False)
class CustomReadout:
    """A user's own function of the logits at stated positions, under the name `metric`."""

    function: Callable[[Tensor], Tensor]
    """logits [batch read d_vocab] -> [batch]."""
    read: Sequence[int]
    """Positions handed to the function, in this order."""
    vocab: None = None

    def __call__(self, logits: Float[Tensor, "batch read d_vocab"]) -> dict[str, Float[Tensor, " batch"]]:
        value = self.function(logits)
        if not isinstance(value, Tensor) or value.shape != logits.shape[:1]:
            received = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"the metric returned {received}", f"expected one number a text: [{logits.shape[0]}]")
        return {"metric": value}


def token_ids(
    model: "HookedGPT | HookedEncoder | HookedEncoderDecoder", choice: TokenChoice, count: int
) -> Int[Tensor, " text"]:
    """The token a user names for each of `count` texts, as ids.

    Raises InputError for text that is not exactly one token, an id outside the vocabulary, or another number of tokens.
    """
    several = choice.tolist() if hasattr(choice, "tolist") else choice  # tensors and numpy's arrays and numbers
    items = [several] if isinstance(several, (str, int)) else list(several)
    if len(items) not in (1, count):
        raise InputError(f"{len(items)} tokens for {count} texts", "expected one for all texts, or one for each")
    bare, known = model.tokenizer is None, getattr(model.config, "d_vocab_out", model.config.d_vocab)
    items = [int(item) if bare and isinstance(item, str) and item.isdigit() else item for item in items]
    ids = [model.to_single_token(item) if isinstance(item, str) else int(item) for item in items]
    for token in ids:
        if not 0 <= token < known:
            raise InputError(f"token id {token}", f"expected 0 to {known - 1}, this model's vocabulary")
    return torch.tensor(ids * (count if len(ids) == 1 else 1), device=model.device)


def top_tokens(
    logits: Float[Tensor, "batch d_vocab"], answer: Int[Tensor, " batch"] | None = None
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
    """The most likely token as the answer (unless one is given), and the most likely other one as the wrong answer."""
    best = logits.argmax(-1) if answer is None else answer
    others = logits.scatter(-1, best[:, None], -torch.inf)
    return best, others.argmax(-1)
