"""Activations of many texts, written to disk in shards: `extract_activations`. `interp.store.reading` reads them.

What a shard holds is a function of model, texts and options alone: not of what was written before, nor of the process
that writes it. So a run that was killed goes on to the same bytes, and any number of processes can share the work.

A folder holds `header.json`, `texts.parquet`, and a folder for each shard, which is there whole or not at all:
`shard-00000/HOOK_POINT.safetensors` (one tensor `activations` [row d]), `manifest.parquet` and `checksums.json`.
"""

import errno
import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interp import scale
from interp.errors import InputError, InterpError, NotFoundError, check_seed
from interp.files import atomic_path, atomic_write
from interp.hooks import HookPoint, NameSpec
from interp.loading.digests import parameters_sha256, weights_sha256
from interp.models.gpt import HookedGPT
from interp.progress import tell
from interp.store.reading import (
    CHECKSUMS,
    FORMAT,
    HEADER,
    MANIFEST,
    TENSOR,
    TEXTS,
    ActivationStore,
    DamagedError,
    identity,
    shard_name,
)
from interp.store.sequences import Sequences, batches, divide, rows_of
from interp.store.tables import manifest_bytes, texts_bytes
from interp.store.texts import Corpus, Texts, build_corpus
from interp.version import __version__

Dtype: TypeAlias = Literal["float16", "bfloat16", "float32"]
SHARD_BYTES = 256_000_000
"""About as much a shard holds over all hook points, where nothing else is asked for."""
_PATTERNS = {"hook_pattern": 0.0, "hook_attn_scores": -math.inf}
"""Hook points with a row a query and a value a key, and what stands at keys that the sequence does not have."""


@dataclass(frozen=True)
class Extraction:
    """What is to be extracted, divided into shards. Made by `plan`; `write` makes one shard."""

    model: HookedGPT
    corpus: Corpus
    sequences: Sequences
    names: tuple[str, ...]
    dtype: torch.dtype
    batch_tokens: int
    shards: tuple[tuple[int, int], ...]
    """First sequence and first sequence not of each."""
    out: Path
    header: dict[str, Any]

    @property
    def shard_rows(self) -> list[int]:
        """Stored positions of each shard."""
        rows: list[int] = self.header["shard_rows"]
        return rows

    @property
    def row_bytes(self) -> int:
        """Bytes of one position over all hook points."""
        return int(self.dtype.itemsize * sum(map(math.prod, self.header["hook_points"].values())))

    def run(self, shard: int) -> int:
        """Compute a shard and write it. Returns its number."""
        return self.write(shard, self.compute(shard))

    @torch.no_grad()
    def compute(self, shard: int, before: int = 0, total: int = 0) -> dict[str, Tensor]:
        """Hook point -> [row d] on the model's device, in the files' dtype.

        With `total` it tells (`interp.progress`) how many rows of so many are done, `before` of them earlier.
        """
        first, end = self.shards[shard]
        rows = self.shard_rows[shard]
        out = {
            name: torch.full((rows, math.prod(shape)), _fill(name), dtype=self.dtype, device=self.model.device)
            for name, shape in self.header["hook_points"].items()
        }
        offsets = np.concatenate([[0], np.cumsum(self.sequences.stored[first:end])])
        for chosen in batches(self.sequences.lengths[first:end], self.batch_tokens):
            before += self._batch([first + c for c in chosen], offsets[chosen], out)
            if total:
                tell(before, total)
        return out

    def _batch(self, chosen: list[int], starts: np.ndarray, out: dict[str, Tensor]) -> int:
        """One forward pass, padded on the right: no token sees what comes after it, so no mask is needed.

        Returns how many rows it stored.
        """
        bounds, device = self.sequences.bounds, self.model.device
        sources = [self.sequences.source[bounds[s] : bounds[s + 1]] for s in chosen]
        padded = pad_sequence([torch.from_numpy(source) for source in sources], True, padding_value=-1).numpy()
        ids = np.where(padded < 0, _bos(self.model) or 0, self.corpus.tokens[padded])
        kept = padded >= 0
        there = np.concatenate([start + np.arange(n) for start, n in zip(starts, kept.sum(1), strict=True)])
        here, to = (torch.from_numpy(index).to(device) for index in (np.flatnonzero(kept), there))

        def keep(x: Tensor, hook: HookPoint) -> None:
            if hook.name.endswith(tuple(_PATTERNS)):
                x = x.transpose(1, 2)  # [batch query head key]
                n_keys = self.header["hook_points"][hook.name][-1]
                x = torch.nn.functional.pad(x, (0, n_keys - x.shape[-1]), value=_fill(hook.name))
            out[hook.name].index_copy_(0, to, x.flatten(2).flatten(0, 1).index_select(0, here).to(self.dtype))

        with self.model.hooks([(self.names, keep)], reads_only=True):
            run_to(self.model, torch.from_numpy(ids).to(device), self.names)
        return len(there)

    def write(self, shard: int, tensors: Mapping[str, Tensor]) -> int:
        """Write the files of a shard. Raises InterpError, naming the file, when the disk is full."""
        folder = self.out / shard_name(shard)
        with atomic_path(folder, folder=True) as temporary:

            def one(name: str) -> tuple[str, str]:
                file = f"{name}.safetensors"
                x = tensors[name]
                if not name.endswith("hook_attn_scores") and not x.isfinite().all():
                    raise InputError(
                        f"{name}: an activation is not finite in {self.header['dtype']}",
                        "expected numbers that this dtype can hold",
                        "store in bfloat16, or in float32 to see where they come from",
                    )
                return file, _write(temporary / file, folder / file, save({TENSOR: x.cpu()}))

            with ThreadPoolExecutor(min(len(self.names), os.cpu_count() or 1)) as pool:
                sums = dict(pool.map(one, self.names))
            manifest = manifest_bytes(self.manifest(shard), self.corpus.labels)
            sums[MANIFEST] = _write(temporary / MANIFEST, folder / MANIFEST, manifest)
            told = {"extraction": identity(self.header), "shard": shard, **sums}
            _write(temporary / CHECKSUMS, folder / CHECKSUMS, json.dumps(told, indent=1).encode())
        return shard

    def manifest(self, shard: int) -> dict[str, np.ndarray]:
        """The columns of a shard's manifest: which position of which text each row is."""
        first, end = self.shards[shard]
        bounds = self.sequences.bounds[first : end + 1]
        source = self.sequences.source[bounds[0] : bounds[-1]]
        kept = source >= 0
        positions = source[kept]
        lengths = np.diff(bounds)
        text = np.searchsorted(self.corpus.starts, positions, side="right") - 1
        return {
            "text": text,
            "position": positions - self.corpus.starts[text],
            "token": self.corpus.tokens[positions],
            **{name: column.codes[positions] for name, column in self.corpus.labels.items()},
            "split": self.corpus.split[text],
            "sequence": np.repeat(np.arange(first, end), lengths)[kept],
            "place": (np.arange(len(source)) - np.repeat(bounds[:-1] - bounds[0], lengths))[kept],
            "shard": np.full(len(positions), shard),
            "row": np.arange(len(positions)),
        }


