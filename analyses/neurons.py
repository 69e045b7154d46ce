"""When chosen MLP neurons are active, which tokens they read and write, and how much they matter.

Question: what do single neurons of the MLPs respond to, what do they add to the prediction, and is anything lost
without them?

Method: an MLP's output is a sum over its neurons, activation times output weights (Geva et al. 2021, "Transformer
Feed-Forward Layers Are Key-Value Memories"). A neuron's share of its layer's output is the part of the output's squared
norm that it accounts for: its own output times the whole output, summed over positions, over the output's squared norm;
the shares of all neurons and the bias sum to one; behind a norm of the MLP's output they are shares of what is added,
at the norm's scale in the run. Tokens read are those whose embeddings its input weights match best, tokens written
those whose logits its output weights raise or lower most (Geva et al. 2022). A gated neuron's activation is act(gate)
times a linear part: the gate's weights say when it is active, the linear ones with what sign and size, and tokens are
given for both. The effect of a neuron is the change in loss when its activation is held, at every position, at its mean
over the texts' positions but the first, where activations dwarf all others (or at zero), with randomly drawn neurons as
the control.

Contexts: a sample of text (a few thousand tokens of encyclopaedia articles, or `corpus`), cut into windows, is run up
to the last of these layers. Shown are the windows with a neuron's largest activations, the token where it has them in
the middle, and the share of the sample's tokens at which it reaches a tenth of the largest.

What it does not show: embeddings stand for what earlier layers may have changed, so the tokens read say most in the
first layers. A neuron that is active on several unrelated things is common, and the largest activations are not the
usual ones; that contexts look alike is no test, for any direction has some. A share is size, not effect: large neurons
may cancel.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.shared.axes import Axes, numbered, said_mean
from analyses.shared.capabilities import analysis, once_a_model
from analyses.shared.claims import LOSS_FLOOR, SURE, largest_p_value, signed, testable
from analyses.shared.contexts import Contexts, top_contexts
from analyses.shared.inputs import TextOrTokens, sequences, text_names, token_labels, token_list
from analyses.shared.metrics import Readout
from analyses.shared.panels import Bars, Finding, Panel, Result, Table, Tokens
from analyses.shared.statistics import Interval, bootstrap, held_out, methods, q_values, sign_flip_p_value
from analyses.shared.weight_circuits import added, reading
from interp.cache import ActivationCache
from interp.errors import InputError
from interp.interventions import ablate_neurons
from interp.models.gpt import HookedGPT
from interp.models.kernels import wide
from interp.sweep import sweep
from interp.text.documents import Documents
from interp.training.evaluation import SAMPLE

CONTROLS = 4
"""Random neurons that are ablated for comparison."""
METRICS = ("loss", "kl")
CONTEXTS = 5
"""Shown of each neuron."""


@dataclass(frozen=True, kw_only=True)
class NeuronsResult(Result):
    """Activations, weights and effects of the chosen neurons."""

    neurons: tuple[tuple[int, int], ...]
    """[neuron] (layer, number)."""
    chosen: bool
    """Whether they were asked for; otherwise they have the largest shares of their layers' output."""
    activations: tuple[np.ndarray, ...]
    """One per text, [neuron pos], after the non-linearity, and times the linear part of gated neurons."""
    share: np.ndarray
    """[text neuron] share of the layer's output, first position left out; all neurons and the bias sum to one."""
    reads: tuple[Tokens, ...]
    """[neuron] tokens whose embeddings its input weights match best: those of the gate where there is one."""
    scaled_by: tuple[Tokens, ...]
    """[neuron] the same for the linear part of gated neurons; empty where there is none."""
    raises: tuple[Tokens, ...]
    """[neuron] tokens whose logits its output weights raise most."""
    lowers: tuple[Tokens, ...]
    """[neuron] tokens whose logits its output weights lower most."""
    effect: dict[str, np.ndarray]
    """`loss` and `kl` -> [text neuron], nats per token: the loss without the neuron less the loss with it, and the KL
    divergence between the two predictions."""
    control: dict[str, np.ndarray]
    """The same for random neurons, [text control]."""
    value: str
    """What their activation was replaced by: mean or zero."""
    tokens: tuple[Tokens, ...]
    texts: tuple[str, ...]
    contexts: Contexts | None
    """Where in a sample they are most active; None for a model without a tokenizer."""
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"L{layer}N{number}" for layer, number in self.neurons)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per text and neuron: text neuron layer share mean_activation peak_activation peak_token loss kl."""
        peaks = [np.abs(activations).argmax(1) for activations in self.activations]  # [text][neuron]
        words = [[labels[peak] for peak in at] for labels, at in zip(self.tokens, peaks, strict=True)]
        values = [a[np.arange(len(a)), at] for a, at in zip(self.activations, peaks, strict=True)]
        return Axes.of(self.share, text=None, neuron=self.names).frame(
            "share", mean_activation=np.stack([a.mean(1) for a in self.activations]),
            peak_activation=np.stack(values), peak_token=np.array(words, dtype=object),
            layer=[layer for layer, _ in self.neurons], **{metric: self.effect[metric] for metric in METRICS},
        )[["text", "neuron", "layer", "share", *(f"{what}_activation" for what in ("mean", "peak")), "peak_token",
           *METRICS]]  # fmt: skip

    def _spread(self, values: np.ndarray) -> Interval:
        return bootstrap(values, seed=self.seed)

    @property
    def q(self) -> np.ndarray | None:
        """[neuron] q-values of the changes of the loss, by flipping the signs of texts; None for one text."""
        return None if len(self.texts) == 1 else q_values(sign_flip_p_value(self.effect["loss"], seed=self.seed))

    def panels(self) -> list[Panel]:
        which = "" if len(self.texts) == 1 else f" Text {self.texts[0]}."
        return [
            self._table(), *([] if self.contexts is None else [self._contexts(self.contexts)]),
            Axes.of(self.activations[0], neuron=self.names, token=numbered(self.tokens[0])).matrix(
                "activations", "Activations", "Activation of each neuron after the non-linearity"
                f"{', times the linear part' * bool(self.scaled_by)}, at each token.{which}", unit="activation",
                diverging=True,
            ),
            self._effect(),
            *methods(
                len(self.texts), chosen_of=len(self.neurons), test="sign flips", tests=len(self.neurons),
                seed=self.seed,
            ),
        ]  # fmt: skip

    def _peak(self, neuron: int) -> tuple[float, str]:
        """The activation of largest size over all texts, the first position left out, and its token."""
        pairs = zip(self.activations, self.tokens, strict=True)
        places = [(a[neuron], t, 1 + int(np.abs(a[neuron, 1:]).argmax())) for a, t in pairs]
        return max(((float(a[at]), t[at]) for a, t, at in places), key=lambda peak: abs(peak[0]))

    def _table(self) -> Table:
        peaks = [self._peak(neuron) for neuron in range(len(self.neurons))]
        gate = {"gate reads": self.reads, "linear part reads": self.scaled_by}
        sides = (gate if self.scaled_by else {"reads": self.reads}) | {"raises": self.raises, "lowers": self.lowers}
        frame = pd.DataFrame({
            "neuron": self.names, "share": self._spread(self.share).value,
            "loss": self._spread(self.effect["loss"]).value, **({} if self.q is None else {"q": self.q}),
            "peak": [peak[0] for peak in peaks], "at": [peak[1] for peak in peaks],
            **({} if self.contexts is None else {"active": self.contexts.active}),
        } | {name: list(map(token_list, side)) for name, side in sides.items()})  # fmt: skip
        active = "Active: a tenth of its largest activation in other texts, or more. " * bool(self.contexts)
        chosen = "The neurons asked for." if self.chosen else "The neurons with the largest share of a layer's output."
        return Table(
            "neurons", "Neurons",
            f"{chosen} Loss: its change without the neuron{'' if self.q is None else ', q: of that change'}. Peak: of "
            f"largest size on these texts, first position left out. {active}Then tokens it matches best on reading, "
            "and whose logits it raises or lowers most, by the weights alone.", frame=frame, tokens=frozenset({"at"}),
            diverging=frozenset({"loss"}), units={"share": "of output", "loss": "nats", "active": "of tokens"},
        )  # fmt: skip

    def _contexts(self, found: Contexts) -> Table:
        return Table(
            "contexts", "Where they are most active",
            f"The largest activations in {found.n_tokens:,} tokens of {found.n_texts} other texts, at most one from "
            "any window of 128 tokens, and what stands before and after.",
            frame=found.to_dataframe(self.names), tokens=frozenset({"token"}),
        )  # fmt: skip

    def _effect(self) -> Bars:
        values = np.concatenate([self.effect["loss"], self.control["loss"].mean(1, keepdims=True)], 1)
        by = "zero" if self.value == "zero" else "its mean over the texts' positions but the first"
        return Axes.of(self._spread(values), neuron=[*self.names, "random neurons"]).bars(
            "effect", "Loss without the neuron",
            f"Change in loss when the neuron's activation is replaced, at every position, by {by}; at the end the mean "
            f"of {self.control['loss'].shape[1]} random neurons (seed {self.seed}). {said_mean(len(self.texts))}",
            unit="nats a token",
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        """The largest rise of the loss, where its interval and its test, both paying for the choice, exclude chance."""
        loss = self.effect["loss"]
        best = int(loss.mean(0).argmax())
        low, high = bootstrap(loss[:, best], chosen_of=len(self.neurons)).ends()
        value, random = float(loss[:, best].mean()), float(self.control["loss"].mean())
        p = float(largest_p_value(loss, seed=self.seed)[best])
        if low is None or low <= 0 or value < LOSS_FLOOR or (testable(len(loss)) and p > SURE):
            return []
        name = self.names[best]
        chance = f"p = {p:.2g} as the largest of" if testable(len(loss)) else "the largest rise of"
        text = (
            f"Without neuron {name} the loss rises by {value:.3f} nats a token, without a random neuron it changes by "
            f"{signed(random, '+.3f')}: {chance} {len(self.names)}."
        )
        null = f"flipped signs of texts, the largest of {len(self.names)}"
        null = null if testable(len(loss)) else f"an interval that pays for the choice among {len(self.names)}"
        return [
            Finding(
                text, "effect", 0.3, value, "nats a token", low, high, null=null, p=p if testable(len(loss)) else None,
                held=held_out(loss, best, highest=True, called=lambda one: self.names[one], seed=self.seed), about=name,
                short=f"without it loss {signed(value, '+.2f')}",
            )
        ]  # fmt: skip


@analysis(place=70, needs=("mlp", "next token"), sweeps=True)
@torch.no_grad()
def neurons(
    model: HookedGPT,
    tokens: TextOrTokens,
    *,
    chosen: Annotated[tuple[str, ...] | None, "neurons such as L3N17; default: those with the largest shares"] = None,
    count: Annotated[int, "how many when none are chosen"] = 8,
    top: Annotated[int, "tokens shown for each neuron"] = 6,
    corpus: Annotated[Documents | None, "a file of texts to look for contexts in, form feeds between them"] = None,
    value: Annotated[Literal["mean", "zero"], "what an ablated neuron's activation is replaced by"] = "mean",
    seed: Annotated[int, "seed of the random control neurons and the bootstrap intervals"] = 0,
) -> NeuronsResult:
    """Describe chosen neurons, or those that make up most of their layer's output, and ablate each.

    Raises InputError for a neuron that the model does not have, a text of a single token, or a corpus in which the
    model reads nothing; NotApplicable for a model without MLPs, or that predicts no next token.
    """
    rows = sequences(model, tokens, at_least=2)
    if not 1 <= count <= model.config.n_layers * model.config.d_mlp or not 1 <= top <= model.config.d_vocab:
        raise InputError(f"count = {count}, top = {top}", "expected at least 1, and no more than the model has")
    caches = [model.run_with_cache(row, names=share_names(model))[1] for row in rows]
    shares = np.stack([output_shares(model, cache)[0] for cache in caches])  # [text layer neuron]
    if chosen is None:
        order = np.argsort(-shares.mean(0), axis=None, kind="stable")[:count]
        picked = [divmod(int(i), model.config.d_mlp) for i in order]
    else:
        picked = [_parse(model, name) for name in ([chosen] if isinstance(chosen, str) else chosen)]
    rng = np.random.default_rng(seed)
    controls = [divmod(int(i), model.config.d_mlp) for i in rng.choice(shares[0].size, CONTROLS, replace=False)]
    texts = Documents.load(SAMPLE) if corpus is None else corpus
    contexts = once_a_model(model, ("contexts", picked, texts), lambda: top_contexts(model, picked, texts, CONTEXTS))
    if contexts is None and corpus is not None:
        raise InputError("a corpus in which this model reads no token", "expected text, and a model with a tokenizer")
    effect = _effects(model, rows, caches, picked + controls, value)
    first, *other = ("W_gate", "W_in") if model.config.gated else ("W_in",)
    writes = _written(model, picked, top)
    return NeuronsResult(
        neurons=tuple(picked), chosen=chosen is not None, value=value, seed=seed,
        activations=tuple(_activations(cache, picked) for cache in caches),
        share=np.stack([[share[place] for place in picked] for share in shares]),
        reads=_tokens(model, picked, first, top), raises=writes[0], lowers=writes[1],
        scaled_by=tuple(tokens for name in other for tokens in _tokens(model, picked, name, top)),
        effect={name: values[:, : len(picked)] for name, values in effect.items()},
        control={name: values[:, len(picked) :] for name, values in effect.items()},
        tokens=tuple(token_labels(model, row) for row in rows), texts=text_names(model, rows),
        contexts=contexts,
    )  # fmt: skip


def share_names(model: HookedGPT) -> list[str]:
    """What `output_shares` needs of a run."""
    return [name for name in model.hook_points if name.endswith(("hook_post", "hook_mlp_out", "ln2_post.hook_scale"))]


@torch.no_grad()
def output_shares(model: HookedGPT, cache: ActivationCache) -> tuple[np.ndarray, np.ndarray]:
    """Shares of each MLP's output by neuron [layer neuron] and of its bias [layer]; together one in each layer.

    The first position is left out: there, activations dwarf those of all others.
    """
    shares, biases = [], []
    for layer, block in enumerate(model.blocks):
        mlp, norm = block.mlp, block.ln2_post
        assert mlp is not None  # asked of models with MLPs
        post, out = (wide(cache[name, layer][0, 1:]) for name in ("post", "mlp_out"))
        total = out.square().sum()
        scale = wide(cache["scale", layer, "ln2_post"][0, 1:]) if norm.hooked else out.new_ones(1, 1)
        shares.append((post / scale * (out @ added(norm, mlp.W_out).T)).sum(0) / total)
        bias = torch.zeros_like(out) if mlp.b_out is None else added(norm, mlp.b_out) / scale
        biases.append((out * (bias if norm.b is None else bias + norm.b)).sum() / total)
    return torch.stack(shares).double().cpu().numpy(), torch.stack(biases).double().cpu().numpy()


def _activations(cache: ActivationCache, places: Sequence[tuple[int, int]]) -> np.ndarray:
    """[neuron pos]"""
    picked: np.ndarray = torch.stack([cache["post", layer][0, :, n] for layer, n in places]).float().cpu().numpy()
    return picked


def _effects(
    model: HookedGPT,
    rows: Sequence[Tensor],
    caches: Sequence[ActivationCache],
    places: Sequence[tuple[int, int]],
    value: str,
) -> dict[str, np.ndarray]:
    """Metric -> [text neuron]: change when each neuron in turn is ablated."""
    kept = [torch.cat([cache["post", layer][0, 1:, n] for cache in caches]) for layer, n in places]
    values = [float(activation.mean()) if value == "mean" else 0.0 for activation in kept]
    edits = [ablate_neurons(layer, n, held) for (layer, n), held in zip(places, values, strict=True)]
    changes: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
    for row in rows:
        clean = wide(model(row)).log_softmax(-1)
        found = sweep(model, row, [(), *edits], Readout(names=METRICS, tokens=row, clean=clean))
        for name in METRICS:
            measured = found[name][:, 0].double().cpu().numpy()
            changes[name].append(measured[1:] - measured[0])
    return {name: np.stack(values) for name, values in changes.items()}


def _tokens(model: HookedGPT, places: Sequence[tuple[int, int]], name: str, top: int) -> tuple[Tokens, ...]:
    """Tokens whose embeddings, as the norm hands them on, match each neuron's input weights of this name best."""
    columns = [getattr(model.blocks[layer].mlp, name)[:, n : n + 1] for layer, n in places]
    read = [reading(model.blocks[layer].ln2, column)[:, 0] for (layer, _), column in zip(places, columns, strict=True)]
    scores = torch.stack(read) @ wide(model.W_E).T
    return tuple(token_labels(model, row) for row in scores.topk(top).indices)


def _written(
    model: HookedGPT, places: Sequence[tuple[int, int]], top: int
) -> tuple[tuple[Tokens, ...], tuple[Tokens, ...]]:
    """Tokens whose logits each neuron's output weights raise most, and lower most, against all logits' mean."""
    weights = torch.stack([added(model.blocks[layer].ln2_post, model.W_out[layer, n]) for layer, n in places])
    scores = added(model.ln_final, weights) @ wide(model.W_U)
    raised, lowered = (scores.topk(top, largest=largest).indices for largest in (True, False))
    return tuple(token_labels(model, row) for row in raised), tuple(token_labels(model, row) for row in lowered)


def _parse(model: HookedGPT, name: str) -> tuple[int, int]:
    match = re.fullmatch(r"L(\d+)N(\d+)", str(name).strip())
    place = (int(match[1]), int(match[2])) if match else (-1, -1)
    if not (0 <= place[0] < model.config.n_layers and 0 <= place[1] < model.config.d_mlp):
        last = f"L{model.config.n_layers - 1}N{model.config.d_mlp - 1}"
        raise InputError(f"neuron {name!r}", f"expected L0N0 to {last}: layer, then number")
    return place
