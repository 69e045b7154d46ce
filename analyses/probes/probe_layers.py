"""The sweep: one probe at each hook point, with every baseline, on texts that were held out.

Texts are split, never tokens: positions of one text share its words and its subject. Standardisation and every choice
(strength of the penalty, best layer) see the training and validation texts only. A probe's accuracy means little by
itself; it stands beside the following.

The majority class, and the classes' shares for the same token: what needs no model. The embedding layer: what the
token's vector gives away before any context. A randomly initialised model of the same shape: what wiring gives without
training. Shuffled labels: what the procedure finds where there is nothing. A control task, a random label for every
token type (Hewitt and Liang 2019, "Designing and Interpreting Probes with Control Tasks"), the mean of several draws of
labels: accuracy less that is the selectivity, and its interval knows how far the draws lie apart. The online code
length of the labels (Voita and Titov 2020, "Information-Theoretic Probing with Minimum Description Length", section
2.2): each block of training texts is coded by the probe fitted to those before it, the first block at log2(classes)
bits a label.

Linear kinds are solved from statistics that one pass gathers for all hook points at once; the logistic one takes some
tens of passes over each hook point. Inside `interp.scale.cluster(...)` the workers share the passes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from analyses.probes import controls
from analyses.probes.base import Probe
from analyses.probes.data import Activations, Labels, Table, labels_of, run_like, split_texts, words_of
from analyses.probes.fitting import Kind, Training, choose, find_kind, fit, gather, join
from analyses.probes.layers import ProbeLayersResult
from analyses.probes.moments import Array
from analyses.probes.passes import Passes, Scores
from analyses.probes.threads import few_threads
from interp.errors import InputError, check_seed
from interp.models.gpt import HookedGPT
from interp.progress import track

RANDOM_ROWS = 60_000
"""Most positions that the random model is run on; they are kept in memory."""


def probe_layers(
    store: Activations,
    labels: Any,
    *,
    probe: Kind = "logistic",
    names: Sequence[str] | str | None = None,
    model: HookedGPT | None = None,
    random_store: Activations | None = None,
    description_length: bool = True,
    seed: int = 0,
) -> ProbeLayersResult:
    """Fit a probe for `labels` at every hook point of a store, and everything it has to be compared with.

    Args:
        store: an `interp.ActivationStore`, or activations in memory (`analyses.probes.data.run_model`).
        labels: one value a row of the store (None or NaN: no label), the name of a column of its manifest, or a
            built-in task: seen-before, capital, in-quotation, position, next-punctuation.
        probe: logistic, ridge, lda, mass-mean, nearest-centroid or mlp.
        names: hook points; by default all that the store has.
        model: the model whose activations these are: for its embedding, its random twin and the text of its tokens.
            Without it the random model is left out, and built-in tasks that need words are an error.
        random_store: activations of the random twin on the same texts, if they are at hand.
        description_length: code the labels, which also gives the learning curve; about doubles the time.
        seed: of control labels, shuffling, the order of texts in the code, the random twin and the bootstrap.

    Raises InputError for labels, hook points or splits that cannot be used.
    """
    check_seed(seed)
    find_kind(probe)
    chosen = tuple(store.names if names is None else store.match(names))
    found = labels_of(store, labels, words_of(model))
    with few_threads(store, chosen):
        setup = set_up(store, found, seed)
        kinds = setup.targets
        training = gather(setup.passes, chosen, setup.train, list(kinds))
        best, options, losses = choose(setup.passes, probe, chosen, "probe", training, setup.validation)
        fitted: dict[tuple[str, str], Probe] = {(name, "probe"): best[name] for name in chosen}
        for name in track(chosen):
            for target in (*controls.DRAWN, "shuffled"):
                fitted[name, target] = fit(setup.passes, probe, name, target, training, options[name])
        against = {"shuffled": "probe"}
        code, sizes, parts = np.full(len(chosen), np.nan), np.zeros(0), dict[tuple[str, str], Probe]()
        if description_length:
            code, sizes, parts = _online_code(setup, probe, chosen, options)
            against |= {own: "probe" for _, own in parts}
        scores = setup.passes.scores(fitted | parts, setup.test, against)
        accuracy = {own: np.stack([scores[name, own].accuracy for name in chosen]) for own in kinds}
        loss = {own: np.stack([scores[name, own].loss for name in chosen]) for own in kinds}
        for found_of in (accuracy, loss):
            found_of["control"] = np.mean([found_of.pop(own) for own in controls.DRAWN], axis=0)
        drawn = [[scores[name, own].total_accuracy for name in chosen] for own in controls.DRAWN]
        simple = _without_probes(setup, found, seed) | _embedding(setup, probe, chosen, scores, model)
        accuracy |= {own: one.accuracy for own, one in simple.items()}
        loss |= {own: one.loss for own, one in simple.items()}
        random_rows = 0
        twin = random_store if random_store is not None else _twin(setup, model, chosen, seed)
        if twin is not None:
            random, random_rows = _random(setup, twin, found, probe, chosen)
            accuracy["random"] = np.stack([random[name].accuracy for name in chosen])
            loss["random"] = np.stack([random[name].loss for name in chosen])
        curve = [[scores[name, f"size {number}"].total_accuracy for name in chosen] for number in range(len(sizes))]
        return ProbeLayersResult(
            label=found.name,
            classes=found.classes,
            kind=probe,
            names=chosen,
            options=tuple(options[name] for name in chosen),
            rows=scores[chosen[0], "probe"].rows,
            accuracy=accuracy,
            loss=loss,
            validation_loss=np.array([losses[name] for name in chosen]),
            calibration=np.stack([scores[name, "probe"].bins for name in chosen]),
            curve_rows=sizes,
            curve=np.array(curve).reshape(len(sizes), len(chosen)),
            code_bits=code,
            coded_rows=len(setup.train),
            control_draws=np.array(drawn),
            train_rows=len(setup.train),
            random_rows=random_rows,
            seed=seed,
            probes=best,
        )


@dataclass(frozen=True, eq=False)
class Setup:
    """The data with its kinds of labels (probe, several of control, shuffled) and its split."""

    passes: Passes
    token: Array  # [row]
    train: Array  # row numbers, ascending; labelled rows only
    validation: Array
    test: Array
    seed: int

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.passes.codes)


def set_up(store: Activations, labels: Labels, seed: int) -> Setup:
    manifest = store.manifest
    texts, token = (manifest[column].to_numpy().astype(np.int64) for column in ("text", "token"))
    split = manifest["split"].to_numpy().astype(str)
    train, validation, test = (
        np.flatnonzero((labels.codes >= 0) & (split == part)) for part in ("train", "validation", "test")
    )
    if not len(validation) and len(train) and len(test):  # choose by some of the training texts
        drawn = split_texts(texts[train], seed, (0.85, 0.15, 0.0)) if len(np.unique(texts[train])) >= 3 else None
        if drawn is not None:
            train, validation = train[drawn == "train"], train[drawn != "train"]
    for rows, role in ((train, "training"), (test, "test"), (validation, "validation")):
        if not len(rows):
            raise InputError(
                f"no {role} text has the label {labels.name}",
                "expected labelled texts in every part of the split",
                "use more texts, or another seed",
            )
    n_classes = len(labels.classes)
    if len(np.unique(labels.codes[train])) < 2:
        raise InputError(f"the training texts have one class of {labels.name}", "expected at least two")
    codes = {
        "probe": labels.codes,
        **{
            own: controls.control_labels(labels.codes, token, train, n_classes, seed, draw)
            for draw, own in enumerate(controls.DRAWN)
        },
        "shuffled": controls.shuffled_labels(labels.codes, train, seed),
    }
    return Setup(Passes(store, codes, texts, n_classes), token, train, validation, test, seed)


def _without_probes(setup: Setup, labels: Labels, seed: int) -> dict[str, Scores]:
    texts, n_classes = setup.passes.texts, setup.passes.n_classes
    return {
        "majority": controls.majority(labels.codes, texts, setup.train, setup.test, n_classes),
        "token": controls.token_identity(labels.codes, setup.token, texts, setup.train, setup.test, n_classes),
    }


def _embedding(
    setup: Setup,
    probe: str,
    names: Sequence[str],
    scores: Mapping[tuple[str, str], Scores],
    model: HookedGPT | None,
) -> dict[str, Scores]:
    """The probe's scores on the token embedding: from the store, else from the model's own table, else none."""
    if "hook_embed" in names:
        return {"embedding": scores["hook_embed", "probe"]}
    store = setup.passes.data
    if "hook_embed" in store.names:
        data: Activations = store
    elif model is not None:
        data = Table(model.W_E.detach().float().cpu().numpy(), store.manifest)
    else:
        return {}
    passes = replace(setup.passes, data=data)
    training = gather(passes, ["hook_embed"], setup.train, ["probe"])
    best, _, _ = choose(passes, probe, ["hook_embed"], "probe", training, setup.validation)
    return {
        "embedding": passes.scores({("hook_embed", "probe"): best["hook_embed"]}, setup.test)["hook_embed", "probe"]
    }


def random_twin(model: HookedGPT, seed: int) -> HookedGPT:
    """A model of the same shape with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HookedGPT(model.config, tokenizer=model.tokenizer).to(model.device)


