"""What becomes of a translation when parts of the model are replaced: ablation and activation patching.

Every variant is one run under hooks. Those that leave the encoder alone start from its clean output.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.shared.grids import GridsResult, NumberGrid, head_grid, list_grid, position_grid
from analyses.shared.metrics import TITLES, UNITS, Readout, check_metrics
from analyses.shared.panels import Note
from analyses.shared.translations import Translation, pair_labels, pair_names, translations, written_loss
from interp.cache import ActivationCache
from interp.errors import InputError, nearest
from interp.interventions import Replace
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.kernels import wide as widened

ATTENTION = {"enc": ("encoder", "attn"), "dec": ("decoder", "attn"), "cross": ("decoder", "cross_attn")}
"""Prefix of a part's name -> its stack, and which attention of the block."""
STACK_WORDS = {"enc": "encoder", "dec": "decoder self-attention", "cross": "cross-attention"}
STREAMS = ("resid_pre", "attn_out", "cross_attn_out", "mlp_out")
HEAD_SITES = ("z", "q", "k", "v", "pattern")
GROUPS = ("heads", "mlps", "attention")


def _hook(prefix: str, layer: int, end: str) -> str:
    """The hook point of an attention: `cross`, 2, `hook_z` is decoder.2.cross_attn.hook_z."""
    stack, attention = ATTENTION[prefix]
    return f"{stack}.{layer}.{attention}.{end}"


def _layers(model: HookedEncoderDecoder, prefix: str) -> int:
    return model.stack_sizes[ATTENTION[prefix][0]]


def translation_ablation(
    model: HookedEncoderDecoder,
    tokens: Any,
    *,
    components: str = "heads",
    layers: Sequence[int] | None = None,
    kinds: Sequence[str] = ("zero",),
    metrics: Sequence[str] = ("loss",),
    positions: Sequence[int] | None = None,
    seed: int = 0,
) -> GridsResult:
    """The effect of setting each part to zero on the translation; options as in `ablation`.

    `loss` is the mean over all tokens that are written, the end token included, `kl` the mean over the same positions;
    the other metrics concern the last of these tokens before the end.
    """
    groups = tuple(dict.fromkeys(part.strip() for part in components.split(",")))
    for group in groups:
        if group not in GROUPS:
            close = nearest(group, list(GROUPS), 1)
            raise InputError(
                f"unknown component {group!r} of a translation model",
                f"expected {', '.join(GROUPS)}",
                f"did you mean {close[0]!r}?" if close else "",
            )
    if tuple(kinds) != ("zero",) or positions is not None:
        raise InputError("a translation model's parts are set to zero everywhere", "expected no --kinds or --positions")
    names = check_metrics(metrics)
    found = translations(model, tokens)
    effects: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in names}
    for one in found:
        for name, by_group in _ablate(model, one, groups, layers, names).items():
            effects[name].append(by_group)
    grids: list[NumberGrid] = []
    for name in names:
        for key in effects[name][0]:
            grid = _effect_grid(model, name, key, np.stack([one[key] for one in effects[name]]), layers)
            grids.append(replace(grid, unit=UNITS[name]))
    note = Note(
        key="choices",
        title="What was measured",
        text="Each part was set to zero at every position, one at a time. The loss is the mean over all tokens that "
        "are written, the end token included. Logit, logit difference, probability and rank concern the last of them "
        "before the end, against the likeliest other token.",
    )
    first = names[0]
    return GridsResult(
        what=f"change of the {TITLES[first]} when set to zero",
        main=len(effects[first][0]),
        unit=UNITS[first],
        texts=pair_names(model, found),
        grids=tuple(grids),
        notes=(note,),
        signed=first != "kl",
        seed=seed,
    )


def _effect_grid(
    model: HookedEncoderDecoder, metric: str, key: str, values: np.ndarray, layers: Sequence[int] | None
) -> NumberGrid:
    prefix, _, group = key.partition("-")
    title = f"Effect on the {TITLES[metric]}, {STACK_WORDS.get(prefix, prefix)} {group} set to zero"
    caption = f"With the part set to zero minus without, in {UNITS[metric]}."
    name = f"{metric}-{key}".replace("_", "-")
    chosen = _chosen(layers, values.shape[1] if layers is None else max(model.stack_sizes.values()))
    if group == "heads":
        return head_grid(name, title, caption, values, prefix, None if layers is None else chosen)
    word = {"mlps": "mlp", "attention": "attn"}[group]
    return list_grid(name, title, caption, values, [f"{prefix} {word} {layer}" for layer in chosen])


def _chosen(layers: Sequence[int] | None, size: int) -> list[int]:
    for layer in layers or ():
        if not -size <= layer < size:
            raise InputError(f"layer {layer}", f"expected 0 to {size - 1}")
    return list(range(size)) if layers is None else [layer % size for layer in layers]


