"""What ChatGPT is doing (after Stephen Wolfram): embeddings, attention, weights, and the loop around it (S0).

The running example is one word ten times, then another ten times.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import numpy as np
import pandas as pd
import torch

from analyses.architecture import ArchitectureResult, architecture
from analyses.attention_patterns import attention_patterns
from analyses.embeddings import embeddings
from analyses.lessons.block_weights import block_weights
from analyses.lessons.outer_loop import outer_loop
from analyses.next_token import next_token
from analyses.shared.inputs import token_labels
from analyses.shared.panels import AttentionGrid, Table
from interp.errors import InputError
from interp.models.config import PRESETS
from interp.models.gpt import HookedGPT
from reports.studies._parts import Claim, Item, Range, Results, Study, at_least, at_most, exactly, short

WORDS = ("hello", "bye")
INSTEAD = (("yes", "no"), ("day", "night"), ("one", "two"), ("he", "she"), ("the", "and"))
"""Pairs of common words; the first that are one token each stand in where the article's words are several."""
COUNT = 10
ALIKE = 0.15
"""Hellinger distance below which two heads' pictures can hardly be told apart."""
TEXT = "The best thing about AI is its ability to"


def wolfram(
    model: HookedGPT,
    *,
    first: Annotated[str | None, "the word repeated first; default: hello, or a stand-in of one token"] = None,
    second: Annotated[str | None, "the word repeated next; default: bye, or a stand-in of one token"] = None,
    text: Annotated[str, "what the loop goes on from"] = TEXT,
    steps: Annotated[int, "tokens that the loop adds"] = 8,
    seed: Annotated[int, "of shuffled controls"] = 0,
) -> Study:
    """The study; the example's tokens are read without a beginning-of-text token, as in the article."""
    words, ids = example(model, first, second)
    config = model.config
    return Study(
        title="What ChatGPT is doing: embeddings, attention, weights and the loop around them",
        after="What Is ChatGPT Doing \N{HORIZONTAL ELLIPSIS} and Why Does It Work? by Stephen Wolfram (2023)",
        model=model,
        texts=(token_labels(model, ids), token_labels(model, model.to_tokens(text))),
        runs={
            "embeddings": lambda: embeddings(model, ids, seed=seed),
            "attention": lambda: attention_patterns(model, ids, seed=seed),
            "weights": lambda: block_weights(model, seed=seed),
            "next": lambda: next_token(model, text, steps=steps, temperature=0.0, seed=seed),
            "loop": lambda: outer_loop(model, text, steps=steps),
            "gpt2": lambda: architecture(PRESETS["gpt2"]),
            "gpt3": lambda: architecture(PRESETS["gpt3"]),
            "model": lambda: architecture(model),
        },
        items=(
            _embedding_item(words, len(_ids(model, words[0])), config.d_model),
            *_attention_items(config.n_layers, config.n_heads),
            *_weight_items(),
            _decoding_item(config.d_vocab),
            _structure_item(),
            _loop_item(),
        ),
    )


def example(model: HookedGPT, first: str | None, second: str | None) -> tuple[tuple[str, str], torch.Tensor]:
    """Two words, and the ids [1 pos] of ten times each; words of several tokens are repeated whole.

    Raises InputError when only one of the two is given.
    """
    if (first is None) != (second is None):
        raise InputError("one word of the example", "expected both or none", "give --first and --second")
    if first is not None and second is not None:
        words = (first, second)
    else:
        words = next((pair for pair in (WORDS, *INSTEAD) if all(len(_ids(model, word)) == 1 for word in pair)), WORDS)
    ids = COUNT * _ids(model, words[0]) + COUNT * _ids(model, words[1])
    return words, torch.tensor([ids], device=model.device)


def _ids(model: HookedGPT, word: str) -> list[int]:
    ids: list[int] = model.to_tokens(f" {word.strip()}", prepend_bos=False)[0].tolist()
    return ids


