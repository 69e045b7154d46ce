"""Passes over activations, each a sum over parts: statistics, gradients of the logistic loss, and scores.

A part is the chosen rows of one shard. Parts are handed out by `interp.scale.map_items`: a loop in this process, or the
workers of a cluster, with the same result, since the sums are added up in the same order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from analyses.probes.base import Probe
from analyses.probes.data import Activations
from analyses.probes.logistic import value_and_gradient
from analyses.probes.moments import Array, ClassMeans, Moments
from analyses.probes.threads import few_threads
from interp import scale
from interp.keeping import kept
from interp.store.reading import ActivationStore, identity

FLOOR = 1e-6
"""Probabilities count as at least this in losses, since a class that was never seen has none."""
BINS = 10
"""Of the calibration curve, over the probability of the predicted class."""


class Part(NamedTuple):
    """Rows of one shard, with what is known of them."""

    shard: int | None
    rows: Array  # [row] numbers, ascending
    codes: Mapping[str, Array]  # labels by name -> [row] class numbers of these rows
    texts: Array  # [row] the number of the text


@lru_cache(maxsize=2)
def _opened(directory: str) -> ActivationStore:
    return ActivationStore(directory, verify=False)


@dataclass(frozen=True, eq=False)
class Passes:
    """Activations, their labels and texts, ready to be passed over."""

    data: Activations
    codes: Mapping[str, Array]  # labels by name -> [row] class numbers, -1 for none
    texts: Array  # [row] the number of the text
    n_classes: int

    def key(self, name: str, rows: Array, target: str) -> tuple[object, ...]:
        """What tells these rows and labels of a hook point from all others; nothing for activations in memory."""
        if not isinstance(self.data, ActivationStore):
            return ()
        return (identity(self.data.header), name, rows, self.codes[target][rows])

    def statistics(
        self, names: Sequence[str], rows: Array, targets: Sequence[str]
    ) -> tuple[dict[str, Moments], dict[str, dict[str, ClassMeans]]]:
        """Of the chosen rows: moments of every hook point, and class means for each kind of label."""
        key = [part for target in targets for part in self.key(repr(list(names)), rows, target)]
        if key:
            found = kept(("sums", *targets, *key), lambda: _flat(*self._sums(names, rows, targets)))
            return _unflat(found, names, targets)
        return self._sums(names, rows, targets)

    def _sums(
        self, names: Sequence[str], rows: Array, targets: Sequence[str]
    ) -> tuple[dict[str, Moments], dict[str, dict[str, ClassMeans]]]:
        moments: dict[str, Moments] = {}
        means: dict[str, dict[str, ClassMeans]] = {name: {} for name in names}
        for x, y in self._map(partial(_statistics, tuple(names)), rows, targets):
            for name in names:
                moments[name] = moments[name].merge(x[name]) if name in moments else x[name]
                for target in targets:
                    old = means[name].get(target)
                    means[name][target] = y[name][target] if old is None else old.merge(y[name][target])
        return moments, means

    def gradient(
        self, name: str, rows: Array, target: str, classes: Array, coef: Array, intercept: Array
    ) -> tuple[float, Array, Array]:
        """Loss of a logistic probe summed over the chosen rows, and its gradients."""
        loss, by_coef, by_intercept = 0.0, np.zeros_like(coef), np.zeros_like(intercept)
        for one, two, three in self._map(partial(_gradient, name, classes, coef, intercept), rows, [target]):
            loss, by_coef, by_intercept = loss + one, by_coef + two, by_intercept + three
        return loss, by_coef, by_intercept

    def scores(
        self, probes: Mapping[tuple[str, str], Probe], rows: Array, against: Mapping[str, str] | None = None
    ) -> dict[tuple[str, str], "Scores"]:
        """How probes, by hook point and a name of their own, do on the chosen rows.

        Args:
            against: which labels each probe, by its own name, is compared with; by default the labels of that name.
        """
        against = against or {}
        targets = sorted({against.get(own, own) for _, own in probes})
        n_texts = int(self.texts.max()) + 1
        found = {key: Scores.none(n_texts) for key in probes}
        for part in self._map(partial(_scores, dict(probes), dict(against), n_texts, self.n_classes), rows, targets):
            found = {key: one.merge(part[key]) for key, one in found.items()}
        return found

    def batches(self, name: str, rows: Array, target: str) -> Any:
        """(X, class numbers) of one hook point, for probes that need the rows themselves."""
        codes = self.codes[target]
        for x, index in self.data.batches([name], rows=rows):
            yield x[name], codes[index]

    def _map(self, kernel: Any, rows: Array, targets: Sequence[str]) -> Any:
        store = self.data if isinstance(self.data, ActivationStore) else None
        parts = []
        for shard, chosen in _by_shard(store, np.asarray(rows)):
            codes = {target: self.codes[target][chosen] for target in targets}
            parts.append(Part(shard, chosen, codes, self.texts[chosen]))
        if store is not None and scale.in_cluster():
            # A few groups of shards a worker: a message for every shard and every step would take longer than the sums.
            size = max(1, len(parts) // (2 * scale.workers()))
            groups = [parts[start : start + size] for start in range(0, len(parts), size)]
            found = scale.map_items(partial(_on_worker, kernel, str(store.directory)), groups)
            return (one for group in found for one in group)
        return map(partial(kernel, self.data), parts)


def _flat(moments: Mapping[str, Moments], means: Mapping[str, Mapping[str, ClassMeans]]) -> dict[str, Array]:
    """Sums as arrays with names."""
    out: dict[str, Array] = {}
    for i, (name, x) in enumerate(moments.items()):
        out |= {f"{i} n": np.array(x.n), f"{i} mean": x.mean, f"{i} scatter": x.scatter}
        for j, y in enumerate(means[name].values()):
            out |= {f"{i} {j} classes": y.classes, f"{i} {j} counts": y.counts, f"{i} {j} means": y.means}
    return out


def _unflat(
    found: Mapping[str, Array], names: Sequence[str], targets: Sequence[str]
) -> tuple[dict[str, Moments], dict[str, dict[str, ClassMeans]]]:
    moments = {
        name: Moments(int(found[f"{i} n"]), found[f"{i} mean"], found[f"{i} scatter"]) for i, name in enumerate(names)
    }
    means = {
        name: {
            target: ClassMeans(*(found[f"{i} {j} {field}"] for field in ("classes", "counts", "means")))
            for j, target in enumerate(targets)
        }
        for i, name in enumerate(names)
    }
    return moments, means


def _by_shard(store: ActivationStore | None, rows: Array) -> list[tuple[int | None, Array]]:
    if store is None:
        return [(None, rows)]
    starts = [store.shard_offset(shard) for shard in range(store.n_shards)] + [store.n_rows]
    cuts = np.searchsorted(rows, starts)
    parts = [(shard, rows[cuts[shard] : cuts[shard + 1]]) for shard in range(store.n_shards)]
    return [(shard, chosen) for shard, chosen in parts if len(chosen)]


def _on_worker(kernel: Any, directory: str, parts: Sequence[Part]) -> Any:
    data = _opened(directory)
    with few_threads(data, data.names):
        return [kernel(data, part) for part in parts]


def _read(data: Activations, names: Sequence[str], part: Part) -> Any:
    """Batches {name: [row d]} of a part, and where in the part their rows are."""
    only: dict[str, Any] = {} if part.shard is None else {"shards": [part.shard]}
    for x, rows in data.batches(list(names), rows=part.rows, **only):
        yield x, np.searchsorted(part.rows, rows)


def _statistics(names: Sequence[str], data: Activations, part: Part) -> Any:
    moments: dict[str, Moments] = {}
    means: dict[str, dict[str, ClassMeans]] = {name: {} for name in names}
    for x, place in _read(data, names, part):
        for name in names:
            new = Moments.of(x[name])
            moments[name] = moments[name].merge(new) if name in moments else new
            wide = x[name].astype(np.float64)
            for target, codes in part.codes.items():
                one, old = ClassMeans.of(wide, codes[place]), means[name].get(target)
                means[name][target] = one if old is None else old.merge(one)
    return moments, means


def _gradient(name: str, classes: Array, coef: Array, intercept: Array, data: Activations, part: Part) -> Any:
    (codes,) = part.codes.values()
    batches = (
        (x[name].astype(np.float64), np.searchsorted(classes, codes[place])) for x, place in _read(data, [name], part)
    )
    return value_and_gradient(batches, coef, intercept)


@dataclass(frozen=True, eq=False)
class Scores:
    """Sums over the rows of each text, and over bins of confidence."""

    rows: Array  # [text]
    right: Array  # [text]
    nats: Array  # [text] minus log probability of the true class
    coded: Array  # [text] the same with one part in a hundred of the probability spread evenly: a code's length
    bins: Array  # [3 bin] rows, confidence, right

    @classmethod
    def none(cls, n_texts: int) -> "Scores":
        zero = np.zeros(n_texts)
        return cls(zero, zero, zero, zero, np.zeros((3, BINS)))

    def merge(self, other: "Scores") -> "Scores":
        """Of the rows of both."""
        return Scores(
            self.rows + other.rows,
            self.right + other.right,
            self.nats + other.nats,
            self.coded + other.coded,
            self.bins + other.bins,
        )

    @property
    def accuracy(self) -> Array:
        """[text], NaN for a text without rows."""
        return _ratio(self.right, self.rows)

    @property
    def loss(self) -> Array:
        """[text] mean cross-entropy in nats, NaN for a text without rows."""
        return _ratio(self.nats, self.rows)

    @property
    def total_accuracy(self) -> float:
        return float(self.right.sum() / self.rows.sum()) if self.rows.any() else float("nan")

    @property
    def total_loss(self) -> float:
        return float(self.nats.sum() / self.rows.sum()) if self.rows.any() else float("nan")

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017, eq. 3): mean distance of confidence from accuracy, by bins."""
        return float(np.abs(self.bins[1] - self.bins[2]).sum() / max(self.bins[0].sum(), 1))