def _ablate(
    model: HookedEncoderDecoder,
    one: Translation,
    groups: Sequence[str],
    layers: Sequence[int] | None,
    names: tuple[str, ...],
) -> dict[str, dict[str, np.ndarray]]:
    """metric -> group such as cross-heads -> effects [layer head] or [layer]."""
    run = _Runs(model, one)
    readout = _readout(one, run.clean, names)
    clean = readout(run.clean)
    out: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    for key, shape, edits in _variants(model, groups, layers):
        values = {name: np.zeros(shape) for name in names}
        for place, edit in edits:
            changed = readout(run(edit))
            for name in names:
                values[name][place] = changed[name] - clean[name]
        for name in names:
            out[name][key] = values[name]
    return out


Edits = Iterator[tuple[tuple[int, ...], Replace]]


def _variants(
    model: HookedEncoderDecoder, groups: Sequence[str], layers: Sequence[int] | None
) -> Iterator[tuple[str, tuple[int, ...], Edits]]:
    for group in groups:
        prefixes = ("enc", "dec") if group == "mlps" else tuple(ATTENTION)
        for prefix in prefixes:
            chosen = _chosen(layers, _layers(model, prefix))
            if group == "heads":
                heads = range(model.config.n_heads)
                edits: Edits = (
                    ((i, head), Replace(name=_hook(prefix, layer, "hook_z"), head=head))
                    for i, layer in enumerate(chosen)
                    for head in heads
                )
                yield f"{prefix}-heads", (len(chosen), len(heads)), edits
            else:
                end = "hook_mlp_out" if group == "mlps" else f"hook_{ATTENTION[prefix][1]}_out"
                stack = ATTENTION[prefix][0]
                edits = (((i,), Replace(name=f"{stack}.{layer}.{end}")) for i, layer in enumerate(chosen))
                yield f"{prefix}-{group}", (len(chosen),), edits


class _Runs:
    """Runs of one translation with something replaced."""

    def __init__(self, model: HookedEncoderDecoder, one: Translation) -> None:
        self.model, self.one = model, one
        with torch.no_grad():
            self.memory = model.encode(one.source)
            self.clean = model.decode(one.target, self.memory)

    @torch.no_grad()
    def __call__(self, edit: Replace) -> Tensor:
        """Logits [1 pos d_vocab] with the edit."""
        with self.model.hooks([edit]):
            inside = edit.name.startswith("decoder.")
            memory = self.memory if inside else self.model.encode(self.one.source)
            return self.model.decode(self.one.target, memory)


def _readout(one: Translation, clean: Tensor, names: tuple[str, ...]) -> Callable[[Tensor], dict[str, float]]:
    place = max(one.target.shape[1] - 2, 0)  # it writes the last token before the end
    answer = one.following[:, place]
    wrong = clean[:, place].scatter(-1, answer[:, None], -torch.inf).argmax(-1)
    wide = widened(clean).log_softmax(-1)
    rest = tuple(name for name in names if name != "loss")
    at_place = Readout(names=tuple(n for n in rest if n != "kl"), tokens=one.target, answer=answer, wrong=wrong)
    everywhere = Readout(names=tuple(n for n in rest if n == "kl"), tokens=one.target, clean=wide)

    def measure(logits: Tensor) -> dict[str, float]:
        found = {"loss": float(written_loss(logits, one).mean())} if "loss" in names else {}
        logits = logits.to(wide.dtype)
        found |= {name: float(x) for name, x in at_place(logits[:, place : place + 1]).items()}
        return found | {name: float(x) for name, x in everywhere(logits).items()}

    return measure


