"""The GPT-3 architecture in detail (after Daniel Dugas): every shape, every parameter, where positions meet (S3).

The shapes are those of GPT-3 itself, in a pass on a device that keeps shapes and no numbers. What needs numbers is
measured on a real, smaller model of the same architecture (`--model`).
"""

import math
from typing import Annotated

import numpy as np
import pandas as pd
import torch

from analyses.architecture import architecture
from analyses.lessons.position_encodings import position_encodings
from analyses.lessons.position_mixing import MEETING, position_mixing
from analyses.next_token import next_token
from analyses.shared.inputs import token_labels
from analyses.shared.panels import Lines, Panel, Table
from interp.errors import InputError
from interp.models.config import PRESETS, Activation
from interp.models.gpt import HookedGPT
from interp.models.kernels import ACTIVATIONS
from reports.studies._gpt3 import (
    CAPES,
    CAPES_IDS,
    alternating,
    banded_attention,
    empty_pass,
    encode,
    pairs_allowed,
    real_pass,
)
from reports.studies._parts import Claim, Item, Range, Results, Study, at_least, at_most, exactly

GPT3 = PRESETS["gpt3"]
BAND_TEXT = (
    "Not all heroes wear capes. Some of them work at night in a hospital, some teach children to read, and some of "
    "them only stay with a friend who has lost somebody."
)
"""Long enough for a band to be seen in it."""
ROUNDING = 1e-3
"""Largest difference of logits, about ten in size, that float32 leaves between two ways to compute the same."""


def gpt3(
    model: HookedGPT,
    *,
    text: Annotated[str, "what the real model reads"] = CAPES,
    window: Annotated[int, "tokens that a locally banded layer sees"] = 8,
    tokenizer: Annotated[str | None, "a directory with GPT-2's byte-pair files (default: looked for)"] = None,
) -> Study:
    """The study of GPT-3's shape, with the real model for what needs numbers."""
    if not text:
        raise InputError("the text is empty", "expected at least one character")
    ids = model.to_tokens(text).to(model.device)
    long = model.to_tokens(BAND_TEXT if len(text) < len(BAND_TEXT) else text).to(model.device)[:, : model.config.n_ctx]
    return Study(
        title="The GPT-3 architecture in detail",
        after="The GPT-3 Architecture, on a Napkin, by Daniel Dugas (2020)",
        model=model,
        texts=(token_labels(model, ids),),
        runs={
            "shape": lambda: architecture(GPT3),
            "empty": lambda: empty_pass(GPT3),
            "real": lambda: real_pass(model, ids),
            "next": lambda: next_token(model, ids, steps=0),
            "mixing": lambda: position_mixing(model, ids),
            "positions": lambda: position_encodings(model),
            "banded": lambda: banded_attention(model, long, window=window),
            "encoded": lambda: encode(tokenizer, model),
        },
        items=(
            _in_and_out(ids.shape[1]),
            _shapes(),
            _meeting(),
            _norms(),
            _bands(window),
            _corrections(model.config.act_fn),
        ),
        facts={"shapes": "GPT-3, 96 layers, on the meta device", "numbers": model.source},
    )


def _in_and_out(length: int) -> Item:
    return Item(
        address="S3.1",
        title="Tokens in, one prediction for every position out",
        words="A sequence of tokens goes in; for each of its positions a guess at the next token comes out.\n\nThe "
        "picture shows the last guess. In the table of positions, read "
        "down the columns: at every position the model has said what it expects there, although "
        "only the last guess is new. Text is made by appending that one and starting over.\n\nA later token changes no "
        "earlier guess: the guesses for the whole text are those that the model would have made while reading it. That "
        "is why one pass over a text trains on every position at once.",
        shows=("next.distribution", "encoded.ids", "real.positions", "real.appended"),
        claims=(
            Claim(
                text=f'"{CAPES}" is {list(CAPES_IDS)} in the byte-pair encoding of GPT-2 and GPT-3.',
                value=lambda r: r["encoded"].agreeing,
                measured="ids that are the article's, of 6",
                holds=exactly(6),
            ),
            Claim(
                text="GPT-3 reads up to 2,048 tokens and gives one prediction for every position.",
                value=lambda r: r["empty"].shapes["logits"][1],
                measured="positions with a prediction, in a pass of a full context",
                holds=exactly(2048),
            ),
            Claim(
                text="The input is always 2,048 tokens; a shorter one is filled up.",
                value=lambda r: len(r["real"].predicted),
                measured=f"positions that a pass computes for a text of {length} tokens",
                holds=exactly(2048),
                corrected=exactly(length),
                then="does not hold",
                correction="Nothing needs to be filled up: any length up to the context will do, and costs as much as "
                "it is long.",
            ),
            Claim(
                text="A prediction depends on its own position and the earlier ones only.",
                value=lambda r: r["real"].prefix_error,
                measured="largest difference of a logit when the later tokens are not there",
                holds=at_most(ROUNDING),
            ),
            Claim(
                text="Text is made by appending the last prediction and repeating.",
                value=lambda r: _same(r["real"].appended, r["real"].generated),
                measured="share of tokens that come out alike when done by hand and by interp generate",
                holds=exactly(1),
            ),
        ),
        differs="The predictions are those of a smaller model with a vocabulary of its own; GPT-3's weights are not "
        "public.",
    )


