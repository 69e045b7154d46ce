"""Which layer knows what? Probes for what text itself tells, at every layer, with their controls.

Question: where in the model can it be read off that a token was seen before, that a quotation is open, that the next
token is punctuation?

Method: linear discriminant analysis at every layer, fitted to other texts than it is measured on (`analyses.probes`).
The texts to learn from lie beside the bundled model's weights; for others give a file, or several texts. Each accuracy
stands beside what it has to beat: the majority class, the token alone, the embedding, a model of the same shape with
random weights, shuffled labels, and a control task with a random label for every token type (Hewitt and Liang 2019,
"Designing and Interpreting Probes with Control Tasks"); accuracy less that is the selectivity.

What the numbers do not show: that the model uses what a probe finds. `analyses.probes.causal_check` erases a concept
and shows what the predictions lose; `interp probe` measures any label on any amount of text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.probes.data import Held, run_model, split_texts, words_of
from analyses.probes.layers import NAMES, ProbeLayersResult
from analyses.probes.probe_layers import probe_layers, random_twin
from analyses.shared.axes import Axes
from analyses.shared.capabilities import analysis
from analyses.shared.claims import SURE
from analyses.shared.inputs import sequences, token_labels
from analyses.shared.panels import Finding, Matrix, Note, Panel, Result, Table, Tokens, TokenStrip
from analyses.shared.statistics import Interval
from analyses.shared.token_features import TASKS
from interp.errors import InputError, check_seed
from interp.keeping import kept_whole
from interp.loading.digests import parameters_sha256
from interp.models.gpt import HookedGPT
from interp.text.documents import Documents

MOST_TOKENS = 12_000
"""Positions that are used; more would make the intervals narrower and the wait longer."""
MOST_BYTES = 500_000_000
"""Of activations in memory."""
FEWEST_TEXTS = 8
Label = Literal["seen-before", "capital", "in-quotation", "position", "next-punctuation"]


@dataclass(frozen=True, kw_only=True)
class ProbingResult(Result):
    """Probes for every label at every layer; everything is empty when there was too little text."""

    label: str
    """The one shown in detail."""
    sweeps: Mapping[str, ProbeLayersResult]
    """By label."""
    tokens: Tokens
    """[pos] the given text."""
    reading: np.ndarray
    """[pos] what the best probe for `label` makes of it: the probability of its last class; NaN at the first token."""
    texts: int
    positions: int
    """That the probes learned from or were measured on."""
    remark: str
    """Why nothing was measured; may be empty."""

    def to_dataframe(self) -> pd.DataFrame:
        """One row a label and hook point; the columns of `ProbeLayersResult.to_dataframe`."""
        frames = [sweep.to_dataframe().assign(label=name) for name, sweep in self.sweeps.items()]
        if not frames:
            return pd.DataFrame(columns=["label", "hook_point", "accuracy"])
        whole = pd.concat(frames, ignore_index=True)
        return whole[["label", *(column for column in whole.columns if column != "label")]].dropna(axis=1, how="all")

    def panels(self) -> list[Panel]:
        if not self.sweeps:
            return [Note("remark", "Too little text", text=self.remark)]
        figure = self.sweeps[self.label].panels()[:1] if self.label in self.sweeps else []
        strip = [self._strip()] if len(self.tokens) else []
        return [self._matrix(), self._table(), *figure, *strip, *next(iter(self.sweeps.values())).methods()]

    def _matrix(self) -> Matrix:
        gains = [sweep.difference("probe", "majority") for sweep in self.sweeps.values()]
        lows = [gain.low for gain in gains if gain.low is not None]
        highs = [gain.high for gain in gains if gain.high is not None]
        known = len(lows) == len(gains)
        found = Interval(
            value=np.stack([gain.value for gain in gains]), low=np.stack(lows) if known else None,
            high=np.stack(highs) if known else None, n=self.texts,
        )  # fmt: skip
        where = next(iter(self.sweeps.values())).labels
        return Axes.of(found, label=list(self.sweeps), **{"where in the model": where}).matrix(
            "knows", "Which layer knows what", "How much more often a probe is right than the majority class, on "
            f"held-out texts ({self.texts} texts, {self.positions:,} positions in all). Compare with the controls in "
            "the table: much of it may come from the token alone.", unit="accuracy above the majority class",
        )  # fmt: skip

    def _table(self) -> Table:
        shown = {"accuracy": "accuracy", "accuracy_low": "low", "accuracy_high": "high"}
        shown |= {name: NAMES[name] for name in ("majority", "token", "embedding", "random", "shuffled", "control")}
        shown |= {"majority": "majority", "selectivity": "selectivity"}
        shown |= {f"selectivity_{end}": f"selectivity, {end}" for end in ("low", "high")}
        rows = {name: sweep.to_dataframe().iloc[sweep.best] for name, sweep in self.sweeps.items()}
        frame = pd.DataFrame({"label": list(rows), "best layer": [row["layer"] for row in rows.values()]})
        for column, name in shown.items():
            frame[name] = [round(float(row[column]), 3) for row in rows.values()]
        return Table(
            "table", "The best layer of each, and what it has to beat", "The layer is chosen on texts of its own, the "
            "figures are from texts that no probe has seen; low and high are the 95 % interval over texts. Random "
            "model, shuffled labels and control task (the mean of several draws): at that layer.",
            frame=frame.dropna(axis=1, how="all"),
        )  # fmt: skip

    def _strip(self) -> TokenStrip:
        sweep = self.sweeps[self.label]
        last = f"“{sweep.classes[-1]}”"
        return TokenStrip(
            "reading", f"Reading this text: {self.label}", f"Probability that the probe at {sweep.labels[sweep.best]} "
            f"gives to {last} at each token of the given text, which it has not seen.", tokens=self.tokens,
            values=self.reading, unit=f"probability of {last}",
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        found = []
        for sweep in self.sweeps.values():
            for finding in sweep.findings():
                p = (finding.p or 0.0) * len(self.sweeps)
                if finding.kind == "effect" and p <= SURE:
                    best = float(sweep.interval("probe").value[sweep.best])
                    rest = [float(np.nanmax(sweep.interval(one).value)) for one in ("token", "embedding", "random")]
                    weight = float(np.clip(0.15 + 2 * (best - max(rest)), 0.0, 0.5))
                    found.append(replace(finding, key="knows", weight=weight, p=p))
        return [max(found, key=lambda one: one.weight)] if found else []


@analysis()
@torch.no_grad()
def probing(
    model: HookedGPT,
    tokens: str | Sequence[str] | Tensor,
    *,
    label: Annotated[Label, "shown in detail, and read off the given text"] = "seen-before",
    documents: Annotated[
        Documents | None, "a file of texts to learn from, form feeds between them; by default beside the model"
    ] = None,
    seed: Annotated[int, "of the split of the texts, the controls and the intervals"] = 0,
) -> ProbingResult:
    """Probes for what text itself tells, at every layer.

    Args:
        tokens: read with the best probe; when there are no documents and these are several, learned from instead.

    Too little text is no error: the result says so and holds nothing else. Raises InputError for an unknown label.
    """
    check_seed(seed)
    if label not in TASKS:
        raise InputError(f"label {label!r}", f"expected one of {', '.join(TASKS)}")
    rows = sequences(model, tokens)
    windows, texts, bos = _windows(model, rows, documents, seed)
    words = words_of(model)
    labels = [name for name, task in TASKS.items() if words is not None or not task.needs_words]
    fewest = 4 * model.config.d_model
    stored = sum(len(window) - int(bos) for window in windows)
    if len(set(texts)) < FEWEST_TEXTS or stored < fewest or label not in labels:
        return _nothing(
            label,
            f"Probes learn from some texts and are measured on others, and here are {len(set(texts))} with {stored:,} "
            f"tokens. Nothing was fitted: give at least {FEWEST_TEXTS} texts of {fewest:,} tokens together, or a file "
            "of documents to learn from."
            if label in labels
            else f"The label {label} needs the text of tokens, and this model has no tokenizer.",
        )
    given = (model.config, model.device, seed, bos, texts, labels)
    sweeps = kept_whole(
        lambda: ("probing", parameters_sha256(model), *given, *(window.numpy() for window in windows)),
        lambda: _sweeps(model, windows, texts, labels, bos, seed),
    )
    if label not in sweeps:
        return _nothing(label, f"The texts to learn from, or those to measure on, have a single class of {label}.")
    shown = rows[0] if documents is not None else rows[0][:, :0]
    return ProbingResult(
        label=label,
        sweeps=sweeps,
        tokens=token_labels(model, shown),
        reading=_read(model, shown, sweeps[label], bos),
        texts=len(set(texts)),
        positions=stored,
        remark="",
    )


def _sweeps(
    model: HookedGPT, windows: list[Tensor], texts: list[int], labels: list[str], bos: bool, seed: int
) -> dict[str, ProbeLayersResult]:
    """Probes for each label that the texts have at least two classes of, at every layer."""
    names = _names(model)
    held = run_model(model, windows, texts, names, bos=bos)
    held.manifest["split"] = split_texts(held.manifest["text"].to_numpy(), seed)
    twin = run_model(random_twin(model, seed), windows, texts, names, bos=bos)
    sweeps: dict[str, ProbeLayersResult] = {}
    for name in labels:
        try:
            sweeps[name] = probe_layers(
                held, name, probe="lda", model=model, random_store=twin, description_length=False, seed=seed
            )
        except InputError:  # a text may lack a class, such as quotations
            continue
    return sweeps


def _nothing(label: str, remark: str) -> ProbingResult:
    return ProbingResult(
        label=label, sweeps={}, tokens=Tokens(), reading=np.zeros(0), texts=0, positions=0, remark=remark
    )


def _names(model: HookedGPT) -> list[str]:
    """The embedding and the residual stream after each block, in small models also after its attention."""
    endings = ("hook_resid_mid", "hook_resid_post") if model.config.n_layers <= 6 else "hook_resid_post"
    return [name for name in model.hook_points if name == "hook_embed" or name.endswith(endings)]


def _windows(
    model: HookedGPT, rows: list[Tensor], documents: Documents | None, seed: int
) -> tuple[list[Tensor], list[int], bool]:
    """Token ids to learn from, the text of each, and whether they begin with the beginning-of-text token.

    Of every document as many windows as the context holds, the same number from each, until there is enough.
    """
    limit = min(MOST_TOKENS, MOST_BYTES // (8 * model.config.d_model * len(_names(model))))
    if documents is None:
        begins = model.tokenizer is not None and all(int(row[0, 0]) == model.tokenizer.bos for row in rows)
        kept = np.cumsum([row.shape[1] for row in rows]) <= max(limit, rows[0].shape[1])
        chosen = [(row[0].cpu(), text) for text, (row, keep) in enumerate(zip(rows, kept, strict=True)) if keep]
        return [row for row, _ in chosen], [text for _, text in chosen], begins
    tokenizer = model._tokenizer()
    bos = [] if tokenizer.bos is None else [tokenizer.bos]
    size = model.config.n_ctx - len(bos)
    spelt = [tokenizer.encode(text) for text in documents]
    parts = [[ids[start : start + size] for start in range(0, len(ids), size)] for ids in spelt]
    order = np.random.default_rng(seed).permutation(len(parts))
    chosen, total = [], 0
    for turn in range(max(map(len, parts), default=0)):
        for text in order:
            if turn < len(parts[text]) and total < limit:
                chosen.append((torch.tensor([*bos, *parts[text][turn]]), int(text)))
                total += len(parts[text][turn])
    chosen.sort(key=lambda one: one[1])
    return [ids for ids, _ in chosen], [text for _, text in chosen], bool(bos)


def _read(model: HookedGPT, row: Tensor, sweep: ProbeLayersResult, bos: bool) -> np.ndarray:
    """[pos] probability of the last class at each token; NaN at the beginning-of-text token."""
    if not row.shape[1]:
        return np.zeros(0)
    name = sweep.names[sweep.best]
    begins = bos and model.tokenizer is not None and int(row[0, 0]) == model.tokenizer.bos
    found = np.full(row.shape[1], np.nan)
    held: Held = run_model(model, [row[0].cpu()], [0], [name], bos=begins)
    if len(held.values[name]):
        found[int(begins) :] = sweep.probes[name].predict_proba(held.values[name])[:, -1]
    return found
