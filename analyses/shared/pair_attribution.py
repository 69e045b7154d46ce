"""Direct logit attribution of a translation model's decoder: which heads and MLPs write the logit of a token.

The logits are a sum over what was written into the decoder's stream, once every layer norm's scale is held at its value
in the run (`interp.translation_residual`). A cross-attention head's part is further split by the source token it reads.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.shared.grids import GridsResult, NumberGrid, head_grid, list_grid
from analyses.shared.metrics import TokenChoice, token_ids
from analyses.shared.panels import Note, TokenStrip
from analyses.shared.translations import Translation, pair_labels, pair_names, translations
from interp.errors import InputError
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.translation_residual import decompose_decoder, needed

HEADS = {"dec": "self-attention heads", "cross": "cross-attention heads"}


def translation_attribution(
    model: HookedEncoderDecoder,
    tokens: Any,
    *,
    answer: TokenChoice | None = None,
    wrong: TokenChoice | None = None,
    pos: int = -1,
    seed: int = 0,
) -> GridsResult:
    """The logit of a token at one target position, split by part; options as in `direct_logit_attribution`.

    By default the answer is the token that is written there, and -1 means the last token before the end.
    """
    found = translations(model, tokens)
    places = [_place(one, pos) for one in found]
    written = [int(one.following[0, place]) for one, place in zip(found, places, strict=True)]
    answers = written if answer is None else token_ids(model, answer, len(found)).tolist()
    wrongs = None if wrong is None else token_ids(model, wrong, len(found)).tolist()
    values, strips, error = [], [], 0.0
    labels: list[str] = []
    for number, (one, place) in enumerate(zip(found, places, strict=True)):
        base = model.W_U.mean(1) if wrongs is None else model.W_U[:, wrongs[number]]
        column = (model.W_U[:, answers[number]] - base).double().cpu()
        shift = model.b_U.detach().mean() if wrongs is None else model.b_U.detach()[wrongs[number]]
        logits, cache = model.run_with_cache(one.source, one.target, names=_names)
        parts, labels = decompose_decoder(model, cache)
        split = (parts[:, 0, place].double().cpu() @ column).numpy()
        bias = float(model.b_U.detach()[answers[number]] - shift)
        there = logits[0, place].double()
        total = float(there[answers[number]] - (there.mean() if wrongs is None else there[wrongs[number]]))
        error = max(error, abs(total - split.sum() - bias))
        values.append(np.append(split, bias))
        if number == 0:
            strips.append(_by_source(model, cache, column, one, place))
    labels = [*labels, "logits' bias"]
    named = pair_labels(model, torch.tensor(answers))
    others = None if wrongs is None else pair_labels(model, torch.tensor(wrongs))
    what = f"logit of {named[0]!r}" if others is None else f"logit of {named[0]!r} over {others[0]!r}"
    over = "the vocabulary's mean" if others is None else "the wrong answer"
    note = Note(
        key="what",
        title="What is explained",
        text=f"The {what}, written at target position {places[0]}, counted from {over}. The parts sum to the model's "
        f"own number within {error:.1e} logits. Layer norms are held at the scale they had in the run.",
    )
    return GridsResult(
        what=f"contribution to the {what if len(found) == 1 else 'answers logits'}",
        unit="logits",
        texts=pair_names(model, found),
        grids=tuple(_grids(np.stack(values), labels, len(model.decoder))),
        notes=(note,),
        strips=tuple(strips),
        seed=seed,
    )


def _place(one: Translation, pos: int) -> int:
    length = one.target.shape[1]
    place = length + pos - (length > 1) if pos < 0 else pos  # the last position writes the end token
    if not 0 <= place < length:
        raise InputError(f"pos = {pos}", f"expected {1 - length} to {length - 1}, a position of the target")
    return place


def _names(name: str) -> bool:
    return needed(name) or (name.startswith("decoder.") and name.endswith((".hook_v", ".hook_pattern")))


def _grids(values: np.ndarray, labels: list[str], n_layers: int) -> list[NumberGrid]:
    """Values [text part] as a grid for each kind of head, and bars for the rest."""
    grids, used = [], set()
    for prefix, words in HEADS.items():
        index = [i for i, label in enumerate(labels) if label.startswith(f"{prefix} L")]
        used.update(index)
        heads = values[:, index].reshape(len(values), n_layers, -1)
        title = f"By {words[:-1]}"
        grids.append(head_grid(f"{prefix}-heads", title, "Direct contribution of each head.", heads, prefix))
    rest = [i for i in range(len(labels)) if i not in used]
    caption = "Direct contribution of every other part; norm bias is what the biases of all layer norms came to."
    grids.append(list_grid("others", "By other part", caption, values[:, rest], [labels[i] for i in rest]))
    return grids


def _by_source(model: HookedEncoderDecoder, cache: Any, column: Tensor, one: Translation, place: int) -> TokenStrip:
    """All cross-attention heads' parts, summed by the source token they read."""
    total = np.zeros(one.source.shape[1])
    for layer in range(len(model.decoder)):
        direction = _direction(model, cache, column, place, layer)
        attention = model.decoder[layer].cross_attn
        at = f"decoder.{layer}.cross_attn."
        values = torch.einsum(
            "phd,hd->hp",
            cache[at + "hook_v"][0].double().cpu(),
            attention.W_O.detach().double().cpu() @ direction,
        )
        total += (cache[at + "hook_pattern"][0, :, place].double().cpu() * values).sum(0).numpy()
    return TokenStrip(
        key="by-source",
        title="By source token",
        caption="What all cross-attention heads contribute directly, summed by the source token they read. First text.",
        tokens=pair_labels(model, one.source),
        values=total,
        unit="logits",
        diverging=True,
    )


def _direction(model: HookedEncoderDecoder, cache: Any, column: Tensor, place: int, layer: int) -> Tensor:
    """[d_model] what a vector written by cross-attention in `layer` is multiplied by to give the logit."""
    direction = column
    for n in reversed(range(layer, len(model.decoder))):
        block = model.decoder[n]
        for number, norm in ((3, block.ln3), (2, block.ln2), (1, block.ln1)):
            if n == layer and number == 1:
                break
            gained = direction * norm.gain.detach().double().cpu()
            scale = cache[f"decoder.{n}.ln{number}.hook_scale"][0, place].double().cpu()
            direction = (gained - gained.mean()) / scale
    return direction
