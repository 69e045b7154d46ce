"""Spread, tests and effect sizes, shared by all analyses. The unit of observation is the text, never the token.

Axes: text is the first axis of every array; whatever follows (layer, head, ...) is treated entry by entry. NaN means
"not defined in this text" (a text without a repeated token has no induction score) and is left out. Where texts are
made from templates, `clusters` names the template of each text; then whole templates are drawn, not single texts.
`methods` says in a sentence or two what was done, for a paper.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Real
from numpy.typing import ArrayLike
from scipy import special

from analyses.shared.panels import Held, Note
from interp.errors import InputError

RESAMPLES = 2000
FEW = 8
"""Below so many texts (or templates) an interval is Student's."""
HALVED_FROM = 12
"""Independent texts from which on half of them may choose: of the six others a test by signs can reach .05."""
FLIPS = 4096
"""Most sign patterns of a test."""
WHOLE = 1e-6
"""A share this near to one is one: sums of float32 shares miss it by their rounding, on either side."""
AT_ONCE = 2048
"""Entries that are tested together: their flipped sums take 64 MB."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over texts and its interval."""

    value: np.ndarray
    """[...] the mean over texts; NaN where no text defines it."""
    low: np.ndarray | None
    """[...] lower end; None for one text (or one template), NaN where fewer than two define the number."""
    high: np.ndarray | None
    """[...] upper end, likewise."""
    n: int
    """Texts."""

    def ends(self, *index: int) -> tuple[float | None, float | None]:
        """The two ends of one entry; None where there is no interval."""
        if self.low is None or self.high is None or np.isnan(self.low[index]):
            return None, None
        return float(self.low[index]), float(self.high[index])


