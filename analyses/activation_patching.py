"""Copy activations from one run into another: where does the information that decides the answer lie?

Question: two texts differ in what they should make the model say. Which activations, copied from the clean run into the
corrupted one, bring the clean answer back?

Method: both texts run once; then each activation in turn is replaced in one run by its value in the other (Vig et al.
2020; Meng et al. 2022, "Locating and Editing Factual Associations"; Wang et al. 2022). `denoise` copies from clean
into corrupted and asks what suffices; `noise` copies from corrupted into clean and asks what is needed (Heimersheim
and Nanda 2024). Sites: resid_pre, resid_mid, resid_post, attn_out and mlp_out by layer and position; z, q, k, v and
pattern by head, or by head and position (the query for pattern).

Of a translation model the sources differ and the targets are the clean ones' in both runs; a site is copied in the
encoder, in the decoder and in its cross-attention, wherever it is there, and cross_attn_out and resid_mid_cross are
further sites. Positions are those of the source in the encoder and of keys and values of cross-attention, those of the
target elsewhere. Of an encoder with a masked-language head each text has one [MASK], and the answer stands there.

What the numbers mean: `value` is the metric of the patched run; copying everything would give the other run's. What
they do not show: parts that do the same in both runs have no effect, however much they matter, for all that can be
seen is what differs between the texts. Two places can carry the same information, so effects need not add up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.shared.axes import Axes, numbered
from analyses.shared.capabilities import analysis
from analyses.shared.claims import signed
from analyses.shared.clean_corrupted import (
    Direction,
    Measure,
    Pairs,
    PatchingMetric,
    first_difference,
    measure,
    position_labels,
    resolve_pairs,
)
from analyses.shared.components import layer_numbers
from analyses.shared.declared import PYTHON_ONLY
from analyses.shared.inputs import TextOrTokens
from analyses.shared.metrics import CustomReadout, Readout, TokenChoice
from analyses.shared.panels import Finding, Panel, Result, Tokens
from analyses.shared.patching_result import Effects, Patching
from analyses.shared.prompts import TextsOrPrompts
from analyses.shared.sites import HEADS, SITES, Place, places_of, sites_named
from analyses.shared.stacks import Model
from analyses.shared.statistics import q_values
from analyses.shared.task import Row, sides, task_of
from interp import scale
from interp.errors import InputError
from interp.interventions import Replace
from interp.models.encoder import HookedEncoder
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT
from interp.progress import tell
from interp.sweep import Variant, sweep

HALF = 0.5
"""Share of the total effect from which on a place is said to hold the difference."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Patched:
    """The metric of every patched run at one site, in one direction."""

    place: Place
    direction: Direction
    values: tuple[np.ndarray, ...]
    """[text] arrays of the metric, one axis for each name in `axes`."""
    positions: tuple[tuple[int, ...], ...]
    """[text] the positions patched, counted from the start."""
    labels: Tokens | tuple[str, ...]
    """[pos] of the positions patched in every text, aligned at the end."""
    same: int
    """How many of these lie before the first token that differs, in every text; there nothing can have an effect."""

    @property
    def site(self) -> str:
        return self.place.site

    @property
    def axes(self) -> tuple[str, ...]:
        """Of each text's array."""
        return self.place.axes

    @property
    def head_axis(self) -> str:
        """`head`, or `kv_head`."""
        return "kv_head" if "kv_head" in self.axes else "head"

    @property
    def named(self) -> Tokens | tuple[str, ...]:
        """[pos] labels that tell equal tokens apart."""
        if not isinstance(self.labels, Tokens):
            return self.labels
        return numbered(self.labels, self.positions[0][len(self.positions[0]) - len(self.labels) :])

    def called(self, pos: int | None) -> str:
        """A position in a sentence: "at 'be' (8)"; None where no position holds half."""
        if pos is None:
            return "spread over positions"
        if not isinstance(self.labels, Tokens):
            return f"at position {self.labels[pos]}"
        at = self.positions[0][len(self.positions[0]) - len(self.labels) + pos]
        return f"at {self.labels[pos]!r} ({at})"

    @property
    def words(self) -> str:
        """What is copied."""
        return SITES[self.site] + self.place.where

    def columns(self, shape: tuple[int, ...]) -> tuple[dict[str, object], dict[str, np.ndarray]]:
        """Of a table with one row a place: site, (stack,) layer and head; and the place of each row on each axis."""
        at = dict(zip(self.axes, (axis.ravel() for axis in np.indices(shape)), strict=True))
        size = int(np.prod(shape))
        stack = {"stack": self.place.short} if self.place.short else {}
        layer = {"layer": np.array(self.place.layers)[at["layer"]]}
        head = {"head": pd.array(at.get(self.head_axis, np.full(size, None)), dtype="Int64")}
        return {"site": np.full(size, self.site, dtype=object), **stack, **layer, **head}, at


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationPatchingResult(Result):
    """What copying each activation from one run into the other does to the metric."""

    pairs: Pairs
    patched: tuple[Patched, ...]
    measure: Measure
    """The metric, and its values on the two unpatched runs."""
    answers: Tokens
    wrongs: Tokens
    seed: int

    def to_dataframe(self) -> pd.DataFrame:
        """One row per text, site and place; columns `text` and `direction` only where there are several."""
        frames = [self._frame(patched, text) for patched in self.patched for text in range(len(self.pairs.rows))]
        frame = pd.concat(frames, ignore_index=True)
        one_way = len({patched.direction for patched in self.patched}) == 1
        dropped = [*(["text"] if len(self.pairs.rows) == 1 else []), *(["direction"] if one_way else [])]
        return frame.drop(columns=dropped)

    def _frame(self, patched: Patched, text: int) -> pd.DataFrame:
        values = patched.values[text]
        columns, at = patched.columns(values.shape)
        none = np.full(values.size, None)
        where = np.array(patched.positions[text])[at["pos"]] if "pos" in at else none
        return pd.DataFrame(columns).assign(
            pos=pd.array(where, dtype="Int64"),
            clean=self.measure.clean[text],
            corrupted=self.measure.corrupted[text],
            value=values.ravel(),
            text=text,
            direction=patched.direction,
        )

    def towards(self, patched: Patched) -> Patching:
        """What can be said of effects in one direction."""
        return Patching(
            pairs=self.pairs, measure=self.measure, direction=patched.direction, answers=self.answers,
            wrongs=self.wrongs, seed=self.seed,
        )  # fmt: skip

    def effects(self, patched: Patched) -> np.ndarray:
        """[text layer (head) (pos)] patched metric minus that of the run patched into; positions end-aligned."""
        common = len(patched.labels) if "pos" in patched.axes else None
        cut = [values if common is None else values[..., values.shape[-1] - common :] for values in patched.values]
        return np.stack([values - start for values, start in zip(cut, self.towards(patched).base, strict=True)])

    def panels(self) -> list[Panel]:
        frame, first = self.summary(), self.patched[0]
        shown = frame.assign(head=frame["head"].astype(object).where(frame["head"].notna(), ""))
        tokens = frozenset({"position"}) if isinstance(first.labels, Tokens) else frozenset[str]()
        tests = int(frame["p"].notna().sum()) if "p" in frame else 0
        return [
            *self.towards(first).pair,
            *map(self._matrix, self.patched),
            self.towards(first).largest_first(shown, "places", tokens),
            *self.towards(first).said_methods(tests, max(map(self._places, self.patched))),
        ]

    def _places(self, patched: Patched) -> int:
        """How many places can have an effect: not those before the first token that differs."""
        return max(1, int((self.effects(patched) != 0).any(0).sum()))

    def _matrix(self, patched: Patched) -> Effects:
        effects, of = self.effects(patched), self.towards(patched)
        axis, layers = patched.head_axis, patched.place.layers
        heads, by_pos = range(effects.shape[2]), "pos" in patched.axes
        skip = patched.same if by_pos else 0
        left_out = (
            f" The first {skip} positions, where the texts agree, have no effect and are left out." if skip else ""
        )
        letter = "H" if axis == "head" else "KV"
        names = [f"L{layer}{letter}{head}" for layer in layers for head in heads]
        rows = {axis: names} if len(patched.axes) == 3 else {"layer": layers}
        columns = {"position": type(patched.named)(patched.named[skip:])} if by_pos else {axis: heads}
        flat = effects.reshape(len(effects), len(next(iter(rows.values()))), -1)[:, :, skip:]
        matrix = Axes.of(of.spread(flat), **rows, **columns).matrix(
            _key(patched), _title(patched), of.caption("when this is copied") + left_out, unit=self.measure.unit,
            diverging=True, image=flat[0].size > 4000,
        )  # fmt: skip
        return of.effects_of(matrix, "" if by_pos else patched.place.short + patched.site)

    def summary(self) -> pd.DataFrame:
        """One row per place: mean effect over texts, share of the whole gap; with several texts interval, p and q.

        Intervals are 95 %, each for itself; q is over all places of all sites, those aside whose effect is exactly
        zero in every text (p and q are NaN there).
        """
        frames = []
        for patched in self.patched:
            effects = self.effects(patched)
            columns, at = patched.columns(effects.shape[1:])
            frame = pd.DataFrame(columns)
            frame.insert(1, "direction", patched.direction)
            frame["position"] = np.array(patched.named, dtype=object)[at["pos"]] if "pos" in at else "all"
            axes = Axes.of(effects, text=None, **dict.fromkeys(patched.axes))
            found = self.towards(patched).tested(axes, (effects != 0).any(0))
            wanted = [name for name in ("effect", "share", "low", "high", "p") if name in found]
            frames.append(pd.concat([frame, found[wanted]], axis=1))
        whole = pd.concat(frames, ignore_index=True)
        return whole.assign(q=q_values(whole["p"].to_numpy())) if "p" in whole else whole

    def findings(self) -> list[Finding]:
        finite = [patched for patched in self.patched if np.isfinite(self.effects(patched)).all()]
        if finite and self.towards(finite[0]).weak:
            return [self.towards(finite[0]).nothing(_key(finite[0]))]
        return [one for patched in finite for one in (self._way(patched) or self._strongest(patched))]

    def _way(self, patched: Patched) -> list[Finding]:
        """Of a residual stream: where the information is, layer by layer, until it is where the answer is read."""
        of = self.towards(patched)
        shares = self.effects(patched).mean(0) / of.gap
        if "resid" not in patched.site or shares.ndim != 2:
            return []
        places = [int(row.argmax()) if row.max() >= HALF else None for row in shares]
        starts = [i for i, place in enumerate(places) if i == 0 or place != places[i - 1]]
        if len(starts) < 2 or any(np.diff([place for place in places if place is not None]) < 0):
            return []
        ends, layers = [*starts[1:], len(places)], patched.place.layers
        steps = [
            f"{patched.called(places[start])} {_span(layers[start], layers[end - 1], start == 0, end == len(places))}"
            for start, end in zip(starts, ends, strict=True)
        ]
        total = (self.measure.clean - self.measure.corrupted)[:, None]
        told, p = of.tells(total, (0,))
        if not told:
            return []
        (low, high), what = of.spread(total[:, 0]).ends(), patched.words.replace("the layer", "a layer")
        return [
            Finding(
                f"{of.question}: the {what} holds the difference ({signed(of.gap)} {self.measure.unit}) "
                f"{', '.join(steps)}.",
                _key(patched), 0.35 if of.made_up else 0.8, float(total.mean()), self.measure.unit, low, high, p=p,
                null=f"half of the total effect, which was compared with {of.null(p, 1, 'effects')}",
            )
        ]  # fmt: skip

    def _strongest(self, patched: Patched) -> list[Finding]:
        """The place with the largest effect, where it is told. Of a residual stream nothing: all passes through it."""
        if "resid" in patched.site:
            return []
        effects = self.effects(patched)
        best = tuple(map(int, np.unravel_index(np.abs(effects.mean(0)).argmax(), effects.shape[1:])))
        layer = patched.place.layers[best[0]]
        name = f"{patched.site.removesuffix('_out')} {layer}"
        if patched.site in HEADS:
            name = f"L{layer}{'H' if patched.head_axis == 'head' else 'KV'}{best[1]}"
        name = f"{patched.place.short} {name}".lstrip()
        where = f" {patched.called(best[-1])}" if "pos" in patched.axes else ""
        site = patched.site if patched.site in HEADS else "output"
        source = "clean" if patched.direction == "denoise" else "corrupted"
        said = f"{name}'s {site}{where}, copied from the {source} run, brings {{}}"
        short = f"its {site}{where} brings {{}} when copied"
        return self.towards(patched).finding(said, _key(patched), effects, best, "places", name, short)


