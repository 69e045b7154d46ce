"""What probes are fitted on: activations by rows with a manifest, and labels as class numbers.

A store on disk (`interp.ActivationStore`) and activations held in memory are read in the same way.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from analyses.probes.moments import Array
from analyses.shared.token_features import TASKS, find_task, label_rows
from interp.errors import InputError, nearest
from interp.interventions import Intervention
from interp.models.gpt import HookedGPT

SPLITS = ("train", "validation", "test")
BATCH = 8192


class Activations(Protocol):
    """Rows of activations at several hook points: what of a store the probes use."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def manifest(self) -> pd.DataFrame:
        """One row a position: text, position, token, split, sequence, place, and label columns."""
        ...

    def width(self, name: str) -> int: ...

    def match(self, names: Any) -> list[str]: ...

    def batches(self, names: Any, *, rows: Any = None, batch: int = BATCH) -> Iterable[tuple[Any, Array]]:
        """({name: [row d]}, row numbers), in ascending order."""
        ...


@dataclass(frozen=True, eq=False)
class Held:
    """Activations in memory."""

    values: Mapping[str, Array]  # name -> [row d]
    manifest: pd.DataFrame

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.values)

    def width(self, name: str) -> int:
        return int(self.values[name].shape[1])

    def match(self, names: Any) -> list[str]:
        """Full names of those kept that are named in full, or by their ending."""
        wanted = [names] if isinstance(names, str) else list(names)
        return [name for name in self.values if any(name == one or name.endswith(f"hook_{one}") for one in wanted)]

    def batches(self, names: Any, *, rows: Any = None, batch: int = BATCH) -> Iterator[tuple[Any, Array]]:
        chosen = np.arange(len(self.manifest)) if rows is None else np.asarray(rows)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else np.sort(chosen)
        for start in range(0, len(chosen), batch):
            part = chosen[start : start + batch]
            if isinstance(names, str):
                yield self.values[names][part], part
            else:
                yield {name: self.values[name][part] for name in names}, part


Changes: TypeAlias = Callable[[int], Sequence[Intervention]]
"""A number of positions -> what is changed in a run of so many."""


def unchanged(length: int) -> Sequence[Intervention]:
    return ()


@torch.no_grad()
def run_model(
    model: HookedGPT,
    windows: Sequence[Int[Tensor, " pos"]],
    texts: Sequence[int],
    names: Sequence[str],
    *,
    bos: bool = True,
    batch: int = 16,
    changes: Changes = unchanged,
) -> Held:
    """Activations of a model at every position of every window, kept in memory.

    Args:
        windows: token ids, each no longer than the context.
        texts: [window] the text that each is a part of.
        bos: whether the first token of each is the beginning-of-text token, whose row is left out.
        changes: what is changed in runs of this many positions, before anything is kept.
    """
    skip = int(bos)
    kept: dict[str, list[Array]] = {name: [] for name in names}
    for start in range(0, len(windows), batch):
        part = windows[start : start + batch]
        ids = torch.zeros(len(part), max(len(window) for window in part), dtype=torch.long)
        for row, window in enumerate(part):
            ids[row, : len(window)] = window  # padding on the right is seen by no real token of a causal model
        real = torch.arange(ids.shape[1]) < torch.tensor([len(window) for window in part])[:, None]
        mask = None if model.config.causal else real.to(model.device)
        found: dict[str, Tensor] = {}
        keep = [(list(names), lambda x, hook, found=found: found.update({hook.name: x.flatten(2).float().cpu()}))]
        with model.hooks(changes(ids.shape[1])), model.hooks(keep, reads_only=True):
            residual = model.run_to(ids.to(model.device), attention_mask=mask)
            if any(name.startswith("ln_final") for name in names):
                model.ln_final(residual)
        for name in names:
            kept[name] += [found[name][row, skip : len(window)].numpy() for row, window in enumerate(part)]
    values = {name: np.concatenate(kept.pop(name)) for name in list(names)}
    lengths = [len(window) - skip for window in windows]
    place = np.concatenate([np.arange(skip, skip + length) for length in lengths])
    text = np.repeat(np.asarray(texts), lengths)
    first = np.r_[True, text[1:] != text[:-1]]
    begin = np.maximum.accumulate(np.where(first, np.arange(len(text)), 0))
    manifest = pd.DataFrame(
        {
            "text": text,
            "position": np.arange(len(text)) - begin,
            "token": np.concatenate([window[skip:].cpu().numpy() for window in windows]),
            "split": "train",
            "sequence": np.repeat(np.arange(len(windows)), lengths),
            "place": place,
        }
    )
    return Held(values, manifest)


def windows_of(manifest: pd.DataFrame, bos: int | None) -> tuple[list[Tensor], list[int]]:
    """The sequences that a model ran on, rebuilt from a manifest of whole sequences: token ids, and each one's text."""
    windows, texts = [], []
    for _, part in manifest.groupby("sequence", sort=False):
        place = part["place"].to_numpy()
        ids = torch.full((int(place.max()) + 1,), 0 if bos is None else bos, dtype=torch.long)
        ids[torch.from_numpy(place.astype(np.int64))] = torch.from_numpy(part["token"].to_numpy().astype(np.int64))
        windows.append(ids)
        texts.append(int(part["text"].iloc[0]))
    return windows, texts