def _twin(setup: Setup, model: HookedGPT | None, names: Sequence[str], seed: int) -> Activations | None:
    """Activations of a model of the same shape with random weights, on the same texts, or as many as fit."""
    if model is None:
        return None
    manifest = setup.passes.data.manifest
    sequence = manifest["sequence"].to_numpy()
    names_of, sizes = np.unique(sequence, return_counts=True)
    order = np.random.default_rng([seed, 4]).permutation(len(names_of))
    kept = names_of[order[np.cumsum(sizes[order]) <= max(RANDOM_ROWS, sizes[order[0]])]]
    held, rows = run_like(random_twin(model, seed), manifest[np.isin(sequence, kept)], names)
    return replace(held, manifest=held.manifest.assign(original=rows))


def _random(
    setup: Setup, twin: Activations, labels: Labels, probe: str, names: Sequence[str]
) -> tuple[dict[str, Scores], int]:
    """Scores of probes on the random twin, fitted and chosen in the same way on its rows of the same texts."""
    manifest = twin.manifest
    original = manifest["original"].to_numpy() if "original" in manifest else np.arange(len(manifest))
    if "original" not in manifest and len(manifest) != len(labels.codes):
        raise InputError(f"{len(manifest)} rows in random_store", f"expected {len(labels.codes)}, as in the store")
    passes = Passes(twin, {"probe": labels.codes[original]}, setup.passes.texts[original], setup.passes.n_classes)
    train, validation, test = (
        np.flatnonzero(np.isin(original, rows)) for rows in (setup.train, setup.validation, setup.test)
    )
    if not (len(train) and len(validation) and len(test)):
        raise InputError("the random model saw too few texts", "expected some of every part of the split")
    training = gather(passes, names, train, ["probe"])
    best, _, _ = choose(passes, probe, names, "probe", training, validation)
    scores = passes.scores({(name, "probe"): best[name] for name in names}, test)
    n_texts = int(setup.passes.texts.max()) + 1
    return {name: _padded(scores[name, "probe"], n_texts) for name in names}, len(train)


