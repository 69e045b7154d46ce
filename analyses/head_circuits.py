"""What each head looks for (QK) and what it writes when it finds it (OV), from the weights alone.

Question: which tokens attend to which through a head, and which tokens' logits rise when it attends to a token?

Method: W_QK = W_Q W_K^T decides where a head attends and W_OV = W_V W_O what it moves (Elhage et al. 2021, "A
Mathematical Framework for Transformer Circuits"). Each is d_model x d_model but of rank d_head, so its singular value
decomposition comes from the factors. A singular direction has two sides: for QK what a query holds and what a key
holds, for OV what is read and what is written. Both sides are named by the tokens that align best with them:
embeddings for what is read, unembeddings for what is written. Under rotary positions W_QK is that of a key `distance`
positions before the query, 0 for the query itself. The copying score follows Elhage et al.: the sum
of the eigenvalues of W_E W_OV W_U over the sum of their absolute values, +1 when all are positive.

What it does not show: layers after the first read more than embeddings, biases, scales of norms and caps are left out,
and a direction's sign is free: the opposite tokens work the same way. The copying score is no test of copying. The head
L11H10 of GPT-2 small lowers the logits of the names it attends to (Wang et al. 2022), and the eigenvalues of its W_OV
alone, without W_E and W_U, have a published score of +.996: a figure of another matrix than the one shown here. Here
the logits are centred over the vocabulary besides, which Elhage et al. do not do. `head_roles` measures copying on
running text. A head's score is held against random matrices with the singular values of its circuit: one whose singular
values are few is often near +1 or -1 by chance.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import scipy
import torch
from jaxtyping import Float
from scipy import special
from torch import Tensor

from analyses.shared.by_stack import by_stack
from analyses.shared.capabilities import analysis
from analyses.shared.claims import SURE
from analyses.shared.inputs import TextOrTokens, token_list
from analyses.shared.panels import Finding, Lines, Matrix, Note, Panel, Result, Table, Tokens
from analyses.shared.stacks import Model, Stack, attentions, labels_of
from analyses.shared.weight_circuits import Circuits, circuits, factor_svd, toward_logits
from interp.errors import InputError, NotApplicable
from interp.models.encoder import HookedEncoder
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT
from interp.models.kernels import wide
from interp.residual import Reader, stream_of

CAUTION = (
    "The copying score says that a head's eigenvalues are positive, not that it copies: L11H10 of GPT-2 small lowers "
    "the logits of names that it attends to, and the eigenvalues of its W_OV alone have a published score of +.996. "
    "That is another matrix than here (token to logits, centred over the vocabulary): do not compare the two. "
    "Where earlier layers process a "
    "token before the head reads it, its embedding says little. The head roles measure copying in runs."
)


DRAWS = 10
"""Random matrices that a copying score is held against."""


@dataclass(frozen=True, kw_only=True)
class HeadCircuitsResult(Result):
    """Singular values and directions of every head's QK and OV circuit."""

    singular_values: dict[str, np.ndarray]
    """`QK` and `OV` -> [layer head d_head], largest first. QK includes the scale of the scores."""
    copying: np.ndarray
    """[layer head], -1 to 1: sum of the eigenvalues of the whole OV circuit over the sum of their absolute values; NaN
    where the vocabulary of the logits is another one."""
    copying_spread: np.ndarray
    """[layer head], root mean square of the score of random matrices with the same singular values; the mean is 0."""
    read: dict[str, tuple[Tokens, ...]]
    """`QK` and `OV` -> [layer x head x direction] top tokens of the side that reads: the query's, the source's."""
    written: dict[str, tuple[Tokens, ...]]
    """The same for the other side: the key's, the logits' (or, of a stack that no logits read, that of the embeddings
    which lie along what is written)."""
    directions: int
    """Singular directions of each head that have tokens."""
    distance: int
    """How many positions before the query the key of QK lies; 0 where positions do not turn anything."""
    has_logits: bool = True
    """Whether logits read what the heads write."""

    def to_dataframe(self) -> pd.DataFrame:
        """One row per head, circuit and singular value: layer head circuit direction singular_value share copying
        read_tokens written_tokens (top tokens, separated by " | "; empty beyond `directions`)."""
        frames = []
        for circuit, values in self.singular_values.items():
            layer, head, direction = np.indices(values.shape).reshape(3, -1)
            row = (layer * values.shape[1] + head) * self.directions + direction
            named = direction < self.directions
            sides = {
                name: [" | ".join(tokens[i]) if shown else "" for i, shown in zip(row, named, strict=True)]
                for name, tokens in (("read_tokens", self.read[circuit]), ("written_tokens", self.written[circuit]))
            }
            frames.append(pd.DataFrame({
                "layer": layer, "head": head, "circuit": circuit, "direction": direction,
                "singular_value": values.ravel(), "share": shares(values).ravel(),
                "copying": self.copying[layer, head] if circuit == "OV" else np.nan, **sides,
            }))  # fmt: skip
        return pd.concat(frames, ignore_index=True)

    @property
    def copying_p(self) -> np.ndarray:
        """[layer head] chance that the highest of all heads' scores is so high at random (Bonferroni)."""
        spreads = np.divide(self.copying, self.copying_spread, out=np.zeros_like(self.copying), where=self._known)
        return np.asarray(np.minimum(self.copying.size * special.stdtr(DRAWS, -spreads), 1.0))

    @property
    def _known(self) -> np.ndarray:
        return np.asarray(self.copying_spread > 0)

    def panels(self) -> list[Panel]:
        n_layers, _ = self.copying.shape
        limit = np.minimum(self.copying_spread * -special.stdtrit(DRAWS, 0.05 / self.copying.size), 1.0)
        panels: list[Panel] = [] if np.isnan(self.copying).all() else [
            _grid(
                "copying", "Copying score from eigenvalues", self.copying, "score",
                "Sum of the eigenvalues of each head's whole OV circuit, token to logits, over the sum of their "
                "absolute values. Random matrices with the same singular values have a root mean square of "
                f"{np.median(self.copying_spread):.2f}. Read the caution below.", diverging=True,
                floor=limit,
            ),
            Note(key="caution", title="This score is not a copying test", text=CAUTION),
        ]  # fmt: skip
        for circuit, values in self.singular_values.items():
            panels.append(_grid(
                f"dimensions-{circuit.lower()}", f"Directions used by {circuit}", effective_rank(values),
                f"directions of {values.shape[-1]}",
                f"Effective number of singular directions of W_{circuit}: (sum s^2)^2 / sum s^4. Few directions mean "
                "that the head does one simple thing, whatever the text.",
            ))  # fmt: skip
        spectra = {
            f"{circuit}, layer {layer}": values[layer].mean(0)
            for circuit, values in self.singular_values.items()
            for layer in sorted({0, n_layers // 2, n_layers - 1})
        }
        panels.append(Lines(
            key="spectra", title="Singular values", series=spectra,
            x=np.arange(1, self.singular_values["QK"].shape[-1] + 1), log_y=True,
            x_axis="singular direction", y_axis="singular value, mean over heads",
            caption="Singular values of W_QK and W_OV, averaged over the heads of a layer.",
        ))  # fmt: skip
        return [
            *panels,
            self._table("QK", "query", "key"),
            self._table("OV", "source", "logits raised" if self.has_logits else "written"),
        ]

    def _table(self, circuit: str, read: str, written: str) -> Table:
        values = self.singular_values[circuit]
        share = shares(values)
        layer, head, direction = np.indices((*values.shape[:2], self.directions)).reshape(3, -1)
        frame = pd.DataFrame({
            "head": [f"L{a}H{b}" for a, b in zip(layer, head, strict=True)], "direction": direction + 1,
            "singular value": values[layer, head, direction], "share": share[layer, head, direction],
            f"{read} tokens": list(map(token_list, self.read[circuit])),
            f"{written} tokens": list(map(token_list, self.written[circuit])),
        })  # fmt: skip
        if circuit == "OV" and self.has_logits:
            frame.insert(4, "copying", self.copying[layer, head])
        return Table(
            key=f"tokens-{circuit.lower()}", frame=frame, units={"share": "of squares"},
            title=f"What {circuit} reads and {'matches' if circuit == 'QK' else 'writes'}",
            diverging=frozenset({"copying"} & set(frame.columns)),
            caption=f"Tokens that align best with the two sides of each head's leading direction of W_{circuit}. "
            "Both signs of a direction work alike; one is shown."
            + f" The key lies {self.distance} positions before the query." * bool(circuit == "QK" and self.distance),
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        p = self.copying_p
        best = np.argsort(-self.copying, axis=None, kind="stable")
        order = [divmod(int(i), p.shape[1]) for i in best if p.flat[i] <= SURE]
        if not order:
            return []
        names, first, n = [f"L{layer}H{head}" for layer, head in order], order[0], len(order)
        score, spread = float(self.copying[first]), float(self.copying_spread[first])
        others = f", then {', '.join(names[1:4])}" * (n > 1) + f" and {n - 4} more" * (n > 4)
        return [Finding(
            f"{n} head{'s' * (n != 1)} with weights that copy, by their eigenvalues: {names[0]} scores {score:+.2f} of "
            f"at most 1 (random matrices with its singular values: {spread:.2f} either way){others}.",
            "copying", 0.3, score, "score", kind="effect", null="random matrices of equal singular values, the best of "
            "all heads", p=float(p[first]), about=names[0], short=f"copying score of its weights {score:+.2f}",
        )]  # fmt: skip


def _grid(
    key: str,
    title: str,
    values: np.ndarray,
    unit: str,
    caption: str,
    *,
    diverging: bool = False,
    floor: float | np.ndarray = 0.0,
) -> Matrix:
    return Matrix(
        key=key, title=title, caption=caption, values=values, unit=unit, diverging=diverging, floor=floor,
        rows=tuple(map(str, range(len(values)))), columns=tuple(map(str, range(values.shape[1]))),
        row_axis="layer", column_axis="head",
    )  # fmt: skip


def effective_rank(values: np.ndarray) -> np.ndarray:
    """[...] participation ratio of the squared singular values [... d_head]; 0 for a matrix of zeros."""
    power = values.astype(float) ** 2
    return ratio(power.sum(-1) ** 2, (power**2).sum(-1))


def shares(values: np.ndarray) -> np.ndarray:
    """[... d_head] each singular value's share of the sum of squares; 0 for a matrix of zeros."""
    power = values.astype(float) ** 2
    return ratio(power, power.sum(-1, keepdims=True))


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, and 0 where bottom is 0."""
    out: np.ndarray = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    return out


@analysis(place=62, runs=True, weights_only=True)
@torch.no_grad()
def head_circuits(
    model: HookedGPT | HookedEncoderDecoder | HookedEncoder,
    tokens: TextOrTokens | None = None,
    *,
    directions: Annotated[int, "leading singular directions of each head that are named by tokens"] = 1,
    top: Annotated[int, "tokens shown for each side of a direction"] = 6,
    distance: Annotated[int, "how far before the query the key lies, where positions are rotary"] = 0,
) -> Result:
    """Decompose the QK and OV circuit of every head. The weights alone decide; `tokens` is not read.

    A translation model has those of its encoder, its decoder and its cross-attention, whose OV circuit goes from source
    to target. No logits read what an encoder writes: it is named by the embeddings that lie along it, and its heads
    have no copying score.

    Raises InputError for fewer than one direction or token, more directions than d_head, or a distance that the model
    cannot tell from 0; NotApplicable for a model of images, whose directions no token names.
    """
    if not model.config.d_vocab:
        raise NotApplicable("a model without tokens", "expected one of text: directions are named by tokens")
    if not 1 <= directions <= model.config.d_head:
        raise InputError(f"directions = {directions}", f"expected 1 to {model.config.d_head}, the width of a head")
    if not 1 <= top <= model.config.d_vocab:
        raise InputError(f"top = {top}", f"expected 1 to {model.config.d_vocab}, the vocabulary")
    stacks = attentions(model)
    return by_stack(stacks, [_measured(model, stack, directions, top, distance) for stack in stacks])


def _measured(model: Model, stack: Stack, directions: int, top: int, distance: int) -> HeadCircuitsResult:
    c = circuits(model, distance, stack)
    reader = _reader(model, stack)
    reads = wide(model.W_E).T  # [d_model d_vocab]
    values, read, written = {}, {}, {}
    for name, left, right in (("QK", c.q, c.k), ("OV", c.v, c.o.mT)):
        ours, values[name], theirs = _directions(left, right, directions)
        scores = ours @ reads
        sign = torch.where(scores.amax(-1) >= -scores.amin(-1), 1.0, -1.0)[:, None]
        read[name] = _top_tokens(model, sign * scores, top)
        if name == "OV" and reader is not None:
            passed = toward_logits(reader, stack.part, theirs.unflatten(0, (len(stack.blocks), -1)))
            other = passed.flatten(0, 1) @ wide(reader.W_U)
        else:
            other = theirs @ reads
        written[name] = _top_tokens(model, sign * other, top)
    small = None if reader is None else _token_circuits(reader, c, stack.part)
    unknown = np.full(stack.shape, np.nan)
    copying, spread = (unknown, unknown) if small is None else (copying_scores(small), random_spread(small))
    return HeadCircuitsResult(
        singular_values=values, copying=copying, copying_spread=spread, read=read, written=written,
        directions=directions, distance=distance, has_logits=reader is not None,
    )  # fmt: skip


def _reader(model: Model, stack: Stack) -> Reader | None:
    """The model, where its logits are linear in what this stack's stream holds at the end."""
    linear = getattr(model, "ln_final", None) is not None and stack.path == stream_of(model)[0]
    return model if linear else None  # type: ignore[return-value]


def _token_circuits(model: Reader, c: Circuits, part: str) -> Float[np.ndarray, "layer head d_head d_head"] | None:
    """Of each head a matrix with the non-zero eigenvalues of W_E W_V W_O W_U; None where the vocabularies differ.

    A product A B has the non-zero eigenvalues of B A, so W_O (W_U W_E) W_V, d_head x d_head, has them all. Logits are
    centred over the vocabulary; that is a product of two means, so that no second table is needed.
    """
    embed, unembed = wide(model.W_E), wide(model.W_U)
    if unembed.shape[1] != len(embed):
        return None
    through = unembed @ embed - len(embed) * torch.outer(unembed.mean(1), embed.mean(0))
    small: np.ndarray = (toward_logits(model, part, c.o) @ through @ c.v).cpu().double().numpy()
    return small


def copying_scores(matrices: Float[np.ndarray, "*head n n"]) -> Float[np.ndarray, "*head"]:
    """Sum of the eigenvalues of each matrix over the sum of their absolute values; 0 where all are zero."""
    eigenvalues = np.linalg.eigvals(matrices)  # torch's fails to converge on a matrix of almost nothing
    return ratio(eigenvalues.sum(-1).real, np.abs(eigenvalues).sum(-1))


def random_spread(matrices: Float[np.ndarray, "*head n n"]) -> Float[np.ndarray, "*head"]:
    """Root mean square of the scores of random matrices with the same singular values.

    U S V^T with random U and V has the eigenvalues of S Q, Q = V^T U random and orthonormal.
    """
    values = np.linalg.svd(matrices, compute_uv=False)[..., None]
    turns = scipy.stats.ortho_group(matrices.shape[-1], seed=0) if matrices.shape[-1] > 1 else None
    drawn = [copying_scores(values * (1.0 if turns is None else turns.rvs())) for _ in range(DRAWS)]
    spread: np.ndarray = np.sqrt(np.mean(np.square(drawn), axis=0))
    return spread


def _directions(left: Tensor, right: Tensor, count: int) -> tuple[Tensor, np.ndarray, Tensor]:
    """Leading singular vectors of both sides as rows [layer x head x direction, d_model], and all singular values."""
    u, s, v = factor_svd(left, right, count)
    return u.mT.flatten(0, 2), s.cpu().numpy(), v.mT.flatten(0, 2)


def _top_tokens(model: Model, scores: Float[Tensor, "row d_vocab"], top: int) -> tuple[Tokens, ...]:
    """The best of each row that can be read, of four times as many: parts of characters and control codes are left out;
    numbers of outputs where these are not the vocabulary."""
    if scores.shape[-1] != model.config.d_vocab:
        ids = scores.topk(min(top, scores.shape[-1]), dim=-1).indices
        return tuple(Tokens(f"output {number}" for number in row) for row in ids.tolist())
    ids = scores.topk(min(4 * top, scores.shape[-1]), dim=-1).indices
    return tuple(Tokens([label for label in labels_of(model, row) if _readable(label)][:top]) for row in ids)


def _readable(label: str) -> bool:
    """Whether a token is made of whole, printable characters."""
    return "\\x" not in label and all(c.isprintable() or c in "\n\t" for c in label) and "\ufffd" not in label