def _shapes() -> Item:
    return Item(
        address="S3.2",
        title="The shape of every step, to the last parameter",
        words="GPT-3 is about a dozen kinds of matrix products, repeated 96 times.\n\nFollow the shapes down the first "
        "table: everything between the embedding and the unembedding is 2,048 rows of 12,288 numbers, except inside "
        "attention and inside the MLP.\n\nParameters are counted on the model as it would be built. FLOPs are two per "
        "multiply-add of a matrix product; attention is counted for all pairs of positions, as if every layer were "
        "dense. Bytes are for 32-bit numbers.",
        shows=(
            "shape.parameters",
            "empty.shapes",
            "shape.length",
            "shape.operations",
            "shape.memory",
            lambda r: per_token(r),
            "next.settings",
        ),
        claims=(
            Claim(
                text="Every step has the shape that the article gives.",
                value=lambda r: r["empty"].agreeing,
                measured="steps whose shape is the article's, of 13",
                holds=exactly(13),
            ),
            Claim(
                text="All 96 blocks are alike.",
                value=lambda r: r["empty"].odd_blocks,
                measured="blocks with a shape that the first does not have",
                holds=exactly(0),
            ),
            Claim(
                text="GPT-3 has 175 billion parameters.",
                value=lambda r: r["shape"].total / 1e9,
                measured="billions of parameters",
                holds=Range(174.5, 175.5),
            ),
            Claim(
                text="They are (50,257 + 2,048) d in the embeddings, 12 d^2 + 13 d in each block and 2 d in the last "
                "norm, with d = 12,288.",
                value=lambda r: r["shape"].total - by_formula(50257 + 2048, 96, 12288),
                measured="parameters of the model beyond these 174,604,259,328",
                holds=exactly(0),
            ),
            Claim(
                text="A one-hot vector times the embedding is the same as looking up a row.",
                value=lambda r: r["real"].one_hot_error,
                measured="largest difference, on the real model",
                holds=at_most(1e-6),
            ),
            Claim(
                text="The unembedding is the embedding's transpose, not a matrix of its own.",
                value=lambda r: r["shape"].by_component["unembedding"],
                measured="parameters of the unembedding's own in GPT-3",
                holds=exactly(0),
            ),
            Claim(
                text="The softmax makes probabilities of the scores.",
                value=lambda r: r["real"].probability_sum,
                measured="largest distance of a position's sum from one",
                holds=at_most(1e-9),
            ),
        ),
        differs="Biases and layer norms, which the article leaves aside, are counted here. The real model's "
        "unembedding may be a matrix of its own.",
    )


def _meeting() -> Item:
    return Item(
        address="S3.3",
        title="Where positions meet",
        words="Almost everything in the model treats each row, that is each position, alone.\n\nOne position after the "
        "other is disturbed at the input of every operation; the table says whether the output moves anywhere else.",
        shows=("mixing.operations", "mixing.map-0", "mixing.map-1", "mixing.map-2"),
        claims=(
            Claim(
                text="The product of queries and keys is the only operation in which positions meet.",
                value=lambda r: len(r["mixing"].mixing),
                measured="operations in which another position's output moves",
                holds=exactly(1),
                corrected=exactly(2),
                correction="attention counts as one operation: positions meet in its scores, which say how much, and "
                "again in the sum of the values, which does it.",
            ),
            Claim(
                text="Everything else acts on each row alone.",
                value=lambda r: len(set(r["mixing"].mixing) - set(MEETING)),
                measured="operations outside attention in which positions meet",
                holds=exactly(0),
            ),
            Claim(
                text="Nothing flows from later positions to earlier ones.",
                value=lambda r: r["mixing"].leak,
                measured="largest relative change before the disturbed position",
                holds=at_most(0),
            ),
        ),
    )