def _embedding_item(words: tuple[str, str], each: int, width: int) -> Item:
    """`each`: tokens of the first word."""
    stand_in = "" if words == WORDS else (
        f"The article's words, hello and bye, are several tokens each in this model's vocabulary; {words[0]} and "
        f"{words[1]} stand in for them. "
    )  # fmt: skip
    size = "" if width == 768 else f"GPT-2's columns have 768 numbers; this smaller model's have {width}."
    return Item(
        address="S0.1",
        title="The embedding module",
        words="Every token becomes a column of numbers. A second column says only where the token stands. The model "
        "starts from their sum.\n\n"
        "Look at the first picture: it has two kinds of columns, one for each word. The second looks like noise, but "
        "it is not: compared with the same columns in shuffled order, neighbours are alike and slow waves run through "
        "them. The last two pictures show both.",
        shows=(
            "embeddings.token-embedding",
            "embeddings.position-embedding",
            "embeddings.sum-embedding",
            "embeddings.position-similarity-all",
            "embeddings.spectrum",
        ),
        claims=(
            Claim(
                text="The same word has the same token embedding wherever it stands.",
                value=lambda r: _repeat_difference(r["embeddings"].token_embedding, each),
                measured="largest difference between the first word's columns",
                holds=exactly(0),
            ),
            Claim(
                text="The position embeddings look random.",
                value=lambda r: r["embeddings"].spectrum.p_value,
                measured="chance that shuffled positions would show so strong a period",
                holds=at_least(0.05),
            ),
        ),
        differs=(stand_in + size).strip(),
    )


def _repeat_difference(columns: np.ndarray, each: int) -> float:
    """Largest difference between the repetitions of the first word, of `each` tokens, in columns [pos d_model]."""
    repeated = columns[: each * COUNT].reshape(COUNT, each, -1)
    return float(np.abs(repeated - repeated[:1]).max())


def part(layers: slice, heads: slice, title: str, caption: str) -> Callable[[Results], AttentionGrid]:
    """Some of the heads' patterns, in the same viewer."""

    def cut(r: Results) -> AttentionGrid:
        whole = next(panel for panel in r["attention"].panels() if isinstance(panel, AttentionGrid))
        return replace(
            whole,
            title=title,
            caption=caption,
            patterns=tuple(p[layers, heads] for p in whole.patterns),
            value_norms=tuple(n[layers, heads] for n in whole.value_norms),
            measures={},
        )

    return cut


def _attention_items(n_layers: int, n_heads: int) -> tuple[Item, Item]:
    return (
        Item(
            address="S0.2",
            title="Attention of the first block",
            words="Each head decides for every token how much of each earlier token to mix in.\n\n"
            "Look at the squares: a row is the token that looks, a column the token looked at. The step half way down "
            "is where the second word begins. Point at a square to see it large. Where heads of block 0 are alike, see "
            "the second picture: the block whose heads differ most.",
            shows=(
                part(slice(0, 1), slice(None), "Every head of block 0", "Rows look at columns; each row sums to one."),
                lambda r: unlike(r, n_layers, n_heads),
            ),
            claims=(
                Claim(
                    text="Attention looks back, never ahead.",
                    value=lambda r: _ahead(r),
                    measured="largest weight on a later token, any block",
                    holds=exactly(0),
                ),
                Claim(
                    text="Each head looks in its own way.",
                    value=lambda r: _least_distance(r["attention"].distance[:n_heads, :n_heads]),
                    measured="smallest Hellinger distance between two heads of block 0 (0 to 1)",
                    holds=at_least(ALIKE),
                    corrected=at_most(ALIKE),
                    then="does not hold",
                    correction="some heads of this model's first block look almost alike on this text.",
                ),
            ),
            differs="" if n_heads == 12 else f"GPT-2 has 12 heads in a block, this model {n_heads}.",
        ),
        Item(
            address="S0.3",
            title="One head through all blocks",
            words="The same text, and head 0 of every block. Deeper blocks read what earlier ones wrote.\n\n"
            "Look at how the pattern changes from block to block. Heads of the same number have nothing to do with "
            "each other; the article shows them side by side all the same.",
            shows=(part(slice(None), slice(0, 1), "Head 0 of every block", "Blocks run down. Rows look at columns."),),
            claims=(
                Claim(
                    text="The patterns differ from block to block.",
                    value=lambda r: _least_distance(r["attention"].distance[::n_heads, ::n_heads]),
                    measured="smallest Hellinger distance between head 0 of two blocks (0 to 1)",
                    holds=at_least(ALIKE),
                ),
            ),
            differs="" if n_layers == 12 else f"GPT-2 has 12 blocks, this model {n_layers}.",
        ),
    )


