"""A circuit as a thing of its own: in a file, and as a change of the model that leaves only the circuit at work.

The file is JSON in the layout of the MIB benchmark (Mueller et al. 2025) and of the EAP-IG code: `cfg`, `nodes` and
`edges` with a score and whether they are in; nodes are `input`, `a0.h1`, `m0`, `logits`, an edge `a0.h1->a2.h3<q>`.
What we know besides (exact effects, stability, model, task) lies in entries that other readers leave alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.circuitry.graph import Level, Wiring
from analyses.circuitry.runs import Mixer, Outputs
from analyses.shared.paths import INPUTS, START
from interp.errors import InputError
from interp.files import atomic_write
from interp.hooks import HookPair, HookPoint
from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT
from interp.untrusted import read_json

MEASURES = ("exact", "low", "high", "stability")
"""What an edge may have beside its score."""


@dataclass(frozen=True)
class CircuitFile:
    """A circuit's file as it was read, for whichever model it will be measured on."""

    said: Mapping[str, Any] = field(repr=False)

    @classmethod
    def load(cls, path: str) -> "CircuitFile":
        return cls(_read(Path(path).expanduser()))


@dataclass(frozen=True, eq=False)
class Circuit:
    """Some edges of a model's graph, with a score for every edge.

    `model.hooks(circuit)` runs the model with all else ablated: in a pass, in generation, with other hooks beside it.
    """

    wiring: Wiring
    chosen: Bool[np.ndarray, " edge"] = field(repr=False)
    scores: Float[np.ndarray, " edge"] = field(repr=False)
    """What the metric loses without the edge, by `method`; NaN where unknown."""
    level: Level = "edge"
    measures: Mapping[str, Float[np.ndarray, " edge"]] = field(default_factory=dict, repr=False)
    """`exact`, its ends `low` and `high`, and `stability`; NaN where not measured."""
    node_scores: Float[np.ndarray, " node"] | None = field(default=None, repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: model, weights' hash, task, method, metric, ablation, seed."""
    outside: Mixer | None = field(default=None, repr=False)
    """What nodes add where an edge is not in the circuit; None: `over` says it."""

    @property
    def size(self) -> int:
        """Number of edges."""
        return int(self.chosen.sum())

    def to_json(self, path: str | Path | None = None) -> str:
        """The file's text, written to `path` if one is given."""
        wiring, config = self.wiring, self.wiring.config
        reads: np.ndarray = wiring.mask(wiring.pruned(self.chosen))
        inside: np.ndarray = np.any(wiring.feeds & np.any(reads, axis=1)[:, None], axis=0) | np.any(reads, axis=0)
        nodes: dict[str, dict[str, Any]] = {
            _written(node.label): {"in_graph": bool(here)} for node, here in zip(wiring.nodes, inside, strict=True)
        }
        if self.node_scores is not None:
            for name, score in zip(list(nodes), self.node_scores, strict=True):
                nodes[name] |= _numbers(score=score)
        nodes["logits"] = {"in_graph": bool(self.chosen.any())}
        edges: dict[str, Any] = {}
        for edge, names in enumerate(edge_names(self.wiring)):
            known = {name: values[edge] for name, values in self.measures.items()}
            entry = _numbers(score=self.scores[edge], **known) | {"in_graph": bool(self.chosen[edge])}
            for name in names:
                edges[name] = entry
        cfg = {
            "n_layers": config.n_layers, "n_heads": config.n_heads, "parallel_attn_mlp": config.parallel,
            "d_model": config.d_model,
        }  # fmt: skip
        text = json.dumps({"cfg": cfg, "nodes": nodes, "edges": edges, "interp": {"level": self.level, **self.facts}})
        if path is not None:
            atomic_write(Path(path), text + "\n")
        return text

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any], model: HookedGPT) -> "Circuit":
        """The circuit of a file (or of its text, or of what it says), for a model of its shape.

        Raises InputError where the file is of another shape, lacks edges of the model, or has edges that the model does
        not have; and where it tells apart the keys or values of heads that share them.
        """
        said = _read(source)
        wiring = Wiring.of(model)
        _check_shape(said, wiring.config)
        entries = said["edges"]
        own = edge_names(wiring)
        found = [[entries.get(name) for name in names] for names in own]
        unknown = set(entries) - {name for names in own for name in names}
        missing = [names[0] for names, some in zip(own, found, strict=True) if None in some]
        if unknown or missing:
            told = (
                f"edge {min(unknown)!r} is not in this model" if unknown else f"edge {missing[0]!r} is not in the file"
            )
            raise InputError(f"{told} ({len(unknown)} so, {len(missing)} missing)", "expected the model's own graph")
        for names, some in zip(own, found, strict=True):
            if len({bool(entry["in_graph"]) for entry in some}) > 1:
                raise InputError(
                    f"{names[0]} and {names[-1]} are not both in the circuit, or both out of it",
                    "expected one choice for heads that share keys and values",
                )
        first = [some[0] for some in found]
        extra = said.get("interp") if isinstance(said.get("interp"), dict) else {}
        facts = {name: value for name, value in (extra or {}).items() if isinstance(value, (str, int, float))}
        level = facts.pop("level", "edge")
        measures = {name: _column(first, name) for name in MEASURES}
        return cls(
            wiring, np.array([bool(entry["in_graph"]) for entry in first]), _column(first, "score"),
            "node" if level == "node" else "edge", {n: x for n, x in measures.items() if np.isfinite(x).any()},
            facts=facts,
        )  # fmt: skip

    def over(self, model: HookedGPT, outputs: Outputs | None = None) -> "Circuit":
        """The same circuit, ready for `model.hooks`.

        What lies outside is held at its mean in `outputs` over texts and positions (`Outputs.of(model, tokens)`), or at
        zero where none are given.
        """
        found = (
            Outputs.of(model, torch.zeros(1, 1, dtype=torch.long, device=model.device)) if outputs is None else outputs
        )
        held = found.zeroed() if outputs is None else found.mean(-3, -2)
        return replace(self, outside=Mixer(model, self.wiring, held))

    def hooks(self) -> list[HookPair]:
        """Raises InputError where nobody has said what lies outside."""
        if self.outside is None:
            raise InputError(
                "a circuit without values for what lies outside it", "expected circuit.over(model, outputs)",
                "circuit.over(model) holds the rest at zero",
            )  # fmt: skip
        return _Pass(self.outside, self.wiring.mask(self.chosen)).hooks()


