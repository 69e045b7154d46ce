"""One token's attention, step by step: scores, weights, what each earlier token gives, and what comes out.

Question: how does one head arrive at its output for one token of a text?

Method: the head's own query, keys and values are read from a run, and the computation is done again, one step at a time
(Vaswani et al. 2017, equation 1):

- 1: the token's query, and a key and a value for every token (several heads may share keys and values; queries and
  keys are shown as they enter the scores, so where the model norms or turns them, after that);
- 2: the score of each key is its dot product with the query;
- 3: scores are divided by the square root of the head's width, or scaled as the model does, and capped if it caps them;
- 4: softmax turns the scores of the tokens that the query may see, itself and earlier ones, into weights that sum to
  one (a layer with a window sees the nearest only, a model that is not causal all);
- 5: each value is multiplied by its weight;
- 6: the sum of these is the head's output for the token, before the output projection and any norm after it.

`difference` compares the sum with what the model itself computed. `length` is Euclidean. `share` is the part of the
output that a token gives: the projection of its weighted value on the output, over the output's length; shares sum to
one and may be negative.

What the numbers do not show: whether later layers use what was moved. A large weight on a token whose value is short
moves little; compare `weight` with `share`.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import torch

from analyses.shared.axes import Axes
from analyses.shared.capabilities import analysis
from analyses.shared.inputs import TextOrTokens, sequences, token_labels, token_list
from analyses.shared.panels import Finding, Panel, Result, Table, Tokens
from interp.errors import InputError
from interp.models.gpt import HookedGPT


@dataclass(frozen=True, kw_only=True)
class QKVWalkthroughResult(Result):
    """One query of one head. Keys are all tokens of the text; those that the mask hides have weight zero."""

    tokens: Tokens
    """[pos] the text."""
    layer: int
    head: int
    query: int
    """Position of the query."""
    q: np.ndarray
    """[d_head] the query's vector."""
    k: np.ndarray
    """[key d_head]"""
    v: np.ndarray
    """[key d_head]"""
    products: np.ndarray
    """[key] q . k, also for tokens that the mask then hides."""
    scores: np.ndarray
    """[key] products times `scale`, and capped at `softcap` where the model caps them."""
    visible: np.ndarray
    """[key] whether the query may see it."""
    scale: float
    """One over the square root of d_head, unless the model says otherwise."""
    softcap: float | None
    weights: np.ndarray
    """[key] softmax of the scores of the visible tokens; 0 for the others."""
    pattern: np.ndarray
    """[key] the weights that the model itself used."""
    z: np.ndarray
    """[d_head] the output that the model itself computed."""
    written: np.ndarray
    """[key] length of what each token's weighted value adds to the residual stream, through W_O."""

    @property
    def given(self) -> np.ndarray:
        """[key d_head] each value times its weight."""
        return np.asarray(self.weights[:, None] * self.v)

    @property
    def mixed(self) -> np.ndarray:
        """[d_head] the sum of what all tokens give: the head's output."""
        return np.asarray(self.given.sum(0))

    @property
    def share(self) -> np.ndarray:
        """[key] part of the output that each token gives; they sum to one."""
        squared = float(self.mixed @ self.mixed)
        return np.asarray(self.given @ self.mixed / squared if squared else np.zeros(len(self.weights)))

    @property
    def difference(self) -> float:
        """Largest difference from the model's own output, over the output's length."""
        return float(np.abs(self.mixed - self.z).max() / max(float(np.linalg.norm(self.z)), 1e-30))

    @property
    def name(self) -> str:
        return f"L{self.layer}H{self.head}"

    def to_dataframe(self) -> pd.DataFrame:
        """One row a key: pos, token, visible, product, score, weight, value_length, given_length, written, share."""
        value, given = (np.linalg.norm(vectors, axis=1) for vectors in (self.v, self.given))
        return pd.DataFrame({
            "pos": np.arange(len(self.tokens)), "token": list(self.tokens), "visible": self.visible,
            "product": self.products, "score": self.scores, "weight": self.weights, "value_length": value,
            "given_length": given, "written": self.written, "share": self.share,
        })  # fmt: skip

    def facts(self) -> dict[str, object]:
        return {"layer": self.layer, "head": self.head, "query": self.query, "difference": self.difference}

    def panels(self) -> list[Panel]:
        seen = Tokens(np.array(self.tokens, dtype=object)[self.visible].tolist())
        gap, keys, given = np.full((1, len(self.q)), np.nan), self.k[self.visible], self.given[self.visible]
        coordinate, sum_of = "coordinate of the head", "weighted values, then their sum"
        compared = {"query, then keys": ["query", "", *plain(seen)], coordinate: None}
        mixed = {sum_of: [*plain(seen), "", "sum"], coordinate: None}
        return [
            self._steps(),
            Axes.of(self.weights[self.visible], token=seen).bars(
                "weights", "One weight for each token",
                f"Softmax weights of the query at position {self.query}; they sum to {self.weights.sum():.6f}.",
                unit="weight",
            ),
            Axes.of(np.concatenate([self.q[None], gap, keys]), **compared).matrix(
                "vectors", "The query, and the keys it is compared with", "One row a vector, one column a coordinate. "
                "The score of a token is the sum over columns of the top row times that token's row: it is high where "
                "the colours agree.", unit="activation", diverging=True, image=True,
            ),
            Axes.of(np.concatenate([given, gap, self.mixed[None]]), **mixed).matrix(
                "mixture", "Weighted values, and their sum", "Each row is a token's value times its weight; the last "
                f"row is their sum, the head's output. It differs from the model's own by {self.difference:.1e} of its "
                "length.", unit="activation", diverging=True, image=True,
            ),
        ]  # fmt: skip

    @property
    def _scaled(self) -> str:
        """What is done to a score before the softmax, in words."""
        usual = np.isclose(self.scale, len(self.q) ** -0.5)
        done = f"divided by {len(self.q) ** 0.5:.3g}" if usual else f"times {self.scale:.3g}"
        return done if self.softcap is None else f"{done}, capped at {self.softcap:g}"

    def _steps(self) -> Table:
        frame, hidden = self.to_dataframe(), ~self.visible
        later = f" Rows without a weight are tokens that the mask hides ({hidden.sum()})." if any(hidden) else ""
        names = {
            "token": "token", "product": "score q·k", "score": self._scaled, "weight": "softmax weight",
            "value_length": "length of value", "given_length": "weight x length", "share": "share of the output",
        }  # fmt: skip
        frame.loc[hidden, ["weight", "given_length", "share"]] = np.nan
        return Table(
            "steps", f"The steps of head {self.name} for one token", f"The query is token {self.query}. From left to "
            f"right: the score of each key, the score {self._scaled}, the softmax weight, and what the token gives."
            f"{later}", frame=frame[list(names)].rename(columns=names), tokens=frozenset({"token"}),
            diverging=frozenset({"share of the output"}),
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        top = int(np.argmax(self.weights))
        text = (
            f"At position {self.query} head {self.name} gives most weight, {self.weights[top]:.0%}, to position {top} "
            f"({self.tokens[top]!r}), which makes {self.share[top]:.0%} of the output."
        )
        return [Finding(text, "steps", 0.2, float(self.weights[top]), "weight", kind="size", about=self.name)]


@analysis(place=21, in_report=None, runs=True)
def qkv_walkthrough(
    model: HookedGPT,
    tokens: TextOrTokens,
    *,
    layer: Annotated[int, "block of the head"] = 0,
    head: Annotated[int, "head within the block"] = 0,
    query: Annotated[int | None, "position of the query, negative from the end; default: the last token"] = None,
) -> QKVWalkthroughResult:
    """The steps of one head for one token of the first text.

    Raises InputError for a layer, head or position that is not there.
    """
    row = sequences(model, tokens)[0]
    config, length = model.config, row.shape[1]
    at = (query if query is not None else -1) + (length if query is None or query < 0 else 0)
    for name, value, size in (("layer", layer, config.n_layers), ("head", head, config.n_heads)):
        if not 0 <= value < size:
            raise InputError(f"{name} {value}", f"expected 0 to {size - 1}, this model's {name}s")
    if not 0 <= at < length:
        raise InputError(f"query {query}", f"expected a position from 0 to {length - 1}, or -1 to -{length}")
    attn = model.blocks[layer].attn
    met = "rot_" if attn.prepares else ""
    parts = (f"{met}q", f"{met}k", "v", "z", "pattern", "attn_scores")
    names = [f"blocks.{layer}.attn.hook_{part}" for part in parts]
    with torch.no_grad():
        _, cache = model.run_with_cache(row, names=names, dtype=torch.float64, device="cpu")
    of = (head, attn.kv_head(head), attn.kv_head(head), head)
    q, k, v, z = (cache[name][0, :, one].numpy() for name, one in zip(names[:4], of, strict=True))  # [pos d_head]
    products = k @ q[at]
    scores = products * attn.scale
    if attn.softcap is not None:
        scores = attn.softcap * np.tanh(scores / attn.softcap)
    visible = cache[names[5]][0, head, at].isfinite().numpy()
    weights = np.zeros(length)
    weights[visible] = softmax(scores[visible])
    out = attn.W_O[head].detach().double().cpu().numpy()
    return QKVWalkthroughResult(
        tokens=token_labels(model, row),
        layer=layer,
        head=head,
        query=at,
        q=q[at],
        k=k,
        v=v,
        products=products,
        scores=scores,
        visible=visible,
        scale=attn.scale,
        softcap=attn.softcap,
        weights=weights,
        pattern=cache[names[4]][0, head, at].numpy(),
        z=z[at],
        written=np.linalg.norm((weights[:, None] * v) @ out, axis=1),
    )


def plain(tokens: Tokens) -> tuple[str, ...]:
    """Tokens as labels that may stand beside labels which are none."""
    return tuple(token_list([token]) for token in tokens)


def softmax(scores: np.ndarray) -> np.ndarray:
    """[n] positive numbers that sum to one, in proportion to the exponentials of the scores [n]."""
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum())
