"""Circuits: the graph, runs of a part of it, scores by gradients and by patching, files, hooks, curves, stability."""

import json

import numpy as np
import pytest
import torch
from conftest import make_gpt
from shapes import SHAPES, tokens_for, toy

from analyses import circuits
from analyses.circuitry.circuit import Circuit, CircuitFile, edge_names
from analyses.circuitry.faithfulness import Curve, area, faithfulness, interval
from analyses.circuitry.graph import Wiring
from analyses.circuitry.runs import CircuitRuns, Outputs
from analyses.circuitry.scores import estimated, estimated_of, exact_edges, exact_nodes, groups_of
from analyses.circuitry.stability import stability
from analyses.shared.clean_corrupted import measure, resolve_pairs
from analyses.shared.prompt_tasks import induction_prompts
from interp.errors import InputError
from interp.models.gpt import HookedGPT

CAUSAL = [name for name, config in SHAPES.items() if config.get("causal", True)]
CLOSE = {"rtol": 0, "atol": 1e-11}


def pair_of(model, batch=2, length=7):
    return tokens_for(model, batch, length, seed=1), tokens_for(model, batch, length, seed=2)


def prepared(model, batch=3, length=6):
    clean, corrupted = pair_of(model, batch, length)
    corrupted[:, :2] = clean[:, :2]  # so that the first difference is not at the beginning
    answer, wrong = torch.arange(batch), torch.arange(batch) + batch
    with torch.no_grad():
        pairs = resolve_pairs(model, clean, corrupted, answer=answer, wrong=wrong)
        measured = measure(model, pairs, "logit_diff")
        return clean, corrupted, answer, wrong, measured, groups_of(model, pairs, measured)


def difference(logits, answer, wrong):
    last = logits[:, -1]
    return (last.gather(1, answer[:, None]) - last.gather(1, wrong[:, None]))[:, 0]


def outputs(model, tokens):
    """What each node adds, by label, with plain hooks."""
    names = lambda name: name.endswith(("hook_result", "hook_mlp_out")) or name == "blocks.0.hook_resid_pre"  # noqa: E731
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names=names)
    found = {"embed": cache["blocks.0.hook_resid_pre"]}
    for layer in range(model.config.n_layers):
        for head in range(model.config.n_heads):
            found[f"L{layer}H{head}"] = cache[f"blocks.{layer}.attn.hook_result"][:, :, head]
        if not model.config.attn_only:
            found[f"mlp {layer}"] = cache[f"blocks.{layer}.hook_mlp_out"]
    return found


def input_of(model, receiver):
    """The hook point of what a receiver reads, and its head there."""
    if receiver.label == "logits":
        return f"blocks.{model.config.n_layers - 1}.hook_resid_post", None
    if receiver.head is None:
        return f"blocks.{receiver.layer}.hook_mlp_in", None
    return f"blocks.{receiver.layer}.hook_{receiver.input}_input", receiver.head


def patched(model, tokens, receiver, change):
    """The logits when one receiver alone reads the stream and the change."""
    name, head = input_of(model, receiver)

    def add(x, hook):
        x = x.clone()
        if head is None:
            return x + change
        x[:, :, head] += change
        return x

    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=[(name, add)])


# The graph.


def test_gpt2_has_as_many_edges_as_published():
    model = make_gpt(n_layers=12, n_heads=12, d_model=24, d_vocab=8)
    assert len(Wiring.of(model)) == 32_491  # Syed et al. 2023; 158 nodes with the embedding and the logits
    assert len(Wiring.of(model).nodes) + 1 == 158


