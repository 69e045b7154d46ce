"""Patch one path at a time, from a sender straight to a receiver: which part speaks to which?

Question: a head matters. Does it write to the answer itself, or does it feed another head's queries, keys or values, or
an MLP?

Method (Wang et al. 2022, "Interpretability in the Wild"; Goldowsky-Dill et al. 2023): the sender's output in one run is
replaced by that of the other run, but only the receiver is allowed to notice: everything between is frozen. The
receiver's new value is then put into an otherwise untouched run, in which all that follows is computed anew, and the
metric is read. `noise` (the default) patches from the corrupted into the clean run, `denoise` the other way. Receivers:
the logits; q, k or v of a head; an MLP; several joined by plus signs are patched together, each with the value it has
in the frozen run. Wang et al. let MLPs between answer; `mlps="recomputed"` does so too.

Without receivers given, the logits come first, then q, k and v of the head with the largest direct effect on them.

What the numbers do not show: as with all patching, what does not differ between the two texts. Paths with several steps
need one call for each step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.shared.axes import Axes
from analyses.shared.capabilities import analysis
from analyses.shared.clean_corrupted import Direction, Measure, Pairs, PatchingMetric, measure, resolve_pairs
from analyses.shared.components import Component, choose, component_panels
from analyses.shared.declared import PYTHON_ONLY
from analyses.shared.inputs import TextOrTokens
from analyses.shared.metrics import TokenChoice
from analyses.shared.panels import Finding, Panel
from analyses.shared.patching_result import PatchingResult, depth_of, layered_graph
from analyses.shared.paths import Paths, Receiver, inputs_of, parse_receivers
from analyses.shared.prompts import TextsOrPrompts
from interp.errors import InputError
from interp.models.gpt import HookedGPT
from interp.progress import tell
from interp.sweep import Variant, sweep

HELD = 256_000_000
"""Bytes of receiver values kept at once."""
EDGES = 20
"""Most edges drawn."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PathPatchingResult(PatchingResult):
    """What patching each path from a sender to a receiver does to the metric."""

    senders: tuple[Component, ...]
    receivers: tuple[str, ...]
    """Each one or several joined by plus signs."""
    values: np.ndarray
    """[text receiver sender] the metric of each patched run; NaN where the sender writes after the receiver reads."""
    notes: tuple[str, ...]

    @property
    def effects(self) -> np.ndarray:
        """[text receiver sender] the patched metric minus that of the run patched into."""
        return np.asarray(self.values - self.base[:, None, None])

    @property
    def labels(self) -> tuple[str, ...]:
        """[sender]"""
        return tuple(part.label for part in self.senders)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per text, receiver and sender that precedes it; column `text` only where there are several."""
        clean, corrupted = (x[:, None, None] for x in (self.measure.clean, self.measure.corrupted))
        frame = Axes.of(self.values, text=None, receiver=self.receivers, sender=self.labels).frame(
            layer=np.array([part.layer for part in self.senders], dtype=object),
            head=np.array([part.index for part in self.senders], dtype=object), clean=clean, corrupted=corrupted,
        )  # fmt: skip
        frame = frame.dropna(subset="value", ignore_index=True).astype({"layer": "Int64", "head": "Int64"})
        columns = ["sender", "layer", "head", "receiver", "clean", "corrupted", "value", "text"]
        return frame[columns if len(self.pairs.rows) > 1 else columns[:-1]]

    def summary(self) -> pd.DataFrame:
        """One row per path: mean effect over texts, share of the whole gap; with several texts interval, p and q."""
        frame = self.tested(Axes.of(self.effects, text=None, receiver=self.receivers, sender=self.labels))
        return frame[["sender", "receiver", *frame.columns[2:]]].dropna(subset="effect")

    def panels(self) -> list[Panel]:
        panels: list[Panel] = []
        for r, receiver in enumerate(self.receivers):
            heard = np.flatnonzero(np.isfinite(self.values[:, r]).all(0))
            parts, title = [self.senders[i] for i in heard], f"From {{}} straight to {receiver}"
            spread, key, unit = self.spread(self.effects[:, r, heard]), f"to-{_key(receiver)}", self.measure.unit
            caption = " ".join([self._caption(), *(self.notes if r else ())])
            made = component_panels(key, title, parts, spread, caption=caption, unit=unit)
            panels += [self.shown(one) for one in made]
        heard = np.isfinite(self.values).all(0)  # [receiver sender]
        table = self.largest_first(self.summary(), "paths")
        said = self.said_methods(tests=int(heard.sum()), chosen_of=int(heard.sum(1).max()))
        return [*self.pair, *panels, *self._graph(), table, *said]

    def _caption(self) -> str:
        return self.caption("when only this path is patched")

    def _graph(self) -> list[Panel]:
        """The strongest paths, drawn from left to right by layer."""
        frame = self.summary()
        frame = frame[frame["effect"] != 0].sort_values("effect", key=lambda x: -x.abs()).head(EDGES)
        if frame.empty or len(self.receivers) < 2:
            return []
        depth = {part.label: depth_of(part) for part in self.senders}
        last = 1 + max(depth.values())
        shared = {f"L{part.layer}KV": depth_of(part) for part in self.senders if part.kind == "head"}
        for name in self.receivers:
            one = name.split(".")[0].split("+")[0]
            depth.setdefault(name, depth.get(one, shared.get(one.rstrip("0123456789"), last)))
        edges = list(frame[["sender", "receiver", "effect"]].itertuples(index=False, name=None))
        return [
            layered_graph(f"The {len(edges)} strongest paths", self._caption(), edges, depth, self.measure.unit),
        ]

    def findings(self) -> list[Finding]:
        if self.weak:
            return []  # activation patching says so
        return [one for r in range(len(self.receivers)) for one in self._finding(r)]

    def _finding(self, r: int) -> list[Finding]:
        """The largest effect on one receiver; the embedding aside, through which everything enters."""
        effects, receiver = self.effects, self.receivers[r]
        heard = np.array([part.kind != "embed" for part in self.senders])
        if not heard.any():
            return []
        best = int((np.abs(np.nan_to_num(effects[:, r]).mean(0)) * heard).argmax())
        sender, among = self.senders[best], heard * (np.arange(len(self.receivers)) == r)[:, None]
        name, target = sender.label, receiver.partition(".")[0]
        key = f"to-{_key(receiver)}-{'heads' if sender.kind == 'head' else 'others'}"
        way = "the logits" if receiver == "logits" else receiver
        said, short = f"the path from {name} straight to {way} carries {{}}", f"straight to {way} {{}}"
        if receiver == "logits" or "+" in receiver:
            return self.finding(said, key, effects, (r, best), "paths", name, short, among=among)
        site = receiver.partition(".")[2]
        short = f"its {site} gets {{}} from {name}" if site else f"gets {{}} from {name}"
        return self.finding(said, key, effects, (r, best), "paths", target, short, among=among)


def _key(receiver: str) -> str:
    return receiver.lower().replace(".", "-").replace(" ", "-").replace("+", "-and-")


@analysis(place=48, needs=("next token",), in_report={"direction": "denoise"}, sweeps=True)
@torch.no_grad()
def path_patching(
    model: HookedGPT,
    clean: TextsOrPrompts = None,
    corrupted: Annotated[TextOrTokens | None, "the clean text, changed; as long in tokens"] = None,
    *,
    senders: Annotated[
        str | Sequence[str], "heads, mlps, embed, or single ones (L0H1, mlp 0), with commas"
    ] = "heads,mlps",
    receivers: Annotated[
        str | None,
        "logits, L1H0.q (.k, .v; L1KV0.k where heads share them), mlp 1; default: logits, the strongest head's q, k, v",
    ] = None,
    metric: Annotated[
        PatchingMetric | Callable[[Tensor], Tensor] | None,
        "what is measured; by default logit_diff, of prompts with several right answers prob_diff",
    ] = None,
    answer: Annotated[TokenChoice | None, "right next token after the clean text"] = None,
    wrong: Annotated[TokenChoice | None, "right next token after the corrupted text"] = None,
    direction: Annotated[Direction, "noise patches corrupted into clean, denoise clean into corrupted"] = "noise",
    mlps: Annotated[Literal["frozen", "recomputed"], "MLPs between sender and receiver"] = "frozen",
    positions: Annotated[tuple[int, ...] | None, "patch senders at these positions only"] = None,
    read: Annotated[tuple[int, ...], "positions whose logits a metric function gets", PYTHON_ONLY] = (-1,),
    memory: Annotated[int | None, "bytes to use beyond the model; by default half of what is free"] = None,
    seed: Annotated[int, "of generated texts and intervals"] = 0,
) -> PathPatchingResult:
    """The metric of every run in which one sender's other version reaches one receiver alone.

    Args:
        clean: a text, several, ids [batch pos], a prompt set, or None for 12 generated prompts of one template.
        corrupted: as many; None takes the prompt set's, or changes one token of each clean text.
        receivers: several that are patched together are joined by plus signs: "L1H0.q+L1H1.q,logits".
        answer, wrong: a token as text or id, for all texts or one for each; by default the model's own top tokens.

    Raises InputError for unknown senders or receivers, or a receiver that no sender precedes.
    """
    parts = choose(model, senders, allowed=("heads", "mlps", "embed"))
    pairs = resolve_pairs(model, clean, corrupted, answer=answer, wrong=wrong, seed=seed)
    measured = measure(model, pairs, metric, read)
    patcher = _Patcher(model, pairs, measured, parts, direction, mlps == "recomputed", positions, memory)
    notes: list[str] = []
    if receivers is None:
        names, values = ["logits"], [patcher.values(("logits",))]
        base = measured.clean if direction == "noise" else measured.corrupted
        heads = [i for i, part in enumerate(parts) if part.kind == "head" and part.layer]
        if heads:
            strongest = max(heads, key=lambda i: abs((values[0][:, 0, i] - base).mean()))
            names += inputs_of(model, parts[strongest])
            values.append(patcher.values(names[1:]))
            notes.append(
                f"Of the heads after layer 0, {parts[strongest].label} has the largest direct effect on the logits."
            )
    else:
        names = list(dict.fromkeys(name.strip() for name in receivers.split(",")))
        values = [patcher.values(names)]
    answers, wrongs = pairs.answers(model)
    return PathPatchingResult(
        pairs=pairs,
        senders=parts,
        receivers=tuple(names),
        values=np.concatenate(values, axis=1),
        direction=direction,
        measure=measured,
        answers=answers,
        wrongs=wrongs,
        notes=tuple(notes),
        seed=seed,
    )


class _Patcher:
    """Patches every sender into receivers, group by group of texts."""

    def __init__(
        self,
        model: HookedGPT,
        pairs: Pairs,
        measured: Measure,
        senders: tuple[Component, ...],
        direction: Direction,
        recompute_mlps: bool,
        positions: tuple[int, ...] | None,
        memory: int | None,
    ) -> None:
        self.model, self.measured, self.senders, self.memory = model, measured, senders, memory
        self.n_texts, self.positions = len(pairs.rows), positions
        self.groups = []
        for indices, clean, corrupted in pairs.paired():
            base, source = (clean, corrupted) if direction == "noise" else (corrupted, clean)
            for position in positions or ():
                if not -base.shape[1] <= position < base.shape[1]:
                    raise InputError(f"position {position} in a text of {base.shape[1]} tokens")
            self.groups.append((indices, base, Paths(model, base, source, recompute_mlps=recompute_mlps)))

    def values(self, names: Sequence[str]) -> np.ndarray:
        """[text receiver sender] for receivers by name."""
        targets = [parse_receivers(self.model, name) for name in names]
        for name, target in zip(names, targets, strict=True):
            if not any(one.hears(sender) for one in target for sender in self.senders):
                raise InputError(f"no sender writes before {name} reads", "expected senders in earlier layers")
        out = np.full((self.n_texts, len(names), len(self.senders)), np.nan)
        for group, readout in zip(self.groups, self.measured.readouts, strict=True):
            indices, base, paths = group
            config = self.model.config
            each = base.numel() * max(config.d_model, config.d_head) * self.model.dtype.itemsize
            jobs = [
                (r, s, heard)
                for r, target in enumerate(targets)
                for s, sender in enumerate(self.senders)
                if (heard := [one for one in target if one.hears(sender)])
            ]
            step = max(1, HELD // each)
            for start in range(0, len(jobs), step):
                some = jobs[start : start + step]
                variants = [self._variant(paths, s, heard) for _, s, heard in some]
                (found,) = sweep(
                    self.model,
                    base,
                    variants,
                    readout,
                    read=readout.read,
                    vocab=readout.vocab,
                    memory=self.memory,
                    progress=tell,
                ).values()
                for (r, s, _), row in zip(some, found.double().cpu().numpy(), strict=True):
                    out[indices, r, s] = row
        return out

    def _variant(self, paths: Paths, sender: int, heard: list[Receiver]) -> Variant:
        part = self.senders[sender]
        return paths.edits(paths.change(part, self.positions), part, heard)
