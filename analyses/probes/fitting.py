"""Fitting one kind of probe at many hook points: from statistics where they suffice, else in passes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from analyses.probes.base import MomentProbe, Probe
from analyses.probes.linear import LDAProbe, MassMeanProbe, NearestCentroidProbe, RidgeProbe
from analyses.probes.logistic import PATH, LogisticProbe
from analyses.probes.mlp import MLPProbe
from analyses.probes.moments import Array, ClassMeans, Moments, Statistics
from analyses.probes.passes import Passes
from interp.errors import InputError

Kind: TypeAlias = Literal["logistic", "ridge", "lda", "mass-mean", "nearest-centroid", "mlp"]
KINDS: dict[str, tuple[Callable[..., Probe], Callable[[int], list[dict[str, Any]]]]] = {
    "logistic": (partial(LogisticProbe, standardise=True, tol=1e-6), lambda n: [{"C": C} for C in PATH]),
    "ridge": (
        partial(RidgeProbe, standardise=True, task="classification"),
        lambda n: [{"alpha": n * share} for share in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)],
    ),
    "lda": (LDAProbe, lambda n: [{"shrinkage": shrinkage} for shrinkage in (0.0, 0.001, 0.01, 0.1, 0.5)]),
    "mass-mean": (MassMeanProbe, lambda n: [{}]),
    "nearest-centroid": (NearestCentroidProbe, lambda n: [{}]),
    "mlp": (MLPProbe, lambda n: [{}]),
}
"""Kind -> how to make one, and the options to choose from by loss on the validation texts, for n training rows."""


@dataclass(frozen=True, eq=False)
class Training:
    """Rows to learn from and what was summed over them."""

    rows: Array
    moments: Mapping[str, Moments]  # hook point -> of these rows
    means: Mapping[str, Mapping[str, ClassMeans]]  # hook point -> labels -> of these rows


def gather(passes: Passes, names: Sequence[str], rows: Array, targets: Sequence[str]) -> Training:
    """One pass over the rows, for all hook points and all labels."""
    return Training(rows, *passes.statistics(names, rows, targets))


def join(one: Training, two: Training, target: str) -> Training:
    """Both, with the class means of one kind of labels."""
    import numpy as np

    return Training(
        np.sort(np.concatenate([one.rows, two.rows])),
        {name: one.moments[name].merge(two.moments[name]) for name in one.moments},
        {name: {target: one.means[name][target].merge(two.means[name][target])} for name in one.means},
    )


def fit(
    passes: Passes,
    kind: str,
    name: str,
    target: str,
    training: Training,
    options: Mapping[str, Any],
    *,
    start: Probe | None = None,
    validation: Array | None = None,
) -> Probe:
    """One probe of one hook point.

    Args:
        target: which labels.
        start: a logistic probe of the same data with a stronger penalty, to begin from.
        validation: rows on which an MLP chooses its epoch.
    """
    make, _ = find_kind(kind)
    probe = make(**options)
    statistics = Statistics(training.moments[name], training.means[name][target])
    if isinstance(probe, MomentProbe):
        return probe.take(statistics)
    if isinstance(probe, LogisticProbe):
        classes = training.means[name][target].classes
        objective = partial(passes.gradient, name, training.rows, target, classes)
        if isinstance(start, LogisticProbe):
            probe.start_from(start)
        return probe.fit_objective(statistics, objective, passes.key(name, training.rows, target))
    assert isinstance(probe, MLPProbe)
    probe.watch(partial(passes.batches, name, training.rows, target), statistics)
    if validation is None:
        probe.fitted()
    else:
        probe.choose(partial(passes.batches, name, validation, target))
    return probe


def choose(
    passes: Passes, kind: str, names: Sequence[str], target: str, training: Training, validation: Array
) -> tuple[dict[str, Probe], dict[str, dict[str, Any]], dict[str, float]]:
    """For every hook point the probe with the least loss on validation rows, its options, and that loss."""
    _, candidates = find_kind(kind)
    tried: dict[tuple[str, str], Probe] = {}
    options = candidates(len(training.rows))
    for name in names:
        last: Probe | None = None
        for number, one in enumerate(options):
            last = fit(passes, kind, name, target, training, one, start=last, validation=validation)
            tried[name, str(number)] = last
    against = {str(number): target for number in range(len(options))}
    losses = {key: found.total_loss for key, found in passes.scores(tried, validation, against).items()}
    best = {name: min(range(len(options)), key=lambda number: losses[name, str(number)]) for name in names}
    return (
        {name: tried[name, str(best[name])] for name in names},
        {name: options[best[name]] for name in names},
        {name: losses[name, str(best[name])] for name in names},
    )


def find_kind(kind: str) -> tuple[Callable[..., Probe], Callable[[int], list[dict[str, Any]]]]:
    """Raises InputError for an unknown kind of probe."""
    if kind not in KINDS:
        raise InputError(f"probe {kind!r}", f"expected one of {', '.join(KINDS)}")
    return KINDS[kind]