def _span(first: int, last: int, begins: bool, ends: bool) -> str:
    """Layers in words: "until L2", "in L3", "from L4 on"."""
    if begins:
        return f"until L{last}"
    if ends:
        return f"from L{first} on"
    return f"in L{first}" if first == last else f"from L{first} to L{last}"


def _key(patched: Patched) -> str:
    return "-".join(filter(None, (patched.place.short, patched.site, patched.direction))).replace("_", "-")


def _title(patched: Patched) -> str:
    source, base = ("clean", "corrupted") if patched.direction == "denoise" else ("corrupted", "clean")
    return f"{patched.words[0].upper()}{patched.words[1:]}, copied from the {source} into the {base} run"


@analysis(place=46, needs=("next token",), in_report={"site": "resid_pre,z"}, sweeps=True, scales=True)
@torch.no_grad()
def activation_patching(
    model: HookedGPT | HookedEncoder | HookedEncoderDecoder,
    clean: TextsOrPrompts = None,
    corrupted: Annotated[TextOrTokens | None, "the clean text, changed; as long in tokens"] = None,
    *,
    site: Annotated[str | Sequence[str], f"what is copied: {', '.join(SITES)}; several with commas"] = "resid_pre",
    metric: Annotated[
        PatchingMetric | Callable[[Tensor], Tensor] | None,
        "what is measured; by default logit_diff, of several right answers prob_diff, of a translation log_prob",
    ] = None,
    answer: Annotated[TokenChoice | None, "right next token after the clean text"] = None,
    wrong: Annotated[TokenChoice | None, "right next token after the corrupted text"] = None,
    direction: Annotated[
        Literal["denoise", "noise", "both"], "denoise copies clean into corrupted, noise corrupted into clean"
    ] = "denoise",
    by_position: Annotated[bool, "heads' activations one position at a time too"] = False,
    positions: Annotated[tuple[int, ...] | None, "copy at these positions only; negative ones from the end"] = None,
    layers: Annotated[tuple[int, ...] | None, "copy in these layers only"] = None,
    read: Annotated[tuple[int, ...], "positions whose logits a metric function gets", PYTHON_ONLY] = (-1,),
    memory: Annotated[int | None, "bytes to use beyond the model; by default half of what is free"] = None,
    seed: Annotated[int, "of generated texts and intervals"] = 0,
) -> ActivationPatchingResult:
    """The metric of every run in which one activation is replaced by its value in the other run.

    Args:
        clean: a text, several, ids [batch pos], a prompt set, or None for 12 generated prompts of one template. For a
            translation model `source ||| target`, a source alone, or both as ids; for an encoder text with a [MASK].
        corrupted: as many, as long in tokens; None takes the prompt set's, or changes one token of each clean text. Of
            a translation other sources.
        metric: also a function of logits [batch read d_vocab] that returns [batch].
        answer, wrong: a token as text or id, for all texts or one for each; by default the model's own top tokens.

    Raises InputError for an unknown site, texts of unequal lengths, or places that the model or a text lacks.
    """
    layer_numbers(model, layers)
    where = [place for name in sites_named(model, site) for place in places_of(model, name, layers, by_position)]
    pairs = resolve_pairs(model, clean, corrupted, answer=answer, wrong=wrong, seed=seed)
    measured = measure(model, pairs, metric, read)
    ways: tuple[Direction, ...] = ("denoise", "noise") if direction == "both" else (direction,)
    answers, wrongs = pairs.answers(model)
    return ActivationPatchingResult(
        pairs=pairs,
        patched=tuple(_patch(model, pairs, measured, place, way, positions, memory) for way in ways for place in where),
        measure=measured,
        answers=answers,
        wrongs=wrongs,
        seed=seed,
    )