def bootstrap(
    values: Real[np.ndarray, "text *shape"],
    *,
    clusters: Sequence[object] | None = None,
    weights: Real[np.ndarray, " text"] | None = None,
    share: bool = False,
    chosen_of: int = 1,
    least: float | np.ndarray = -np.inf,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean over texts with an interval, for every entry at once.

    For a paired comparison of two conditions pass their difference per text. From FEW texts on the ends are percentiles
    of the bootstrap, moved outward for small numbers of texts (the expanded percentile interval of Hesterberg, "What
    Teachers Should Know About the Bootstrap", 2015, section 4.5). Of fewer texts there are too few resamples for that,
    and the ends are Student's t, with the standard error of the jackknife, which is s / sqrt(n) where texts count
    alike. For normal numbers a 95 % interval covers the truth in 93 to 97 % of cases from two texts on; for skewed
    numbers less often (exponential: 88 % of 5 texts, 91 % of 12).

    Args:
        clusters: [text] the template of each text.
        weights: [text] how much each text counts, such as its number of tokens; by default all alike.
        share: the values are shares of what was counted, 0 to 1. Then the ends are those of Clopper and Pearson (1934),
            for the number of independent outcomes that would give as large a standard error (Korn and Graubard, 1998);
            they stay between 0 and 1, and do not close where all texts agree.
        chosen_of: how many entries the one that will be told was chosen from, such as the largest effect of a grid.
            The ends, Student's, are then at the level 1 - (1 - level) / chosen_of (Bonferroni), so that the interval of
            whichever is chosen covers its truth in `level` of cases.
        least: what the mean cannot be below, such as 0 for a divergence, for all entries or each; no end is told below
            it.
    """
    values = np.asarray(values, dtype=float)
    flat = values.reshape(len(values), -1)
    known = ~np.isnan(flat)
    counted = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    member = _membership(len(values), clusters)  # [cluster text]
    total = member @ np.where(known, counted[:, None] * np.nan_to_num(flat), 0.0)  # [cluster entry]
    weight = member @ np.where(known, counted[:, None], 0.0)
    mean = _ratio(total.sum(0), weight.sum(0))
    shape, n_clusters = values.shape[1:], len(member)
    if n_clusters < 2:
        return Interval(value=mean.reshape(shape), low=None, high=None, n=len(values))
    tail = (1 - level) / 2 / max(chosen_of, 1)
    if share:
        low, high = _share_ends(total, weight, tail)
    else:
        low, high = _student_ends(total, weight, tail)
        many = _effective(weight) >= FEW
        if chosen_of <= 1 and many.any():
            low[many], high[many] = _percentiles(total[:, many], weight[:, many], tail, seed, resamples)
    low = np.maximum(low, np.broadcast_to(least, shape).reshape(-1))
    return Interval(value=mean.reshape(shape), low=low.reshape(shape), high=high.reshape(shape), n=len(values))


def held_out(
    effects: Real[np.ndarray, "text *shape"],
    chosen: int | tuple[int, ...],
    *,
    by: Real[np.ndarray, "text *shape"] | None = None,
    highest: bool = False,
    clusters: Sequence[object] | None = None,
    share: bool = False,
    least: float = -np.inf,
    unit: str = "texts",
    called: Callable[..., str] = lambda *place: "",
    seed: int = 0,
) -> Held | None:
    """The entry that half of the texts choose as the largest, and its mean over the others with a plain interval.

    What was chosen as the largest of many on the same texts is on average too large, whatever its interval; here the
    two have no text in common (Cox 1975, "A note on data-splitting for the evaluation of significance levels"). None
    for fewer than HALVED_FROM texts or templates, where what was chosen is unknown on the other half, and where all
    texts chose by more than size, such as the largest of those that pass a test: halves would choose among others.

    Args:
        chosen: what all texts choose.
        by: what the choice is made by, where that is not the effects themselves, such as estimates of them.
        highest: the highest mean is chosen, and not that of the largest size.
        share, clusters, least: as in `bootstrap`.
        unit: what the first axis holds.
        called: gives the name of an entry, by its place on the other axes.
    """
    n, unit = independent(len(effects), clusters, unit)
    if n < HALVED_FROM:
        return None
    units: Sequence[object] = range(len(effects)) if clusters is None else clusters
    names = list(dict.fromkeys(units))
    order = np.random.default_rng(seed).permutation(n)[: n // 2]
    first = np.isin([names.index(one) for one in units], order)

    def choice(values: np.ndarray) -> tuple[int, ...]:
        known = ~np.isnan(values)
        mean = _ratio(np.where(known, values, 0.0).sum(0), known.sum(0))
        sizes = np.nan_to_num(mean if highest else np.abs(mean), nan=-np.inf)
        return tuple(map(int, np.unravel_index(int(sizes.argmax()), mean.shape)))

    judged, told = np.asarray(effects if by is None else by, dtype=float), np.atleast_1d(chosen)
    if choice(judged) != tuple(told):
        return None
    place = choice(judged[first])
    measured = np.asarray(effects, dtype=float)[(~first, *place)]
    others = [one for one, here in zip(units, first, strict=True) if not here]
    found = bootstrap(measured, clusters=others, share=share, least=least, seed=seed)
    if np.isnan(found.value):
        return None
    low, high = found.ends()
    again, value = place == tuple(told), float(found.value)
    return Held(again=again, what=called(*place), value=value, low=low, high=high, n=n - n // 2, unit=unit)


def _percentiles(
    total: np.ndarray, weight: np.ndarray, tail: float, seed: int, resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Expanded percentiles of the bootstrapped means; all entries share the same draws of clusters."""
    n_clusters = len(total)
    draws = np.random.default_rng(seed).multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=resamples)
    means = _ratio(draws @ total, draws @ weight)  # [resample entry]
    low, high = (np.full(total.shape[1], np.nan) for _ in range(2))
    observed = _effective(weight)
    for n in np.unique(observed):
        wider = special.ndtr(np.sqrt(n / (n - 1)) * special.stdtrit(n - 1, tail))
        low[observed == n], high[observed == n] = np.nanquantile(means[:, observed == n], [wider, 1 - wider], axis=0)
    return low, high


def _effective(weight: np.ndarray) -> np.ndarray:
    """[entry] how many clusters that count alike would be worth as much (Kish 1965): all where they do count alike."""
    return np.round(_ratio(weight.sum(0) ** 2, (weight**2).sum(0)), 6)


def _jackknife(total: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[entry] the mean, its standard error by leaving one cluster out in turn, and the degrees of freedom.

    These are one less than the effective number of clusters, and NaN where that is below one and a half: one cluster
    then all but decides the mean.
    """
    n = (weight > 0).sum(0)
    mean = _ratio(total.sum(0), weight.sum(0))
    others = _ratio(total.sum(0) - total, weight.sum(0) - weight)
    squares = np.where(weight > 0, (others - mean) ** 2, 0.0).sum(0)
    effective = _effective(weight)
    freedom = np.where(effective >= 1.5, effective - 1, np.nan)
    return mean, np.sqrt(_ratio((n - 1.0) * squares, n.astype(float))), freedom


def _student_ends(total: np.ndarray, weight: np.ndarray, tail: float) -> tuple[np.ndarray, np.ndarray]:
    """Student's ends; NaN where fewer than two clusters define the mean."""
    mean, error, freedom = _jackknife(total, weight)
    width = -special.stdtrit(freedom, tail) * error
    return mean - width, mean + width


def _share_ends(total: np.ndarray, weight: np.ndarray, tail: float) -> tuple[np.ndarray, np.ndarray]:
    """Clopper and Pearson's ends for as many outcomes as the standard error speaks of."""
    mean, error, freedom = _jackknife(total, weight)
    units = np.where(weight > 0, _ratio(total, weight), 0.0)
    plain = ((units == 0) | (units > 1 - WHOLE)).all(0)  # each cluster is one outcome
    narrower = special.ndtri(tail) / special.stdtrit(freedom, tail)
    size = np.divide(mean * (1 - mean), error**2, out=np.full(mean.shape, np.inf), where=error > 0) * narrower**2
    size = np.where(plain, _effective(weight), size)
    hits = np.clip(mean, 0.0, 1.0) * np.minimum(size, 1e12)
    misses = np.minimum(size, 1e12) - hits
    with np.errstate(invalid="ignore"):
        low = np.where(hits > 0, special.betaincinv(hits, misses + 1, tail), 0.0)
        high = np.where(misses > 0, special.betainccinv(hits + 1, misses, tail), 1.0)
    return np.where(np.isnan(freedom), np.nan, low), np.where(np.isnan(freedom), np.nan, high)


def _membership(n_texts: int, clusters: Sequence[object] | None) -> np.ndarray:
    """[cluster text], one where the text belongs to the cluster."""
    if clusters is None:
        return np.eye(n_texts)
    if len(clusters) != n_texts:
        raise InputError(f"{len(clusters)} clusters for {n_texts} texts", "expected one for each text")
    names = list(dict.fromkeys(clusters))
    return np.array([[float(cluster == name) for cluster in clusters] for name in names])


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)
    return out


def cluster_sums(
    values: Real[np.ndarray, "text *shape"], clusters: Sequence[object] | None = None
) -> Float[np.ndarray, "cluster entry"]:
    """Sums over the texts of each cluster (each text alone where none are given), all other axes as one."""
    out: Float[np.ndarray, "cluster entry"] = _membership(len(values), clusters) @ values.reshape(len(values), -1)
    return out


def sign_patterns(n: int, *, seed: int = 0, flips: int = FLIPS) -> Float[np.ndarray, "pattern n"]:
    """Signs to flip n numbers by, the first row as observed: all patterns, or `flips` drawn where there are more."""
    if 2**n <= flips:
        return np.asarray(1 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1))
    random = np.random.default_rng(seed).integers(0, 2, size=(flips - 1, n))
    return np.concatenate([np.ones((1, n)), 1 - 2.0 * random])


