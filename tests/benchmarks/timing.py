"""Shared by the benchmarks: times taken in turns, the machine's own rate, tables."""

import argparse
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from interp.loading.sources import BUNDLED
from interp.models.config import PRESETS, GPTConfig
from interp.models.gpt import HookedGPT
from interp.models.kernels import linear
from interp.text.tokenizer import Tokenizer

_clock = time.perf_counter


def add_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    """What every benchmark can be told."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds in turns; medians are shown")
    parser.add_argument("--threads", type=int, help="threads of the matrix products")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: seconds of processor time, for a machine that is busy with other things; use it with --threads 1",
    )


def set_clock(clock: str, threads: int | None) -> None:
    """Which seconds are counted, and on how many threads."""
    global _clock
    _clock = time.process_time if clock == "cpu" else time.perf_counter
    if threads:
        torch.set_num_threads(threads)


def seconds(run: Callable[[], object]) -> float:
    """How long one call takes, the device's queue included."""
    synchronise()
    start = _clock()
    run()
    synchronise()
    return _clock() - start


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(runs: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each run in each round; all run in every round, so that other load on the machine hits all alike."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds):
        order = range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs)))
        for place in order:
            times[place].append(seconds(runs[place]))
    return times


def ratio(times: list[list[float]], over: int = 0, under: int = 1) -> float:
    """The median over rounds of time `over` / time `under`."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def matmul_rate(rows: int, config: GPTConfig, device: str, dtype: torch.dtype, least: float = 0.3) -> float:
    """FLOP/s that this machine reaches in the products of an MLP, in and out, of a matrix with so many rows."""
    x = torch.randn(rows, config.d_model, device=device, dtype=dtype)
    weight_in = torch.randn(config.d_mlp, config.d_model, device=device, dtype=dtype)
    weight_out = torch.randn(config.d_model, config.d_mlp, device=device, dtype=dtype)
    linear(linear(x, weight_in, None), weight_out, None)
    synchronise()
    start, rounds = _clock(), 0
    while _clock() - start < least:
        linear(linear(x, weight_in, None), weight_out, None)
        synchronise()
        rounds += 1
    return rounds * 4 * rows * config.d_model * config.d_mlp / (_clock() - start)


def gpt2_small(device: str, **changes: int) -> HookedGPT:
    """GPT-2 small's shape with random weights."""
    torch.manual_seed(0)
    config = PRESETS["gpt2"]
    sizes = {name: getattr(config, name) for name in ("n_layers", "n_heads", "d_model", "n_ctx", "d_vocab")} | changes
    return HookedGPT(GPTConfig(**sizes)).to(device)


def smollm2(device: str) -> HookedGPT:
    """SmolLM2-135M's shape with random weights: 30 layers, 9 heads over 3 key-value heads, d_model 576, gated MLPs."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rope_theta=100000.0, tie_word_embeddings=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        transformers.LlamaForCausalLM(config).save_pretrained(directory)
        model = HookedGPT.from_pretrained(directory, device=device)
    model.tokenizer = Tokenizer.from_directory(BUNDLED / "tiny")  # the peer does not load a Llama without one
    return model


SHAPES = {"gpt2": gpt2_small, "smollm2": smollm2}


def peer(model: HookedGPT, directory: Path, device: str):
    """transformer-lens' bridge with the same weights, as its users get it."""
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    model.save_pretrained(directory)
    hf = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32)
    hf = hf.eval().to(device)
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(directory), hf_model=hf, device=device), hf


def machine(device: str) -> str:
    """One line that names where the numbers were taken."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
        model = names[0] if names else model
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} CPUs"
    return f"{model}, {threads}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    cells = [list(map(str, head)), *[list(map(str, row)) for row in rows]]
    width = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in width) + "|", *lines[1:]])