def translation_patching(
    model: HookedEncoderDecoder,
    clean: Any,
    corrupted: Any = None,
    *,
    site: str | Sequence[str] = "resid_pre",
    direction: str = "denoise",
    seed: int = 0,
) -> GridsResult:
    """Copy activations between the runs of two sources, the target staying the clean one's; see `activation_patching`.

    Args:
        clean, corrupted: texts of as many tokens; without a corrupted one, the source token is changed whose change
            makes the clean target least likely.
        site: streams (resid_pre, attn_out, cross_attn_out, mlp_out) by layer and position, or z, q, k, v, pattern by
            layer and head; several with commas.
        direction: denoise or noise.

    The metric is the log-probability of the whole clean target, in nats.
    """
    sites = tuple(part.strip() for part in site.split(",")) if isinstance(site, str) else tuple(site)
    for name in sites:
        if name not in (*STREAMS, *HEAD_SITES):
            raise InputError(f"unknown site {name!r}", f"expected {', '.join((*STREAMS, *HEAD_SITES))}")
    if direction not in ("denoise", "noise"):
        raise InputError(f"direction {direction!r} with a translation model", "expected denoise or noise")
    one = translations(model, clean)[0]
    other, how = _corrupted(model, one, corrupted, seed)
    base, donor = (other, one) if direction == "denoise" else (one, other)
    run = _Runs(model, base)
    with torch.no_grad():
        _, cache = model.run_with_cache(donor.source, donor.target)
        ends = {name: _score(model(x.source, x.target), x) for name, x in (("clean", one), ("corrupted", other))}
    start = _score(run.clean, base)
    grids = [grid for name in sites for grid in _patched(model, run, one, cache, name, start)]
    gap = ends["clean"] - ends["corrupted"]
    source = "clean" if direction == "denoise" else "corrupted"
    note = Note(
        key="choices",
        title="The two runs",
        text=f"{how} The log-probability of the whole target is {ends['clean']:.3g} nats after the clean source and "
        f"{ends['corrupted']:.3g} after the corrupted one. Copied from the {source} run into the other; copying "
        f"everything would change it by {gap if direction == 'denoise' else -gap:+.3g}.",
    )
    return GridsResult(
        what="change of the target's log-probability",
        unit="nats",
        texts=pair_names(model, [one]),
        grids=tuple(grids),
        notes=(note,),
        seed=seed,
    )


def _score(logits: Tensor, one: Translation) -> float:
    return -float(written_loss(logits, one).sum())


def _corrupted(model: HookedEncoderDecoder, one: Translation, given: Any, seed: int) -> tuple[Translation, str]:
    """The other source with the same target, and how it was chosen."""
    if given is not None:
        text = given if isinstance(given, str) else given[0]
        source = model.to_source(text.partition("|||")[0].strip()) if isinstance(text, str) else text[None]
        if source.shape != one.source.shape:
            raise InputError(
                f"the clean source has {one.source.shape[1]} tokens, the corrupted one {source.shape[1]}",
                f"expected as many: {' | '.join(pair_labels(model, one.source))}"[:150],
                f"received: {' | '.join(pair_labels(model, source))}"[:150],
            )
        return Translation(source, one.target, one.following), "Both sources were given."
    length = one.source.shape[1]
    draw = torch.Generator().manual_seed(seed)
    tried = []
    for place in range(max(length - 1, 1)):
        source = one.source.clone()
        ids = [token for token in one.source[0, : length - 1].tolist() if token != int(source[0, place])]
        pick = int(torch.randint(len(ids) or model.config.d_vocab, (1,), generator=draw))
        source[0, place] = ids[pick] if ids else pick
        tried.append(Translation(source, one.target, one.following))
    with torch.no_grad():
        scores = [_score(model(x.source, x.target), x) for x in tried]
    worst = int(np.argmin(scores))
    before, after = pair_labels(model, one.source)[worst], pair_labels(model, tried[worst].source)[worst]
    return tried[worst], (
        f"No corrupted source was given: token {worst}, {before!r}, became {after!r}, which of {len(tried)} changes "
        "tried made the clean target least likely."
    )


def _patched(
    model: HookedEncoderDecoder, run: _Runs, one: Translation, cache: ActivationCache, site: str, start: float
) -> list[NumberGrid]:
    """The grids of one site: the effect on the target of `one`, the clean pair, whose tokens are the labels."""
    grids = []
    if site in STREAMS:
        for prefix, ids in (("enc", one.source), ("dec", one.target)):
            stack = ATTENTION[prefix][0]
            layers = range(model.stack_sizes[stack])
            names = [name for layer in layers if (name := f"{stack}.{layer}.hook_{site}") in model.hook_points]
            if not names:
                continue
            values = np.zeros((len(names), ids.shape[1]))
            for row, pos in np.ndindex(values.shape):
                edit = Replace(name=names[row], value=cache[names[row]], pos=pos)
                values[row, pos] = _score(run(edit), one) - start
            title = f"The {stack}'s {site}, by layer and position"
            caption = "Change of the target's log-probability when this activation is copied."
            labels, rows = pair_labels(model, ids), [f"L{layer}" for layer in layers]
            grids.append(
                position_grid(f"{prefix}-{site}".replace("_", "-"), title, caption, values, rows, labels, stack)
            )
        return grids
    for prefix in ATTENTION:
        layers, heads = range(_layers(model, prefix)), range(model.config.n_heads)
        values = np.zeros((1, len(layers), len(heads)))
        for layer in layers:
            name = _hook(prefix, layer, f"hook_{site}")
            for head in heads:
                edited = run(Replace(name=name, value=cache[name], head=head))
                values[0, layer, head] = _score(edited, one) - start
        title = f"{site} of {STACK_WORDS[prefix]} heads"
        caption = "Change of the target's log-probability when this head's activation is copied, at every position."
        grids.append(head_grid(f"{prefix}-{site}", title, caption, values, prefix))
    return grids