def sign_flip_p_value(
    differences: Real[np.ndarray, "text *shape"],
    *,
    clusters: Sequence[object] | None = None,
    seed: int = 0,
    flips: int = FLIPS,
) -> np.ndarray:
    """Two-sided p-values [...] that differences between paired conditions are symmetric about zero, by flipping signs.

    What is tested is the symmetry: differences that are skewed are found more often than their mean is other than zero
    (of exponential ones with mean zero 7 to 10 % at .05). Exact when there are at most `flips` sign patterns, else from
    that many random ones. Whole clusters are flipped. `least_p_value` tells what n texts can reach at best: six are the
    fewest that can reach .05. NaN counts as no difference.
    """
    values = np.nan_to_num(np.asarray(differences, dtype=float))
    sums = cluster_sums(values, clusters)
    signs = sign_patterns(len(sums), seed=seed, flips=flips)
    p = np.ones(sums.shape[1])
    for start in range(0, sums.shape[1], AT_ONCE):
        some = sums[:, start : start + AT_ONCE]
        flipped = np.abs(signs @ some)
        p[start : start + AT_ONCE] = (flipped >= np.abs(some.sum(0)) * (1 - 1e-9)).mean(0)  # the observed among them
    return p.reshape(values.shape[1:])


def least_p_value(n: int, flips: int = FLIPS) -> float:
    """The smallest p-value that n texts (or templates) can reach by flipping signs."""
    return 2 / 2**n if 2**n <= flips else 1 / flips