def _patch(
    model: Model,
    pairs: Pairs,
    measured: Measure,
    place: Place,
    direction: Direction,
    chosen: Sequence[int] | None,
    memory: int | None,
) -> Patched:
    """The metric with every activation of one site patched in turn; `chosen` positions only.

    Where no position sees a later one both runs are the same before the first token that differs, so positions there
    are known without running.
    """
    ids = [sides(row)[place.side] for row in pairs.rows]
    positions = tuple(_positions(chosen, row.shape[1]) for row in ids)
    one = partial(_patch_group, model, place, direction, positions, memory)
    out: list[np.ndarray] = [np.empty(0)] * len(pairs.rows)
    for values in scale.map_items(one, list(zip(pairs.paired(), measured.readouts, strict=True))):
        for index, value in values.items():
            out[index] = value
    labels = position_labels(model, pairs.rows, place.side)
    if chosen is not None:
        labels = _chosen_labels(labels, chosen, {row.shape[1] for row in ids})
    common = min(len(one) for one in positions)
    return Patched(
        place=place, direction=direction, values=tuple(out), positions=positions,
        labels=type(labels)(labels[len(labels) - common :]),
        same=_equal_at_first(pairs, positions, common) if task_of(model).causal else 0,
    )  # fmt: skip


def _equal_at_first(pairs: Pairs, positions: Sequence[tuple[int, ...]], common: int) -> int:
    """How many of the labelled positions lie before the first token that differs, in every text."""
    firsts = [first_difference(*pair) for pair in zip(pairs.rows, pairs.corrupted, strict=True)]
    columns = zip(*(places[-common:] for places in positions), strict=True)
    differs = [any(place >= first for place, first in zip(column, firsts, strict=True)) for column in columns]
    return differs.index(True) if True in differs else 0


