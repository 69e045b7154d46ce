"""Does the model use what a probe finds? Erase it and see what is lost; steer along it and see what follows.

Erasing: LEACE at one hook point, fitted on the training texts, as an intervention in the run on held-out texts.
Measured: probes fitted anew at that hook point and all later ones, before and after; and the loss of the model's own
predictions, beside two kinds of random erasures of the same rank, which leave the concept as it is: directions drawn
evenly in whitened coordinates, and louder ones that take out as much variance as the concept does (a harder control).
A concept that is read off again elsewhere comes back in later layers.

Steering: the difference of the class means (Marks and Tegmark 2023) is added at that hook point at every position, in
multiples of its own length, beside random directions of the same length that are distributed as the activations are
(Gaussian with their covariance: a direction drawn evenly would mostly point where activations never go).

What it does not show: which part of the model uses the concept, and that no trace of it is left non-linearly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from analyses.probes.causal_result import CausalResult
from analyses.probes.controls import majority
from analyses.probes.data import Activations, labels_of, run_like, windows_of, words_of
from analyses.probes.erasure import Erased, Eraser, leace, random_eraser
from analyses.probes.fitting import Kind, choose, find_kind, gather
from analyses.probes.moments import Array, Statistics
from analyses.probes.passes import Passes, Scores
from analyses.probes.probe_layers import Setup, set_up
from analyses.shared.capabilities import require
from analyses.shared.token_features import is_punctuation
from interp.errors import InputError
from interp.interventions import Add, Intervention
from interp.models.gpt import HookedGPT
from interp.progress import track
from interp.sweep import sweep

SCALES = (-2.0, -1.0, 1.0, 2.0)
MOST_BYTES = 1_000_000_000
"""Of activations of the changed run that are kept in memory; more texts than that are left out of its probes."""


def causal_check(
    model: HookedGPT,
    store: Activations,
    labels: Any,
    name: str,
    *,
    probe: Kind = "lda",
    draws: int = 8,
    scales: Sequence[float] = SCALES,
    towards: str | None = None,
    seed: int = 0,
) -> CausalResult:
    """Erase the concept at one hook point and steer along it, each beside random controls.

    Args:
        model: whose activations the store holds.
        store, labels: as for `probe_layers`.
        name: hook point, one of the residual stream.
        probe: kind of the probes fitted before and after.
        draws: random erasures, and random directions, to compare with.
        scales: multiples of the distance between the class means.
        towards: the class to steer to; by default the last.
        seed: of the controls and the bootstrap.

    Raises NotApplicable for a model that predicts no next token, InputError for what cannot be used, InterpError
    without the library concept-erasure.
    """
    require(model, ("next token",))
    find_kind(probe)
    (name,) = _one(store, name)
    found = labels_of(store, labels, words_of(model))
    if towards is not None and towards not in found.classes:
        raise InputError(f"class {towards!r}", f"expected one of {', '.join(found.classes)}")
    if draws < 1:
        raise InputError(f"draws = {draws}", "expected at least 1")
    setup = set_up(store, found, seed)
    training = gather(setup.passes, [name], setup.train, ["probe"])
    statistics = Statistics(training.moments[name], training.means[name]["probe"])
    eraser = leace(statistics)
    later = [one for one in store.names if _order(model, one) >= _order(model, name)]
    before = _scores(setup, probe, later)
    at_once = _scores(replace(setup, passes=replace(setup.passes, data=Erased(store, name, eraser))), probe, [name])
    after = _after(setup, model, probe, name, later, eraser) | {name: at_once[name]}
    texts = setup.passes.texts
    held_out = _Texts(model, store, setup)
    share_taken = eraser.removed(statistics)
    removed = [
        random_eraser(statistics, eraser, seed * 1000 + draw, as_loud=loud)
        for loud in (False, True)
        for draw in range(draws)
    ]
    favoured = favours(found.name, model)
    direction, target = _direction(statistics, found.classes, towards)
    vectors = [direction, *_random_directions(statistics, direction, draws, seed)]
    pushes = [(scale, torch.from_numpy(vector)) for scale in scales for vector in vectors]

    def variants(length: int) -> list[Intervention]:
        """Erasures, then steerings, at every position of the text itself."""
        pos = range(held_out.skip, length)
        steering = [Add(name=name, value=vector, scale=scale, pos=pos) for scale, vector in pushes]
        return [*(one.at(name, pos=pos) for one in [eraser, *removed]), *steering]

    plain, erased, *others = held_out.runs(variants, favoured)
    steered = np.array(others[2 * draws :], dtype=object).reshape(len(scales), draws + 1)

    def by_scale(measure: str) -> Array:
        return np.array([[getattr(run, measure) for run in row] for row in steered])  # [scale draw+1 text]

    share, kl, loss = by_scale("share"), by_scale("kl"), by_scale("loss")
    return CausalResult(
        label=found.name,
        classes=found.classes,
        kind=probe,
        name=name,
        later=tuple(later),
        rank=eraser.rank,
        removed=share_taken,
        removed_random=np.array([one.removed(statistics) for one in removed]).reshape(2, draws),
        rows=before[name].rows,
        before=np.stack([before[one].accuracy for one in later]),
        after=np.stack([after[one].accuracy for one in later]),
        majority=majority(found.codes, texts, setup.train, setup.test, len(found.classes)).accuracy,
        positions=held_out.positions,
        loss=plain.loss,
        loss_erased=erased.loss,
        loss_random=np.stack([run.loss for run in others[: 2 * draws]]).reshape(2, draws, -1),
        scales=np.array(scales),
        towards=target,
        length=float(np.linalg.norm(direction)),
        favoured=favoured.name if favoured else "",
        share=plain.share,
        share_steered=share[:, 0],
        share_random=share[:, 1:],
        kl_steered=kl[:, 0],
        kl_random=kl[:, 1:],
        loss_steered=loss[:, 0],
        loss_steered_random=loss[:, 1:],
        seed=seed,
    )


def _one(store: Activations, name: str) -> list[str]:
    found = store.match(name)
    if len(found) != 1:
        raise InputError(f"{name!r} means {len(found)} hook points", f"expected one of {', '.join(store.names)}")
    if not found[0].endswith(("resid_pre", "resid_mid", "resid_post", "hook_embed")):
        raise InputError(f"erasing at {found[0]}", "expected a hook point of the residual stream")
    return found


def _order(model: HookedGPT, name: str) -> int:
    return list(model.hook_points).index(name)


def _scores(setup: Setup, probe: str, names: Sequence[str]) -> dict[str, Scores]:
    """On the test rows, of probes fitted and chosen on the others."""
    training = gather(setup.passes, names, setup.train, ["probe"])
    best, _, _ = choose(setup.passes, probe, names, "probe", training, setup.validation)
    found = setup.passes.scores({(name, "probe"): best[name] for name in names}, setup.test)
    return {name: found[name, "probe"] for name in names}


def _after(
    setup: Setup, model: HookedGPT, probe: str, name: str, later: Sequence[str], eraser: Eraser
) -> dict[str, Scores]:
    """Probes fitted anew at later hook points, in runs with the concept erased at `name`."""
    rest = [one for one in later if one != name]
    if not rest:
        return {}
    store = setup.passes.data
    manifest = store.manifest
    sequence = manifest["sequence"].to_numpy()
    kept = _within(sequence, MOST_BYTES // (4 * sum(store.width(one) for one in rest)), setup)
    skip = int(manifest["place"].min() > 0)
    held, rows = run_like(
        model,
        manifest[np.isin(sequence, kept)],
        rest,
        changes=lambda length: [eraser.at(name, pos=range(skip, length))],
    )
    codes = {"probe": setup.passes.codes["probe"][rows]}
    passes = Passes(held, codes, setup.passes.texts[rows], setup.passes.n_classes)
    train, validation, test = (
        np.flatnonzero(np.isin(rows, chosen)) for chosen in (setup.train, setup.validation, setup.test)
    )
    there = replace(setup, passes=passes, token=setup.token[rows], train=train, validation=validation, test=test)
    return _scores(there, probe, rest)


def _within(sequence: Array, most: int, setup: Setup) -> Array:
    """Sequences with at most so many rows: all of test and validation, then of training as many as fit."""
    names, sizes = np.unique(sequence, return_counts=True)
    first = np.isin(names, np.unique(sequence[np.concatenate([setup.test, setup.validation])]))
    order = np.lexsort([np.random.default_rng([setup.seed, 6]).permutation(len(names)), ~first])
    return np.asarray(names[order[np.cumsum(sizes[order]) <= most]])


def _direction(statistics: Statistics, classes: Sequence[str], towards: str | None) -> tuple[Array, str]:
    """[d] from the mean of the other classes to that of the class, and its name."""
    y = statistics.y
    codes = list(y.classes)  # type: ignore[union-attr]
    code = codes[-1] if towards is None else list(classes).index(towards)
    if code not in codes:
        raise InputError(f"class {towards!r} is in no training text", "expected a class that is")
    own = codes.index(code)
    others = [one for one in range(len(codes)) if one != own]
    counts, means = y.counts, y.means  # type: ignore[union-attr]
    return means[own] - np.average(means[others], axis=0, weights=counts[others]), classes[code]


def _random_directions(statistics: Statistics, direction: Array, draws: int, seed: int) -> Array:
    """[draw d] directions distributed as the activations are, each as long as `direction`."""
    values, vectors = np.linalg.eigh(statistics.x.scatter / statistics.x.n)
    drawn = np.random.default_rng([seed, 7]).normal(size=(draws, len(values)))
    found = (drawn * np.sqrt(values.clip(0))) @ vectors.T
    return np.asarray(found * (np.linalg.norm(direction) / np.linalg.norm(found, axis=1, keepdims=True)))


@dataclass(frozen=True)
class Favoured:
    """Next tokens that a concept speaks for."""

    name: str
    """Completes "probability of ..."."""
    mask: Callable[[Tensor], Tensor]
    """Token ids [pos] -> [pos d_vocab] booleans."""


def favours(label: str, model: HookedGPT) -> Favoured | None:
    """The next tokens that a built-in concept speaks for; None for others."""
    size = model.config.d_vocab

    def seen(tokens: Tensor) -> Tensor:
        found = torch.zeros(len(tokens), size, dtype=torch.bool, device=tokens.device)
        found[torch.arange(len(tokens)), tokens] = True
        return found.cumsum(0) > 0

    if label == "seen-before":
        return Favoured("tokens that the text has already", seen)
    words = words_of(model)
    if words is None or label not in ("next-punctuation", "capital", "in-quotation"):
        return None
    name, test = {
        "next-punctuation": ("punctuation", is_punctuation),
        "capital": ("tokens with a capital letter first", lambda word: word.lstrip()[:1].isupper()),
        "in-quotation": ("tokens with a closing quotation mark", lambda word: '"' in word or "”" in word),
    }[label]
    flags = torch.tensor([bool(test(word)) for word in words])
    return Favoured(name, lambda tokens: flags.to(tokens.device).expand(len(tokens), -1))


@dataclass(frozen=True)
class Run:
    """What one run on the held-out texts gave, a number a text."""

    loss: Array  # [text] nats a token
    kl: Array  # [text] KL(clean || this), nats; zero when nothing was compared
    share: Array  # [text] mean probability of the favoured tokens


class _Texts:
    """The held-out texts, run with and without changes."""

    def __init__(self, model: HookedGPT, store: Activations, setup: Setup) -> None:
        manifest = store.manifest
        sequence = manifest["sequence"].to_numpy()
        part = manifest[np.isin(sequence, np.unique(sequence[setup.test]))]
        bos = None if model.tokenizer is None else model.tokenizer.bos
        self.model = model
        self.windows, self.texts = windows_of(part.sort_values(["sequence", "place"], kind="stable"), bos)
        self.skip = int(part["place"].min() > 0)
        self.n_texts = int(setup.passes.texts.max()) + 1
        counts = [max(0, len(window) - 1) for window in self.windows]
        self.positions = np.bincount(self.texts, weights=counts, minlength=self.n_texts)

    @torch.no_grad()
    def runs(self, variants: Callable[[int], Sequence[Intervention]], favoured: Favoured | None) -> list[Run]:
        """The run as it is, then one for each change of a text of so many tokens; NaN where a text is not held out."""
        sums = np.zeros((1 + len(variants(2)), 3, self.n_texts))
        for window, text in track(list(zip(self.windows, self.texts, strict=True))):
            if len(window) >= 2:
                sums[:, :, text] += self._measured(window, variants(len(window)), favoured)
        means = np.divide(sums, self.positions, out=np.full(sums.shape, np.nan), where=self.positions > 0)
        return [Run(*mean) for mean in means]

    def _measured(self, window: Tensor, variants: Sequence[Intervention], favoured: Favoured | None) -> Array:
        """[1 + variant 3] loss, divergence from the clean run and favoured probability, summed over positions."""
        ids = window.to(self.model.device)
        clean = self.model(ids[None])[0, :-1].float().log_softmax(-1)  # [pos d_vocab]
        clean_p = clean.exp()
        entropy = torch.linalg.vecdot(clean_p, clean)
        wanted = None if favoured is None else favoured.mask(ids)[:-1].float()

        def metric(logits: Tensor) -> dict[str, Tensor]:
            log_p = logits[0].float().log_softmax(-1)
            spoken_for = log_p.new_zeros(1) if wanted is None else torch.linalg.vecdot(log_p.exp(), wanted)
            return {
                "loss": F.nll_loss(log_p, ids[1:], reduction="sum")[None],
                "kl": (entropy - torch.linalg.vecdot(clean_p, log_p)).sum()[None],
                "share": spoken_for.sum()[None],
            }

        found = sweep(self.model, ids[None], [(), *variants], metric, read=range(len(ids) - 1))
        return torch.cat([found[name] for name in ("loss", "kl", "share")], 1).double().cpu().numpy()
