"""Extraction against the forward pass alone: `python tests/benchmarks/extraction.py`.

The forward pass runs the same batches of the same texts, with no hooks and nothing written: once whole (with logits,
as `model(tokens)`), and once only through the blocks, which is all that extraction runs. Extraction writes the
embedding and the residual stream after every block, checksummed, to a fresh folder each time. In the last row it does
no more than read the store again.
"""

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import add_options, gpt2_small, in_turns, machine, ratio, set_clock, table

from interp.models.gpt import HookedGPT
from interp.store.reading import ActivationStore
from interp.store.sequences import batches
from interp.store.writing import Extraction, plan, run, run_to
from interp.text.documents import read_documents
from interp.training.evaluation import SAMPLE


def forward(job: Extraction, whole: bool) -> None:
    """The batches of an extraction, through the model alone."""
    bounds = job.sequences.bounds
    for first, end in job.shards:
        for chosen in batches(job.sequences.lengths[first:end], job.batch_tokens):
            sources = [job.sequences.source[bounds[first + c] : bounds[first + c + 1]] for c in chosen]
            ids = np.zeros((len(sources), max(map(len, sources))), dtype=np.int64)
            for row, source in zip(ids, sources, strict=True):
                row[: len(source)] = np.where(source < 0, 0, job.corpus.tokens[source])
            tokens = torch.from_numpy(ids).to(job.model.device)
            if whole:
                job.model(tokens)
            else:
                run_to(job.model, tokens, job.names)


def extract(job: Extraction) -> None:
    shutil.rmtree(job.out, ignore_errors=True)
    run(job)


def read(job: Extraction) -> None:
    for _ in ActivationStore(job.out).batches(job.names):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, rounds=9)
    parser.add_argument(
        "--model", choices=["tiny", "gpt2-small"], default="tiny", help="the latter with random weights"
    )
    parser.add_argument("--texts", type=int, default=31, help="how many of the bundled sample's")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    options = parser.parse_args()
    set_clock(options.clock, options.threads)
    device = options.device
    model = HookedGPT.from_pretrained("tiny", device=device) if options.model == "tiny" else gpt2_small(device)
    tokenizer = HookedGPT.from_pretrained("tiny", device="cpu").tokenizer
    assert tokenizer is not None
    ids = [tokenizer.encode(text) for text in read_documents(SAMPLE)[: options.texts]]
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        job = plan(model, ids, ["embed", "resid_post"], Path(folder) / "s", batch_tokens=options.batch_tokens)
        size = f"{job.header['n_rows']:,} positions, {job.row_bytes * job.header['n_rows'] / 1e6:.0f} MB"
        print(machine(device), options.model, size, sep=", ", flush=True)
        runs: list[Callable[[], object]] = [
            lambda: extract(job), lambda: forward(job, True), lambda: forward(job, False), lambda: read(job),
        ]  # fmt: skip
        extract(job)
        times = in_turns(runs, options.rounds)
    rows = []
    for place, name in ((1, "forward pass with logits"), (2, "forward pass through the blocks")):
        speed = ratio(times, over=place, under=0)
        medians = [f"{1e3 * statistics.median(times[i]):.0f} ms" for i in (0, place)]
        rows.append([f"extraction's speed, of the {name}", *medians, f"{speed:.3f}", ">= 0.8" if place == 1 else ""])
    again = [f"{1e3 * statistics.median(times[i]):.0f} ms" for i in (3, 0)]
    rows.append(
        ["reading all of it again, of the extraction's time", *again, f"{ratio(times, over=3, under=0):.3f}", ""]
    )
    print(table(("this, against", "this", "against", "ratio", "target"), rows))


if __name__ == "__main__":
    main()