def extract_activations(
    model: HookedGPT,
    texts: Texts,
    names: NameSpec,
    out: str | Path,
    *,
    labels: Mapping[str, Sequence[Any]] | None = None,
    dtype: Dtype = "float16",
    packed: bool = False,
    prepend_bos: bool = True,
    split: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    shard_tokens: int | None = None,
    batch_tokens: int = 4096,
    resume: bool = False,
    shard_index: int = 0,
    num_shards: int = 1,
) -> ActivationStore:
    """Write the activations of many texts to a folder; inside `with scale.cluster(...)` the workers share the shards.

    Args:
        texts: strings, `interp.store.texts.Text`s with labels, lists of token ids, or ids [batch pos].
        names: hook points, as in `model.match`. Heads are stored flat: [head d_head] as one row.
        out: the folder; a new one, unless `resume`.
        labels: name -> one entry a text: a value, or a list with one value a token.
        dtype: of the files. Values that it cannot hold are an error.
        packed: texts of the same split are joined, with beginning-of-text tokens between them, and cut into rows as
            long as the context. By default each text has rows of its own: one, or as many as the context asks for.
        prepend_bos: put the beginning-of-text token in front of every row. Its own activations are not stored.
        split: shares of train, validation and test. A text is in one of them as a whole.
        seed: of the split.
        shard_tokens: stored positions of a shard, by default as many as make 256 MB over all hook points.
        batch_tokens: positions of a forward pass, padding included. Another number may round otherwise.
        resume: go on with what is there, which must be of the same extraction. What is missing is made, header and
            table of texts too, and those two also when they are damaged.
        shard_index, num_shards: do only every `num_shards`-th shard, from number `shard_index` on, so that several
            processes or machines can share the work.

    Returns:
        The store, open for reading (`partial` where other processes may still be writing).

    Raises InputError for options or labels that do not fit, a folder that holds something else, values that the dtype
    cannot hold; InterpError, naming the file, for a disk that is full. What was finished before is kept.
    """
    job = plan(
        model, texts, names, out, labels=labels, dtype=dtype, packed=packed, prepend_bos=prepend_bos, split=split,
        seed=seed, shard_tokens=shard_tokens, batch_tokens=batch_tokens,
    )  # fmt: skip
    run(job, resume=resume, shard_index=shard_index, num_shards=num_shards)
    return ActivationStore(out, partial=num_shards > 1)


