"""Made-up results for the tests of reports: every kind of panel, ordinary and hostile."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analyses.shared.panels import (
    AttentionGrid,
    Bars,
    CircuitGraph,
    Finding,
    Graph,
    Histogram,
    Lines,
    Matrix,
    Note,
    Panel,
    Result,
    Table,
    TokenGrid,
    Tokens,
    TokenStrip,
)
from reports.page.html import Report, Section

WORDS = Tokens(("The", " cat", " sat", ".", "\n", " Then", " the", " cat", " slept", "."))
HOSTILE = Tokens((
    "<script>alert(1)</script>", "</script>", "<!--<script>", "<img src=x onerror=alert(2)>", "\u202eabc", "\u2028",
    "\x00", "\x1b[31mred\x1b[0m", "y" * 10_000, "\ud83d", "\N{ZERO WIDTH JOINER}", "'\"&", "$x^2$",
    "{{ 7 * 7 }}", "", " ",
))  # fmt: skip


@dataclass(frozen=True)
class Sample(Result):
    """A result that is nothing but the panels and findings it was given."""

    parts: tuple[Panel, ...]
    notable: tuple[Finding, ...] = ()

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame()

    def panels(self) -> list[Panel]:
        return list(self.parts)

    def findings(self) -> list[Finding]:
        return list(self.notable)


def attention(layers: int, heads: int, n_tokens: int, seed: int = 0) -> np.ndarray:
    """Causal softmax of normal scores, [layer head query key]."""
    weights = np.random.default_rng(seed).standard_normal((layers, heads, n_tokens, n_tokens), dtype=np.float32)
    np.exp(weights, out=weights)
    weights *= np.tri(n_tokens, dtype=np.float32)
    weights /= weights.sum(-1, keepdims=True)
    return weights


def attention_grid(layers: int, heads: int, *sizes: int, words: Tokens | None = None) -> AttentionGrid:
    """A viewer of random patterns, one text a size (these words again and again), with norms and two measures."""
    rng = np.random.default_rng(1)
    return AttentionGrid(
        key="pattern",
        title="Every head",
        patterns=tuple(attention(layers, heads, n, seed=i) for i, n in enumerate(sizes)),
        tokens=tuple(Tokens(words[i % len(words)] if words else f" w{i}" for i in range(n)) for n in sizes),
        value_norms=tuple(rng.uniform(0.2, 2, size=(layers, heads, n)) for n in sizes),
        measures={"induction": rng.random((layers, heads)), "entropy": rng.random((layers, heads)) * 3},
    )


def token_grid(tokens: Tokens, seed: int = 2) -> TokenGrid:
    """Three rows of words with two measures and four alternatives in each cell."""
    rng, n = np.random.default_rng(seed), len(tokens)
    cells = tuple(Tokens(tokens[(i + j) % n] for j in range(n)) for i in range(3))
    return TokenGrid(
        key="lens",
        title="Top tokens",
        tokens=tokens,
        rows=("embed", "0 mid", "0 post"),
        row_axis="after",
        cells=cells,
        measures={
            "probability": rng.random((3, n)),
            "rank": np.append(1.0, rng.integers(1, 4000, 3 * n - 1)).reshape(3, n),
        },
        units={"probability": "", "rank": ""},
        top=tuple(tuple(Tokens(tokens[(i + j + k) % n] for k in range(4)) for j in range(n)) for i in range(3)),
        top_values=np.sort(rng.random((3, n, 4)))[..., ::-1],
        targets=Tokens((*tokens[1:], " end")),
        target_measures=("probability", "rank"),
        candidates=Tokens((tokens[0], " never seen")),
        candidate_values=np.stack([rng.random((2, 3, n)), rng.integers(1, 4000, (2, 3, n)).astype(float)]),
        first=7,
    )


def circuit_graph(
    layers: int = 3, heads: int = 4, groups: int = 4, held: int | None = None, chosen: int = 20, seed: int = 4
) -> CircuitGraph:
    """The `held` largest edges of a decoder with random scores, larger at some nodes, and curves that rise to one.

    Args:
        groups: heads that keys and values are shared by, in groups of `heads / groups`; as many as heads: not shared.
    """
    rng, shared = np.random.default_rng(seed), groups < heads
    parts = [("embed", 0), *((f"L{i}H{j}", 2 * i + 1) for i in range(layers) for j in range(heads))]
    parts += [*((f"mlp {i}", 2 * i + 2) for i in range(layers)), ("logits", 2 * layers + 1)]
    parts += [(f"L{i}KV{j}", 2 * i + 1) for i in range(layers) for j in range(groups) if shared]
    nodes, rows = [name for name, _ in parts], [row for _, row in parts]
    edges = [
        (a, b, letter)
        for a in range(len(parts)) for b in range(len(parts)) if rows[a] < rows[b] and "KV" not in nodes[a]
        for letter in (("k", "v") if "KV" in nodes[b] else ("in",) if "H" not in nodes[b] else "q" if shared else "qkv")
    ]  # fmt: skip
    weight = np.where(np.isin(rows, (0, max(rows))), 150, np.exp(1.5 * rng.normal(size=len(rows))))  # few nodes matter
    scores = rng.normal(size=len(edges)) * [weight[a] * weight[b] for a, b, _ in edges]
    scores *= 4.3 / np.abs(scores).max()
    best = np.argsort(-np.abs(scores), kind="stable")[:held]
    n, size = len(best), heads // groups
    exact = np.where(np.arange(n) < n // 2, scores[best] * rng.normal(1, 0.1, n), np.nan)
    sizes = np.unique(np.geomspace(1, len(edges), 8).round().astype(int))
    curve = 1 - np.exp(-3 * sizes / len(edges))
    serves = tuple((nodes.index(f"L{i}KV{j // size}"), nodes.index(f"L{i}H{j}"))
                   for i in range(layers) for j in range(heads) if shared)  # fmt: skip
    return CircuitGraph(
        key="circuit", title="The circuit", nodes=tuple(nodes), rows=tuple(rows), serves=serves,
        senders=np.array([edges[i][0] for i in best]), receivers=np.array([edges[i][1] for i in best]),
        inputs=tuple(edges[i][2] for i in best), scores=scores[best], exact=exact, low=exact - 0.1, high=exact + 0.1,
        stability=np.round(np.linspace(1, 0, n), 2), chosen=chosen, total=len(edges), unit="logits", sizes=sizes,
        measured={"held out": 0.9 * curve, "discovery": curve, "random": curve**4},
        measured_low={"held out": 0.8 * curve}, measured_high={"held out": np.minimum(curve, 1)},
    )  # fmt: skip


def named_circuit(tokens: Sequence[str], odd: bool) -> CircuitGraph:
    """A circuit two of whose nodes are named as tokens; `odd` makes what was measured NaN and infinite."""
    graph = circuit_graph(2, 2, 1, chosen=9)
    names = (*tokens[:1], *graph.nodes[1:-2], *tokens[1:3])
    strange = np.resize([np.nan, np.inf, -np.inf], len(graph.scores))
    return replace(graph, nodes=names, **({"exact": strange, "low": strange, "stability": strange} if odd else {}))


def panels(tokens: Tokens = WORDS, odd: bool = False) -> tuple[Panel, ...]:
    """One panel of every kind but attention; `odd` puts NaN and infinities among the numbers."""
    rng, n = np.random.default_rng(3), len(tokens)
    table = rng.normal(size=(3, n))
    strip = rng.random(n)
    if odd:
        table[0, :3] = np.nan, np.inf, -np.inf
        strip[:2] = np.nan, np.inf
    size, edges = np.abs(table), np.linspace(-1, 1, 11)
    counts = {f"L{i} {tokens[i]}": rng.integers(0, 500, 10) for i in range(4)}
    frame = pd.DataFrame({"token": pd.Series(list(tokens), dtype=object), "effect": table[0], "count": np.arange(n)})
    return (
        Matrix(key="matrix", title="Effect", values=table, low=table - 1, high=table + 1, rows=("a", "b", "c"),
               columns=tokens, row_axis="layer", column_axis="token", unit="nats", diverging=True),
        Matrix(key="picture", title="Weights", values=rng.normal(size=(80, 90)), rows=tuple(map(str, range(80))),
               columns=tuple(map(str, range(90))), row_axis="in", column_axis="out", unit="weight", image=True),
        token_grid(tokens),
        TokenStrip(key="strip", title="Loss", tokens=tokens, values=strip, unit="nats"),
        Lines(key="lines", title="Curves", x=np.arange(1, n + 1), series={"one": size[0], "two": size[1]},
              low={"two": size[1] / 2}, high={"two": size[1] * 2}, x_axis="index", y_axis="value (nats)", log_y=True),
        Bars(key="bars", title="Heads", labels=tokens, values=table[2], unit="nats", low=table[2] - 1,
             high=table[2] + 1),
        Histogram(key="histogram", title="Spread", edges=edges, counts=counts, unit="weight",
                  fits={name: {"normal": 300 * np.exp(-4 * edges[1:] ** 2)} for name in counts}),
        Table(key="table", title="All", frame=frame, tokens=frozenset({"token"}), units={"effect": "nats"},
              diverging=frozenset({"effect"})),
        Graph(key="graph", title="Flow", nodes=tuple(tokens[:4]), columns=(0, 0, 1, 1), unit="score",
              edges=((0, 2, 0.7), (1, 3, -0.4))),
        Matrix(key="heads", title="By head", values=np.arange(6.0).reshape(2, 3) - 2, rows=("0", "1"),
               columns=("0", "1", "2"), row_axis="layer", column_axis="head", unit="nats", diverging=True,
               low=np.arange(6.0).reshape(2, 3) - 3, high=np.arange(6.0).reshape(2, 3)),
        Table(key="paths", title="Paths", units={"effect": "logits"},
              frame=pd.DataFrame({"from": ["L0H1", "mlp 0"], "to": ["L1H2", "L1H2"], "effect": [0.25, -0.5]})),
        Note(key="note", title="Limits", text=f"One remark with {tokens[0]}."),
        named_circuit(tokens, odd),
    )  # fmt: skip


def report(
    tokens: Tokens = WORDS, *, odd: bool = False, heads: tuple[int, int] = (2, 3), sizes: tuple[int, ...] = (10, 7)
) -> Report:
    """A report with an attention section and a section of every other kind of panel."""
    loud = Finding(
        text=f"{tokens[0]} raises the loss by 0.71 nats.",
        key="matrix",
        weight=0.9,
        value=0.71,
        unit="nats",
        low=0.6,
        high=0.8,
    )
    quiet = Finding(text="Layer 0, head 1 copies.", key="pattern", weight=0.2, value=0.5, unit="score")
    return Report(
        title=f"tiny reads {tokens[0]}",
        tokens=(tokens,),
        sections=(
            Section(
                "attention_patterns",
                "Attention",
                f"Where?\n\nRows are {tokens[0]}.",
                Sample((attention_grid(*heads, *sizes, words=tokens),), (quiet,)),
                0.3,
            ),
            Section("others", "Everything else", "What else?", Sample(panels(tokens, odd), (loud,)), 1.25),
        ),
        provenance={
            "command": f"interp report {tokens[0]!r}",
            "seed": 0,
            "versions": {"python": "3.11"},
            "note": float("nan"),
        },
    )