def _norms() -> Item:
    return Item(
        address="S3.4",
        title="Layer norm before each sub-block",
        words="Attention and MLP read a normalised copy of the residual stream and add their output to the stream "
        "itself, which is never normalised on the way.\n\nThe 2017 Transformer normalised after each sum; GPT-2 moved "
        "the norm in front, and put one more behind the last block.",
        shows=(lambda r: norm_table(r),),
        claims=(
            Claim(
                text="Each sub-block reads the layer norm of the stream.",
                value=lambda r: r["real"].norm_error,
                measured="largest difference from the formula, over all blocks",
                holds=at_most(1e-4),
            ),
            Claim(
                text="What is added to the stream is not normalised afterwards.",
                value=lambda r: r["real"].stream_error,
                measured="largest difference of the stream from the plain sum",
                holds=at_most(1e-4),
            ),
            Claim(
                text="With one after the last block, GPT-3 has 2 x 96 + 1 layer norms.",
                value=lambda r: r["empty"].norms,
                measured="layer norms",
                holds=exactly(193),
            ),
        ),
    )


def _bands(window: int) -> Item:
    return Item(
        address="S3.5",
        title="Dense and locally banded attention in turn",
        words="In GPT-3 every second layer looks only at nearby tokens.\n\nCompare the two masks, and below them the "
        "weights of a real model whose second layer has been narrowed: outside the band they are zero. Tokens further "
        "apart still reach each other through the dense layers, and through several banded ones.\n\nThe paper (Brown "
        "et al. 2020, section 2.1) takes the pattern from the Sparse Transformer (Child et al. 2019) and does not say "
        "how wide the bands are; the width here is only an example (`--window`).",
        shows=(
            "banded.mask-dense",
            "banded.mask-banded",
            "banded.pattern-0",
            "banded.pattern-1",
            "banded.saving",
            lambda r: band_table(r),
        ),
        claims=(
            Claim(
                text="A banded layer is dense attention with a mask on all but the band.",
                value=lambda r: r["banded"].mask_error,
                measured="largest difference of a logit from dense attention with that mask put on by hand",
                holds=at_most(ROUNDING),
            ),
            Claim(
                text="Outside its band a banded layer gives no weight.",
                value=lambda r: r["banded"].outside,
                measured=f"largest weight beyond {window} tokens back, or ahead",
                holds=at_most(0),
            ),
            Claim(
                text="The band makes a difference to what is predicted.",
                value=lambda r: r["banded"].dense_difference,
                measured="largest difference of a logit from the dense model",
                holds=at_least(10 * ROUNDING),
            ),
            Claim(
                text="Half of GPT-3's 96 layers are banded, and this costs no parameters.",
                value=lambda r: sum(w is not None for w in alternating(r["empty"].config.n_layers, window)),
                measured="banded layers when every second one is",
                holds=exactly(48),
            ),
        ),
        differs="The real model was trained with dense attention everywhere, so narrowing it costs it something; GPT-3 "
        "was trained with its bands.",
    )


def _corrections(act_fn: Activation) -> Item:
    return Item(
        address="S3.6",
        title="Two details, put right",
        words="The article explains positions with sines and the MLP with ReLU, as in the first Transformer. Both are "
        "fair pictures; GPT-2 and GPT-3 do it a little differently.\n\nLook at the table of positions that a real "
        "model has learned, and at the two activation functions.",
        shows=("positions.learned", lambda r: activation_curves(act_fn)),
        claims=(
            Claim(
                text="Positions are encoded by fixed sines and cosines.",
                value=lambda r: r["shape"].by_component["positions"],
                measured="learned parameters for positions in GPT-3",
                holds=exactly(0),
                corrected=exactly(2048 * 12288),
                then="does not hold",
                correction="GPT-2 and GPT-3 learn them: a table of 2,048 x 12,288 weights, trained like all others. "
                "Sines are the original Transformer's.",
            ),
            Claim(
                text="The MLP's activation is ReLU, which cuts off everything below zero.",
                value=lambda r: float(ACTIVATIONS[GPT3.act_fn](torch.tensor(-1.0, dtype=torch.float64))),
                measured="what GPT-3's activation makes of -1",
                holds=exactly(0),
                corrected=Range(-0.1600, -0.1585),
                then="does not hold",
                correction="It is GELU, which bends smoothly and lets a little through below zero: -0.159 for -1.",
            ),
        ),
    )


