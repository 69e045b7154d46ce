"""Keys, queries and values as labels, recipes and potions: one token's attention, step by step (S1).

The running example is "Sarah lies still on the bed, feeling".
"""

from typing import Annotated

import numpy as np
import pandas as pd

from analyses.attention_patterns import attention_patterns
from analyses.lessons.continuations import continuations
from analyses.lessons.position_mixing import position_mixing
from analyses.lessons.qkv_walkthrough import qkv_walkthrough
from analyses.lessons.token_order import ALONE, WITHOUT, token_order
from analyses.shared.inputs import sequences, token_labels
from analyses.shared.panels import Matrix
from interp.models.gpt import HookedGPT
from reports.studies._choices import chosen_head, find_position
from reports.studies._parts import Claim, Item, Range, Results, Study, at_least, at_most, exactly

TEXT = "Sarah lies still on the bed, feeling"
WORDS = ("tired", "sleepy", "exhausted")
UNFIT = ("seventeen", "parliament", "granite")
"""Words that nobody feels on a bed: the control of S1.3."""
MLP = ("MLP in", "MLP activation", "MLP out")
SMALL = 1e-5
"""Differences that come from rounding alone in single precision."""


def potions(
    model: HookedGPT,
    *,
    text: Annotated[str, "the text read"] = TEXT,
    query: Annotated[str, "the token that looks: a word of the text, or a position; default: the last"] = "",
    layer: Annotated[int | None, "block of the head; default: of the head that mixes most"] = None,
    head: Annotated[int | None, "the head; default: the one that mixes most"] = None,
    words: Annotated[tuple[str, ...], "words to compare as the text's continuation"] = WORDS,
    seed: Annotated[int, "of random changes and shuffles"] = 0,
) -> Study:
    """The study of one token of one text, and one head.

    Raises InputError for a query that is not in the text, or a layer without its head.
    """
    ids = sequences(model, text, at_least=3)[0]
    at = find_position(model, text, query)
    chosen = chosen_head(model, ids, at, layer, head)
    own = layer is None
    tokens = token_labels(model, ids)
    return Study(
        title="Keys, queries and values as labels, recipes and potions",
        model=model,
        texts=(tokens,),
        runs={
            "walk": lambda: qkv_walkthrough(model, ids, layer=chosen[0], head=chosen[1], query=at),
            "attention": lambda: attention_patterns(model, ids, seed=seed),
            "mixing": lambda: position_mixing(model, ids, seed=seed),
            "order": lambda: token_order(model, ids, seed=seed),
            "words": lambda: continuations(model, ids, words=words),
            "unfit": lambda: continuations(model, ids, words=UNFIT),
        },
        items=(
            _walk_item(tokens[at], at, chosen, own),
            _claims_item(model),
            _prediction_item(text == TEXT and words == WORDS),
        ),
        facts={"query": f"position {at}, {tokens[at]!r}", "head": f"L{chosen[0]}H{chosen[1]}"},
    )


def _walk_item(token: str, at: int, chosen: tuple[int, int], own: bool) -> Item:
    name = f"L{chosen[0]}H{chosen[1]}"
    why = ", the one that mixes most from several words here" if own else ""
    return Item(
        address="S1.1",
        title="From labels to a potion",
        words=f"The token {token.strip()!r} (position {at}) asks a question, its query. Every token so far carries a "
        "label, its key, and holds something, its value. Where question and label agree, much of the value is poured "
        "in.\n\n"
        f"Read the table from left to right, for head {name}{why}: the score, the score made smaller, the share of "
        "the recipe, and what it adds to the potion. The pictures below show the vectors themselves.",
        shows=("walk.steps", "walk.weights", "walk.vectors", "walk.mixture"),
        claims=(
            Claim(
                text="These steps are all there is: they give the head's output.",
                value=lambda r: r["walk"].difference,
                measured="largest difference from what the model computed, over its length",
                holds=at_most(SMALL),
            ),
            Claim(
                text="The better the label fits, the more of the potion comes from that token.",
                value=lambda r: float(np.argmax(r["walk"].weights) == np.argmax(r["walk"].share)),
                measured="1 if the token with the largest weight also makes most of the output, else 0",
                holds=exactly(1),
                corrected=exactly(0),
                correction="values are about equally long; here another token adds most.",
            ),
        ),
        differs="The article tells it with single words and friendly numbers. Here tokens are pieces of words, the "
        "vectors have many coordinates, and scores may be negative.",
    )


