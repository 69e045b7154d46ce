"""Copy activations from one run into another: where does the information that decides the answer lie?

Question: two texts differ in what they should make the model say. Which activations, copied from the clean run into the
corrupted one, bring the clean answer back?

Method: both texts run once; then each activation in turn is replaced in one run by its value in the other (Vig et al.
2020; Meng et al. 2022, "Locating and Editing Factual Associations"; Wang et al. 2022). `denoise` copies from clean
into corrupted and asks what suffices; `noise` copies from corrupted into clean and asks what is needed (Heimersheim
and Nanda 2024). Sites: resid_pre, resid_mid, resid_post, attn_out and mlp_out by layer and position; z, q, k, v and
pattern by head, or by head and position (the query for pattern).

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

from analyses.shared.capabilities import analysis, require
from analyses.shared.clean_corrupted import (
    Measure,
    Pairs,
    PatchingMetric,
    first_difference,
    measure,
    notable,
    position_labels,
    resolve_pairs,
)
from analyses.shared.components import layer_numbers
from analyses.shared.declared import PYTHON_ONLY
from analyses.shared.inputs import TextOrTokens
from analyses.shared.metrics import CustomReadout, Readout, TokenChoice
from analyses.shared.pair_effects import translation_patching
from analyses.shared.panels import Finding, Matrix, Note, Panel, Result, Table, Tokens
from analyses.shared.prompts import TextsOrPrompts
from analyses.shared.statistics import bootstrap, independent, methods, q_values, said_clear, sign_flip_p_value
from interp import scale
from interp.errors import InputError, nearest
from interp.interventions import Replace
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT
from interp.progress import tell
from interp.sweep import Variant, sweep

STREAMS: dict[str, str] = {
    "resid_pre": "residual stream before the layer",
    "resid_mid": "residual stream between attention and MLP",
    "resid_post": "residual stream after the layer",
    "attn_out": "attention output",
    "mlp_out": "MLP output",
}
HEADS: dict[str, str] = {
    "z": "heads' mixed values z",
    "q": "heads' queries",
    "k": "heads' keys",
    "v": "heads' values",
    "pattern": "heads' attention patterns",
}
SITES = STREAMS | HEADS


@dataclass(frozen=True, kw_only=True, eq=False)
class Patched:
    """The metric of every patched run at one site, in one direction."""

    site: str
    direction: str
    axes: tuple[str, ...]
    """Of each text's array: (layer, pos), (layer, head) or (layer, head, pos); kv_head for keys and values that several
    heads share."""
    values: tuple[np.ndarray, ...]
    """[text] arrays of the metric, one axis for each name in `axes`."""

    @property
    def head_axis(self) -> str:
        """`head`, or `kv_head`."""
        return "kv_head" if "kv_head" in self.axes else "head"


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationPatchingResult(Result):
    """What copying each activation from one run into the other does to the metric."""

    pairs: Pairs
    patched: tuple[Patched, ...]
    layers: tuple[int, ...]
    positions: tuple[tuple[int, ...], ...]
    """[text] the positions patched, counted from the start."""
    measure: Measure
    """The metric, and its values on the two unpatched runs."""
    labels: Tokens | tuple[str, ...]
    """[pos] of the positions patched in every text, aligned at the end."""
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
        place = dict(zip(patched.axes, (axis.ravel() for axis in np.indices(values.shape)), strict=True))
        none = np.full(values.size, None)
        columns = {
            "site": patched.site,
            "layer": np.array(self.layers)[place["layer"]],
            "head": pd.array(place.get(patched.head_axis, none), dtype="Int64"),
            "pos": pd.array(np.array(self.positions[text])[place["pos"]] if "pos" in place else none, dtype="Int64"),
            "clean": self.measure.clean[text],
            "corrupted": self.measure.corrupted[text],
            "value": values.ravel(),
            "text": text,
            "direction": patched.direction,
        }
        return pd.DataFrame(columns)

    def effects(self, patched: Patched) -> np.ndarray:
        """[text layer (head) (pos)] patched metric minus that of the run patched into; positions end-aligned."""
        base = self.measure.corrupted if patched.direction == "denoise" else self.measure.clean
        common = len(self.labels) if "pos" in patched.axes else None
        cut = [values if common is None else values[..., values.shape[-1] - common :] for values in patched.values]
        return np.stack([values - start for values, start in zip(cut, base, strict=True)])

    def gap(self, direction: str) -> np.ndarray:
        """[text] what copying everything would add."""
        sign = 1.0 if direction == "denoise" else -1.0
        gap: np.ndarray = sign * (self.measure.clean - self.measure.corrupted)
        return gap

    def panels(self) -> list[Panel]:
        return [*(self._matrix(patched) for patched in self.patched), self._table(), self._note(), *self._methods()]

    def _methods(self) -> list[Note]:
        frame = self.summary()
        return methods(
            len(self.pairs.rows), clusters=self.pairs.clusters, seed=self.seed, test="sign flips",
            tests=int(frame["p"].notna().sum()) if "p" in frame else 0,
            chosen_of=max(self._places(patched) for patched in self.patched),
        )  # fmt: skip

    def _places(self, patched: Patched) -> int:
        """How many places can have an effect: not those before the first token that differs."""
        return max(1, int((self.effects(patched) != 0).any(0).sum()))

    def _matrix(self, patched: Patched) -> Matrix:
        spread = bootstrap(self.effects(patched), clusters=self.pairs.clusters, seed=self.seed)
        heads = tuple(str(head) for head in range(spread.value.shape[1]))
        rows, row_axis, axis = tuple(map(str, self.layers)), "layer", patched.head_axis
        if len(patched.axes) == 3:
            letter = "H" if axis == "head" else "KV"
            rows, row_axis = tuple(f"L{layer}{letter}{head}" for layer in self.layers for head in heads), axis
        by_pos = "pos" in patched.axes
        skip = self._equal_at_first() if by_pos else 0
        columns = type(self.labels)(self.labels[skip:]) if by_pos else heads
        left_out = (
            f" The first {skip} positions, where the texts agree, have no effect and are left out." if skip else ""
        )
        values, low, high = (
            None if x is None else x.reshape(len(rows), -1)[:, skip:] for x in (spread.value, spread.low, spread.high)
        )
        assert values is not None
        return Matrix(
            key=_key(patched), title=_title(patched), caption=self._caption(patched) + left_out, unit=self.measure.unit,
            rows=rows, columns=columns, row_axis=row_axis, column_axis="position" if by_pos else axis,
            values=values, low=low, high=high, diverging=True, image=values.size > 4000,
        )  # fmt: skip

    def _equal_at_first(self) -> int:
        """How many of the labelled positions lie before the first token that differs, in every text."""
        firsts = [first_difference(*pair) for pair in zip(self.pairs.rows, self.pairs.corrupted, strict=True)]
        columns = zip(*(places[-len(self.labels) :] for places in self.positions), strict=True)
        differs = [any(place >= first for place, first in zip(column, firsts, strict=True)) for column in columns]
        return differs.index(True) if True in differs else 0

    def _caption(self, patched: Patched) -> str:
        gap = self.gap(patched.direction).mean()
        texts = self.pairs.said()
        return f"Change of the {self.measure.title}. Copying everything would change it by {gap:+.3g}. {texts}"

    def summary(self) -> pd.DataFrame:
        """One row per place: mean effect over texts, share of the whole gap; with several texts interval, p and q.

        Intervals are 95 %, each for itself; q is over all places of all sites, those aside whose effect is exactly
        zero in every text (p and q are NaN there).
        """
        frames = []
        for patched in self.patched:
            effects = self.effects(patched)
            spread = bootstrap(effects, clusters=self.pairs.clusters, seed=self.seed)
            place = dict(zip(patched.axes, (axis.ravel() for axis in np.indices(spread.value.shape)), strict=True))
            none = np.full(spread.value.size, None)
            frame = pd.DataFrame(
                {
                    "site": patched.site,
                    "direction": patched.direction,
                    "layer": np.array(self.layers)[place["layer"]],
                    "head": pd.array(place.get(patched.head_axis, none), dtype="Int64"),
                    "position": np.array(self.labels, dtype=object)[place["pos"]] if "pos" in place else "all",
                    "effect": spread.value.ravel(),
                }
            )
            gap = self.gap(patched.direction).mean()
            frame["share"] = frame["effect"] / gap if gap else np.nan
            if spread.low is not None and spread.high is not None:
                p = sign_flip_p_value(effects, clusters=self.pairs.clusters, seed=self.seed)
                p = np.where((effects == 0).all(0), np.nan, p).ravel()
                frame = frame.assign(low=spread.low.ravel(), high=spread.high.ravel(), p=p)
            frames.append(frame)
        whole = pd.concat(frames, ignore_index=True)
        return whole.assign(q=q_values(whole["p"].to_numpy())) if "p" in whole else whole

    def _table(self) -> Table:
        frame = self.summary()
        order = np.argsort(-frame["effect"].abs().to_numpy(), kind="stable")
        frame, most = frame.iloc[order].reset_index(drop=True), 500
        frame["head"] = frame["head"].astype(object).where(frame["head"].notna(), "")
        cut = f" The {most} largest of {len(frame):,} effects." if len(frame) > most else ""
        n, unit = independent(len(self.pairs.rows), self.pairs.clusters)
        tests = f" 95 % intervals over {n} {unit}; p by flipping the signs of {unit}, q corrected for all places."
        share = "share: the effect over what copying everything would change."
        return Table(
            key="table", title="Every effect, largest first", caption=share + (tests if "q" in frame else "") + cut,
            frame=frame.head(most), units={"effect": self.measure.unit}, diverging=frozenset({"effect"}),
            tokens=frozenset({"position"}) if isinstance(self.labels, Tokens) else frozenset(),
        )  # fmt: skip

    def _note(self) -> Note:
        return self.pairs.choices(self.measure, self.answers, self.wrongs)

    def findings(self) -> list[Finding]:
        frame = self.summary()
        return [self._finding(patched, frame) for patched in self.patched if np.isfinite(self.effects(patched)).all()]

    def _finding(self, patched: Patched, frame: pd.DataFrame) -> Finding:
        spread = bootstrap(
            self.effects(patched), clusters=self.pairs.clusters, chosen_of=self._places(patched), seed=self.seed
        )
        gap = float(self.gap(patched.direction).mean())
        # Of places that do equally well the latest layer is told: the information must still be there.
        size = np.abs(spread.value)
        best = np.unravel_index(size.size - 1 - int(np.argmax(size.ravel()[::-1] >= 0.95 * size.max())), size.shape)
        where = [f"layer {self.layers[best[0]]}"]
        if patched.site in HEADS:
            where = [f"{patched.head_axis.replace('kv_', 'key-value ')} {best[1]} of {where[0]}"]
        if "pos" in patched.axes:
            where.append(f"position {self.labels[best[-1]]!r}")
        value = float(spread.value[best])
        low, high = spread.ends(*best)
        rows = frame[(frame["site"] == patched.site) & (frame["direction"] == patched.direction)]
        several = "q" in rows
        q = float(rows["q"].to_numpy()[np.ravel_multi_index(best, size.shape)]) if several else None
        clear = said_clear(rows["q"], *independent(len(self.pairs.rows), self.pairs.clusters)) if several else ""
        known = f"; {self._places(patched)} places were tested: {clear}" if several else ""
        source = "clean" if patched.direction == "denoise" else "corrupted"
        share = f", {100 * value / gap:z.0f} % of what copying everything does ({gap:+.3g})" if abs(gap) > 1e-6 else ""
        return Finding(
            text=f"Copying the {SITES[patched.site]} from the {source} run at {', '.join(where)} changes the "
            f"{self.measure.title} by {value:+.3g}{share}{known}.",
            key=_key(patched),
            weight=notable(value / gap if abs(gap) > 1e-6 else 0.0, low, high, q),
            value=value,
            unit=self.measure.unit,
            low=low,
            high=high,
        )


def _key(patched: Patched) -> str:
    return f"{patched.site}-{patched.direction}".replace("_", "-")


def _title(patched: Patched) -> str:
    source, base = ("clean", "corrupted") if patched.direction == "denoise" else ("corrupted", "clean")
    return f"{SITES[patched.site][0].upper()}{SITES[patched.site][1:]}, copied from the {source} into the {base} run"


@analysis(place=46, needs=("next token",), sweeps=True, scales=True, translation=("corrupted", "site", "direction"))
@torch.no_grad()
def activation_patching(
    model: HookedGPT | HookedEncoderDecoder,
    clean: TextsOrPrompts = None,
    corrupted: Annotated[TextOrTokens | None, "the clean text, changed; as long in tokens"] = None,
    *,
    site: Annotated[str | Sequence[str], f"what is copied: {', '.join(SITES)}; several with commas"] = "resid_pre",
    metric: Annotated[PatchingMetric | Callable[[Tensor], Tensor], "what is measured"] = "logit_diff",
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
) -> Result:
    """The metric of every run in which one activation is replaced by its value in the other run.

    Args:
        clean: a text, several, ids [batch pos], a prompt set, or None for 12 generated prompts of one template.
        corrupted: as many, as long in tokens; None takes the prompt set's, or changes one token of each clean text.
        metric: also a function of logits [batch read d_vocab] that returns [batch].
        answer, wrong: a token as text or id, for all texts or one for each; by default the model's own top tokens.

    Raises InputError for an unknown site, texts of unequal lengths, or places that the model or a text lacks.
    """
    if isinstance(model, HookedEncoderDecoder):
        return translation_patching(model, clean, corrupted, site=site, direction=direction, seed=seed)
    sites = _sites(site)
    for name in sites:
        require(model, {"resid_mid": ("stream between",), "mlp_out": ("mlp",)}.get(name, ()))
    chosen = layer_numbers(model, layers)
    pairs = resolve_pairs(model, clean, corrupted, answer=answer, wrong=wrong, seed=seed)
    measured = measure(model, pairs, metric, read)
    places = tuple(_positions(positions, row.shape[1]) for row in pairs.rows)
    found: list[Patched] = []
    for way in ("denoise", "noise") if direction == "both" else (direction,):
        for name in sites:
            head = "kv_head" if name in ("k", "v") and model.config.n_kv_heads != model.config.n_heads else "head"
            axes = ("layer", "pos") if name in STREAMS else ("layer", head, "pos") if by_position else ("layer", head)
            values = _patch(model, pairs, measured, name, way, axes, chosen, places, memory)
            found.append(Patched(site=name, direction=way, axes=axes, values=values))
    answers, wrongs = pairs.answers(model)
    common = min(len(one) for one in places)
    labels = position_labels(model, pairs.rows)
    if positions is not None:
        labels = _chosen_labels(labels, positions, {row.shape[1] for row in pairs.rows})
    return ActivationPatchingResult(
        pairs=pairs,
        patched=tuple(found),
        layers=chosen,
        positions=places,
        measure=measured,
        labels=type(labels)(labels[len(labels) - common :]),
        answers=answers,
        wrongs=wrongs,
        seed=seed,
    )


def _patch(
    model: HookedGPT,
    pairs: Pairs,
    measured: Measure,
    site: str,
    direction: str,
    axes: tuple[str, ...],
    layers: tuple[int, ...],
    places: tuple[tuple[int, ...], ...],
    memory: int | None,
) -> tuple[np.ndarray, ...]:
    """[text] arrays of the patched metric over `axes`.

    Before the first token that differs both runs are the same, so positions there are known without running.
    """
    names = [f"blocks.{layer}.{'attn.' if site in HEADS else ''}hook_{site}" for layer in layers]
    one = partial(_patch_group, model, names, direction, axes, places, memory)
    out: list[np.ndarray] = [np.empty(0)] * len(pairs.rows)
    for values in scale.map_items(one, list(zip(pairs.paired(), measured.readouts, strict=True))):
        for index, value in values.items():
            out[index] = value
    return tuple(out)


@torch.no_grad()
def _patch_group(
    model: HookedGPT,
    names: Sequence[str],
    direction: str,
    axes: tuple[str, ...],
    places: tuple[tuple[int, ...], ...],
    memory: int | None,
    group: tuple[tuple[list[int], Tensor, Tensor], Readout | CustomReadout],
) -> dict[int, np.ndarray]:
    """The same for pairs of one length, by their numbers; `names` are the hook points, one a layer."""
    (indices, clean, corrupted), readout = group
    base, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    _, cache = model.run_with_cache(source, names=names)
    positions, config = places[indices[0]], model.config
    first = first_difference(clean, corrupted)
    sizes = {"layer": len(names), "head": config.n_heads, "kv_head": config.n_kv_heads, "pos": len(positions)}
    shape = tuple(sizes[axis] for axis in axes)
    variants: list[Variant] = [()]
    taken = np.zeros(shape, dtype=int)  # which variant holds the value of each place; 0 is the unpatched run
    for place in np.ndindex(shape):
        at = dict(zip(axes, place, strict=True))
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


def _sites(site: str | Sequence[str]) -> tuple[str, ...]:
    parts = site.split(",") if isinstance(site, str) else list(site)
    names = tuple(dict.fromkeys(part.strip().removeprefix("hook_") for part in parts))
    for name in names:
        if name not in SITES:
            close = nearest(name, list(SITES), 1)
            raise InputError(
                f"unknown site {name!r}", f"expected {', '.join(SITES)}", f"did you mean {close[0]!r}?" if close else ""
            )
    return names


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