# Measurements and panels of this study alone.


def _same(a: tuple[str, ...], b: tuple[str, ...]) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


def by_formula(rows: int, layers: int, d: int) -> int:
    """Parameters of a tied GPT-2-style model: rows of the embeddings, blocks and the last norm."""
    return rows * d + layers * (12 * d * d + 13 * d) + 2 * d


def per_token(results: Results) -> Table:
    """What one pass costs, whole and for each token."""
    shape = results["shape"]
    tokens = shape.length * shape.batch
    biases = sum(op.weight[1] * op.count for op in shape.operations if op.part in ("attention", "mlp") and op.core)
    rows = [
        ("parameters", f"{shape.total:,}", ""),
        ("of which biases of linear layers", f"{biases:,}", "in all blocks"),
        ("weights in 16-bit numbers", f"{2 * shape.total / 1e9:,.0f} GB", ""),
        ("FLOPs of one pass", f"{shape.flops:,.4g}", f"{tokens:,} tokens"),
        ("FLOPs for each token", f"{shape.flops / tokens:,.4g}", "mean over the pass"),
        (
            "FLOPs a token and parameter",
            f"{shape.flops / tokens / shape.total:.3f}",
            "2 if each multiplies once",
        ),
        ("core layers on the longest path", f"{shape.longest_path:,}", "operations with a weight matrix"),
    ]
    frame = pd.DataFrame(rows, columns=["what", "how much", "for"])
    return Table(key="costs", title="What a pass costs", frame=frame, caption="Of GPT-3, with a full context.")


def norm_table(results: Results) -> Table:
    """The three places where a layer norm could sit, and what is measured there."""
    real = results["real"]
    rows = [
        ("in front of each sub-block", "what attention and MLP read", "the norm's formula", real.norm_error),
        ("none inside the stream", "the stream after a sub-block", "the plain sum", real.stream_error),
        ("behind each sum, as in 2017", "the stream after a sub-block", "its own norm", real.stream_norm_error),
    ]
    frame = pd.DataFrame(rows, columns=["layer norm", "compared", "with", "difference"])
    return Table(
        key="norms",
        title="Where the norms sit",
        caption="Largest differences over all blocks; in the last row the smallest of them. About zero: so it is.",
        frame=frame,
    )


def band_table(results: Results) -> Table:
    """Loss of the model, dense and with bands."""
    banded = results["banded"]
    frame = pd.DataFrame(
        {
            "attention": ["dense everywhere", f"every second layer sees {banded.window} tokens"],
            "mean loss (nats)": list(banded.loss),
            "pairs of positions": [
                sum(pairs_allowed(len(banded.tokens), window) for window in windows)
                for windows in ((None,) * len(banded.windows), banded.windows)
            ],
        }
    )
    caption = "On one text; it was not trained for it."
    return Table(key="loss", title="What narrowing costs this model", frame=frame, caption=caption)


def activation_curves(act_fn: Activation) -> Panel:
    """GELU as the model computes it, and ReLU."""
    x = np.linspace(-4, 4, 161)
    own = ACTIVATIONS[act_fn](torch.from_numpy(x)).numpy()
    exact = np.array([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x])
    return Lines(
        key="activation",
        title="GELU and ReLU",
        caption="GPT-2 and GPT-3 use an approximation of GELU by a hyperbolic tangent; it differs from the exact one "
        "by at "
        f"most {np.abs(own - exact).max():.1g}.",
        x=x,
        series={"GELU, as the model computes it": own, "ReLU": np.maximum(x, 0)},
        x_axis="input",
        y_axis="output",
    )