@pytest.mark.parametrize("shape", CAUSAL)
def test_all_edges_give_the_model_none_the_ablated_run_and_one_lost_edge_its_path_patched(shape):
    model = toy(shape).double()
    wiring, (clean, corrupted) = Wiring.of(model), pair_of(model)
    first = 3
    corrupted[:, :first] = clean[:, :first]
    runs = CircuitRuns(model, wiring, clean, Outputs.of(model, corrupted), first=first)
    edges = np.random.default_rng(0).choice(len(wiring), size=8, replace=False)
    circuits_ = [np.ones(len(wiring), dtype=bool), np.zeros(len(wiring), dtype=bool)]
    circuits_ += [np.arange(len(wiring)) != edge for edge in edges]
    logits = runs.logits(torch.tensor(np.stack([wiring.mask(one) for one in circuits_])))
    with torch.no_grad():
        np.testing.assert_allclose(logits[0], model(clean)[:, -1:], **CLOSE)
        np.testing.assert_allclose(logits[1], model(corrupted)[:, -1:], **CLOSE)
    if model.blocks[0].ln1_post.hooked:
        return  # what a head adds depends on the norm that follows; path patching's own tests cover it
    before, after = outputs(model, clean), outputs(model, corrupted)
    for edge, found in zip(edges, logits[2:], strict=True):
        sender = wiring.nodes[wiring.senders[edge]].label
        expected = patched(model, clean, wiring.receivers[wiring.targets[edge]], after[sender] - before[sender])
        np.testing.assert_allclose(found, expected[:, -1:], **CLOSE)


@pytest.mark.parametrize("shape", CAUSAL)
def test_edges_on_no_way_change_nothing_and_the_others_do(shape):
    model = toy(shape).double()
    wiring, (clean, corrupted) = Wiring.of(model), pair_of(model)
    runs = CircuitRuns(model, wiring, clean, Outputs.of(model, corrupted))
    drawn = (np.random.default_rng(seed).random(len(wiring)) < 0.3 for seed in range(99))
    some = next(one for one in drawn if 0 < wiring.pruned(one).sum() < one.sum())
    kept = wiring.pruned(some)
    assert (kept <= some).all()
    assert (wiring.pruned(kept) == kept).all()
    lost = np.flatnonzero(kept)[0]
    masks = [wiring.mask(one) for one in (some, kept, kept & (np.arange(len(wiring)) != lost))]
    whole, pruned, broken = runs.logits(torch.tensor(np.stack(masks)))
    np.testing.assert_allclose(pruned, whole, **CLOSE)
    assert (broken - whole).abs().max() > 1e-6


def test_greedy_takes_only_edges_that_lead_to_the_logits():
    wiring = Wiring.of(toy("llama"))
    order = wiring.greedy(np.random.default_rng(0).random(len(wiring)))
    assert sorted(order) == list(range(len(wiring)))
    for size in (1, 5, 20, 60):
        chosen = np.isin(np.arange(len(wiring)), order[:size])
        mask = wiring.mask(chosen)
        for edge in order[:size]:
            fed = wiring.feeds[wiring.targets[edge]]
            last = wiring.targets[edge] == len(wiring.receivers) - 1
            assert last or mask[:, fed].any()  # somebody in the circuit hears what it feeds


# Scores.


def gradients(model, wiring, tokens, start, held, answer, wrong):
    """Of the metric with respect to what each receiver reads, by a zero added there: plain autograd."""
    zeros = {r.label: torch.zeros_like(start, requires_grad=True) for r in wiring.receivers}

    def adding(name, several):
        def add(x, hook):
            if several[0][1] is None:
                return x + zeros[several[0][0]]
            return x + torch.stack([zeros[label] for label, _ in several], dim=2)

        return name, add

    points = {}
    for receiver in wiring.receivers:
        name, head = input_of(model, receiver)
        points.setdefault(name, []).append((receiver.label, head))
    hooks = [("blocks.0.hook_resid_pre", lambda x, hook: start)]
    hooks += [(name, lambda x, hook: held[hook.name]) for name in held]
    hooks += [adding(name, several) for name, several in points.items()]
    value = difference(model.run_with_hooks(tokens, fwd_hooks=hooks), answer, wrong).sum()
    return torch.autograd.grad(value, [zeros[r.label] for r in wiring.receivers], allow_unused=True)


