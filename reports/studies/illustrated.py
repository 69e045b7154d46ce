"""The original Transformer, illustrated (after Jay Alammar): self-attention in six steps, many heads, translation (S2).

Each step is shown with the article's own numbers and on a real model's vectors.
"""

from typing import Annotated

import numpy as np
import pandas as pd

from analyses.lessons.head_sum import head_sum
from analyses.lessons.position_encodings import position_encodings
from analyses.lessons.qkv_walkthrough import qkv_walkthrough, softmax
from analyses.shared.inputs import sequences, token_labels
from analyses.shared.panels import Table
from interp.models.gpt import HookedGPT
from reports.studies._choices import chosen_head, find_position
from reports.studies._parts import Claim, Item, Range, Study, at_least, at_most, exactly
from reports.studies._translation import check, given, others_item, runs, translation_item

TEXT = "Thinking machines learn to read"
SCORES = (112.0, 96.0)
"""The article's scores of its first word with its two words."""
WIDTH = 64
"""Of the article's queries and keys."""


def illustrated(
    model: HookedGPT,
    *,
    text: Annotated[str, "the text read"] = TEXT,
    query: Annotated[str, "the token that looks: a word of the text, or a position; default: the last"] = "",
    layer: Annotated[int | None, "block of the head; default: of the head that mixes most"] = None,
    head: Annotated[int | None, "the head; default: the one that mixes most"] = None,
    translator: Annotated[str, "directory of a larger translation model, such as opus-mt-fr-en"] = "",
    encoder: Annotated[str, "directory of a BERT"] = "",
    seed: Annotated[int, "of the shuffled controls"] = 0,
) -> Study:
    """The study; raises InputError for a query that is not in the text or a directory that is not there."""
    check(translator, encoder)
    larger, bert = given(translator, "opus-mt-fr-en"), given(encoder, "minilm")
    ids = sequences(model, text)[0]
    at = find_position(model, text, query)
    block, number = chosen_head(model, ids, at, layer, head)
    return Study(
        title="The Transformer, illustrated",
        after="The Illustrated Transformer, by Jay Alammar (2018)",
        model=model,
        texts=(token_labels(model, ids),),
        runs={
            "walk": lambda: qkv_walkthrough(model, ids, layer=block, head=number, query=at),
            "heads": lambda: head_sum(model, ids, position=at),
            "positions": lambda: position_encodings(model, seed=seed),
            **runs(larger, bert, seed),
        },
        items=(
            _steps_item(),
            _heads_item(model.config.n_heads),
            _positions_item(),
            translation_item(larger, seed),
            others_item(bert),
        ),
        facts={
            "query": f"position {at}",
            "head": f"L{block}H{number}",
            "translation models": ", ".join(["fr-en", *([larger] if larger else [])]),
            "trained encoder": bert or "none given",
        },
    )


def article_weights() -> np.ndarray:
    """[2] the article's example: scores over the root of the width, through softmax."""
    return softmax(np.array(SCORES) / np.sqrt(WIDTH))


def article_table() -> Table:
    """The article's numbers, computed again."""
    divided = np.array(SCORES) / np.sqrt(WIDTH)
    frame = pd.DataFrame(
        {
            "token": ["first", "second"],
            "score q·k": SCORES,
            f"divided by {np.sqrt(WIDTH):.0f}": divided,
            "softmax": article_weights(),
        }
    )
    return Table(
        key="article",
        title="The article's numbers, computed again",
        caption=f"Two words, queries and keys of width {WIDTH}.",
        frame=frame,
    )