@torch.no_grad()
def _patch_group(
    model: Model,
    where: Place,
    direction: str,
    places: tuple[tuple[int, ...], ...],
    memory: int | None,
    group: tuple[tuple[list[int], Row, Row], Readout | CustomReadout],
) -> dict[int, np.ndarray]:
    """The same for pairs of one length, by their numbers: arrays over the axes of the place."""
    (indices, clean, corrupted), readout = group
    base, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    task, names = task_of(model), where.names
    cache = task.kept(source, names)
    positions, first = places[indices[0]], first_difference(clean, corrupted) if task.causal else 0
    shape = tuple(size or len(positions) for size in where.sizes)
    variants: list[Variant] = [()]
    taken = np.zeros(shape, dtype=int)  # which variant holds the value of each place; 0 is the unpatched run
    for place in np.ndindex(shape):
        at = dict(zip(where.axes, place, strict=True))
        pos = positions[at["pos"]] if "pos" in at else None
        if pos is not None and pos < first:
            continue
        taken[place] = len(variants)
        name = names[at["layer"]]
        variants.append(Replace(name=name, value=cache[name], head=at.get("head", at.get("kv_head")), pos=pos))
    (values,) = sweep(
        model, base, variants, readout, read=readout.read, vocab=readout.vocab, memory=memory, progress=tell
    ).values()
    return {index: values[:, column].double().cpu().numpy()[taken] for column, index in enumerate(indices)}


def _positions(positions: Sequence[int] | None, length: int) -> tuple[int, ...]:
    for position in positions or ():
        if not -length <= position < length:
            raise InputError(f"position {position} in a text of {length} tokens", f"expected {-length} to {length - 1}")
    return tuple(range(length)) if positions is None else tuple(position % length for position in positions)


def _chosen_labels(
    labels: Tokens | tuple[str, ...], positions: Sequence[int], lengths: set[int]
) -> Tokens | tuple[str, ...]:
    if len(lengths) > 1:
        return tuple(map(str, positions))
    (length,) = lengths
    return type(labels)(labels[position % length] for position in positions)
