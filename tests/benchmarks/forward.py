"""Forward passes, cached runs and loading: `python tests/benchmarks/forward.py`.

Random weights of GPT-2 small's shape. Runs that are compared take turns in one process; each loading is measured in a
process of its own, with the file in the page cache.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import add_options, gpt2_small, in_turns, machine, peer, ratio, set_clock, table
from torch import Tensor

from interp.models.gpt import HookedGPT
from interp.models.kernels import linear


def without_hook_points(model: HookedGPT, tokens: Tensor, linear: Callable[..., Tensor]) -> Tensor:
    """The same function of the same weights, written without hook points; `linear` multiplies."""
    x = F.embedding(tokens, model.W_E) + model.W_pos[: tokens.shape[1]]
    for block in model.blocks:
        attn, mlp, heads = block.attn, block.mlp, (block.attn.n_heads, block.attn.d_head)
        normed = F.layer_norm(x, block.ln1.w.shape, block.ln1.w, block.ln1.b, block.ln1.eps)
        weights = ((attn.W_Q_flat, attn.b_Q_flat), (attn.W_K_flat, attn.b_K_flat), (attn.W_V_flat, attn.b_V_flat))
        q, k, v = (linear(normed, w.T, b).unflatten(-1, heads).transpose(1, 2) for w, b in weights)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        x = x + linear(z, attn.W_O_flat.T, attn.b_O)
        normed = F.layer_norm(x, block.ln2.w.shape, block.ln2.w, block.ln2.b, block.ln2.eps)
        x = x + linear(mlp.act(linear(normed, mlp.W_in.T, mlp.b_in)), mlp.W_out.T, mlp.b_out)
    final = model.ln_final
    return linear(F.layer_norm(x, final.w.shape, final.w, final.b, final.eps), model.W_E, None)


def compare(name: str, a: Callable[[], object], b: Callable[[], object], limit: float, rounds: int) -> list[str]:
    """One row of the table: a's time over b's, which must not be above the limit."""
    times = in_turns([a, b], rounds)
    measured = ratio(times)
    medians = [f"{1e3 * statistics.median(t):.0f} ms" for t in times]
    return [name, *medians, f"{measured:.3f}", f"<= {limit:g}", verdict(measured, limit)]


def verdict(measured: float, limit: float) -> str:
    return "reached" if measured <= limit else f"missed by {100 * (measured / limit - 1):.1f} %"


LOADERS = {
    "interp": "from interp.models.gpt import HookedGPT; import interp.loading as _; load = HookedGPT.from_pretrained",
    "transformers": "from transformers import GPT2LMHeadModel; load = GPT2LMHeadModel.from_pretrained",
}

MEASURE = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import torch
{loader}
def resident(entry):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))
one_token = torch.zeros(1, 1, dtype=torch.long)
def load_and_use(directory):
    with torch.no_grad():
        model = load(directory)
        model(one_token)
    return model
load_and_use({warm!r})
before = resident("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
wall, cpu = time.perf_counter(), time.process_time()
model = load_and_use({directory!r})
taken = {{"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}}
weights = sum(p.numel() * p.element_size() for p in set(model.parameters()))
print(json.dumps({{"seconds": taken[{clock!r}], "peak": (resident("VmHWM") - before) / weights}}))
"""


def loading(model: HookedGPT, rounds: int, clock: str) -> list[list[str]]:
    """Seconds and peak memory of loading and of a pass of one token, which makes lazily mapped weights real.

    Each time in a fresh process that has done so with a tiny model before.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in LOADERS}
    with tempfile.TemporaryDirectory() as folder:
        directory, warm = Path(folder) / "small", Path(folder) / "tiny"
        model.save_pretrained(directory)
        gpt2_small("cpu", n_layers=1, d_model=12, d_vocab=10).save_pretrained(warm)
        for _ in range(rounds):
            for name, loader in LOADERS.items():
                code = MEASURE.format(loader=loader, directory=str(directory), warm=str(warm), clock=clock)
                run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
                found[name].append(json.loads(run.stdout.splitlines()[-1]))
    times = [[one["seconds"] for one in found[name]] for name in LOADERS]
    peak = statistics.median(one["peak"] for one in found["interp"])
    theirs = statistics.median(one["peak"] for one in found["transformers"])
    medians = [f"{1e3 * statistics.median(t):.0f} ms" for t in times]
    rows = [["load and run one token, transformers", *medians, f"{ratio(times):.3f}", "<= 1", verdict(ratio(times), 1)]]
    label = "peak memory of that, in sizes of the weights, beside transformers'"
    return [*rows, [label, f"{peak:.2f}", f"{theirs:.2f}", f"{peak:.3f}", "<= 1.2", verdict(peak, 1.2)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, rounds=9)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    options = parser.parse_args()
    set_clock(options.clock, options.threads)
    model = gpt2_small(options.device)
    tokens = torch.randint(0, 50257, (options.batch, options.length), device=options.device)
    print(machine(options.device), f"tokens {options.batch} x {options.length}", sep=", ", flush=True)
    with torch.no_grad(), tempfile.TemporaryDirectory() as directory:
        bare, torchs = (partial(without_hook_points, model, tokens, product) for product in (linear, F.linear))
        torch.testing.assert_close(model(tokens), torchs(), atol=1e-4, rtol=0)
        bridge, _ = peer(model, Path(directory), options.device)
        plain, rounds = (lambda: model(tokens)), options.rounds
        rows = [
            compare("forward pass, without hook points", plain, bare, 1.02, rounds),
            compare("forward pass, without hook points and with PyTorch's own products", plain, torchs, 1.02, rounds),
            compare(
                "cached run (resid_post), forward pass",
                lambda: model.run_with_cache(tokens, names="resid_post"),
                plain,
                1.03,
                rounds,
            ),
            compare(
                "full cached run, transformer-lens",
                lambda: model.run_with_cache(tokens),
                lambda: bridge.run_with_cache(tokens),
                1.0,
                rounds,
            ),
        ]
    if options.device == "cpu":
        rows += loading(model, max(3, rounds // 3), options.clock)
    print(table(("this, against", "this", "against", "ratio", "target", ""), rows))


if __name__ == "__main__":
    main()