def _steps_item() -> Item:
    return Item(
        address="S2.1",
        title="Self-attention in six steps",
        words="One token's attention is six small steps. First the article's own numbers, then the same steps on a "
        "real head.\n\n"
        "- Step 1: three matrices make a query, a key and a value of every token's vector.\n"
        "- Step 2: the query's dot product with a key is that token's score.\n"
        "- Step 3: the scores are divided by the root of the width, so that they do not grow with it.\n"
        "- Step 4: softmax makes them positive, with sum one.\n"
        "- Step 5: each value is multiplied by its weight.\n"
        "- Step 6: the weighted values are added up.",
        shows=(article_table(), "walk.vectors", "walk.steps", "walk.mixture"),
        claims=(
            Claim(
                text="With width 64 scores are divided by 8.",
                value=lambda r: float(np.sqrt(WIDTH)),
                measured="root of the width",
                holds=exactly(8),
            ),
            Claim(
                text="Scores of 112 and 96 give the first word a weight of 0.88.",
                value=lambda r: float(article_weights()[0]),
                measured="softmax of 14 and 12, first",
                holds=Range(0.875, 0.885),
            ),
            Claim(
                text="The second word gets 0.12.",
                value=lambda r: float(article_weights()[1]),
                measured="softmax of 14 and 12, second",
                holds=Range(0.115, 0.125),
            ),
            Claim(
                text="On a real head the six steps give what the model computes.",
                value=lambda r: r["walk"].difference,
                measured="largest difference from the model's own output, over its length",
                holds=at_most(1e-5),
            ),
            Claim(
                text="The weights sum to one.",
                value=lambda r: float(abs(r["walk"].pattern.sum() - 1)),
                measured="distance of the model's own weights' sum from one",
                holds=at_most(1e-5),
            ),
        ),
        differs="The article's encoder looks at the whole sentence. A GPT model is a decoder: a token sees itself and "
        "what stands before it, the rest is masked.",
    )


def _heads_item(n_heads: int) -> Item:
    return Item(
        address="S2.2",
        title="Many heads, one matrix",
        words="Every head does the six steps with its own matrices. Their outputs are laid side by side and multiplied "
        "by one more matrix, W_O.\n\n"
        "Look at the first picture: the last row is the sum of those above it. Giving each head its own rows of W_O "
        "and adding up is the same product, and it says which head wrote what.",
        shows=("heads.heads", "heads.length", "heads.share", "heads.errors"),
        claims=(
            Claim(
                text="Concatenated outputs times W_O equal the sum of the heads' own contributions.",
                value=lambda r: float(r["heads"].error.max()),
                measured="largest difference in double precision, over the largest output, all blocks",
                holds=at_most(1e-12),
            ),
            Claim(
                text="That sum, with the bias, is what the model writes.",
                value=lambda r: float(r["heads"].model_error.max()),
                measured="largest difference from the model's own output, over the largest output",
                holds=at_most(1e-5),
            ),
            Claim(
                text="There are eight heads.",
                value=lambda r: float(r["heads"].contribution.shape[1]),
                measured="heads in a block",
                holds=exactly(8),
                corrected=at_least(1),
                correction=f"the model is the original Transformer; this one has {n_heads}.",
            ),
        ),
    )


def _positions_item() -> Item:
    return Item(
        address="S2.3",
        title="Position encodings",
        words="Attention does not see order, so a vector for the position is added to each token. The original "
        "Transformer computes it from sines and cosines; GPT models learn it.\n\n"
        "Look at the first two pictures: waves, slower from left to right in each half, and beside them what training "
        "found. Then compare how similar two positions are. For sinusoids that depends on their distance alone.",
        shows=(
            "positions.sinusoidal",
            "positions.learned",
            "positions.sinusoidal-similarity",
            "positions.learned-similarity",
            "positions.by-distance",
        ),
        claims=(
            Claim(
                text="The encodings lie between minus one and one.",
                value=lambda r: float(np.abs(r["positions"].sinusoidal).max()),
                measured="largest absolute value of the sinusoids",
                holds=at_most(1),
            ),
            Claim(
                text="A step of one position is the same rotation wherever it is taken.",
                value=lambda r: r["positions"].shift_error,
                measured="largest difference between a position and its rotated neighbour, sinusoids",
                holds=at_most(1e-9),
            ),
            Claim(
                text="No two positions have the same encoding.",
                value=lambda r: nearest_pair(r["positions"].sinusoidal),
                measured="smallest distance between two positions' encodings, sinusoids",
                holds=at_least(1e-6),
            ),
            Claim(
                text="Position encodings are waves like these.",
                value=lambda r: r["positions"].distance_share["learned"],
                measured="share of similarity that distance explains, learned encodings (sinusoids 1)",
                holds=at_least(0.95),
                corrected=Range(0.1, 0.95),
                correction="they are the original Transformer's; GPT models learn theirs, which are partly like it.",
            ),
        ),
        differs="The article's picture puts all sines in the left half and all cosines in the right; the formula in "
        "the paper lets them take turns. It is the same set of columns in another order.",
    )


def nearest_pair(values: np.ndarray) -> float:
    """Smallest distance between two rows."""
    squares = (values**2).sum(1)
    distance = squares[:, None] + squares[None] - 2 * values @ values.T
    np.fill_diagonal(distance, np.inf)
    return float(np.sqrt(max(distance.min(), 0.0)))
