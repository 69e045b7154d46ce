"""Patterns of attention as numbers: read off a run, measured, rolled out, held against each other.

Any attention will do: causal or not, of one text or across two. Measures are means over queries; see
`analyses.attention_patterns` for what each says.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from scipy import special
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from torch import Tensor

from analyses.shared.stacks import Stack, attentions, readings
from interp.hooks import HookedModule, HookPoint
from interp.residual import norm_at


def read_stacks(model: HookedModule, stacks: Sequence[Stack], run: Callable[[], object]) -> list[tuple[Tensor, Tensor]]:
    """Pattern [layer head query key] and value norms [layer head key] of every attention, from one run of one input.

    Float32 on the CPU. A value's norm is how long it is behind W_O (and the gain of a norm that follows).
    """
    patterns, norms = ([list[Tensor]() for _ in stacks] for _ in range(2))
    hooks = []
    for stack, pattern, norm in zip(stacks, patterns, norms, strict=True):
        hooks.append((list(stack.hooks("hook_pattern")), _keeper(pattern, stack, lambda x, stack, layer: x)))
        hooks.append((list(stack.hooks("hook_v")), _keeper(norm, stack, _moved)))
    with torch.inference_mode(), model.hooks(hooks, reads_only=True):
        run()
    return [(pattern[0], norm[0]) for pattern, norm in zip(patterns, norms, strict=True)]


def _keeper(
    kept: list[Tensor], stack: Stack, what: Callable[[Tensor, Stack, int], Tensor]
) -> Callable[[Tensor, HookPoint], None]:
    """Writes what each layer shows into one tensor [layer ...], which the first one makes: no copy of the whole."""

    def keep(x: Tensor, hook: HookPoint) -> None:
        found = what(x[0].float(), stack, hook.layer)
        if not kept:
            kept.append(torch.empty(len(stack.blocks), *found.shape))
        kept[0][hook.layer] = found.cpu()

    return keep


def _moved(v: Tensor, stack: Stack, layer: int) -> Tensor:
    """[head key] length of what each head would move of each value [key kv_head d_head]."""
    attention, post = stack.attentions[layer], norm_at(stack.blocks[layer], "ln1_post")
    own = v[:, [attention.kv_head(head) for head in range(attention.n_heads)]]
    moved = torch.einsum("phd,hdm->hpm", own, attention.W_O.float())
    lengths: Tensor = post.share(moved, moved.new_ones(())).norm(dim=-1)
    return lengths


def read_patterns(model: HookedModule, tokens: object) -> tuple[Tensor, Tensor]:
    """Pattern and value norms, as `read_stacks` gives them, of a model's first attention on its first text."""
    return read_stacks(model, attentions(model)[:1], readings(model, tokens)[0].run)[0]