class _Pass:
    """The hooks of a circuit, and what the nodes of the pass that is under way have changed so far."""

    def __init__(self, mixer: Mixer, mask: Bool[np.ndarray, "receiver node"]) -> None:
        self.mixer, self.mask = mixer, torch.tensor(mask, device=mixer.model.device)[None]
        self.changes = torch.empty(0)  # [1 node batch pos d_model]

    def hooks(self) -> list[HookPair]:
        model, mixer = self.mixer.model, self.mixer
        pairs: list[HookPair] = [(START, self._begin)]
        for layer, block in enumerate(model.blocks):
            base = f"blocks.{layer}."
            for letter in INPUTS:
                read = partial(self._apart, layer, mixer.inputs(layer, letter))
                pairs.append((f"{base}hook_{letter}_input", read))
            pairs.append((f"{base}attn.hook_result", partial(self._heads, layer)))
            if block.mlp is not None:
                pairs.append((f"{base}hook_mlp_in", partial(self._into_mlp, layer)))
                pairs.append((f"{base}hook_mlp_out", partial(self._out_of_mlp, layer)))
        pairs.append((f"blocks.{model.config.n_layers - 1}.hook_resid_post", self._end))
        return pairs

    def _begin(self, x: Tensor, hook: HookPoint) -> None:
        self.changes = x.new_zeros(1, len(self.mixer.wiring.nodes), *x.shape)
        self.changes[0, 0] = x - self.mixer.held.embed

    def _apart(self, layer: int, rows: list[int], x: Tensor, hook: HookPoint) -> Tensor:
        return self.mixer.read(self.mask, self.changes, layer, rows)[:, 0].movedim(0, 2)

    def _heads(self, layer: int, x: Tensor, hook: HookPoint) -> None:
        self.changes[0, self.mixer.heads(layer)] = x.movedim(2, 0) - self.mixer.held.heads[layer]

    def _into_mlp(self, layer: int, x: Tensor, hook: HookPoint) -> Tensor:
        row, mid = self.mixer.row[f"mlp {layer}"], not self.mixer.wiring.config.parallel
        return self.mixer.read(self.mask, self.changes, layer, [row], mid=mid)[0, 0]

    def _out_of_mlp(self, layer: int, x: Tensor, hook: HookPoint) -> None:
        held = self.mixer.held.mlps[layer]
        assert held is not None
        self.changes[0, self.mixer.node[f"mlp {layer}"]] = x - held

    def _end(self, x: Tensor, hook: HookPoint) -> Tensor:
        last = self.mixer.wiring.config.n_layers
        return self.mixer.read(self.mask, self.changes, last, [len(self.mixer.row) - 1])[0, 0]