def run(job: Extraction, *, resume: bool = False, shard_index: int = 0, num_shards: int = 1) -> int:
    """Write those shards of this process that are not there yet, and say how many that were; what is there is checked.

    Arguments and errors as in `extract_activations`.
    """
    mine = own_shards(job, shard_index, num_shards)
    stale = _head_to_write(job, resume=resume, shared=num_shards > 1)
    todo = [shard for shard in mine if not (job.out / shard_name(shard)).exists()]
    there = ActivationStore(job.out, partial=True, header=job.header)
    for shard in sorted({*mine} - {*todo}):
        there.check_shard(shard)
    needed, free = job.row_bytes * sum(job.shard_rows[shard] for shard in todo), free_bytes(job.out)
    if needed > free:
        raise InterpError(
            f"{job.out} would take {needed / 1e9:.3g} GB more, but {free / 1e9:.3g} GB are free on its disk",
            "nothing was written, and what was finished before is kept",
            "make room, extract fewer hook points, or choose another folder",
        )
    if stale:
        _write_head(job)
    for _ in scale.map_items(job.run, todo) if scale.in_cluster() else overlapped(job, todo):
        pass
    return len(todo)


def plan(
    model: HookedGPT,
    texts: Texts,
    names: NameSpec,
    out: str | Path,
    *,
    labels: Mapping[str, Sequence[Any]] | None = None,
    dtype: Dtype = "float16",
    packed: bool = False,
    prepend_bos: bool = True,
    split: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    shard_tokens: int | None = None,
    batch_tokens: int = 4096,
) -> Extraction:
    """The extraction that these arguments (those of `extract_activations`) mean; nothing is run or written."""
    check_seed(seed)
    if dtype not in ("float16", "bfloat16", "float32"):
        raise InputError(f"dtype {dtype!r}", "expected float16, bfloat16 or float32")
    for name, value in (("shard_tokens", shard_tokens), ("batch_tokens", batch_tokens)):
        if value is not None and value < 1:
            raise InputError(f"{name} = {value}", "expected at least 1")
    model.refuse_changes("extraction")
    chosen = tuple(model.match(names))
    corpus = build_corpus(model, texts, labels=labels, split=split, seed=seed)
    bos = prepend_bos and _bos(model) is not None
    sequences = rows_of(corpus, model.config.n_ctx, bos=bos, packed=packed)
    longest = int(sequences.lengths.max())
    shapes = {name: _shape(model, name, longest) for name in chosen}
    row_bytes = getattr(torch, dtype).itemsize * sum(math.prod(shape) for shape in shapes.values())
    size = shard_tokens or max(1, SHARD_BYTES // row_bytes)
    stored = sequences.stored
    shards = tuple(divide(stored, size))
    header = {
        "format": FORMAT,
        "model": model.source,
        "weights_sha256": weights_sha256(model),
        "parameters_sha256": parameters_sha256(model),
        "hook_points": {name: list(shape) for name, shape in shapes.items()},
        "dtype": dtype,
        "processing": {
            "computed_in": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "packed": packed,
            "prepend_bos": bos,
            "context": model.config.n_ctx,
            "batch_tokens": batch_tokens,
            "shard_tokens": size,
            "split": [float(share) for share in split],
            "seed": seed,
        },
        "labels": {name: column.kind for name, column in corpus.labels.items()},
        "n_texts": len(corpus.ids),
        "n_rows": int(stored.sum()),
        "shard_rows": [int(stored[first:end].sum()) for first, end in shards],
        "texts_sha256": corpus.sha256(),
        "made_with": {"interp": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    return Extraction(
        model=model, corpus=corpus, sequences=sequences, names=chosen, dtype=getattr(torch, dtype),
        batch_tokens=batch_tokens, shards=shards, out=Path(out).expanduser(), header=header,
    )  # fmt: skip


def own_shards(job: Extraction, shard_index: int, num_shards: int) -> list[int]:
    """The shards that this process writes. Raises InputError for an index that is not below the number."""
    if not 0 <= shard_index < num_shards:
        expected = f"expected 0 to {max(0, num_shards - 1)}, and at least 1 in all"
        raise InputError(f"shard index {shard_index} of {num_shards}", expected)
    return list(range(shard_index, len(job.shards), num_shards))


def begin(job: Extraction, *, resume: bool, shared: bool) -> None:
    """Write header and texts, or check that what is there is of this extraction. Raises InputError where it is not."""
    if _head_to_write(job, resume=resume, shared=shared):
        _write_head(job)


def _head_to_write(job: Extraction, *, resume: bool, shared: bool) -> bool:
    """Whether header and texts are still to be written, or to be made again: shards say themselves what they belong to.

    Raises InputError for a folder that holds something else, or, without `resume`, activations; LoadError for shards
    of another extraction.
    """
    there = _visible(job.out)
    known = {HEADER, TEXTS, *map(shard_name, range(len(job.shards)))}
    if HEADER not in there and not there <= known:
        raise InputError(f"{job.out} is there and holds no activations", "expected a new folder", "choose another")
    if there and not resume and not shared:
        raise InputError(
            f"{job.out} holds activations",
            "nothing was overwritten",
            "--resume goes on with them, or choose another folder",
        )
    try:
        found = ActivationStore(job.out, partial=True)
    except (DamagedError, NotFoundError):
        store = ActivationStore(job.out, partial=True, header=job.header)
        for shard in range(len(job.shards)):
            if shard_name(shard) in there:
                store.check_shard(shard)
        return True
    _check_same(job, found.header)
    try:
        found.check_texts()
    except (DamagedError, NotFoundError):
        return True
    return False


def _visible(folder: Path) -> set[str]:
    """The names in a folder but for hidden ones, which are what a killed writer leaves."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is there and holds no activations", "expected a new folder", "choose another")
    return {file.name for file in folder.iterdir() if not file.name.startswith(".")} if folder.is_dir() else set()


def _check_same(job: Extraction, found: Mapping[str, Any]) -> None:
    for key in job.header:
        if key != "model" and found.get(key) != job.header[key]:  # a model may lie elsewhere on another machine
            raise InputError(
                f"{job.out} is of another extraction: {_difference(key, found.get(key), job.header[key])}",
                "expected the same model, texts and options",
                "choose another folder",
            )


def _write_head(job: Extraction) -> None:
    table = texts_bytes(job.corpus)
    atomic_write(job.out / TEXTS, table)
    atomic_write(job.out / HEADER, sealed(job.header | {"texts_parquet_sha256": hashlib.sha256(table).hexdigest()}))


def sealed(header: dict[str, Any]) -> str:
    """The text of a header, with its own checksum as the last entry."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    return json.dumps(header | {"header_sha256": digest}, indent=1) + "\n"


def _difference(key: str, found: object, expected: object) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        name = next(name for name in [*found, *expected] if found.get(name) != expected.get(name))
        key, found, expected = f"{key}.{name}", found.get(name), expected.get(name)
    return f"{key} is {str(found)[:80]} there, {str(expected)[:80]} here"


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(next(above for above in (folder, *folder.absolute().parents) if above.is_dir())).free


def overlapped(job: Extraction, todo: Sequence[int]) -> Iterator[int]:
    """Each shard is written while the next one is computed."""
    with ThreadPoolExecutor(1) as pool:
        writing: list[Future[int]] = []
        before, total = 0, sum(job.shard_rows[shard] for shard in todo)
        for shard in todo:
            tensors = job.compute(shard, before, total)
            before += job.shard_rows[shard]
            yield from (one.result() for one in writing)
            writing = [pool.submit(job.write, shard, tensors)]
        yield from (one.result() for one in writing)


def _write(temporary: Path, final: Path, data: bytes) -> str:
    """Write a file and return its SHA-256. An error names the file that it was to become."""
    try:
        temporary.write_bytes(data)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise InterpError(
            f"{final} cannot be written: {error.strerror or error}",
            "the shards that were finished before are kept",
            f"{'make room' if full else 'mend that'}, then go on with --resume",
        ) from error
    return hashlib.sha256(data).hexdigest()


# The model.


def run_to(model: HookedGPT, ids: Tensor, names: Sequence[str]) -> None:
    """The forward pass as far as the last of these hook points; the logits are not computed."""
    final = any(name.startswith("ln_final.") for name in names)
    layers = [int(name.split(".")[1]) for name in names if name.startswith("blocks.")]
    residual = model.run_to(ids, None if final else max(layers, default=-1))
    if final:
        model.ln_final(residual)


def _shape(model: HookedGPT, name: str, longest: int) -> tuple[int, ...]:
    """What a hook point holds for one position."""
    shape = model.hook_shape(name, 1, longest)
    return (shape[1], shape[3]) if name.endswith(tuple(_PATTERNS)) else shape[2:]


def _fill(name: str) -> float:
    return _PATTERNS.get(name.rsplit(".", 1)[-1], 0.0)


def _bos(model: HookedGPT) -> int | None:
    return None if model.tokenizer is None else model.tokenizer.bos