def measure(
    pattern: Tensor, norms: Tensor, masks: Mapping[str, Tensor], first: int = 1
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Plain and value-weighted measures, each name -> [layer head], of one text.

    Args:
        pattern: [layer head query key].
        norms: [layer head key].
        masks: for each mass the keys that count, see `key_masks`.
        first: the first query that counts.
    """
    tiny = torch.finfo(torch.float32).tiny
    plain: dict[str, list[Tensor]] = {name: [] for name in ("entropy", "surprise", *masks)}
    weighted: dict[str, list[Tensor]] = {name: [] for name in masks}
    log_average = pattern[:, :, first:].mean((0, 1)).clamp(min=tiny).log()
    for layer, norm in zip(pattern[:, :, first:], norms, strict=True):  # layer by layer: copies of one layer only
        entropy = torch.special.entr(layer).sum(-1)
        plain["entropy"].append(entropy.mean(-1))
        plain["surprise"].append((-entropy - (layer * log_average).sum(-1)).mean(-1).clamp(min=0))
        moved = layer * norm[:, None]
        moved = moved / moved.sum(-1, keepdim=True).clamp(min=tiny)
        for name, mask in masks.items():
            plain[name].append(mass(layer, mask[first:]))
            weighted[name].append(mass(moved, mask[first:]))
    return _stacked(plain), _stacked(weighted)


def _stacked(lists: dict[str, list[Tensor]]) -> dict[str, np.ndarray]:
    return {name: torch.stack(parts).double().numpy() for name, parts in lists.items()}


def key_masks(ids: Tensor, *, causal: bool = True, keys: int | None = None) -> dict[str, Tensor]:
    """For each mass the keys that count, [query key] of booleans; queries without any are not measured.

    Args:
        ids: [query] the tokens that look.
        causal: whether they see none that comes later; repeated tokens are counted there alone.
        keys: how many tokens are looked at, where these are others.
    """
    count = len(ids) if keys is None else keys
    query, key = torch.arange(len(ids))[:, None], torch.arange(count)
    masks = {"first": (key == 0).expand(len(ids), -1)}
    if not causal:
        masks["last"] = (key == count - 1).expand(len(ids), -1)
    if keys is not None:
        return masks
    masks |= {"previous": key == query - 1, "own": key == query}
    if not causal:
        return masks | {"next": key == query + 1}
    same = (ids[:, None] == ids).tril(-1)
    return masks | {"same": same, "after_same": torch.nn.functional.pad(same, (1, 0))[:, :count]}


def mass(pattern: Tensor, mask: Tensor) -> Tensor:
    """Mean over the queries that have such keys of the attention on them: [head query key], [query key] -> [head]."""
    defined = mask.any(-1)
    if not defined.any():
        return torch.full(pattern.shape[:1], torch.nan)
    return (pattern * mask).sum(-1)[:, defined].mean(-1)


def expected_mass(mask: Tensor, sees: Tensor) -> float:
    """What `mass` is when each query's keys are in random order; NaN where it is not defined.

    Args:
        mask, sees: [query key], the keys that count, and those that a query sees.
    """
    defined = mask.any(-1)
    if not defined.any():
        return float("nan")
    shares = (mask & sees).sum(-1)[defined] / sees.sum(-1)[defined]
    return float(shares.mean())


def chernoff(mean: np.ndarray, expected: float, count: int) -> np.ndarray:
    """The most that the chance of so high a mean of independent numbers between 0 and 1 can be, of this expectation.

    Hoeffding, "Probability Inequalities for Sums of Bounded Random Variables", 1963, theorem 1: the numbers need not be
    alike. One where the mean is not above its expectation.
    """
    value, expected = np.clip(mean, expected, 1.0), min(max(expected, 1e-12), 1 - 1e-12)
    divergence = special.rel_entr(value, expected) + special.rel_entr(1 - value, 1 - expected)
    bound: np.ndarray = np.exp(-count * divergence)
    return bound


def rollout(pattern: Tensor) -> Tensor:
    """Attention rollout [layer query key] of a pattern [layer head query key]."""
    identity = torch.eye(pattern.shape[-1])
    mixed, layers = identity, []
    for layer in pattern:
        mixed = (0.5 * layer.mean(0) + 0.5 * identity) @ mixed
        layers.append(mixed)
    return torch.stack(layers)


def overlap(pattern: Tensor, first: int = 1, *, causal: bool = True, chunk: int = 128) -> np.ndarray:
    """Sum over queries, from the `first` on, of the Bhattacharyya coefficients of all pairs of heads: [head head].

    The squared Hellinger distance is one minus this coefficient.
    """
    total = np.zeros(())
    for start in range(first, pattern.shape[2], chunk):
        stop = min(start + chunk, pattern.shape[2])
        roots = (
            pattern[:, :, start:stop, : stop if causal else None].sqrt().flatten(0, 1).flatten(1)
        )  # [head query*key]
        total = total + (roots @ roots.T).double().numpy()
    return total


def cluster_heads(distance: np.ndarray, clusters: int) -> np.ndarray:
    """[head] number of each head's cluster from a distance [head head], from 1, the largest cluster first."""
    if len(distance) == 1:
        return np.ones(1, dtype=int)
    tree = hierarchy.linkage(squareform(distance, checks=False), method="average")
    raw = hierarchy.fcluster(tree, clusters, criterion="maxclust")
    names, sizes = np.unique(raw, return_counts=True)
    place = {name: number for number, name in enumerate(names[np.argsort(-sizes, kind="stable")], start=1)}
    return np.array([place[name] for name in raw])