def independent(n_texts: int, clusters: Sequence[object] | None, unit: str = "texts") -> tuple[int, str]:
    """How many independent observations there are, and what they are called: the texts, or their templates."""
    return (n_texts, unit) if clusters is None else (len(set(clusters)), "templates")


def said_clear(q: ArrayLike, n: int, unit: str = "texts") -> str:
    """How many of the entries just named have q at most .05, or why none could; to be put after them."""
    clear = int((np.asarray(q) <= 0.05).sum())
    if not clear and least_p_value(n) > 0.05:
        return f"{n} {unit} are too few for any to reach q of .05"
    return f"{clear or 'none'} of them {'has' if clear == 1 else 'have'} q at most .05"


def attainable(n: int, tests: int, unit: str = "texts") -> str:
    """What n texts cannot reach when so many entries are tested together, in a sentence; empty where one alone can."""
    least = least_p_value(n)
    if least > 0.05:
        return f"With {n} {unit} no p-value can be below {least:.3g}: nothing could reach .05."
    together = int(np.ceil(least * tests / 0.05 - 1e-9))
    if together <= 1:
        return ""
    return (
        f"With {n} {unit} no p-value can be below {least:.2g}: one effect alone among {tests:,} could reach "
        f"q = {min(least * tests, 1.0):.2g} at best, and q of .05 takes {together:,} that reach the least p together."
    )


def null_p_value(observed: Real[np.ndarray, "*shape"], null: Real[np.ndarray, "sample *shape"]) -> np.ndarray:
    """One-sided p-values [...] of values at least as high under the null: (1 + exceedances) / (1 + samples)."""
    exceed: np.ndarray = (np.asarray(null) >= np.asarray(observed)).sum(0)
    return np.where(np.isnan(observed), np.nan, (1 + exceed) / (1 + len(null)))


def q_values(p: Real[np.ndarray, "*shape"]) -> np.ndarray:
    """Benjamini-Hochberg q-values [...] of all p-values together; NaN stays NaN and is not counted as a test.

    Of the entries called at q <= .05, at most 5 % are false on average.
    """
    p = np.asarray(p, dtype=float)
    falling = np.argsort(-p.ravel(), kind="stable")  # NaN last
    n = int((~np.isnan(p)).sum())
    q = np.full(p.size, np.nan)
    q[falling[:n]] = np.minimum.accumulate(p.ravel()[falling[:n]] * (n / np.arange(n, 0, -1)))
    return q.reshape(p.shape)


def correlation(x: Real[np.ndarray, " n"], y: Real[np.ndarray, " n"], *, ranks: bool = False) -> float:
    """Pearson's correlation, or Spearman's, which is that of the ranks; equal values share their mean rank."""
    both = pd.DataFrame({"x": x, "y": y}).corr("spearman" if ranks else "pearson")
    return float(both.to_numpy()[0, 1])


def paired_effect(differences: Real[np.ndarray, "text *shape"]) -> np.ndarray:
    """Cohen's d_z [...]: the mean difference over texts in standard deviations; NaN for fewer than two texts."""
    values = np.asarray(differences, dtype=float)
    n = (~np.isnan(values)).sum(0)
    mean = _ratio(np.nansum(values, axis=0), n.astype(float))
    spread = np.sqrt(_ratio(np.nansum((values - mean) ** 2, axis=0), n - 1.0))
    return _ratio(mean, spread)


def weighted_t_p_value(differences: Real[np.ndarray, "text *shape"], weights: Real[np.ndarray, " text"]) -> np.ndarray:
    """One-sided p-values [...] that the weighted mean difference is not above zero, by Student's t over texts.

    With the standard error and the degrees of freedom of the intervals of `bootstrap`; NaN where one text decides.
    """
    values, counted = np.asarray(differences, dtype=float), np.asarray(weights, dtype=float)
    flat = values.reshape(len(values), -1)
    weight = np.where(np.isnan(flat), 0.0, counted[:, None])
    mean, error, freedom = _jackknife(np.nan_to_num(flat) * weight, weight)
    effect = np.divide(mean, error, out=np.where(mean > 0, np.inf, 0.0), where=error > 0)
    return np.asarray(special.stdtr(freedom, -effect)).reshape(values.shape[1:])


