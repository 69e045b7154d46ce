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

from analyses.shared.capabilities import analysis
from analyses.shared.clean_corrupted import Direction, Measure, Pairs, PatchingMetric, measure, notable, resolve_pairs
from analyses.shared.components import Component, choose, component_panels
from analyses.shared.declared import PYTHON_ONLY
from analyses.shared.inputs import TextOrTokens
from analyses.shared.metrics import TokenChoice
from analyses.shared.panels import Finding, Graph, Note, Panel, Result, Table, Tokens
from analyses.shared.paths import Paths, Receiver, inputs_of, parse_receivers
from analyses.shared.prompts import TextsOrPrompts
from analyses.shared.statistics import bootstrap, independent, methods, q_values, said_clear, sign_flip_p_value
from interp.errors import InputError
from interp.models.gpt import HookedGPT
from interp.progress import tell
from interp.sweep import Variant, sweep

HELD = 256_000_000
"""Bytes of receiver values kept at once."""
EDGES = 20
"""Most edges drawn."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PathPatchingResult(Result):
    """What patching each path from a sender to a receiver does to the metric."""

    pairs: Pairs
    senders: tuple[Component, ...]
    receivers: tuple[str, ...]
    """Each one or several joined by plus signs."""
    values: np.ndarray
    """[text receiver sender] the metric of each patched run; NaN where the sender writes after the receiver reads."""
    direction: Direction
    measure: Measure
    """The metric, and its values on the two unpatched runs."""
    answers: Tokens
    wrongs: Tokens
    notes: tuple[str, ...]
    seed: int

    @property
    def effects(self) -> np.ndarray:
        """[text receiver sender] the patched metric minus that of the run patched into."""
        base = self.measure.clean if self.direction == "noise" else self.measure.corrupted
        return np.asarray(self.values - base[:, None, None])

    @property
    def gap(self) -> float:
        """What patching everything would change, mean over texts."""
        change = float((self.measure.corrupted - self.measure.clean).mean())
        return change if self.direction == "noise" else -change

    def to_dataframe(self) -> pd.DataFrame:
        """One row per text, receiver and sender that precedes it; column `text` only where there are several."""
        text, receiver, sender = (axis.ravel() for axis in np.indices(self.values.shape))
        chosen = [self.senders[i] for i in sender]
        frame = pd.DataFrame(
            {
                "sender": [one.label for one in chosen],
                "layer": pd.array([one.layer for one in chosen], dtype="Int64"),
                "head": pd.array([one.index for one in chosen], dtype="Int64"),
                "receiver": np.array(self.receivers)[receiver],
                "clean": self.measure.clean[text],
                "corrupted": self.measure.corrupted[text],
                "value": self.values.ravel(),
                "text": text,
            }
        )
        frame = frame[frame["value"].notna()].reset_index(drop=True)
        return frame if len(self.pairs.rows) > 1 else frame.drop(columns="text")

    def summary(self) -> pd.DataFrame:
        """One row per path: mean effect over texts, share of the whole gap; with several texts interval, p and q."""
        effects = self.effects
        spread = bootstrap(effects, clusters=self.pairs.clusters, seed=self.seed)
        receiver, sender = (axis.ravel() for axis in np.indices(effects.shape[1:]))
        frame = pd.DataFrame(
            {
                "sender": [self.senders[i].label for i in sender],
                "receiver": np.array(self.receivers)[receiver],
                "effect": spread.value.ravel(),
            }
        )
        frame["share"] = frame["effect"] / self.gap if self.gap else np.nan
        if spread.low is not None and spread.high is not None:
            p = sign_flip_p_value(effects, clusters=self.pairs.clusters, seed=self.seed).ravel()
            frame = frame.assign(low=spread.low.ravel(), high=spread.high.ravel(), p=p)
        frame = frame[frame["effect"].notna()]
        return frame.assign(q=q_values(frame["p"].to_numpy())) if "p" in frame else frame

    def panels(self) -> list[Panel]:
        panels: list[Panel] = []
        for r, receiver in enumerate(self.receivers):
            heard = [i for i in range(len(self.senders)) if np.isfinite(self.values[:, r, i]).all()]
            if heard:
                spread = bootstrap(self.effects[:, r, heard], clusters=self.pairs.clusters, seed=self.seed)
                parts, title = [self.senders[i] for i in heard], f"From {{}} straight to {receiver}"
                key, unit = f"to-{_key(receiver)}", self.measure.unit
                panels += component_panels(key, title, parts, spread, caption=self._caption(), unit=unit)
        return [*panels, *self._graph(), self._table(), self._note(), *self._methods()]

    def _methods(self) -> list[Note]:
        heard = np.isfinite(self.values).all(0)  # [receiver sender]
        return methods(
            len(self.pairs.rows), clusters=self.pairs.clusters, seed=self.seed, test="sign flips",
            tests=int(heard.sum()), chosen_of=int(heard.sum(1).max()),
        )  # fmt: skip

    def _caption(self) -> str:
        runs = "corrupted into the clean" if self.direction == "noise" else "clean into the corrupted"
        texts = self.pairs.said()
        return (
            f"Change of the {self.measure.title} when only this path is patched from the {runs} run; patching "
            f"everything would change it by {self.gap:+.3g}. {texts}"
        )

    def _graph(self) -> list[Panel]:
        """The strongest paths, drawn from left to right by layer."""
        frame = self.summary()
        frame = frame[frame["effect"] != 0].sort_values("effect", key=lambda x: -x.abs()).head(EDGES)
        if frame.empty or len(self.receivers) < 2:
            return []
        names = list(dict.fromkeys([*frame["sender"], *frame["receiver"]]))
        depth = {
            part.label: 0 if part.layer is None else 2 * part.layer + 1 + (part.kind == "mlp") for part in self.senders
        }
        last = 1 + max(depth.values())
        shared = {f"L{part.layer}KV": depth[part.label] for part in self.senders if part.kind == "head"}

        def column(name: str) -> int:
            one = name.split(".")[0].split("+")[0]
            return depth.get(one, shared.get(one.rstrip("0123456789"), last))

        columns = [column(name) for name in names]
        order = sorted(range(len(names)), key=lambda i: columns[i])
        place = {names[i]: n for n, i in enumerate(order)}
        known = sorted({columns[i] for i in order})
        edges = zip(frame["sender"], frame["receiver"], frame["effect"], strict=True)
        return [
            Graph(
                key="graph", title=f"The {len(frame)} strongest paths", caption=self._caption(), unit=self.measure.unit,
                nodes=tuple(names[i] for i in order), columns=tuple(known.index(columns[i]) for i in order),
                edges=tuple((place[sender], place[receiver], float(effect)) for sender, receiver, effect in edges),
            )
        ]  # fmt: skip

    def _table(self) -> Table:
        frame = self.summary()
        frame, most = (
            frame.iloc[np.argsort(-frame["effect"].abs().to_numpy(), kind="stable")].reset_index(drop=True),
            500,
        )
        cut = f" The {most} largest of {len(frame):,} effects." if len(frame) > most else ""
        n, unit = independent(len(self.pairs.rows), self.pairs.clusters)
        tests = f" 95 % intervals over {n} {unit}; p by flipping the signs of {unit}, q corrected for all paths."
        share = "share: the effect over what patching everything would change."
        return Table(
            key="table", title="Every path, largest effect first", frame=frame.head(most),
            caption=share + (tests if "q" in frame else "") + cut,
            units={"effect": self.measure.unit}, diverging=frozenset({"effect"}),
        )  # fmt: skip

    def _note(self) -> Note:
        return self.pairs.choices(self.measure, self.answers, self.wrongs, self.notes)

    def findings(self) -> list[Finding]:
        frame = self.summary()
        found = []
        for receiver in self.receivers:
            rows = frame[frame["receiver"] == receiver]
            if len(rows):
                found.append(self._finding(rows, receiver))
        return found

    def _finding(self, rows: pd.DataFrame, receiver: str) -> Finding:
        top = rows.iloc[int(rows["effect"].abs().argmax())]
        labels = [part.label for part in self.senders]
        chosen = self.effects[:, self.receivers.index(str(top["receiver"])), labels.index(str(top["sender"]))]
        low, high = bootstrap(chosen, clusters=self.pairs.clusters, chosen_of=len(rows)).ends()
        clear = said_clear(rows["q"], *independent(len(self.pairs.rows), self.pairs.clusters)) if "q" in rows else ""
        known = f"; {len(rows)} paths were tested: {clear}" if clear else ""
        effect, gap = float(top["effect"]), self.gap
        share = (
            f", {100 * effect / gap:z.0f} % of what patching everything does ({gap:+.3g})" if abs(gap) > 1e-6 else ""
        )
        is_head = any(part.label == top["sender"] and part.kind == "head" for part in self.senders)
        return Finding(
            text=f"Straight to {receiver}, {top['sender']} has the largest effect: patching that path alone changes "
            f"the {self.measure.title} by {effect:+.3g}{share}{known}.",
            key=f"to-{_key(receiver)}-{'heads' if is_head else 'others'}",
            weight=notable(
                effect / gap if abs(gap) > 1e-6 else 0.0, low, high, float(top["q"]) if "q" in rows else None
            ),
            value=effect,
            unit=self.measure.unit,
            low=low,
            high=high,
        )


def _key(receiver: str) -> str:
    return receiver.lower().replace(".", "-").replace(" ", "-").replace("+", "-and-")


@analysis(place=48, needs=("next token",), sweeps=True)
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
    metric: Annotated[PatchingMetric | Callable[[Tensor], Tensor], "what is measured"] = "logit_diff",
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
