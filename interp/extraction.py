"""Activations of many texts, written to disk in shards: `extract_activations`. `interp.activations` reads them.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from interp import __version__, scale
from interp.activations import CHECKSUMS, FORMAT, HEADER, MANIFEST, TENSOR, TEXTS, ActivationStore, shard_name
from interp.errors import InputError, InterpError, check_seed
from interp.files import atomic_folder, atomic_path, remove_leftovers
from interp.hooks import HookPoint, NameSpec
from interp.loading import parameters_sha256, weights_sha256
from interp.model import HookedGPT
from interp.progress import tell
from interp.sequences import Sequences, batches, divide, one_text_a_row, packed_rows
from interp.tables import manifest_bytes, texts_bytes
from interp.texts import Corpus, Texts, build_corpus

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
        widths: list[int] = [math.prod(shape) for shape in self.header["hook_points"].values()]
        return self.dtype.itemsize * sum(widths)

    def run(self, shard: int) -> int:
        """Compute a shard and write it. Returns its number."""
        return self.write(shard, self.compute(shard))

    @torch.no_grad()
    def compute(self, shard: int, progress: Callable[[int], None] | None = None) -> dict[str, Tensor]:
        """Hook point -> [row d] on the model's device, in the files' dtype.

        `progress` is called with the shard's rows that are done.
        """
        first, end = self.shards[shard]
        rows = self.shard_rows[shard]
        out = {
            name: torch.full((rows, math.prod(shape)), _fill(name), dtype=self.dtype, device=self.model.device)
            for name, shape in self.header["hook_points"].items()
        }
        offsets = np.concatenate([[0], np.cumsum(self.sequences.stored[first:end])])
        done = 0
        for chosen in batches(self.sequences.lengths[first:end], self.batch_tokens):
            done += self._batch([first + c for c in chosen], offsets[chosen], out)
            if progress is not None:
                progress(done)
        return out

    def _batch(self, chosen: list[int], starts: np.ndarray, out: dict[str, Tensor]) -> int:
        """One forward pass, padded on the right: no token sees what comes after it, so no mask is needed.

        Returns how many rows it stored.
        """
        bounds, device = self.sequences.bounds, self.model.device
        sources = [self.sequences.source[bounds[s] : bounds[s + 1]] for s in chosen]
        padded = np.full((len(chosen), max(map(len, sources))), -1, dtype=np.int64)
        for row, source in zip(padded, sources, strict=True):
            row[: len(source)] = source
        ids = np.where(padded < 0, _bos(self.model), self.corpus.tokens[padded])
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
        remove_leftovers(folder)
        with atomic_folder(folder) as temporary:

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
            _write(temporary / CHECKSUMS, folder / CHECKSUMS, json.dumps(sums, indent=1).encode())
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
        columns: dict[str, np.ndarray] = {
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
        return columns


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
        texts: strings, `interp.texts.Text`s with labels, lists of token ids, or ids [batch pos].
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
        resume: go on with what is there, which must be of the same extraction.
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
    """Write those shards of this process that are not there yet, and say how many that were.

    Arguments and errors as in `extract_activations`.
    """
    mine = own_shards(job, shard_index, num_shards)
    begin(job, resume=resume, shared=num_shards > 1)
    todo = [shard for shard in mine if not _finished(job, shard)]
    _check_room(job, todo)
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
    if any(point.active for point in model.hook_points.values()):
        raise InputError("extraction inside `model.hooks`", "expected a model without hooks")
    chosen = tuple(model.match(names))
    corpus = build_corpus(model, texts, labels=labels, split=split, seed=seed)
    bos = prepend_bos and _bos(model, default=-1) >= 0
    sequences = (packed_rows if packed else one_text_a_row)(corpus, model.config.n_ctx, bos)
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
        raise InputError(
            f"shard index {shard_index} of {num_shards}",
            f"expected 0 to {max(0, num_shards - 1)}, and at least 1 in all",
        )
    return list(range(shard_index, len(job.shards), num_shards))


def begin(job: Extraction, *, resume: bool, shared: bool) -> None:
    """Write header and texts, or check that what is there is of this extraction. Raises InputError where it is not."""
    path = job.out / HEADER
    if path.exists():
        if not resume and not shared:
            raise InputError(
                f"{job.out} holds activations",
                "nothing was overwritten",
                "--resume goes on with them, or choose another folder",
            )
        found = ActivationStore(job.out, partial=True).header
        for key in job.header:
            if key != "model" and found.get(key) != job.header[key]:  # a model may lie elsewhere on another machine
                raise InputError(
                    f"{job.out} is of another extraction: {_difference(key, found.get(key), job.header[key])}",
                    "expected the same model, texts and options",
                    "choose another folder",
                )
        return
    if job.out.exists() and (not job.out.is_dir() or any(not file.name.startswith(".") for file in job.out.iterdir())):
        started = [file.name for file in job.out.iterdir()] == [TEXTS] if job.out.is_dir() else False
        if not (started and (resume or shared)):
            raise InputError(f"{job.out} is there and holds no activations", "expected a new folder", "choose another")
    if not shared and job.out.is_dir():
        for file in (HEADER, TEXTS):
            remove_leftovers(job.out / file)
    table = texts_bytes(job.corpus)
    with atomic_path(job.out / TEXTS) as temporary:
        temporary.write_bytes(table)
    header = job.header | {"texts_parquet_sha256": hashlib.sha256(table).hexdigest()}
    with atomic_path(path) as temporary:
        temporary.write_text(sealed(header), encoding="utf-8")


def sealed(header: dict[str, Any]) -> str:
    """The text of a header, with its own checksum as the last entry."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    return json.dumps(header | {"header_sha256": digest}, indent=1) + "\n"


