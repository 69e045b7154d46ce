"""How the residual stream grows, turns and spreads from layer to layer, who writes how much, where it is massive.

Question: what does the stream that all layers share look like on its way through the model?

Method: at the entrance of the first block and after every block, over the positions of each text: the norm
(Heimersheim and Turner 2023, "Residual stream norms grow exponentially over the forward pass"); the cosine between
stages at the same position; the cosine between positions at the same stage; the effective rank (participation ratio of
the squared singular values of the positions' vectors, their mean taken out). For each attention layer and MLP, the norm
of what it writes relative to the stream it writes to, and the cosine between the two (negative: it takes something
away). Massive activations (Sun et al. 2024, "Massive Activations in Large Language Models"): single coordinates above
100 in magnitude and above 1,000 times the median magnitude of the stream at that stage.

What it does not show: norms say how loud, not how useful; layer norm divides them out. The first position, where models
tend to park attention and where norms can be a hundred times larger, is counted apart. The rank cannot exceed
the number of positions less one, so ranks of short texts are small whatever the model does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.shared.by_stack import by_stack
from analyses.shared.capabilities import analysis
from analyses.shared.inputs import TextOrTokens
from analyses.shared.panels import Finding, Lines, Matrix, Note, Panel, Result, Table, Tokens
from analyses.shared.stacks import Model, Reading, Stack, attentions, readings
from analyses.shared.statistics import Interval, bootstrap, methods
from interp.models.encoder import HookedEncoder
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT
from interp.residual import finish, stream_places, writes

MEASURES = ("norm", "first_norm", "turn", "similarity", "rank")
ABSOLUTE, RELATIVE = 100.0, 1000.0
"""A massive activation is above the first in magnitude, and above the second times the stage's median magnitude."""
LARGEST = 12
"""Coordinates in the table of the largest activations."""