def unlike(r: Results, n_layers: int, n_heads: int) -> AttentionGrid:
    """The heads of the block in which even the two most alike differ most."""
    distance = r["attention"].distance.reshape(n_layers, n_heads, n_layers, n_heads)
    best = int(np.argmax([_least_distance(distance[block, :, block]) for block in range(n_layers)]))
    shown = part(slice(best, best + 1), slice(None), f"Every head of block {best}", "Where heads differ most.")(r)
    return replace(shown, key=f"{shown.key}-unlike")


def _ahead(r: Results) -> float:
    return max(float(np.abs(np.triu(p, 1)).max()) for p in r["attention"].patterns)


def _least_distance(distance: np.ndarray) -> float:
    """Smallest entry off the diagonal; NaN for a single head."""
    return float(distance[~np.eye(len(distance), dtype=bool)].min()) if len(distance) > 1 else float("nan")


def _weight_items() -> tuple[Item, Item]:
    return (
        Item(
            address="S0.4",
            title="Weights of a fully connected layer, and their moving average",
            words="A weight matrix as an image is grey noise. Averaged over 64 x 64 windows, soft hills appear.\n\n"
            "Look at the pairs: above, the averages of a block; below, the same weights in shuffled order. Shuffled "
            "weights have soft hills too, because neighbouring windows share most of their weights. What chance does "
            "not explain is how high the hills are: compare the depth of colour, and the table.",
            shows=("weights.raw", "weights.averages", "weights.windows"),
            claims=(
                Claim(
                    text="Averaging brings out structure that is in the weights.",
                    value=lambda r: float((r["weights"].table["q"] <= 0.05).mean()),
                    measured="share of blocks whose averages vary more than shuffled ones (q at most .05)",
                    holds=exactly(1),
                    corrected=Range(0.01, 1),
                    correction="one looks at some blocks; in others the hills are no higher than chance makes them.",
                ),
                Claim(
                    text="The hills that look like a random walk are a property of the weights.",
                    value=lambda r: _smoothness_kept(r["weights"].table),
                    measured="smoothness of the shuffled image over that of the real one, median over blocks",
                    holds=at_most(0.5),
                    corrected=at_least(0.5),
                    then="does not hold",
                    correction="averaging makes the soft shape, from any numbers; only the height can come from "
                    "the weights.",
                ),
            ),
        ),
        Item(
            address="S0.5",
            title="How large weights are, block by block",
            words="Most weights are small, few are large; how few differs from block to block.\n\n"
            "Look at the curves: a normal law would be half a bell of one width. The table gives each block's spread, "
            "and how far it is from normal.",
            shows=("weights.sizes", "weights.shapes"),
            claims=(
                Claim(
                    text="The distribution differs between blocks.",
                    value=lambda r: r["weights"].apart / r["weights"].apart_5_percent,
                    measured="largest gap between two blocks, over what chance would give in 1 of 20 pairs",
                    holds=at_least(1),
                ),
                Claim(
                    text="It is not always Gaussian.",
                    value=lambda r: float((r["weights"].table["ks"] / r["weights"].table["ks_5_percent"]).max()),
                    measured="largest distance from a normal law, over what chance would give in 1 of 20 cases",
                    holds=at_least(1),
                ),
            ),
        ),
    )


def _smoothness_kept(table: pd.DataFrame) -> float:
    return float((table["smooth_shuffled"] / table["smooth"]).median())


def _decoding_item(d_vocab: int) -> Item:
    return Item(
        address="S0.6",
        title="From the last column to probabilities",
        words="The blocks turn every column into a new one. To go on with the text only the last column is used: it "
        "is decoded into one probability for each token of the vocabulary.\n\n"
        "Look at the likeliest tokens, and at how much is left for all the others. The model computes a prediction at "
        "every position; training uses them all, writing uses the last.",
        shows=("next.distribution",),
        claims=(
            Claim(
                text="The result is a list of about 50,000 probabilities.",
                value=lambda r: float(r["loop"].d_vocab),
                measured="tokens in the vocabulary",
                holds=Range(45_000, 55_000),
                corrected=at_least(2),
                correction=f"the vocabulary is GPT-2's: there is one for each token, and this model knows {d_vocab:,}.",
            ),
            Claim(
                text="They sum to one.",
                value=lambda r: float(np.abs(r["loop"].total - 1).max()),
                measured="largest distance of the sum from one, over all steps",
                holds=at_most(1e-6),
            ),
            Claim(
                text="Only the last position's final embedding is decoded.",
                value=lambda r: r["loop"].rows_used,
                measured="largest change of the prediction when all other final embeddings are set to zero",
                holds=at_most(1e-4),
            ),
        ),
    )