@pytest.mark.parametrize("shape", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize(("points", "first"), [("right", 1.0), ("left", 0.0), ("middle", 0.5)])
@pytest.mark.parametrize("activations", [False, True])
def test_eap_ig_is_what_the_paper_and_its_code_define(shape, points, first, activations):
    model, steps = toy(shape).double(), 3
    wiring = Wiring.of(model)
    clean, corrupted, answer, wrong, _, groups = prepared(model)
    found, _ = estimated(model, wiring, groups, steps=steps, points=points, activations=activations)
    before, after = outputs(model, clean), outputs(model, corrupted)
    names = ["blocks.0.hook_resid_pre"]
    if activations:
        for layer in range(model.config.n_layers):
            names += [f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_mlp_out"]
    with torch.no_grad():
        one, other = (model.run_with_cache(tokens, names=names)[1] for tokens in (clean, corrupted))
    expected = np.zeros((len(clean), len(wiring)))
    for name in names:
        for step in range(steps):
            value = other[name] + (step + first) / steps * (one[name] - other[name])
            start = value if name == names[0] else one[names[0]]
            held = {} if name == names[0] else {name: value}
            grads = gradients(model, wiring, clean, start, held, answer, wrong)
            for edge, (sender, target) in enumerate(zip(wiring.senders, wiring.targets, strict=True)):
                label = wiring.nodes[sender].label
                if grads[target] is not None:
                    expected[:, edge] += ((before[label] - after[label]) * grads[target]).sum((-1, -2)).numpy()
    expected /= steps * len(names)
    np.testing.assert_allclose(found, expected, **CLOSE)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("shape", ["gpt2", "llama", "neox", "attention only"])
def test_exact_edges_and_nodes_are_a_loop_of_hooks(shape):
    model = toy(shape).double()
    wiring = Wiring.of(model)
    clean, corrupted, answer, wrong, measured, groups = prepared(model)
    found = exact_edges(model, wiring, groups, measured.clean, np.ones(len(wiring), dtype=bool))
    nodes = exact_nodes(model, wiring, groups, measured.clean)
    before, after = outputs(model, clean), outputs(model, corrupted)
    with torch.no_grad():
        own = difference(model(clean), answer, wrong)
    for edge, (sender, target) in enumerate(zip(wiring.senders, wiring.targets, strict=True)):
        label = wiring.nodes[sender].label
        logits = patched(model, clean, wiring.receivers[target], after[label] - before[label])
        np.testing.assert_allclose(found[:, edge], own - difference(logits, answer, wrong), **CLOSE)
    assert np.abs(found).max() > 1e-2
    everything = exact_nodes(model, wiring, groups, measured.clean)[:, 0]
    np.testing.assert_allclose(everything, measured.clean - measured.corrupted, **CLOSE)  # all enters by the embedding
    assert np.isfinite(nodes).all()


def linear_model():
    """No norm, attention that looks everywhere alike, ReLU that is always on: logits are linear in the embeddings."""
    model = make_gpt(norm=None, act_fn="relu", positions="learned").double()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q_flat.zero_()
            block.attn.W_K_flat.zero_()
            block.mlp.b_in += 100
    return model


def test_on_a_linear_model_attribution_is_the_truth_and_on_another_it_is_not():
    for model, same in ((linear_model(), True), (toy("gpt2").double(), False)):
        wiring = Wiring.of(model)
        *_, measured, groups = prepared(model)
        estimate, _ = estimated(model, wiring, groups, steps=1, points="right", activations=False)
        truth = exact_edges(model, wiring, groups, measured.clean, np.ones(len(wiring), dtype=bool))
        assert np.allclose(estimate, truth, rtol=0, atol=1e-9) == same
        assert np.abs(truth).max() > 1e-3


# The circuit as a file and as a change of the model.


@pytest.mark.parametrize("shape", ["gpt2", "llama", "gemma2", "neox", "attention only"])
def test_a_circuits_hooks_are_its_run_with_and_without_a_kv_cache(shape):
    model = toy(shape).double()
    wiring, tokens = Wiring.of(model), tokens_for(model, 2, 6)
    chosen = np.random.default_rng(0).random(len(wiring)) < 0.5
    circuit = Circuit(wiring, chosen, np.zeros(len(wiring)))
    kept = Outputs.of(model, tokens)
    for held, ready in ((kept.mean(-3, -2), circuit.over(model, kept)), (kept.zeroed(), circuit.over(model))):
        expected = CircuitRuns(model, wiring, tokens, held).logits(torch.tensor(wiring.mask(chosen))[None])[0]
        with torch.no_grad(), model.hooks(ready):
            found = model(tokens)
            cached = model.generate(tokens, max_new_tokens=4, temperature=0.0)
            whole = model.generate(tokens, max_new_tokens=4, temperature=0.0, use_cache=False)
        np.testing.assert_allclose(found[:, -1:], expected, **CLOSE)
        assert torch.equal(cached, whole)
        with torch.no_grad():
            assert (model(tokens) - found).abs().max() > 1e-2  # and the hooks are gone
    with pytest.raises(InputError, match="outside"), model.hooks(circuit):
        pass


@pytest.mark.parametrize("shape", ["gpt2", "llama", "neox"])
def test_a_file_comes_back_and_has_the_published_layout(shape, tmp_path):
    model = toy(shape)
    wiring, rng = Wiring.of(model), np.random.default_rng(0)
    scores, chosen = rng.normal(size=len(wiring)), rng.random(len(wiring)) < 0.3
    stable = np.where(chosen, 0.9, np.nan)
    circuit = Circuit(wiring, chosen, scores, measures={"stability": stable}, facts={"task": "x", "seed": 3})
    said = json.loads(circuit.to_json(tmp_path / "c.json"))
    assert {"cfg", "nodes", "edges"} <= said.keys()
    assert said["cfg"]["n_layers"] == model.config.n_layers
    assert {"input", "a0.h0", "m0", "logits"} <= said["nodes"].keys()
    assert "input->a0.h0<q>" in said["edges"]
    assert "a0.h1->logits" in said["edges"]
    heads, layers = model.config.n_heads, model.config.n_layers
    beside = 0 if model.config.parallel else heads  # an MLP hears the heads of its own layer
    before = [1 + layer * (heads + 1) for layer in range(layers)]
    ungrouped = sum((3 * heads + 1) * nodes + beside for nodes in before) + 1 + layers * (heads + 1)
    assert len(said["edges"]) == ungrouped  # the code released with EAP-IG: each head has keys and values of its own
    again = Circuit.from_json(CircuitFile.load(str(tmp_path / "c.json")).said, model)
    assert (again.chosen == chosen).all()
    assert again.facts["seed"] == 3
    np.testing.assert_array_equal(again.scores, scores)
    np.testing.assert_array_equal(again.measures["stability"], stable)


def test_a_file_that_is_not_of_this_model_is_refused():
    model = toy("llama")
    circuit = Circuit(Wiring.of(model), np.zeros(len(Wiring.of(model)), dtype=bool), np.zeros(len(Wiring.of(model))))
    said = json.loads(circuit.to_json())
    shared = next(names for names in edge_names(circuit.wiring) if len(names) > 1)
    with pytest.raises(InputError, match="share keys and values"):
        Circuit.from_json(said | {"edges": said["edges"] | {shared[0]: {"score": 1, "in_graph": True}}}, model)
    with pytest.raises(InputError, match="n_layers"):
        Circuit.from_json(said | {"cfg": said["cfg"] | {"n_layers": 7}}, model)
    with pytest.raises(InputError, match="is not in this model"):
        Circuit.from_json(said | {"edges": said["edges"] | {"m0->m9": {"in_graph": False}}}, model)
    with pytest.raises(InputError, match="is not in the file"):
        Circuit.from_json(said | {"edges": {"input->m0": {"in_graph": False}}}, model)
    with pytest.raises(InputError, match="no circuit"):
        Circuit.from_json("{}", model)
    with pytest.raises(InputError, match="no number"):
        Circuit.from_json(said | {"edges": said["edges"] | {"m0->logits": {"in_graph": 1, "score": "a"}}}, model)
    with pytest.raises(InputError, match="no number"):
        Circuit.from_json(said | {"edges": said["edges"] | {"m0->logits": {"in_graph": 1, "score": 10**400}}}, model)


# Faithfulness, areas, intervals, stability.


def test_faithfulness_and_areas_in_closed_form():
    none, whole = np.array([1.0, 3.0]), np.array([2.0, 5.0])
    np.testing.assert_allclose(faithfulness(np.stack([none, whole, (none + whole) / 2]), none, whole), [0, 1, 0.5])
    shares = np.array([0.1, 0.5, 1.0])
    curve = Curve(np.array([1, 5, 10]), (none + shares[:, None] * (whole - none))[None])
    line = curve.measured(none, whole, np.array([0, 1]))
    np.testing.assert_allclose(line, shares)
    assert area(shares, line) == pytest.approx((1 - 0.1**2) / 2)
    assert area(shares, np.abs(1 - line)) == pytest.approx(0.9**2 / 2)


@pytest.mark.parametrize("n", [4, 7, 12, 40])
def test_intervals_of_a_ratio_cover_it(n):
    rng, hits, times = np.random.default_rng(n), 0, 300
    for _ in range(times):
        gap = rng.gamma(8, 0.5, size=n)
        kept = 0.8 * gap + rng.normal(size=n)
        ends = interval(lambda w, x=kept, g=gap: faithfulness(x, 0 * x, g, w), np.arange(n), n, None, 0)
        hits += ends[0] <= 0.8 <= ends[1]
    assert 0.90 <= hits / times <= 0.985


def test_a_search_that_cannot_err_is_stable_and_one_of_noise_comes_back_by_chance():
    rng, n, edges, size = np.random.default_rng(0), 20, 2000, 100
    first, rest = np.arange(10), np.arange(10, 20)

    def choose(scores):
        return np.isin(np.arange(edges), np.argsort(-scores)[:size])

    options = {"discovery": first, "clusters": None, "resamples": 50, "seed": 0}
    same = np.tile(rng.normal(size=edges), (n, 1))
    sure = stability(same, choose, others={"others": same[rest]}, **options)
    assert sure.kept == 1
    assert sure.table["kept"].eq(1).all()
    assert set(sure.found) == {0, 1}
    drawn = rng.normal(size=(n, edges))
    noise = stability(drawn, choose, others={"others": drawn[rest], "none": drawn[:0]}, **options)
    assert list(noise.table["changed"]) == ["prompts drawn again", "others"]
    assert noise.kept < 0.6
    assert noise.table["kept"].iloc[1] == pytest.approx(size / edges, abs=0.06)  # on prompts of its own
    templates = stability(rng.normal(size=(n, edges)), choose, others={}, **options | {"clusters": ["a", "b"] * 10})
    assert list(templates.table["changed"])[-1] == "one template alone"


# The analysis.


def test_a_run_holds_out_prompts_repeats_itself_and_tells_its_columns():
    model = make_gpt(d_vocab=40)
    tokens, other = pair_of(model, 12, 6)
    answer, wrong = torch.arange(12), torch.arange(12) + 12
    options = {"answer": answer, "wrong": wrong, "size": 0.2, "exact": 5, "resamples": 10, "random": 2}
    one, two = (circuits(model, tokens, other, **options) for _ in range(2))
    frame = one.to_dataframe()
    assert list(frame) == ["sender", "receiver", "input", "score", "exact", "low", "high", "stability"]
    assert frame.equals(two.to_dataframe())
    assert len(frame) == len(Wiring.of(model))
    assert not set(one.discovery) & set(one.held_out)
    assert len(one.discovery) + len(one.held_out) == 12
    assert frame["stability"].iloc[: one.size].min() > 0
    assert one.circuit.size == one.size
    assert one.facts()["edges"] == one.size == round(0.2 * len(frame))
    file = CircuitFile(json.loads(one.saved()))
    with pytest.raises(InputError, match="size beside a circuit's file"):
        circuits(model, tokens, other, **options, from_=file)
    with pytest.raises(InputError, match="exact beside a circuit's file"):
        circuits(model, tokens, other, **options | {"size": None, "exact": 3}, from_=file)
    plain = {name: value for name, value in options.items() if name not in ("size", "exact", "resamples", "faithful")}
    given = circuits(model, tokens, other, **plain, from_=file)
    said = " ".join([panel.caption for panel in given.panels()] + [found.text for found in given.findings()])
    assert "are the file's, of its own" in said
    assert "found on" not in said.replace("may have been found on", "")
    np.testing.assert_allclose(given.own, one.own, rtol=0, atol=1e-5)
    assert given.stability is None
    assert (given.circuit.chosen == one.circuit.chosen).all()


@pytest.mark.parametrize(("method", "level"), [("eap", "edge"), ("eap", "node"), ("exact", "node")])
def test_made_prompts_are_made_again_of_another_seed(method, level):
    tiny = HookedGPT.from_pretrained("tiny")
    options = {"method": method, "level": level, "size": 0.2, "exact": 0, "resamples": 2, "random": 1}
    found = circuits(tiny, task="induction", n=4, **options)
    other = circuits(tiny, induction_prompts(tiny, 4, seed=1), held_out=0, **options).circuit.chosen
    table = found.stability.table.set_index("changed")
    chosen = found.circuit.chosen
    if level == "node":
        senders = found.circuit.wiring.senders
        chosen, other = (np.unique(senders[one]) for one in (chosen, other))
        chosen, other = (one[one > 0] for one in (chosen, other))
        kept = len(np.intersect1d(chosen, other)) / len(chosen)
    else:
        kept = (chosen & other).sum() / chosen.sum()
    assert table.loc["prompts of another seed", "kept"] == pytest.approx(kept)
    assert 0 < kept <= 1
    assert "prompts of another seed" not in set(
        circuits(tiny, induction_prompts(tiny, 4), **options).stability.table["changed"]
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_positions_sum_to_the_edges_estimate_and_nothing_is_before_the_first_that_differs(shape):
    model = toy(shape)
    first = 2
    clean = tokens_for(model, 3, 6)
    corrupted = clean.clone()
    corrupted[:, first:] = clean.roll(1, 0)[:, first:]
    pairs = resolve_pairs(model, clean, corrupted)
    (group,) = groups_of(model, pairs, measure(model, pairs, "logit_diff"))
    wiring, how = Wiring.of(model), {"steps": 2, "points": "right", "activations": False}
    apart, _ = estimated_of(model, wiring, group, apart=True, **how)
    edges, _ = estimated(model, wiring, [group], **how)
    np.testing.assert_allclose(apart.sum(-1), edges, rtol=0, atol=1e-5 * np.abs(edges).max())
    assert apart[..., :first].any() != model.config.causal  # the control sees both ways
    assert np.abs(apart[..., first:]).max() > 1e-3 * np.abs(edges).max()
    if not model.config.causal:
        return
    found = circuits(model, clean, corrupted, size=0.3, exact=0, resamples=2, random=1, steps=2)
    leading = wiring.pruned(found.circuit.chosen)
    np.testing.assert_allclose(found.by_position, apart[0, leading], rtol=0, atol=1e-5)
    sends, reads = (panel for panel in found.panels() if panel.key in ("sends", "reads"))
    assert sends.values.sum() == pytest.approx(found.by_position.sum(), abs=1e-5)
    assert reads.values.sum() == pytest.approx(found.by_position.sum(), abs=1e-5)
    assert len(sends.columns) == 6
    assert set(sends.rows) == {wiring.nodes[sender].label for sender in wiring.senders[leading]}


def test_nodes_carry_all_that_they_send():
    model = make_gpt(d_vocab=40)
    tokens, other = pair_of(model, 8, 6)
    found = circuits(
        model, tokens, other, level="node", size=0.5, answer=torch.arange(8), wrong=torch.arange(8) + 8, resamples=5,
        random=1,
    )  # fmt: skip
    wiring = found.circuit.wiring
    for sender in range(len(wiring.nodes)):
        assert len(set(found.circuit.chosen[wiring.senders == sender])) == 1
    inside = {wiring.senders[edge] for edge in np.flatnonzero(found.circuit.chosen)}
    assert len(inside) == 1 + round(0.5 * (len(wiring.nodes) - 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"size": 1.5},
        {"size": 0.0},
        {"held_out": -0.1},
        {"random": 0},
        {"faithful": float("nan")},
        {"threshold": 0.1, "level": "node"},
        {"threshold": 0.1, "size": 0.1},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong):
    model = make_gpt(d_vocab=40)
    with pytest.raises(InputError):
        circuits(model, *pair_of(model, 4, 5), **wrong)
