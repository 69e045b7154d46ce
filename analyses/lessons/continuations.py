"""How likely are these words next? The probability of whole words, over as many tokens as each needs.

Question: which of several words would the model put after a text?

Method: a word is a sequence of tokens; its probability is the product of the probabilities of its tokens, each read
after the ones before (chain rule). `rank` is the place of its first token among all tokens. `beside` compares the
candidates with each other only: their probabilities over their sum. A word that begins with a letter or digit gets a
space in front, unless the text ends with one; `exact` takes every word as it is spelled.

What the numbers do not show: that the word ends there. " tire" is counted in full although the model may go on to
" tired", so a word that begins others has their probability too; and a word of more tokens has had more chances to be
left, so compare words of different length with care (`per_token` is the geometric mean).
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
class ContinuationsResult(Result):
    """The words asked for, and the tokens that the model itself likes best."""

    tokens: Tokens
    """[pos]"""
    table: pd.DataFrame
    """One row a word: word tokens (how many) spelled probability per_token rank (of its first token) beside."""
    top: Tokens
    """[shown] likeliest next tokens."""
    top_probabilities: np.ndarray
    """[shown]"""
    token_probabilities: tuple[tuple[float, ...], ...]
    """[word][token]"""
    d_vocab: int

    def to_dataframe(self) -> pd.DataFrame:
        """One row a word; see `table`."""
        return self.table.copy()

    def panels(self) -> list[Panel]:
        together = f"Together {self.top_probabilities.sum():.0%} of all."
        return [
            Table(
                "words", "The words asked for", "Probability of the whole word; its geometric mean per token; the rank "
                f"of its first token among {self.d_vocab:,}; and its share when only these words are allowed.",
                frame=self.table.rename(columns={"per_token": "per token", "rank": "rank of first token"}),
            ),
            Axes.of(self.top_probabilities, token=self.top).bars(
                "top", "The likeliest next tokens", together, unit="probability"
            ),
        ]  # fmt: skip

    def findings(self) -> list[Finding]:
        best = self.table.iloc[int(self.table["probability"].to_numpy(dtype=float).argmax())]
        text = f"Of the words asked for, {best['word']!r} is the likeliest next: {best['probability']:.2g}."
        return [Finding(text, "words", 0.2, float(best["probability"]), "probability", kind="size")]


@analysis(place=11, needs=("next token",), in_report=None, runs=True)
@torch.no_grad()
def continuations(
    model: HookedGPT,
    tokens: TextOrTokens,
    *,
    words: Annotated[tuple[str, ...], "the words to compare"] = ("the", "and", "a"),
    exact: Annotated[bool, "put no space in front: the words go on as they are spelled"] = False,
    show: Annotated[int, "of the model's own candidates"] = 10,
) -> ContinuationsResult:
    """The words after the first text.

    Raises NotApplicable for a model that predicts no next token, InputError for no words, an empty word, or a word that
    does not fit into the context.
    """
    row = sequences(model, tokens)[0]
    if not words or not all(word if exact else word.strip() for word in words):
        raise InputError(f"words = {words}", "expected at least one word, and none empty")
    first = model(row)[0, -1].double().softmax(-1)
    best = first.topk(min(show, len(first)))
    rows, each = [], []
    space = bool(token_labels(model, row)) and token_labels(model, row)[-1].endswith(" ")
    for word in words:
        spaced = word[0].isalnum() and not (exact or space)
        ids = model.to_tokens(f" {word}" if spaced else word, prepend_bos=False).to(row.device)
        whole = torch.cat([row, ids], dim=1)
        if whole.shape[1] > model.config.n_ctx:
            raise InputError(f"{whole.shape[1]} tokens with {word!r}", f"expected at most {model.config.n_ctx}")
        distributions = model(whole)[0, row.shape[1] - 1 : -1].double().softmax(-1)
        probabilities = distributions.gather(-1, ids[0][:, None])[:, 0].cpu().numpy()
        each.append(tuple(map(float, probabilities)))
        rows.append({
            "word": word if exact else word.strip(), "tokens": ids.shape[1],
            "spelled": token_list(token_labels(model, ids)),
            "probability": float(probabilities.prod()),
            "per_token": float(np.exp(np.log(probabilities.clip(1e-300)).mean())),
            "rank": int((first > first[ids[0, 0]]).sum()) + 1,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    table["beside"] = table["probability"] / max(table["probability"].sum(), 1e-300)
    return ContinuationsResult(
        tokens=token_labels(model, row),
        table=table,
        top=Tokens(token_labels(model, best.indices)),
        top_probabilities=best.values.cpu().numpy(),
        token_probabilities=tuple(each),
        d_vocab=len(first),
    )