def sharpening(patterns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entropy in nats of each row of weights before softmax and after, [layer head query] from patterns [... key].

    Before: the same scores as shares of a whole without the exponential, each score minus the lowest, over their sum.
    Scores are known from the weights up to a constant, which the lowest one removes. Rows of one or two keys are NaN:
    without the lowest there is nothing left to share out.
    """
    n = patterns.shape[-1]
    seen = np.tril(np.ones((n, n), dtype=bool))
    scores = np.log(np.where(seen, patterns.clip(1e-38), 1.0))
    above = np.where(seen, scores - np.where(seen, scores, np.inf).min(-1, keepdims=True), 0.0)
    total = above.sum(-1, keepdims=True)
    even = seen / seen.sum(-1, keepdims=True)
    before = np.where(total > 0, above / np.where(total > 0, total, 1.0), even)
    both = [-(p * np.log(np.where(p > 0, p, 1.0))).sum(-1) for p in (before, np.where(seen, patterns, 0.0))]
    for values in both:
        values[..., :2] = np.nan
    return both[0], both[1]


def _sharpened(r: Results) -> np.ndarray:
    """[layer head] share of rows whose entropy is lower after softmax than before."""
    before, after = sharpening(r["attention"].patterns[0].astype(np.float64))
    share: np.ndarray = (after < before)[..., 2:].mean(-1)
    return share


def _sharpening_panel(r: Results) -> Matrix:
    share = _sharpened(r)
    return Matrix(
        key="sharpening",
        title="Does softmax sharpen?",
        caption="Share of a head's rows that are less spread out after softmax (entropy after) than the scores "
        "themselves would be as plain shares of a whole (entropy before). 1: always; 0: never.",
        values=share,
        rows=tuple(str(i) for i in range(share.shape[0])),
        columns=tuple(str(i) for i in range(share.shape[1])),
        row_axis="layer",
        column_axis="head",
        unit="share of rows",
    )


def _claims_item(model: HookedGPT) -> Item:
    return Item(
        address="S1.2",
        title="What is claimed of attention",
        words="Ten things are said of how tokens meet. Each can be tried: change one thing, see what moves.\n\n"
        "Look at the table of operations. The input of each was changed at one position only; the columns say what "
        "moved elsewhere. Positions meet where they should and nowhere else.",
        shows=("attention.patterns", "mixing.operations", "mixing.heads", "order.change", _sharpening_panel),
        claims=(
            Claim(
                text="The weights of a row sum to one.",
                value=lambda r: float(np.abs(r["attention"].patterns[0].sum(-1) - 1).max()),
                measured="largest distance of a row's sum from one, all heads",
                holds=at_most(SMALL),
            ),
            Claim(
                text="A token attends to itself too.",
                value=lambda r: float((np.diagonal(r["attention"].patterns[0], axis1=-2, axis2=-1) > 0).mean()),
                measured="share of rows with a weight above zero on the token itself",
                holds=exactly(1),
                corrected=Range(0.5, 1),
                correction="a weight too small to be a number above zero counts as one, as it is in some rows.",
            ),
            Claim(
                text="A token never attends to later ones.",
                value=lambda r: float(max(np.abs(np.triu(r["attention"].patterns[0], 1)).max(), r["mixing"].leak)),
                measured="largest weight on a later token, or change at a position before the changed one",
                holds=at_most(SMALL),
            ),
            Claim(
                text="Without position information the order of the earlier tokens makes no difference to attention.",
                value=lambda r: float(r["order"].change[ALONE].max()),
                measured="largest relative change of any block's attention output when what it reads is shuffled",
                holds=at_most(1e-4),
            ),
            Claim(
                text="So a whole model without position information could not tell the order.",
                value=lambda r: float(r["order"].change[WITHOUT].max()),
                measured="largest relative change in any block when the tokens are shuffled",
                holds=at_most(1e-4),
                corrected=at_least(1e-4) if model.config.n_layers > 1 else None,
                correction="the model has one block: later ones can tell, because the mask lets each token see only "
                "what stood before it.",
            ),
            Claim(
                text="Queries and keys have one width in common.",
                value=lambda r: float(abs(r["walk"].q.shape[0] - r["walk"].k.shape[1])),
                measured="difference of the two widths",
                holds=exactly(0),
            ),
            Claim(
                text="Values may have another width than queries and keys.",
                value=lambda r: _narrow_values(r["walk"]),
                measured="largest change in the first half of the output when values are cut to half their width",
                holds=at_most(SMALL),
            ),
            Claim(
                text="Heads do not meet before the output projection.",
                value=lambda r: r["mixing"].head_leak,
                measured="largest change of a head when another one's queries, keys and values are changed",
                holds=at_most(SMALL),
            ),
            Claim(
                text="The MLP works on each position alone.",
                value=lambda r: max(float(r["mixing"].part(name, "other").max()) for name in MLP),
                measured="largest change at another position than the one changed",
                holds=at_most(SMALL),
            ),
            Claim(
                text="Softmax sharpens: the best get more, the rest less.",
                value=lambda r: float(_sharpened(r).mean()),
                measured="share of rows with lower entropy after softmax than before",
                holds=at_least(0.99),
                corrected=Range(0.5, 0.99),
                correction="scores are not all close; where they are, softmax spreads the weights more evenly.",
            ),
        ),
        differs=f"Queries, keys and values all have the same width in GPT models, {model.config.d_head} here. What the "
        "article says of a single attention holds exactly; a stack of them can do more than one, as the curves show.",
    )


def _narrow_values(walk: object) -> float:
    """Values cut to half their width give half the output: largest difference, over the output's length."""
    half = walk.v.shape[1] // 2  # type: ignore[attr-defined]
    narrow = walk.pattern @ walk.v[:, :half]  # type: ignore[attr-defined]
    size = max(float(np.linalg.norm(walk.z)), 1e-30)  # type: ignore[attr-defined]
    return float(np.abs(narrow - walk.z[:half]).max(initial=0.0)) / size  # type: ignore[attr-defined]


def typical(table: pd.DataFrame) -> float:
    """Geometric mean of whole words' probabilities; a mean over pieces would favour words cut into many."""
    return float(np.exp(np.log(table["probability"].clip(1e-300)).mean()))


def _prediction_item(as_in_article: bool) -> Item:
    claims = (
        Claim(
            text="A word for being tired comes next.",
            value=lambda r: float(r["words"].table["probability"].max()),
            measured="probability of the likeliest such word, whole",
            holds=at_least(0.01),
            corrected=at_most(0.01),
            then="does not hold",
            correction="this model has other words in mind; a large one does say so.",
        ),
        Claim(
            text="Such words fit better than words that make no sense there.",
            value=lambda r: typical(r["words"].table) / typical(r["unfit"].table),
            measured="probability of a whole word, geometric mean, over that of " + ", ".join(UNFIT),
            holds=at_least(1),
            corrected=at_most(1),
            then="does not hold",
            correction="to this model they are no likelier. A mean over pieces would say otherwise, for later pieces "
            "of a word are easy to guess.",
        ),
    )
    return Item(
        address="S1.3",
        title="The prediction",
        words="After all blocks the last token's vector names what could come next, each with a probability.\n\n"
        "Look at the words asked for: how likely each is as a whole, token by token, and beside the others.",
        shows=("words.words", "words.top"),
        claims=claims if as_in_article else (),
        differs="A large model finishes such a sentence well. The bundled one has read little but encyclopedia "
        "articles, in which nobody feels sleepy."
        if as_in_article
        else "",
    )
