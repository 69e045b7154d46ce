"""How a text is made: one token at a time, each reading all the earlier ones, the model's own included.

Question: is there a loop inside the model, and what does each new token depend on?

Method: the text is continued greedily, one token a step. At every step each token in turn is taken out (its embedding
is replaced by the mean of all embeddings) and the next token's distribution is compared with the one before, as total
variation distance: 0 is no influence, 1 is another prediction altogether. In the same run every operation that has a
name is counted: a model without inner loops does each once for each pass, whatever the text.

What the numbers do not show: which operations carry the influence, nor what the model would do had the token been
another; taking tokens out together can do more than each alone.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.shared.axes import Axes
from analyses.shared.capabilities import analysis
from analyses.shared.inputs import TextOrTokens, sequences, token_labels
from analyses.shared.panels import Finding, Panel, Result, Table, Tokens
from interp.errors import InputError
from interp.hooks import HookPoint
from interp.models.gpt import HookedGPT
from interp.progress import track


@dataclass(frozen=True, kw_only=True)
class OuterLoopResult(Result):
    """The text as it grows."""

    tokens: Tokens
    """[pos] the text given and what was added."""
    given: int
    """How many tokens were given."""
    influence: np.ndarray
    """[step pos] total variation distance of the next token's distribution when the token is taken out; NaN for tokens
    that were not there yet."""
    probability: np.ndarray
    """[step] of the token added."""
    computed: tuple[int, ...]
    """[step] operations done in the pass that gave the step's token."""
    most_often: int
    """The most times that any single operation was done in one pass."""
    rows_used: float
    """Largest change of the prediction when the final embeddings of all positions but the last are set to zero."""
    total: np.ndarray
    """[step] sum of the probabilities of all tokens."""
    d_vocab: int

    @property
    def own_influence(self) -> np.ndarray:
        """[pair] influence of each token that the model added itself on each later step."""
        own = self.influence[:, self.given :]
        return np.asarray(own[~np.isnan(own)])

    @property
    def least_influence(self) -> float:
        """The smallest influence of any token, at any step, on the next token."""
        return float(np.nanmin(self.influence))

    def to_dataframe(self) -> pd.DataFrame:
        """One row per step and token read: step pos token read_influence own added probability."""
        steps, length = self.influence.shape
        frame = Axes.of(self.influence, step=range(1, steps + 1), pos=None).frame(
            "influence", token=np.array(self.tokens, dtype=object), own=np.arange(length) >= self.given,
            added=np.array(self.tokens[self.given :], dtype=object)[:, None], probability=self.probability[:, None],
        )  # fmt: skip
        read = frame["pos"] < self.given + frame["step"] - 1
        columns = ["step", "pos", "token", "influence", "own", "added", "probability"]
        return frame.loc[read, columns].reset_index(drop=True)

    def facts(self) -> dict[str, object]:
        return {"most_often": self.most_often, "computed": list(self.computed), "least_influence": self.least_influence}

    def panels(self) -> list[Panel]:
        steps, added = len(self.influence), Tokens(self.tokens[self.given :])
        frame = pd.DataFrame({
            "step": range(1, steps + 1), "tokens read": range(self.given, self.given + steps),
            "token added": list(added), "probability": self.probability, "operations in the pass": self.computed,
        })  # fmt: skip
        return [
            Axes.of(self.influence, **{"token added": added, "token read": self.tokens}).matrix(
                "growth", "The text grows by one token a step", "A row is a step, named by the token it added; a "
                "column is a token of the text. A cell is the influence of that token on the new one: how far the "
                "prediction moves when it is taken out.", unit="total variation distance",
            ),
            Table(
                "steps", "The steps",
                "Each step is one pass through the whole model, and every pass does the same operations once.",
                frame=frame, tokens=frozenset({"token added"}),
            ),
        ]  # fmt: skip

    def findings(self) -> list[Finding]:
        text = (
            f"Each of the {len(self.computed)} passes did {self.computed[0]} operations, none more than "
            f"{self.most_often} time{'s' * (self.most_often != 1)}: the only loop is the one outside."
        )
        return [Finding(text, "steps", 0.15, self.computed[0], "operations", kind="size")]


@analysis(place=12, needs=("next token",), in_report=None, runs=True)
@torch.no_grad()
def outer_loop(
    model: HookedGPT,
    tokens: TextOrTokens,
    *,
    steps: Annotated[int, "tokens to add; fewer if the context is full"] = 6,
) -> OuterLoopResult:
    """The first text, continued greedily.

    Raises NotApplicable for a model that predicts no next token, InputError for steps below 1, or a text that leaves no
    room in the context.
    """
    row = sequences(model, tokens)[0]
    given, room = row.shape[1], model.config.n_ctx - row.shape[1]
    if steps < 1:
        raise InputError(f"steps = {steps}", "expected at least 1")
    if room < 1:
        raise InputError(f"the text has {given} tokens", f"expected fewer than {model.config.n_ctx}, to leave room")
    steps = min(steps, room)
    influence = np.full((steps, given + steps), np.nan)
    probability, computed, totals, most = [], [], [], 0
    for step in track(range(steps)):
        counted: Counter[str] = Counter()

        def count(x: Tensor, hook: HookPoint, counted: Counter[str] = counted) -> None:
            counted[hook.name] += 1

        with model.hooks([(list(model.hook_points), count)], reads_only=True):
            own = model(row)[0, -1].double().softmax(-1)
        chosen = int(own.argmax())
        influence[step, : row.shape[1]] = influences(model, row)
        probability.append(float(own[chosen]))
        totals.append(float(own.sum()))
        computed.append(sum(counted.values()))
        most = max(most, *counted.values())
        row = torch.cat([row, row.new_tensor([[chosen]])], dim=1)
    return OuterLoopResult(
        tokens=token_labels(model, row),
        given=given,
        influence=influence,
        probability=np.array(probability),
        computed=tuple(computed),
        most_often=most,
        rows_used=_other_rows(model, row[:, :-1]),
        total=np.array(totals),
        d_vocab=model.config.d_vocab,
    )


@torch.no_grad()
def influences(model: HookedGPT, row: Tensor) -> np.ndarray:
    """[pos] total variation distance of the next token's distribution when each token in turn is taken out."""
    length = row.shape[1]
    mean = model.W_E.mean(0) * model.config.embed_scale
    found = []
    for start in range(0, length, 32):
        places = torch.arange(start, min(start + 32, length), device=row.device)

        def take_out(x: Tensor, hook: HookPoint, places: Tensor = places) -> Tensor:
            x[torch.arange(1, len(places) + 1, device=x.device), places] = mean
            return x

        with model.hooks([("hook_embed", take_out)]):
            residual = model.run_to(row.expand(len(places) + 1, -1))
        distributions = model.unembedded(model.ln_final(residual[:, -1])).double().softmax(-1)
        found.append(((distributions[1:] - distributions[:1]).abs().sum(-1) / 2).cpu())
    return np.asarray(torch.cat(found).numpy())


def _other_rows(model: HookedGPT, row: Tensor) -> float:
    """Largest change of a logit of the last position when all other positions' final embeddings are zero."""

    def blank(x: Tensor, hook: HookPoint) -> Tensor:
        x[:, :-1] = 0
        return x

    with model.hooks([(f"blocks.{model.config.n_layers - 1}.hook_resid_post", blank)]):
        changed = model(row)[0, -1]
    return float((changed - model(row)[0, -1]).abs().max())