def _structure_item() -> Item:
    def table(r: Results) -> Table:
        found = {"this model": r["model"], "GPT-2": r["gpt2"], "GPT-3": r["gpt3"]}
        lines: dict[str, Callable[[ArchitectureResult], float]] = {
            "blocks": lambda a: a.config.n_layers,
            "heads in a block": lambda a: a.config.n_heads,
            "coordinates of an embedding": lambda a: a.config.d_model,
            "tokens in the context": lambda a: a.config.n_ctx,
            "tokens in the vocabulary": lambda a: a.config.d_vocab,
            "weights": lambda a: a.total,
            "core layers on the longest path": lambda a: a.longest_path,
            "multiply-adds for one token, for each weight": _uses,
        }
        columns = {name: [short(line(a)) for line in lines.values()] for name, a in found.items()}
        return Table(
            key="structure",
            title="The structure, counted",
            caption="Counted on the models' shapes; GPT-2 and GPT-3 need no weights for that. A core layer is a "
            "product with a weight matrix.",
            frame=pd.DataFrame({"number of": list(lines), **columns}),
        )

    return Item(
        address="S0.7",
        title="The structure",
        words="The same block, many times. GPT-3 differs from GPT-2 in numbers, hardly in kind.\n\n"
        "Look at the last row: for one token, each weight takes part in about one multiplication.",
        shows=(table,),
        claims=(
            Claim(
                text="GPT-2 has 12 blocks of 12 heads.",
                value=lambda r: float(r["gpt2"].config.n_layers * r["gpt2"].config.n_heads),
                measured="heads in all",
                holds=exactly(144),
            ),
            Claim(
                text="GPT-2's embeddings have length 768, GPT-3's 12,288.",
                value=lambda r: r["gpt3"].config.d_model / r["gpt2"].config.d_model,
                measured="ratio of the two lengths",
                holds=exactly(16),
            ),
            Claim(
                text="GPT-3 has about 400 core layers on its longest path.",
                value=lambda r: float(r["gpt3"].longest_path),
                measured="products with weight matrices, one after the other",
                holds=Range(360, 440),
            ),
            Claim(
                text="GPT-3 has 175 billion weights.",
                value=lambda r: r["gpt3"].total / 1e9,
                measured="billions, counted",
                holds=Range(174.5, 175.5),
            ),
            Claim(
                text="Each weight is used once for each token.",
                value=lambda r: _uses(r["gpt3"]),
                measured="multiply-adds with weights for one token, over weights",
                holds=Range(0.98, 1.02),
            ),
        ),
    )


def _uses(found: ArchitectureResult) -> float:
    """Multiply-adds with weights for one token over the number of weights, of an architecture's result."""
    return float(found.flops_linear[0] / found.lengths[0] / 2 / found.total)


def _loop_item() -> Item:
    return Item(
        address="S0.8",
        title="The outer loop",
        words="Predict a token, append it, run the whole model again. This is the only loop there is.\n\n"
        "Look at a row: the text that was read for one new token, coloured by how much each token mattered. To the "
        "right, where rows grow longer, the model reads its own words.",
        shows=("loop.growth", "loop.steps", "next.loop"),
        claims=(
            Claim(
                text="Each new token depends on all the earlier ones.",
                value=lambda r: r["loop"].least_influence,
                measured="smallest influence of any earlier token on a new one (total variation)",
                holds=at_least(1e-6),
            ),
            Claim(
                text="It reads the model's own words as it reads ours.",
                value=lambda r: (
                    float(r["loop"].own_influence.min(initial=np.inf)) if r["loop"].own_influence.size else np.nan
                ),
                measured="smallest influence of a token that the model had added",
                holds=at_least(1e-6),
            ),
            Claim(
                text="There is no loop inside: for one token the model goes through once.",
                value=lambda r: float(r["loop"].most_often),
                measured="most times that any operation was done in one pass",
                holds=exactly(1),
            ),
        ),
        differs="Here the likeliest token is always taken, so that the steps repeat exactly; the article adds a little "
        "chance. This model is small: its words follow each other well, its sentences do not.",
    )
