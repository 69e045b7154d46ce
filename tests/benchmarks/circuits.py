"""Exact effects of edges against transformer-lens: `python tests/benchmarks/circuits.py`.

The same random weights of GPT-2 small's shape, a pair of 16 tokens that differ from one of them on (the sixth, the
ninth: what comes before need not be run again), the same metric (a logit difference at the last position), one process,
in turns. Both have the same work to do: the metric when each of the 1,000 edges with the highest EAP score alone
carries its corrupted value. The peer, as its users write it, keeps both runs' activations and runs one forward pass an
edge with a hook on what the receiver reads; what each head reads is split only for edges into queries, keys and values.
It is timed on `--sample` edges, spread evenly, and the time scaled. Then all edges of the bundled model, exactly, on 12
prompts.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from timing import add_options, gpt2_small, in_turns, machine, peer, ratio, set_clock

import interp
from analyses.circuitry.graph import Wiring
from analyses.circuitry.scores import Group, estimated, exact_edges, groups_of
from analyses.shared.clean_corrupted import measure, resolve_pairs
from interp.models.gpt import HookedGPT

ANSWER, WRONG = 11, 12


def prepared(model: HookedGPT, *texts: object, **options: object) -> tuple[list[Group], np.ndarray]:
    pairs = resolve_pairs(model, *texts, **options)
    measured = measure(model, pairs, "logit_diff")
    return groups_of(model, pairs, measured), measured.clean


class Peer:
    """The loop of hooks."""

    def __init__(self, bridge: object, wiring: Wiring, clean: torch.Tensor, corrupted: torch.Tensor) -> None:
        self.bridge, self.wiring, self.clean = bridge, wiring, clean
        bridge.set_use_hook_mlp_in(True)
        caches = [bridge.run_with_cache(tokens)[1] for tokens in (clean, corrupted)]
        self.before, self.after = (self._outputs(cache) for cache in caches)
        self.own = self._metric(bridge(clean))

    def _outputs(self, cache: object) -> dict[str, torch.Tensor]:
        found = {"embed": cache["blocks.0.hook_resid_pre"]}
        for layer in range(self.wiring.config.n_layers):
            weight = self.bridge.blocks[layer].attn.W_O
            for head in range(self.wiring.config.n_heads):
                found[f"L{layer}H{head}"] = cache[f"blocks.{layer}.attn.hook_z"][:, :, head] @ weight[head]
            found[f"mlp {layer}"] = cache[f"blocks.{layer}.hook_mlp_out"]
        return found

    def _metric(self, logits: torch.Tensor) -> float:
        return float(logits[0, -1, ANSWER] - logits[0, -1, WRONG])

    def effects(self, edges: list[int]) -> list[float]:
        found = {}
        split = [edge for edge in edges if self.wiring.receivers[self.wiring.targets[edge]].head is not None]
        for apart, some in ((False, [edge for edge in edges if edge not in split]), (True, split)):
            self.bridge.set_use_split_qkv_input(apart)
            found |= {edge: self._effect(edge) for edge in some}
        return [found[edge] for edge in edges]

    def _effect(self, edge: int) -> float:
        receiver = self.wiring.receivers[self.wiring.targets[edge]]
        sender = self.wiring.nodes[self.wiring.senders[edge]].label
        change, layer = self.after[sender] - self.before[sender], receiver.layer
        name = (
            f"blocks.{layer}.hook_{receiver.input}_input"
            if receiver.head is not None
            else f"blocks.{layer}.hook_mlp_in"
        )
        name = f"blocks.{layer - 1}.hook_resid_post" if receiver.label == "logits" else name

        def add(x: torch.Tensor, hook: object) -> torch.Tensor:
            if receiver.head is None:
                return x + change
            x = x.clone()
            x[:, :, receiver.head] += change
            return x

        return self.own - self._metric(self.bridge.run_with_hooks(self.clean, fwd_hooks=[(name, add)]))


def compare(model: HookedGPT, bridge: object, first: int, options: argparse.Namespace) -> None:
    """The highest edges of a pair that differs from position `first` on, both ways."""
    wiring, clean = Wiring.of(model), torch.randint(0, 50257, (1, 16), device=options.device)
    corrupted = clean.clone()
    corrupted[:, first:] = torch.randint(0, 50257, (1, 16 - first), device=options.device)
    groups, own = prepared(model, clean, corrupted, answer=ANSWER, wrong=WRONG)
    scores, _ = estimated(model, wiring, groups, steps=1, points="right", activations=False)
    top = np.argsort(-np.abs(scores[0]))[: options.edges]
    chosen = np.isin(np.arange(len(wiring)), top)
    sample = [int(edge) for edge in top[:: max(1, len(top) // options.sample)]]
    loop, found = Peer(bridge, wiring, clean, corrupted), {}
    times = in_turns(
        [
            lambda: found.update(peer=loop.effects(sample)),
            lambda: found.update(ours=exact_edges(model, wiring, groups, own, chosen)[0]),
        ],
        options.rounds,
    )
    times[0] = [seconds * len(top) / len(sample) for seconds in times[0]]
    ours = found["ours"][sample]
    apart, largest = np.abs(np.array(found["peer"]) - ours).max(), np.abs(ours).max()
    theirs, here = map(statistics.median, times)
    print(f"{len(top):,} highest of {len(wiring):,} edges, 1 x 16 tokens that differ from {first} on, exactly:")
    print(f"transformer-lens {theirs:.1f} s ({len(sample)} timed), here {here:.1f} s")
    print(
        f"{ratio(times):.1f} times as fast (target 15), largest difference {apart:.0e} of effects up to {largest:.2g}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, rounds=3)
    parser.add_argument("--sample", type=int, default=30, help="edges the peer is timed on")
    parser.add_argument("--edges", type=int, default=1000, help="edges whose exact effects are measured")
    options = parser.parse_args()
    set_clock(options.clock, options.threads)
    print(f"{machine(options.device)}, {options.clock} seconds, {options.rounds} rounds", flush=True)
    with torch.no_grad(), tempfile.TemporaryDirectory() as directory:
        model = gpt2_small(options.device)
        bridge, _ = peer(model, Path(directory), options.device)
        for first in (5, 8):
            compare(model, bridge, first, options)
    tiny = interp.load("tiny", device=options.device)
    wiring = Wiring.of(tiny)
    groups, own = prepared(tiny, None, None)
    start = time.perf_counter()
    exact_edges(tiny, wiring, groups, own, np.ones(len(wiring), dtype=bool))
    print(f"all {len(wiring)} edges of tiny on {len(own)} prompts: {time.perf_counter() - start:.1f} s (target 60)")


if __name__ == "__main__":
    main()
