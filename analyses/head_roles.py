"""Which heads look back one token, find repeats, continue them, rest on the first token, or copy.

Question: which of the roles that attention heads are known to play does each head play, beyond chance?

Method: attention averaged over the places where the role is defined. `previous_token`: from each token to the one
before it. `duplicate_token`: to earlier occurrences of the same token. `induction`: to the tokens after them (Olsson et
al. 2022, "In-context Learning and Induction Heads"; the first two as in Wang et al. 2022, "Interpretability in the
Wild"). `first_token`: to the first token (an attention sink, Xiao et al. 2023). `positional`: the share of the pattern
that stays when all tokens but the first are shuffled. `copying`: the share of places whose token is the one that the
head's value there raises most in the logits, among all tokens of the sequence. With an answer, `name_mover` is the
attention from the last place to the answer times how far the head's value there raises the answer's logit among the
sequence's tokens (1 the most, -1 the least); `copy_suppression` is its negative (McDougall et al. 2023).

The null. Roles that concern content (duplicate_token, induction, copying, and those with an answer): the same places,
in a run of the same tokens shuffled. Roles that concern place (previous_token, first_token, positional) survive that,
so their null shuffles places: attention to any other earlier place; for `positional`, the overlap of patterns after
each query's keys are shuffled. A head is named when its score is at least .3 above its null on average and the
difference over sequences is beyond chance (paired t test, Benjamini-Hochberg q below .05 over all heads and roles).

What it shows: what heads attend to, and for `copying` what they would write if they attended there. Not that the
model's output depends on it: see `ablation`. A head can play several roles.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.shared.axes import Axes, said_mean
from analyses.shared.capabilities import analysis
from analyses.shared.inputs import TextOrTokens, sequences
from analyses.shared.metrics import TokenChoice, token_ids
from analyses.shared.panels import Finding, Marks, Matrix, Note, Panel, Result, Table
from analyses.shared.statistics import Interval, bootstrap, held_out, methods, paired_t_p_value, q_values
from analyses.shared.weight_circuits import added, reading
from interp.errors import InputError
from interp.hooks import HookPoint
from interp.models.gpt import HookedGPT
from interp.models.kernels import wide

ROLES = ("previous_token", "duplicate_token", "induction", "first_token", "positional", "copying")
ANSWER_ROLES = ("name_mover", "copy_suppression")
SHUFFLES = 2
"""Shuffled versions of each given text; random sequences have one each."""
MARGIN = 0.3
"""How far a named head's score is above its null."""
MEANING = {
    "previous_token": "attention to the token before",
    "duplicate_token": "attention to earlier occurrences of the same token",
    "induction": "attention to the tokens after earlier occurrences of the same token",
    "first_token": "attention to the first token",
    "positional": "share of the pattern that stays when tokens are shuffled",
    "copying": "share of places whose own token the head would raise most",
    "name_mover": "attention to the answer times how far the head raises its logit",
    "copy_suppression": "attention to the answer times how far the head lowers its logit",
}
SAID = {
    "previous_token": "gives {} of its attention to the token before",
    "duplicate_token": "gives {} of its attention to earlier copies of the token it stands at",
    "induction": "gives {} of its attention to what followed earlier copies of the token it stands at",
    "first_token": "gives {} of its attention to the first token",
    "positional": "keeps {} of its pattern when the tokens are shuffled",
    "copying": "would raise a token that it reads more than all others at {} of the places",
}
"""What the strongest head of a role does, with its score in percent."""
WEIGHTS = {"induction": 0.95, "previous_token": 0.8, "duplicate_token": 0.7, "copying": 0.5}
"""How notable a role is; 0.3 where it is not named."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Scores of all heads on one set of sequences."""

    what: str
    """The sequences, in words."""
    roles: tuple[str, ...]
    scores: np.ndarray
    """[sequence role layer head], 0 to 1 (name_mover and copy_suppression -1 to 1); NaN where a role is not defined."""
    nulls: np.ndarray
    """[sequence role layer head], the same under the null."""
    seed: int

    @cached_property
    def interval(self) -> Interval:
        """Mean score and 95 % interval over sequences, [role layer head]."""
        return bootstrap(self.scores, seed=self.seed)

    @cached_property
    def null(self) -> np.ndarray:
        """[role layer head], mean under the null."""
        return bootstrap(self.nulls, seed=self.seed, resamples=1).value

    @cached_property
    def q(self) -> np.ndarray:
        """[role layer head], q-values that a score is no higher than its null; NaN for fewer than two sequences."""
        return q_values(paired_t_p_value(self.scores - self.nulls, greater=True))

    def chosen(self, role: int, layer: int, head: int) -> tuple[float | None, float | None]:
        """The interval of a score that is told because it is the highest of its role."""
        heads = self.scores.shape[2] * self.scores.shape[3]
        return bootstrap(self.scores[:, role, layer, head], chosen_of=heads, share=True).ends()

    def chance(self, role: str, layer: int, head: int) -> float | None:
        """p that a score is no higher than its null, for the choice among all heads and roles (Bonferroni); None for
        fewer than two sequences."""
        place = self.roles.index(role), layer, head
        p = float(paired_t_p_value((self.scores - self.nulls)[:, *place], greater=True))
        return None if np.isnan(p) else min(p * int(np.isfinite(self.q).sum()), 1.0)

    @cached_property
    def named(self) -> pd.DataFrame:
        """Heads above their null: columns head, role, score, low, high, null, q; strongest first within each role."""
        frame = self.to_dataframe().assign(q=self.q.ravel(), order=np.arange(self.q.size) // self.q[0].size)
        frame["head"] = [f"L{layer}H{head}" for layer, head in zip(frame["layer"], frame["head"], strict=True)]
        frame = frame[(frame["score"] - frame["null"] >= MARGIN) & ~(frame["q"] >= 0.05)]
        frame = frame.sort_values(["order", "score"], ascending=[True, False], kind="stable", ignore_index=True)
        return frame[["head", "role", "score", "low", "high", "null", "q"]]

    def to_dataframe(self) -> pd.DataFrame:
        scores = Axes.of(self.interval, role=self.roles, layer=None, head=None).frame("score", null=self.null)
        return scores.reindex(columns=["layer", "head", "role", "score", "null", "low", "high"])


@dataclass(frozen=True, kw_only=True)
class HeadRolesResult(Result):
    """Role scores of every head, on the given texts (if any) and on random repeated sequences."""

    measured: Measurement
    """On the given texts, or on random sequences where none were given; `to_dataframe` gives these."""
    random: Measurement
    """On random tokens, repeated once in each sequence: the findings rest on these. Without texts, `measured`."""

    def to_dataframe(self) -> pd.DataFrame:
        """Columns layer, head, role, score, null, low, high; NaN where undefined (no spread from a single text)."""
        return self.measured.to_dataframe()

    def panels(self) -> list[Panel]:
        panels = [self._table(self.random, "named", "Heads with a role"), *map(self._matrix, self.random.roles)]
        if self.measured is not self.random:
            panels += [self._table(self.measured, "named-text", "Heads with a role on the given text"), self._on_text()]
        panels.append(Note(
            "null", "What chance would give",
            text="Roles of content are compared with the same places in a run of shuffled tokens, roles of place with "
            f"any other earlier place. A head is named when its score is {MARGIN:g} above that and, where there are "
            "several sequences, q is below .05 (paired t test, Benjamini-Hochberg over all heads and roles). A head "
            "that attends may still not matter: the ablation shows what the output loses without it.",
        ))  # fmt: skip
        scores = self.random.scores
        return [*panels, *methods(
            len(scores), unit="sequences", halved=True, test="t", tests=int(np.isfinite(self.random.q).sum()),
            seed=self.random.seed,
            more="The t test is one-sided: score above null. The one that a summary names as the strongest has a "
            "Clopper-Pearson interval for the effective number of outcomes (Korn and Graubard 1998) at the Bonferroni "
            f"level 1 - .05/{scores.shape[2] * scores.shape[3]:,}, which allows for the choice.",
        )]  # fmt: skip

    def _table(self, measured: Measurement, key: str, title: str) -> Panel:
        frame = measured.named
        if frame.empty:
            return Note(key, title, text=f"No head is above its null on {measured.what}.")
        frame = frame.dropna(axis=1, how="all").assign(role=frame.role.str.replace("_", " "))
        said = f"Measured on {measured.what}, with 95 % intervals over sequences, each for itself."
        return Table(
            key, title, said if "low" in frame else f"Measured on {measured.what}. {said_mean(1)}", frame=frame,
            units={"score": "share", "null": "share"},
        )  # fmt: skip

    def _matrix(self, role: str) -> Matrix:
        measured, index = self.random, self.random.roles.index(role)
        null, found = measured.null[index], bootstrap(measured.scores[:, index], seed=measured.seed)
        return Axes.of(found, layer=None, head=None).matrix(
            role.replace("_", "-"), role.replace("_", " ").capitalize(),
            f"{MEANING[role].capitalize()}, on {measured.what}. Chance gives {null.mean():.2f} on average over heads, "
            f"{null.max():.2f} at most.", unit="share", family="role",
            floor=null,
        )  # fmt: skip

    def _on_text(self) -> Matrix:
        """All roles by all heads, on the given texts."""
        measured, (layers, heads) = self.measured, self.measured.scores.shape[2:]
        names = [f"L{layer}H{head}" for layer, head in np.ndindex(layers, heads)]
        found = bootstrap(measured.scores.reshape(*measured.scores.shape[:2], -1), seed=measured.seed)
        return Axes.of(found, role=[role.replace("_", " ") for role in measured.roles], head=names).matrix(
            "text", "All roles on the given text", f"The same scores on {measured.what}. Empty where a role is not "
            "defined, such as induction where no token occurs twice.", unit="share",
            diverging=bool(np.nanmin(found.value) < 0), image=len(names) > 40,
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        """The strongest head of each role; of place, where it is not one of the two places that have their own."""
        named = self.random.named
        placed = set(named["head"][named["role"].isin(("previous_token", "first_token"))])
        named = named[(named["role"] != "positional") | ~named["head"].isin(placed)]
        return [self._finding(str(role), frame) for role, frame in named.groupby("role", sort=False)]

    def _finding(self, role: str, heads: pd.DataFrame) -> Finding:
        best, n, key = heads.iloc[0], len(heads), role.replace("_", "-")
        others = f"; then {', '.join(heads['head'][1:4])}" * (n > 1) + f" and {n - 4} more" * (n > 4)
        layer, column = (int(part) for part in str(best["head"])[1:].split("H"))
        low, high = self.random.chosen(self.random.roles.index(role), layer, column)
        scores, held = self.random.scores[:, self.random.roles.index(role)], None
        if role != "positional":  # of that role, some heads may not be named
            held = held_out(
                scores, (layer, column), highest=True, share=True, unit="sequences", called="L{}H{}".format,
                seed=self.random.seed,
            )  # fmt: skip
        which = f"the strongest of {n} {key} heads" if n > 1 else f"{'an' if key[0] in 'aeiou' else 'a'} {key} head"
        return Finding(
            f"{best['head']} is {which}: on repeated random tokens it {SAID[role].format(f'{best.score:.0%}')} "
            f"(chance: {best.null:.0%}){others}.",
            key, WEIGHTS.get(role, 0.3), float(best.score), "share", low, high, kind="effect", null=_NULL[key],
            p=self.random.chance(role, layer, column), held=held, about=str(best["head"]),
            short=f"{which}, {best.score:.0%} on random tokens (chance: {best.null:.0%})",
        )  # fmt: skip

    def marks(self) -> Marks:
        """The roles of each head named on random sequences, in the order in which findings tell them."""
        frame = self.random.named.assign(gain=lambda rows: rows["score"] - rows["null"])
        frame["weight"] = [WEIGHTS.get(role, 0.3) for role in frame["role"]]
        frame = frame.sort_values(["weight", "gain"], ascending=False)
        kinds = frame["role"].str.replace("_", " ")
        roles = {str(head): tuple(some) for head, some in kinds.groupby(frame["head"])}
        return Marks(key="named", roles=roles, kinds=tuple(role.replace("_", " ") for role in ROLES))


_NULL = dict.fromkeys(("previous-token", "first-token"), "any other earlier place") | {
    "positional": "the keys in random order",
    "duplicate-token": "the tokens shuffled", "induction": "the tokens shuffled", "copying": "the tokens shuffled",
}  # fmt: skip


@analysis(place=60, needs=("next token",))
@torch.no_grad()
def head_roles(
    model: HookedGPT,
    tokens: TextOrTokens | None = None,
    *,
    answer: Annotated[TokenChoice | None, "answer's token (one or one a text): adds name-mover scores"] = None,
    samples: Annotated[int, "random sequences"] = 12,
    length: Annotated[int, "random tokens in each, before they are repeated"] = 16,
    seed: Annotated[int, "seed of the random sequences, shuffles and intervals"] = 0,
) -> HeadRolesResult:
    """Score every head for every role on texts (if given) and on random repeated sequences, each with its null.

    Raises InputError for an answer without a text, or unusable tokens; NotApplicable for a model that predicts no next
    token.
    """
    if samples < 1 or length < 2:
        raise InputError(f"samples = {samples}, length = {length}", "expected at least 1 sequence of at least 2 tokens")
    if tokens is None and answer is not None:
        raise InputError("an answer without a text", "expected texts that the answers follow")
    generator = torch.Generator().manual_seed(seed)
    ids = random_repeated(model, samples, length, generator)
    what = f"{samples} sequences of {ids.shape[1] // 2} random tokens, repeated once"
    random = _measure(model, [ids], what, None, 1, generator, seed)
    if tokens is None:
        return HeadRolesResult(measured=random, random=random)
    rows = sequences(model, tokens, at_least=3)
    answers = None if answer is None else token_ids(model, answer, len(rows))
    what = "the given text" if len(rows) == 1 else f"the {len(rows)} given texts"
    measured = _measure(model, rows, what, answers, SHUFFLES, generator, seed)
    return HeadRolesResult(measured=measured, random=random)


def random_repeated(model: HookedGPT, samples: int, length: int, generator: torch.Generator) -> Tensor:
    """[sample pos]: the beginning-of-text token (if any), then random tokens, twice; fewer where these do not fit."""
    bos = None if model.tokenizer is None else model.tokenizer.bos
    length = min(length, (model.config.n_ctx - 1) // 2)
    known = torch.tensor([token for token in range(model.config.d_vocab) if token != bos])
    if len(known) > length:
        half = torch.stack([known[torch.randperm(len(known), generator=generator)[:length]] for _ in range(samples)])
    else:
        half = known[torch.randint(len(known), (samples, length), generator=generator)]
    first = torch.full((samples, 1), bos) if bos is not None else half[:, :0]
    return torch.cat([first, half, half], 1).to(model.device)


def _measure(
    model: HookedGPT, groups: list[Tensor], what: str, answers: Tensor | None, shuffles: int,
    generator: torch.Generator, seed: int,
) -> Measurement:  # fmt: skip
    scores, nulls = [], []
    for number, ids in enumerate(groups):
        listener = _Scores(model, ids, None if answers is None else int(answers[number]), shuffles, generator)
        found, null = listener.run()
        scores.append(found)
        nulls.append(null)
    roles = ROLES if answers is None else ROLES + ANSWER_ROLES
    return Measurement(
        what=what, roles=roles, scores=np.concatenate(scores), nulls=np.concatenate(nulls), seed=seed
    )  # fmt: skip


class _Scores:
    """Scores and nulls of every head on sequences of one length, taken while the model runs them and shuffled ones."""

    def __init__(
        self, model: HookedGPT, ids: Tensor, answer: int | None, shuffles: int, generator: torch.Generator
    ) -> None:
        self.model, self.ids, self.answer = model, ids, answer
        batch, length = ids.shape
        orders = [
            torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(length - 1, generator=generator)])
            for _ in range(shuffles * batch)
        ]
        order = torch.stack(orders).to(ids.device)
        self.runs = torch.cat([ids, ids.repeat(shuffles, 1).gather(1, order)])
        later = torch.rand(length, length, generator=generator).triu(1) + torch.ones(length, length).triu(1)
        random = torch.rand(length, length, generator=generator).tril()
        self.key_order = (random + later).argsort(-1).to(ids.device)  # shuffles the keys that each query may attend to
        self.targets, self.defined = self._targets(), torch.arange(length, device=ids.device) >= 2
        self.directions = reading(model.ln_final, model.W_U[:, ids.flatten()]).unflatten(1, ids.shape)
        self.rank = ids.new_zeros(())  # of the layer that is running: [run head pos]
        n_roles = len(ROLES) + (len(ANSWER_ROLES) if answer is not None else 0)
        self.scores, self.nulls = (
            np.full((batch, n_roles, model.config.n_layers, model.config.n_heads), np.nan) for _ in range(2)
        )

    def _targets(self) -> dict[str, Tensor]:
        """Role -> [batch query key], where a head of that role would attend."""
        batch, length = self.ids.shape
        key = torch.arange(length, device=self.ids.device)
        query = key[:, None]
        same = (self.ids[:, :, None] == self.ids[:, None, :]) & (key < query)
        after = torch.zeros_like(same)
        after[:, :, 1:] = same[:, :, :-1] & (key[1:] < query)
        places = {"previous_token": (key == query - 1) & (query >= 2), "first_token": (key == 0) & (query >= 2)}
        return {role: place.expand(batch, -1, -1) for role, place in places.items()} | {
            "duplicate_token": same,
            "induction": after,
        }

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and nulls, each [sequence role layer head]."""
        with self.model.hooks([("v", self._values), ("pattern", self._pattern)], reads_only=True):
            self.model.run_to(self.runs)
        return self.scores, self.nulls

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The real runs [batch ...] and the shuffled ones [shuffle batch ...]."""
        batch = len(self.ids)
        return x[:batch], x[batch:].unflatten(0, (-1, batch))

    def _keep(self, role: str, layer: int, score: Tensor, null: Tensor) -> None:
        """Score and null, each [batch head]."""
        index = (ROLES + ANSWER_ROLES).index(role)
        self.scores[:, index, layer] = score.double().cpu().numpy()
        self.nulls[:, index, layer] = null.double().cpu().numpy()

    def _values(self, values: Tensor, hook: HookPoint) -> None:
        """Copying: does a head's value at a place raise that place's token above all others (against other places)?"""
        block = self.model.blocks[hook.layer]
        read = torch.einsum("hdm,mbj->bhdj", added(block.ln1_post, block.attn.W_O), self.directions)
        read = read.repeat(len(self.runs) // len(self.ids), 1, 1, 1)
        own_values = wide(values).repeat_interleave(block.attn.group, 2)  # of each query head
        raised = torch.einsum("bkhd,bhdj->bhkj", own_values, read)
        raised = raised - raised[:, :, 1:].mean(2, keepdim=True)
        own = raised.diagonal(dim1=-2, dim2=-1)
        other = self.ids[:, :, None] != self.ids[:, None, :]
        other[:, :, 0] = False
        other = other.repeat(len(self.runs) // len(self.ids), 1, 1)[:, None]
        beaten = ((raised < own[..., None]) + 0.5 * (raised == own[..., None])).masked_fill(~other, 0.0).sum(-1)
        self.rank = 2 * beaten / other.sum(-1).clamp(min=1) - 1
        best = (own > raised.masked_fill(~other, -torch.inf).amax(-1)).to(values.dtype)
        best = best.masked_fill(~other.any(-1), torch.nan)[..., 1:].nanmean(-1)
        score, null = self._split(best)
        self._keep("copying", hook.layer, score, null.nanmean(0))

    def _pattern(self, pattern: Tensor, hook: HookPoint) -> None:
        real, shuffled = self._split(pattern)
        for role, target in self.targets.items():
            score = _attended(real, target)
            if role in ("previous_token", "first_token"):
                earlier = torch.ones_like(target).tril(-1) & ~target
                share = earlier / earlier.sum(-1, keepdim=True).clamp(min=1)
                null = (real * share[:, None]).sum(-1)[..., self.defined].mean(-1)
            else:
                null = torch.stack([_attended(one, target) for one in shuffled]).mean(0)
            self._keep(role, hook.layer, score, null)
        moved = shuffled.gather(-1, self.key_order.expand_as(shuffled))
        overlap = (
            torch.minimum(real, other).sum(-1)[..., self.defined].mean(-1).mean(0) for other in (shuffled, moved)
        )
        self._keep("positional", hook.layer, *overlap)
        if self.answer is not None:
            self._answer(pattern, hook.layer)

    def _answer(self, pattern: Tensor, layer: int) -> None:
        """Name mover and copy suppression: attention from the last place to the answer, times its rank there."""
        places = torch.eq(self.ids, self.answer or 0)
        places[:, 0] = False
        at = places.repeat(len(self.runs) // len(self.ids), 1)[:, None]
        moved = (pattern[:, :, -1] * self.rank * at).sum(-1)
        score, null = self._split(moved.masked_fill(~at.any(-1), torch.nan))
        self._keep("name_mover", layer, score, null.mean(0))
        self._keep("copy_suppression", layer, -score, -null.mean(0))


def _attended(pattern: Tensor, target: Tensor) -> Tensor:
    """[batch head] attention to the target, averaged over the queries that have one; NaN where none has."""
    has = target.any(-1)
    mass = (pattern * target[:, None]).sum(-1)
    total: Tensor = (mass * has[:, None]).sum(-1) / has.sum(-1, keepdim=True)
    return total