def paired_t_p_value(differences: Real[np.ndarray, "text *shape"], *, greater: bool = False) -> np.ndarray:
    """p-values [...] that the mean difference is zero (or, one-sided, not greater), by Student's t over texts.

    Differences without any spread are as sure as can be, unless they are zero; NaN for fewer than two texts.
    """
    values = np.asarray(differences, dtype=float)
    n = (~np.isnan(values)).sum(0)
    effect, mean = paired_effect(values), _ratio(np.nansum(values, axis=0), n.astype(float))
    effect, mean = (effect, mean) if greater else (np.abs(effect), np.abs(mean))
    effect = np.where(np.isnan(effect) & (n >= 2), np.where(mean > 0, np.inf, 0.0), effect)
    tail = special.stdtr(np.maximum(n - 1, 1), -effect * np.sqrt(n))
    return np.where(n >= 2, tail if greater else 2 * tail, np.nan)


def effect_size(a: Real[np.ndarray, "text_a *shape"], b: Real[np.ndarray, "text_b *shape"]) -> np.ndarray:
    """Cohen's d [...]: the difference of two unpaired means in units of the pooled standard deviation."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    pooled = (len(a) - 1) * a.var(0, ddof=1) + (len(b) - 1) * b.var(0, ddof=1)
    return _ratio(a.mean(0) - b.mean(0), np.sqrt(pooled / (len(a) + len(b) - 2)))


def methods_note(text: str) -> Note:
    """The panel that says how the numbers of a section were made, in words that can be copied."""
    return Note(key="methods", title="Statistics, as a methods section would say it", text=text)


Test = Literal["sign flips", "t"]


def methods(
    n_texts: int,
    *,
    clusters: Sequence[object] | None = None,
    unit: str = "texts",
    weighted: bool = False,
    share: bool = False,
    chosen_of: int = 1,
    halved: bool | None = None,
    test: Test | None = None,
    tests: int = 0,
    more: str = "",
    seed: int = 0,
) -> list[Note]:
    """A note that says how the intervals and q-values of a section were made; none for a single text or template.

    Args:
        unit: what the first axis holds, in the plural.
        weighted: whether texts count by their number of positions.
        share, chosen_of: as given to `bootstrap`; chosen_of that of the effect that the findings name.
        halved: whether that effect is measured by `held_out` too; by default where it was chosen of several.
        test: how p-values were made, if there are any; tests: how many were corrected together.
        more: a sentence of the analysis's own.
    """
    n, what = independent(n_texts, clusters, unit)
    if n < 2:
        return []
    mean = f"Means over {n_texts} {unit}" + (" weighted by their positions" if weighted else "")
    drawn = f" made from {n} templates" if clusters is not None else ""
    if share:
        how = f"Clopper-Pearson intervals for the effective number of outcomes (Korn and Graubard 1998), between {what}"
    elif n < FEW:
        how = f"Student's t intervals (jackknife standard error over {n} {what}, {n - 1} degrees of freedom)"
    else:
        how = (
            f"expanded percentile bootstrap intervals (Hesterberg 2015; {RESAMPLES:,} resamples of {what}, seed {seed})"
        )
    said = [f"{mean}{drawn}, with 95 % {how}, each for itself."]
    if chosen_of > 1:
        kind = "an interval" if share else "a Student's t interval"
        said.append(
            f"The one that a summary names as the largest has {kind} at the Bonferroni level 1 - .05/{chosen_of:,}, "
            "which allows for the choice."
        )
    if n >= HALVED_FROM and (chosen_of > 1 if halved is None else halved):
        said.append(
            f"Held out: {n // 2} {what} (drawn with seed {seed}) choose the largest alone, and the other "
            f"{n - n // 2} measure it, with a 95 % interval for itself (Cox 1975)."
        )
    if test == "sign flips":
        patterns = f"all {2**n:,} patterns" if 2**n <= FLIPS else f"{FLIPS:,} random patterns, seed {seed}"
        said.append(f"p: two-sided sign-flip test by {what[:-1]} that effects are symmetric about zero ({patterns}).")
    elif test == "t":
        said.append(f"p: t test of the differences by {what[:-1]}.")
    if test and tests:
        said.append(f"q: Benjamini and Hochberg over {tests:,} p-values.")
        said.append(attainable(n, tests, what) if test == "sign flips" else "")
    return [methods_note(" ".join(part for part in [*said, more] if part))]
