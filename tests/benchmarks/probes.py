"""Statistics of many positions at every residual hook point: `python tests/benchmarks/probes.py`.

Activations of the bundled model on its own text are read again and again until so many positions have passed, so that
the numbers are real and no disk is needed; what is measured is the memory of the process and the time. Beside it the
same products alone (X'X in float64), which no exact method can avoid.
"""

import argparse
import resource
import time

import numpy as np
import torch
from timing import machine, table

from analyses.probes import LDAProbe, RidgeProbe
from analyses.probes.data import run_model
from analyses.probes.moments import ClassMeans, Moments, Statistics
from interp.models.gpt import HookedGPT
from interp.text.documents import read_documents
from interp.training.evaluation import SAMPLE


def peak() -> float:
    """Most memory this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=10_000_000)
    parser.add_argument("--batch", type=int, default=8192, help="positions of a batch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = HookedGPT.from_pretrained("tiny", device="cpu")
    names = model.match(["hook_embed", "resid_pre", "resid_mid", "resid_post"])
    ids = torch.tensor(model.tokenizer.encode("\n".join(read_documents(SAMPLE)))).split(model.config.n_ctx)[:-1]
    windows = ids[: options.batch // model.config.n_ctx]
    held = run_model(model, windows, range(len(windows)), names, bos=False)
    labels = np.random.default_rng(0).integers(0, 2, len(held.manifest))
    rows = len(labels)
    before, start, seen = peak(), time.perf_counter(), 0
    moments: dict[str, Moments] = {}
    means: dict[str, ClassMeans] = {}
    products = 0.0
    while seen < options.positions:
        for name in names:
            x = held.values[name]
            new, classes = Moments.of(x), ClassMeans.of(x, labels)
            moments[name] = moments[name].merge(new) if name in moments else new
            means[name] = means[name].merge(classes) if name in means else classes
        if seen < 20 * rows:  # the products alone, timed on the first batches
            for name in names:
                wide = held.values[name].astype(np.float64)
                begin = time.perf_counter()
                wide.T @ wide
                products += time.perf_counter() - begin
        seen += rows
    seconds = time.perf_counter() - start
    timed = min(seen, 20 * rows)
    for name in names:
        statistics = Statistics(moments[name], means[name])
        assert np.isfinite(RidgeProbe.from_statistics(statistics, task="classification").coef_).all()
        assert np.isfinite(LDAProbe.from_statistics(statistics).coef_).all()
    print(machine("cpu"))
    lines = [
        ("positions", f"{seen:,}"),
        ("hook points x width", f"{len(names)} x {model.config.d_model}"),
        ("peak memory, all told", f"{peak():.2f} GB"),
        ("of this before the pass", f"{before:.2f} GB"),
        ("positions a second", f"{seen / seconds:,.0f}"),
        ("time / time of X'X alone", f"{(seconds - products) / seen / (products / timed):.2f}"),
    ]
    print(table(("statistics for ridge and LDA at every hook point", "measured"), lines))


if __name__ == "__main__":
    main()