def _difference(key: str, found: object, expected: object) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        key, found, expected = next(
            (f"{key}.{name}", found.get(name), expected.get(name))
            for name in [*found, *expected]
            if found.get(name) != expected.get(name)
        )
    return f"{key} is {str(found)[:80]} there, {str(expected)[:80]} here"


def _finished(job: Extraction, shard: int) -> bool:
    """Whether a shard is there; then it must be whole. Raises LoadError, naming the file, for a damaged one."""
    if not (job.out / shard_name(shard)).exists():
        return False
    ActivationStore(job.out, partial=True).check_shard(shard)
    return True


def free_bytes(folder: Path) -> int:
    import shutil

    return shutil.disk_usage(next(above for above in (folder, *folder.absolute().parents) if above.is_dir())).free


def _check_room(job: Extraction, todo: list[int]) -> None:
    needed, free = job.row_bytes * sum(job.shard_rows[shard] for shard in todo), free_bytes(job.out)
    if needed > free:
        raise InterpError(
            f"{job.out} would take {needed / 1e9:.3g} GB more, but {free / 1e9:.3g} GB are free on its disk",
            "nothing was written, and what was finished before is kept",
            "make room, extract fewer hook points, or choose another folder",
        )


def overlapped(job: Extraction, todo: Sequence[int]) -> Iterator[int]:
    """Each shard is written while the next one is computed."""
    with ThreadPoolExecutor(1) as pool:
        writing: Future[int] | None = None
        before, total = 0, sum(job.shard_rows[shard] for shard in todo)
        for shard in todo:
            tensors = job.compute(shard, partial(_tell_rows, before, total))
            before += job.shard_rows[shard]
            if writing is not None:
                yield writing.result()
            writing = pool.submit(job.write, shard, tensors)
        if writing is not None:
            yield writing.result()


def _tell_rows(before: int, total: int, rows: int) -> None:
    tell(before + rows, total)


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
    last = None if final else max((_layer(name) for name in names), default=-1)
    residual = model.run_to(ids, last)
    if final:
        model.ln_final(residual)


def _layer(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blocks.") else -1


def _shape(model: HookedGPT, name: str, longest: int) -> tuple[int, ...]:
    """What a hook point holds for one position."""
    shape = model.hook_shape(name, 1, longest)
    return (shape[1], shape[3]) if name.endswith(tuple(_PATTERNS)) else shape[2:]


def _fill(name: str) -> float:
    return _PATTERNS.get(name.rsplit(".", 1)[-1], 0.0)


def _bos(model: HookedGPT, default: int = 0) -> int:
    bos = None if model.tokenizer is None else model.tokenizer.bos
    return default if bos is None else bos