# Names of the file.


def _written(label: str) -> str:
    """`L0H1`, `mlp 0`, `embed` as the file has them."""
    if label.startswith("mlp "):
        return f"m{label[4:]}"
    layer, _, head = label[1:].partition("H")
    return {"embed": "input", "logits": "logits"}.get(label) or f"a{layer}.h{head}"


def edge_names(wiring: Wiring) -> list[list[str]]:
    """[edge] its names in the file: one, or one for each head where several share keys and values."""
    group, found = wiring.config.n_heads // wiring.config.n_kv_heads, []
    for sender, target in zip(wiring.senders, wiring.targets, strict=True):
        start, end = _written(wiring.nodes[sender].label), wiring.receivers[target]
        if end.head is None:
            found.append([f"{start}->{_written(end.label)}"])
            continue
        several = group if end.input != "q" else 1
        heads = range(end.head * several, (end.head + 1) * several)
        found.append([f"{start}->a{end.layer}.h{head}<{end.input}>" for head in heads])
    return found


def _numbers(**values: float) -> dict[str, float]:
    """Those that are known; JSON has no NaN."""
    return {name: float(value) for name, value in values.items() if np.isfinite(value)}


def _column(entries: Sequence[Mapping[str, Any]], name: str) -> Float[np.ndarray, " edge"]:
    try:
        found = np.array([float(entry.get(name, np.nan)) for entry in entries])
    except (TypeError, ValueError, OverflowError):
        found = np.array([np.inf])
    if np.isinf(found).any():
        raise InputError(f"an edge whose {name} is no number", "expected a circuit's file")
    return found


def _read(source: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """What a file says, its form checked."""
    if isinstance(source, (str, Path)):
        try:
            source = json.loads(str(source)) if str(source).lstrip().startswith("{") else read_json(Path(source))
        except ValueError as error:
            raise InputError(f"a circuit that is no JSON: {error}", "expected a circuit's file") from None
    parts = [source.get(name) for name in ("cfg", "edges")] if isinstance(source, Mapping) else [None]
    if not all(isinstance(part, Mapping) for part in parts):
        raise InputError(
            "no circuit: `cfg` and `edges` are not there", "expected JSON in the layout of the MIB benchmark"
        )
    for name, entry in source["edges"].items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("in_graph"), (bool, int)):
            raise InputError(
                f"edge {str(name)[:60]!r} does not say whether it is in", 'expected {"in_graph": true, ...}'
            )
    return source


def _check_shape(said: Mapping[str, Any], config: GPTConfig) -> None:
    shape = {"n_layers": config.n_layers, "n_heads": config.n_heads, "parallel_attn_mlp": config.parallel}
    for name, own in shape.items():
        if name in said["cfg"] and said["cfg"][name] != own:
            raise InputError(f"a circuit of {name} = {said['cfg'][name]!r}", f"expected {own!r}, this model's")