def _padded(scores: Scores, n_texts: int) -> Scores:
    """For as many texts as the store has."""
    more = n_texts - len(scores.rows)
    rows, right, nats, coded = (np.pad(x, (0, more)) for x in (scores.rows, scores.right, scores.nats, scores.coded))
    return Scores(rows, right, nats, coded, scores.bins)


def _online_code(
    setup: Setup, probe: str, names: Sequence[str], options: Mapping[str, Mapping[str, Any]]
) -> tuple[Array, Array, dict[tuple[str, str], Probe]]:
    """Bits that the training labels take [layer]; rows of each fit [size]; the probes by hook point and "size k"."""
    parts = controls.blocks(setup.passes.texts, setup.train, setup.seed)
    bits = np.full(len(names), len(parts[0]) * np.log2(setup.passes.n_classes))
    fitted: dict[tuple[str, str], Probe] = {}
    sizes: list[int] = []
    seen: Training | None = None
    for number, rows in enumerate(track(parts)):
        block = gather(setup.passes, names, rows, ["probe"])
        if number:
            last = {(name, own): one for (name, own), one in fitted.items() if own == f"size {len(sizes) - 1}"}
            if not last:
                bits += len(rows) * np.log2(setup.passes.n_classes)
            coded = setup.passes.scores(last, rows, {own: "probe" for _, own in last})
            for place, name in enumerate(names):
                bits[place] += sum(one.coded.sum() / np.log(2) for (own, _), one in coded.items() if own == name)
        seen = block if seen is None else join(seen, block, "probe")
        if len(seen.means[names[0]]["probe"].classes) < 2:
            continue  # nothing can be learned yet: the next block too is sent plainly
        for name in names:
            fitted[name, f"size {len(sizes)}"] = fit(setup.passes, probe, name, "probe", seen, options[name])
        sizes.append(len(seen.rows))
    return bits, np.array(sizes), fitted