def _ratio(top: Array, bottom: Array) -> Array:
    out: Array = np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)
    return out


SPREAD = 0.01
"""Share of the probability that a code spreads evenly over the classes, so that nothing costs infinitely many bits."""


def score(probabilities: Array, codes: Array, texts: Array, n_texts: int) -> Scores:
    """Scores of predicted probabilities [row class] against class numbers [row]."""
    row = np.arange(len(codes))
    best = probabilities.argmax(1)
    right, sure, true = best == codes, probabilities[row, best], probabilities[row, codes]
    coded = -np.log((1 - SPREAD) * true + SPREAD / probabilities.shape[1])
    place = np.minimum((sure * BINS).astype(int), BINS - 1)

    def by_text(values: Array) -> Array:
        return np.bincount(texts, weights=values, minlength=n_texts)

    return Scores(
        by_text(np.ones(len(codes))),
        by_text(right),
        by_text(-np.log(np.maximum(true, FLOOR))),
        by_text(coded),
        np.stack([np.bincount(place, weights=values, minlength=BINS) for values in (np.ones(len(row)), sure, right)]),
    )


def _scores(
    probes: Mapping[tuple[str, str], Probe],
    against: Mapping[str, str],
    n_texts: int,
    n_classes: int,
    data: Activations,
    part: Part,
) -> Any:
    names = list(dict.fromkeys(name for name, _ in probes))
    found = {key: Scores.none(n_texts) for key in probes}
    for x, place in _read(data, names, part):
        for (name, own), probe in probes.items():
            probabilities = np.zeros((len(place), n_classes))
            probabilities[:, probe.classes_] = probe.predict_proba(x[name])
            codes = part.codes[against.get(own, own)][place]
            found[name, own] = found[name, own].merge(score(probabilities, codes, part.texts[place], n_texts))
    return found