@dataclass(frozen=True, kw_only=True)
class ResidualStreamResult(Result):
    """Measures of the stream by stage, of what is written by component, and the largest activations."""

    stages: tuple[str, ...]
    """[stage]: `embed`, then `after 0`, `after 1`, ..."""
    measures: dict[str, np.ndarray]
    """[text stage] each. norm: mean over positions but the first; first_norm: at the first position; turn: mean cosine
    with the stage before (NaN at the first); similarity: mean cosine between different positions; rank: effective
    rank over positions. All but first_norm leave the first position out (unless there is no other)."""
    cosine: np.ndarray
    """[text stage stage] mean over positions of the cosine between stages."""
    components: tuple[str, ...]
    """[component]: `attn 0`, `mlp 0`, `attn 1`, ...; in a translation model's decoder `cross 0` between the two."""
    write: np.ndarray
    """[text component] mean norm of what is written, over the norm of the stream it is written to."""
    write_cosine: np.ndarray
    """[text component] mean cosine between what is written and the stream it is written to."""
    largest: pd.DataFrame
    """The coordinates of largest magnitude relative to the stage's median, one row for each coordinate of each text:
    text stage position token coordinate value ratio massive."""
    tokens: tuple[Tokens, ...]
    texts: tuple[str, ...]
    seed: int

    def to_dataframe(self) -> pd.DataFrame:
        """One row per text, place and measure: text place measure value; places are stages and components."""
        tables = [(name, self.stages, values) for name, values in self.measures.items()]
        tables += [("write", self.components, self.write), ("write_cosine", self.components, self.write_cosine)]
        frames = [
            pd.DataFrame({
                "text": np.repeat(np.arange(len(values)), len(places)), "place": np.tile(np.array(places), len(values)),
                "measure": name, "value": values.ravel(),
            })
            for name, places, values in tables
        ]  # fmt: skip
        return pd.concat(frames, ignore_index=True)

    def _spread(self, values: np.ndarray) -> Interval:
        return bootstrap(values, seed=self.seed)

    def _lines(
        self, key: str, title: str, names: dict[str, np.ndarray], x: tuple[str, ...], y: str, caption: str, *,
        log: bool = False,
    ) -> Lines:  # fmt: skip
        found = {name: self._spread(values) for name, values in names.items()}
        many = len(self.texts) > 1
        over = f" Mean of {len(self.texts)} texts with 95 % intervals." if many else " One text, no interval."
        return Lines(
            key=key, title=title, x=x, series={name: interval.value for name, interval in found.items()},
            low={name: interval.low for name, interval in found.items() if interval.low is not None},
            high={name: interval.high for name, interval in found.items() if interval.high is not None},
            x_axis="stage" if x == self.stages else "layer", y_axis=y, log_y=log, caption=caption + over,
        )  # fmt: skip

    def panels(self) -> list[Panel]:
        m, layers = self.measures, tuple(str(layer) for layer in range(len(self.stages) - 1))
        kinds = {
            "attn": "attention",
            "cross": "cross-attention",
            "mlp": "MLP",
        }  # the parts that every block has, in turn
        parts = list(dict.fromkeys(name.split()[0] for name in self.components))
        write = {kinds[part]: self.write[:, n :: len(parts)] for n, part in enumerate(parts)}
        cosine = {kinds[part]: self.write_cosine[:, n :: len(parts)] for n, part in enumerate(parts)}
        between = self._spread(self.cosine)
        return [
            self._lines(
                "norm", "Norm", {"first position": m["first_norm"], "other positions": m["norm"]}, self.stages,
                "norm", "Length of the stream's vectors, log scale.", log=True,
            ),
            self._lines(
                "write", "Size of what is written", write, layers, "norm relative to the stream",
                "Norm of what each attention layer and MLP writes, over the norm of the stream it writes to, log "
                "scale.", log=True,
            ),
            self._lines(
                "write-cosine", "Direction of what is written", cosine, layers, "cosine with the stream",
                "Above zero: more of what is there already. Below zero: taken away.",
            ),
            Matrix(
                key="cosine", title="Cosine between stages", values=between.value.round(3),
                rows=self.stages, columns=self.stages, row_axis="stage", column_axis="stage",
                unit="cosine", diverging=True,
                low=between.low, high=between.high,
                caption="How far the stream turns between two stages at the same position, the first left out.",
            ),
            self._lines(
                "similarity", "Likeness of positions", {"cosine": m["similarity"]}, self.stages, "mean cosine",
                "Cosine between the vectors of different positions: near one, all positions point the same way.",
            ),
            self._lines(
                "rank", "Effective rank", {"directions": m["rank"]}, self.stages, "directions",
                f"Directions in which positions differ; at most {self._most()} here.",
            ),
            self._massive(),
            *methods(len(self.texts), seed=self.seed),
        ]  # fmt: skip

    def _most(self) -> str:
        lengths = {max(len(tokens) - 2, 0) for tokens in self.tokens}
        return str(lengths.pop()) if len(lengths) == 1 else f"{min(lengths)} to {max(lengths)}, by text,"

    def _massive(self) -> Panel:
        if self.largest.empty:
            return Note(key="massive", title="Largest activations", text="Every activation is zero.")
        n = int(self.largest.massive.sum())
        frame = self.largest if len(self.texts) > 1 else self.largest.drop(columns="text")
        return Table(
            key="massive", title="Largest activations", frame=frame, tokens=frozenset({"token"}),
            units={"ratio": "times median"}, diverging=frozenset({"value"}),
            caption=f"The largest single coordinates of each text, each at the stage where it stands out most. Massive "
            f"means above {ABSOLUTE:g} and above {RELATIVE:,.0f} times the stage's median magnitude: {n} here.",
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        massive = self.largest[self.largest.massive]
        if massive.empty:
            return []
        top, plural = massive.iloc[0], "s" * (len(massive) != 1)
        return [Finding(
            text=f"{len(massive)} massive activation{plural}: coordinate {top.coordinate} reaches "
            f"{top.value:.0f} at “{top.token.strip()}” ({top.position}), {top.ratio:,.0f} times the median.",
            key="massive", weight=0.5, value=float(top.value), unit="activation", kind="effect",
            null=f"{RELATIVE:,.0f} times the stage's median",
        )]  # fmt: skip


@analysis(place=72, runs=True)
@torch.no_grad()
def residual_stream(
    model: HookedGPT | HookedEncoderDecoder | HookedEncoder,
    tokens: TextOrTokens,
    *,
    seed: Annotated[int, "seed of the bootstrap intervals"] = 0,
) -> Result:
    """Norm, direction, rank and largest activations of the residual stream at every stage, and sizes of all writes.

    Where norms follow sums (a BERT, a translation model), the stream is what has passed them: what the next part reads.
    A translation model has two streams, its encoder's and its decoder's.
    """
    stacks = [replace(stack, words=f"the {stack.path}") for stack in attentions(model) if not stack.crosses]
    texts = readings(model, tokens)
    return by_stack(stacks, [_measured(model, stack, texts, seed) for stack in stacks])


def _measured(model: Model, stack: Stack, texts: Sequence[Reading], seed: int) -> ResidualStreamResult:
    stages = ("embed", *(f"after {layer}" for layer in range(len(stack.blocks))))
    parts = [write.part.removesuffix("_attn") for write in writes(stack.blocks[0])]
    components = tuple(f"{part} {layer}" for layer in range(len(stack.blocks)) for part in parts)
    measures: dict[str, list[np.ndarray]] = {name: [] for name in MEASURES}
    cosine, write, write_cosine, largest = [], [], [], []
    for number, text in enumerate(texts):
        labels = text.labels[stack.queries]
        stream, steps = _run(model, stack, text)
        largest.append(_largest(stream, number, stages, labels))
        norms = stream.norm(dim=-1)
        kept = slice(1, None) if len(labels) > 1 else slice(None)  # the first position is counted apart
        stream, written, before = stream[:, kept], steps[0][:, kept], steps[1][:, kept]
        unit = torch.nn.functional.normalize(stream, dim=-1)
        between = torch.einsum("apd,bpd->ab", unit, unit) / unit.shape[1]
        cosine.append(between.numpy())
        turn = np.concatenate([[np.nan], between.diagonal(1).numpy()])
        found = (norms[:, kept].mean(1).numpy(), norms[:, 0].numpy(), turn, _similarity(unit), _rank(stream))
        for name, values in zip(MEASURES, found, strict=True):
            measures[name].append(values)
        write.append((written.norm(dim=-1) / before.norm(dim=-1)).mean(1).numpy())
        write_cosine.append(torch.cosine_similarity(written, before, dim=-1).mean(1).numpy())
    return ResidualStreamResult(
        stages=stages, measures={name: np.stack(values) for name, values in measures.items()}, cosine=np.stack(cosine),
        components=components, write=np.stack(write), write_cosine=np.stack(write_cosine),
        largest=pd.concat(largest).sort_values("ratio", ascending=False, kind="stable", ignore_index=True),
        tokens=tuple(text.labels[stack.queries] for text in texts), texts=tuple(text.name for text in texts), seed=seed,
    )  # fmt: skip


def _run(model: Model, stack: Stack, text: Reading) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The stream [stage pos d_model]; what each component writes, and the stream before it, [component pos d_model]."""
    places = stream_places(model, stack.path)
    starts = [f"{stack.path}.{layer}.hook_resid_pre" for layer in range(len(stack.blocks))]
    outs = list[str]()
    for layer, block in enumerate(stack.blocks):
        outs += [f"{stack.path}.{layer}.hook_{write.part}_out" for write in writes(block)]
    names = dict.fromkeys([*starts, *(name for name, _ in places.values()), *outs])
    _, cache = model.run_with_cache(*text.inputs, names=list(names), device="cpu", dtype=torch.float64)
    after = {place: finish(norm, cache[name][0]) for place, (name, norm) in places.items()}
    stream, before = [after["embed"]], list[Tensor]()
    for layer, start in enumerate(starts):
        own = [x for place, x in after.items() if place.startswith(f"L{layer} ")]
        reads = [cache[start][0], *own[:-1]]
        before += reads if len(own) > 1 else reads * len(writes(stack.blocks[layer]))
        stream.append(own[-1])
    return torch.stack(stream), (torch.stack([cache[name][0] for name in outs]), torch.stack(before))


def _similarity(unit: Tensor) -> np.ndarray:
    """[stage] mean cosine between different positions of unit vectors [stage pos d_model]; NaN for one position."""
    n = unit.shape[1]
    if n < 2:
        return np.full(len(unit), np.nan)
    total = unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))
    return np.asarray((total / (n * (n - 1))).numpy())


def _rank(stream: Tensor) -> np.ndarray:
    """[stage] participation ratio of the squared singular values of [stage pos d_model], centred over positions."""
    centred = stream - stream.mean(1, keepdim=True)
    gram = centred @ centred.mT
    trace, squares = gram.diagonal(dim1=-2, dim2=-1).sum(-1), gram.square().sum((1, 2))
    return np.asarray(torch.where(squares > 0, trace**2 / squares.clamp(min=1e-300), 0.0).numpy())


def _largest(stream: Tensor, number: int, stages: tuple[str, ...], labels: Tokens) -> pd.DataFrame:
    """The coordinates that stand out most from their stage's median magnitude, each once, at its most extreme."""
    size = stream.abs()
    median = size.flatten(1).median(-1).values
    ratio = size / median.clamp(min=1e-12)[:, None, None]
    best, place = ratio.flatten(0, 1).max(0)  # of each coordinate, over stages and positions
    order = [c for c in best.argsort(descending=True, stable=True)[:LARGEST].tolist() if best[c] > 0]
    rows = []
    for coordinate in order:
        stage, position = divmod(int(place[coordinate]), len(labels))
        value = float(stream[stage, position, coordinate])
        massive = abs(value) > ABSOLUTE and float(best[coordinate]) > RELATIVE
        rows.append((
            number, stages[stage], position, labels[position], coordinate, value, float(best[coordinate]), massive
        ))  # fmt: skip
    names = ["text", "stage", "position", "token", "coordinate", "value", "ratio", "massive"]
    return pd.DataFrame(rows, columns=names).astype({"massive": bool})