def run_like(
    model: HookedGPT, manifest: pd.DataFrame, names: Sequence[str], *, changes: Changes = unchanged
) -> tuple[Held, Array]:
    """Activations of a model at the positions of a manifest of whole sequences.

    Returns them, their manifest sorted by sequence and place, and the row numbers (its index) in that order.
    """
    manifest = manifest.sort_values(["sequence", "place"], kind="stable")
    bos = None if model.tokenizer is None else model.tokenizer.bos
    windows, texts = windows_of(manifest, bos)
    held = run_model(model, windows, texts, names, bos=bool(manifest["place"].min() > 0), changes=changes)
    sequence, place = manifest["sequence"].to_numpy(), manifest["place"].to_numpy()
    _, number = np.unique(sequence, return_inverse=True)
    longest = model.config.n_ctx
    ran = held.manifest["sequence"].to_numpy() * longest + held.manifest["place"].to_numpy()
    there = np.isin(ran, number * longest + place)  # tokens between packed texts have no row
    values = held.values if there.all() else {name: x[there] for name, x in held.values.items()}
    return Held(values, manifest), manifest.index.to_numpy()


@dataclass(frozen=True, eq=False)
class Table:
    """Activations that depend on the token alone, such as the embedding: a table to look up, nothing stored."""

    table: Array  # [d_vocab d]
    manifest: pd.DataFrame
    name: str = "hook_embed"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def width(self, name: str) -> int:
        return int(self.table.shape[1])

    def match(self, names: Any) -> list[str]:
        return [self.name]

    def batches(self, names: Any, *, rows: Any = None, batch: int = BATCH) -> Iterator[tuple[Any, Array]]:
        """As of a store; always {name: [row d]}."""
        token = self.manifest["token"].to_numpy()
        for part, chosen in Held({self.name: token[:, None]}, self.manifest).batches([self.name], rows=rows):
            yield {self.name: self.table[part[self.name][:, 0]]}, chosen


@dataclass(frozen=True, eq=False)
class Labels:
    """Class numbers of all rows, -1 where a row has no label."""

    name: str
    codes: Array  # [row] int32
    classes: tuple[str, ...]  # [class] as shown


def labels_of(data: Activations, labels: Any, words: Sequence[str] | None = None) -> Labels:
    """Labels from one value a row, the name of a label column, or the name of a built-in task.

    Args:
        labels: [row] values, None or NaN (or -1 in whole numbers) where there is none; or a name.
        words: the text of every token id, which most built-in tasks need.

    Raises InputError for an unknown name, another length, fractions, or fewer than two classes.
    """
    manifest = data.manifest
    if isinstance(labels, str):
        own = [c for c in manifest.columns if c not in ("text", "position", "token", "split", "sequence", "place")]
        own = [column for column in own if column not in ("shard", "row")]
        if labels in own or labels.replace("-", "_") in own:
            name = labels if labels in own else labels.replace("-", "_")
            return _encode(labels, manifest[name])
        if labels not in TASKS:
            close = nearest(labels, [*own, *TASKS]) or [*own, *TASKS]
            raise InputError(f"no label is called {labels!r}", f"expected one of: {', '.join(close)}")
        task = find_task(labels)
        if task.needs_words and words is None:
            raise InputError(f"the label {labels} needs the text of tokens", "expected a model with a tokenizer")
        token, place = (manifest[column].to_numpy().astype(np.int64) for column in ("token", "place"))
        window = manifest["sequence"].to_numpy().astype(np.int64) * (int(manifest["text"].max()) + 1)
        codes = label_rows(task, window + manifest["text"].to_numpy(), token, place, words)
        present = np.unique(codes[codes >= 0])
        if len(present) < 2:
            raise InputError(f"the label {labels} has a single class here", "expected at least two")
        codes = np.where(codes >= 0, np.searchsorted(present, codes), -1).astype(np.int32)
        return Labels(labels, codes, tuple(task.classes[code] for code in present))
    if len(labels) != len(manifest):
        raise InputError(f"{len(labels)} labels", f"expected one for each of {len(manifest)} rows")
    return _encode("label", pd.Series(labels))


def _encode(name: str, values: pd.Series) -> Labels:
    if pd.api.types.is_float_dtype(values.dtype):
        known = values.dropna()
        if not (known == known.round()).all():
            raise InputError(f"the label {name} holds fractions", "expected classes", "RidgeProbe does regression")
        values = values.astype("Int64")
    whole = pd.api.types.is_integer_dtype(values.dtype)
    codes, found = pd.factorize(values.where(values >= 0) if whole else values, sort=True)
    if len(found) < 2:
        raise InputError(f"the label {name} has {len(found)} classes", "expected at least two")
    return Labels(name, codes.astype(np.int32), tuple(str(int(one) if whole else one) for one in found))


def words_of(model: HookedGPT | None) -> list[str] | None:
    """The text of every token id; None without a tokenizer."""
    if model is None or model.tokenizer is None:
        return None
    return [model.tokenizer.token_bytes(token).decode("utf-8", "replace") for token in range(model.config.d_vocab)]


def split_texts(texts: Array, seed: int, shares: tuple[float, float, float] = (0.7, 0.1, 0.2)) -> Array:
    """[row] the split of each row, drawn for whole texts, so that sizes in rows come near the shares.

    Raises InputError for fewer than three texts.
    """
    names, sizes = np.unique(texts, return_counts=True)
    if len(names) < 3:
        raise InputError(f"{len(names)} texts to split", "expected at least 3: to learn from, to choose by, to test on")
    filled = np.zeros(3)
    part = np.empty(len(names), dtype=object)
    for number, one in enumerate(np.random.default_rng(seed).permutation(len(names))):
        lacking = np.array(shares) - filled / sizes.sum()
        place = number if number < 3 else int(lacking.argmax())
        part[one] = SPLITS[place]
        filled[place] += sizes[one]
    return np.asarray(part[np.searchsorted(names, texts)])
